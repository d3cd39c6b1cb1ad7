"""Pictures inside the page: embedding them, and the gallery of what was said of them."""

from __future__ import annotations

import base64
import io
import pathlib

from PIL import Image

from flamingo_jax.report import wording
from flamingo_jax.report.markup import Markup, tag
from flamingo_jax.report.reading import Run, Sample

MOST_SAMPLES = 240  # in the gallery; a report of thousands opens on no phone
MOST_BYTES = 30_000  # of a picture embedded as it is; larger ones are made smaller
MOST_PIXELS = 50_000_000  # of a picture that is opened at all
SIDE = 320  # of a picture made smaller
KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}


def embed(folder: pathlib.Path, name: str) -> str | None:
    """A picture of the workdir as a data URI; None if it is absent, elsewhere or no picture."""
    path = folder / name
    try:
        if not name or not path.resolve().is_relative_to(folder.resolve()):
            return None
        if path.stat().st_size <= MOST_BYTES:
            content = path.read_bytes()
            kind = next((k for magic, k in KINDS.items() if content.startswith(magic)), None)
        else:
            content, kind = _smaller(path), "jpeg"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    if kind is None:
        return None
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _smaller(path: pathlib.Path) -> bytes:
    with Image.open(path) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many to be shown")
        image.thumbnail((SIDE, SIDE))
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image.convert("RGBA"))
    out = io.BytesIO()
    paper.convert("RGB").save(out, "JPEG", quality=88)
    return out.getvalue()


def picture(folder: pathlib.Path, name: str, alt: str) -> Markup:
    """An `img`, or a box that says that the picture is missing."""
    uri = embed(folder, name)
    if uri is None:
        return tag("span", "no picture", class_="no-picture", title=name)
    return tag("img", src=uri, alt=alt, loading="lazy")


def gallery(run: Run) -> Markup | None:
    """Held-out pictures by group, generated text beside the truth, with filters and an order."""
    groups: dict[str, list[Sample]] = {}
    for task in run.tasks:
        for sample in task.samples:
            name = sample.group or task.title
            groups.setdefault(name if len(run.tasks) == 1 else f"{task.title}: {name}", []).append(
                sample
            )
    if not groups:
        return None
    share = max(MOST_SAMPLES // len(groups), 1)
    total = sum(map(len, groups.values()))
    shown = sum(min(len(samples), share) for samples in groups.values())
    left = f"The first {shown:,} of {total:,} are shown." if shown < total else None
    return tag(
        "div",
        _controls(list(groups)),
        [_group(run.workdir, name, samples, share) for name, samples in groups.items()],
        tag("p", left, class_="note") if left else None,
        class_="gallery",
    )


def _controls(groups: list[str]) -> Markup:
    def choice(label: str, key: str, values: list[tuple[str, str]]) -> Markup:
        options = [tag("option", text, value=value) for value, text in values]
        return tag("label", label, " ", tag("select", options, data_filter=key))

    correctness = [("", "all"), ("1", "right"), ("0", "wrong")]
    orders = [("order", "as evaluated"), ("wrong", "wrong first"), ("truth", "by truth, A to Z")]
    return tag(
        "div",
        choice("Group", "group", [("", "all"), *((name, name) for name in groups)])
        if len(groups) > 1
        else None,
        choice("Show", "correct", correctness),
        choice("Order", "sort", orders),
        class_="controls",
    )


def _group(folder: pathlib.Path, name: str, samples: list[Sample], share: int) -> Markup:
    right = sum(sample.correct for sample in samples)
    score = f"{right:,} of {wording.plural(len(samples), 'picture')} right"
    cards = [_card(folder, index, sample) for index, sample in enumerate(samples[:share])]
    return tag(
        "div",
        tag("h3", name, " ", tag("span", score, class_="unit")),
        tag("div", cards, class_="samples"),
        class_="sample-group",
        data_group=name,
    )


def _card(folder: pathlib.Path, index: int, sample: Sample) -> Markup:
    verdict = "right" if sample.correct else "wrong"
    said = sample.generated.strip() or "(nothing)"
    return tag(
        "figure",
        picture(folder, sample.image, sample.truth),
        tag(
            "figcaption",
            tag("p", tag("span", verdict, class_="verdict"), said, class_="said"),
            tag("p", tag("span", "truth"), sample.truth, class_="truth"),
        ),
        class_=f"sample {verdict}",
        data_order=index,
        data_correct=int(sample.correct),
        data_truth=sample.truth,
    )
