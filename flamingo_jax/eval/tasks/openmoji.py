"""What the demo has learnt, on pictures it has never seen, every figure beside its controls.

Sight is judged by the shuffled control (the same question about another picture): what remains
right there is owed to the text. "Chance" is what an answer without looking gets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from flamingo_jax.data.openmoji import collection, probes, splits
from flamingo_jax.data.openmoji.collection import Collection, Picture, caption
from flamingo_jax.eval.choices import Answers, Examiner, Question
from flamingo_jax.eval.generate import Settings, generate
from flamingo_jax.eval.media import MediaEncoder
from flamingo_jax.eval.rows import Prompt
from flamingo_jax.eval.tasks import Request, Subject, Towers

GROUPS = {splits.COMBINATIONS: "unseen combinations", splits.CONCEPTS: "unseen concepts"}
CURVE_QUERIES = 64
"""Questions of each point of a few-shot curve: their prompts are long."""
CLIP_QUERIES = 128
"""Questions about clips of each kind: eight frames are to be encoded for each."""
SAMPLES = {splits.COMBINATIONS: 24, splits.CONCEPTS: 12}


@dataclasses.dataclass(frozen=True)
class Check:
    """One row of the results table; see report for its meaning."""

    key: str
    title: str
    unit: str
    n: int
    value: float
    control: float | None = None
    control_name: str = "shuffled picture"
    chance: float | None = None


def run(subject: Subject, request: Request) -> dict[str, Any]:
    """Asks every probe of the split and captions a few held-out pictures."""
    known = collection.load(subject.image_size)
    examiner = Examiner(subject.graph, subject.params, subject.tokenizer, request.batch)
    checks = [*_naming(known, examiner, request), *_facts(known, examiner, request)]
    if subject.towers is not None:
        checks += _retrieval(known, subject.towers, request)
    checks.append(_largest_gate(subject))
    curves = _curves(known, examiner, request)
    return {
        "title": "OpenMoji, held-out pictures",
        "split": request.split,
        "seed": request.seed,
        "checks": [dataclasses.asdict(check) for check in checks],
        "curves": curves,
        "samples": _samples(known, subject, request),
    }


def _questions(probe: probes.Probe, limit: int) -> list[Question]:
    items = probe.items[:limit] if limit else probe.items
    return [
        Question(
            _pixels(item.medium.data),
            _pixels(item.control.data),
            tuple((_pixels(medium.data), text) for medium, text in item.shots),
            item.prompt,
            item.choices,
            item.answer,
        )
        for item in items
    ]


def _pixels(data: Any) -> np.ndarray:
    pixels = np.asarray(data)
    return pixels[None] if pixels.ndim == 3 else pixels


def _asked(
    probe: probes.Probe, examiner: Examiner, limit: int, blind: bool = False
) -> tuple[Answers, Answers, Answers | None]:
    """Answers with the right picture, with another one and, if asked for, with none."""
    questions = _questions(probe, limit)
    right = examiner.ask(questions, "right", probe.ends)
    shuffled = examiner.ask(questions, "shuffled", probe.ends)
    none = examiner.ask(questions, "none", probe.ends) if blind else None
    return right, shuffled, none


def _naming(known: Collection, examiner: Examiner, request: Request) -> Iterator[Check]:
    for group, title in GROUPS.items():
        probe = probes.naming(known, request.split, request.seed, group)
        right, shuffled, none = _asked(probe, examiner, request.queries, blind=True)
        assert none is not None
        n, chance = len(right.answers), 100 * probe.chance
        yield Check(
            f"{group}/names", f"{title}: one of 16 random names", "%", n,
            right.right(), shuffled.right(), chance=chance,
        )  # fmt: skip
        yield Check(
            f"{group}/names minus prior", f"{title}: the same, minus no-picture score", "%", n,
            right.right(none), shuffled.right(none), chance=chance,
        )  # fmt: skip
        yield Check(
            f"{group}/nll gap", f"{title}: shuffled minus right, NLL of the name", "nats/token", n,
            shuffled.nll() - right.nll(), none.nll() - right.nll(), "no picture minus right",
        )  # fmt: skip
        yield Check(
            f"{group}/nll",
            f"{title}: NLL of the name",
            "nats/token",
            n,
            right.nll(),
            shuffled.nll(),
        )
    probe = probes.within_family(known, request.split, request.seed)
    right, shuffled, _ = _asked(probe, examiner, request.queries)
    yield Check(
        f"{splits.COMBINATIONS}/family", "unseen combinations: one of its own family", "%",
        len(right.answers), right.right(), shuffled.right(), chance=100 * probe.chance,
    )  # fmt: skip


def _facts(known: Collection, examiner: Examiner, request: Request) -> Iterator[Check]:
    asked = [
        (f"{group}/colour", f"{title}: first colour, 11-way",
         probes.first_colour(known, request.split, request.seed, group), request.queries)
        for group, title in GROUPS.items()
    ]  # fmt: skip
    limit = min(request.queries or CLIP_QUERIES, CLIP_QUERIES)
    asked.append(
        ("clips/motion", "clips: which of six motions",
         probes.motion(known, request.split, request.seed), limit)
    )  # fmt: skip
    asked.append(
        ("clips/order", "clips: which of two pictures came first",
         probes.succession(known, request.split, request.seed), limit)
    )  # fmt: skip
    for key, title, probe, limit in asked:
        right, shuffled, _ = _asked(probe, examiner, limit)
        n = len(right.answers)
        yield Check(key, title, "%", n, right.right(), shuffled.right(), chance=100 * probe.chance)


def _retrieval(known: Collection, towers: Towers, request: Request) -> Iterator[Check]:
    """The contrastive encoder alone: which of 64 names is the picture's?"""
    for group, title in GROUPS.items():
        for rivals, key, among in (
            (None, "retrieval", "64 names"),
            (group, "retrieval in group", f"64 names of {title}"),
        ):
            sought = probes.retrieval(known, request.split, request.seed, group, rivals)
            if not sought.media:
                continue
            images = towers.images([_pixels(medium.data)[0] for medium in sought.media])
            names = sorted({name for gallery in sought.galleries for name in gallery})
            places = {name: place for place, name in enumerate(names)}
            columns = np.asarray([[places[n] for n in gallery] for gallery in sought.galleries])
            scores = images @ towers.texts(names).T
            right, shuffled = _found(scores, columns), _found(np.roll(scores, 1, axis=0), columns)
            yield Check(
                f"{group}/{key}", f"{title}: contrastive retrieval among {among}", "%",
                len(columns), right, shuffled, chance=100 / probes.GALLERY,
            )  # fmt: skip


def _found(scores: np.ndarray, columns: np.ndarray) -> float:
    """The share of rows whose first column has the highest score alone, in percent.

    Args:
      scores: f32[pictures, names].
      columns: i32[pictures, 64], each picture's gallery, the true name first.
    """
    own = np.take_along_axis(scores, columns, axis=1)
    return 100.0 * float(np.mean(own[:, 0] > np.max(own[:, 1:], axis=1)))


def _largest_gate(subject: Subject) -> Check:
    layers = subject.params["xattn"]
    gates = [np.abs(np.tanh(np.asarray(layers[k]))) for k in ("gate_attention", "gate_dense")]
    return Check(
        "gates/largest", "largest |tanh(gate)|", "", 2 * len(gates[0]), float(np.max(gates))
    )


def _curves(known: Collection, examiner: Examiner, request: Request) -> list[dict[str, Any]]:
    limit = min(request.queries or CURVE_QUERIES, CURVE_QUERIES)
    group = splits.COMBINATIONS
    title = GROUPS[group]
    new_format = _curve(
        f"{group}/new format",
        f"{title}: a format never trained (“{probes.NEW_FORMAT}”), one of 16 names",
        [probes.new_format(known, request.split, request.seed, group, k) for k in probes.SHOTS],
        examiner,
        limit,
    )
    series = [probes.series(known, request.split, request.seed, k) for k in probes.SHOTS]
    title = f"{title}: one of its own family, after examples of that family"
    return [new_format, _curve(f"{group}/series", title, series, examiner, limit)]


def _curve(
    key: str, title: str, points: Sequence[probes.Probe], examiner: Examiner, limit: int
) -> dict[str, Any]:
    """Accuracy and NLL over the number of shots."""
    right, shuffled, chance, nll, count = [], [], [], [], 0
    for probe in points:
        own, other, _ = _asked(probe, examiner, limit)
        right.append(own.right())
        shuffled.append(other.right())
        chance.append(100 * probe.chance)
        nll.append(own.nll())
        count = len(own.answers)
    return {
        "key": key,
        "title": f"{title} (n = {count})",
        "x": list(probes.SHOTS),
        "x_name": "shots",
        "y_name": "right, %",
        "series": [
            {"name": "right picture", "y": right},
            {"name": "shuffled picture", "y": shuffled},
            {"name": "chance", "y": chance},
        ],
        "nll": nll,
    }


def _samples(known: Collection, subject: Subject, request: Request) -> list[dict[str, Any]]:
    """Greedy captions of a few held-out pictures, the pictures written to `request.folder`."""
    chosen: list[tuple[str, Picture]] = []
    for group, title in GROUPS.items():
        pictures = list(known.of(request.split, group))
        order = np.random.default_rng(request.seed).permutation(len(pictures))
        count = min(SAMPLES[group], request.queries or len(pictures), len(pictures))
        chosen += [(title, pictures[i]) for i in order[:count]]
    t = subject.tokenizer
    head = [] if t.bos is None else [t.bos]
    media = MediaEncoder(subject.graph, subject.params).media_tokens(
        [picture.pixels[None] for _, picture in chosen]
    )
    tokens = [*head, *t.image]
    sees = [0] * len(head) + [1] * len(t.image)
    settings = Settings(max_new_tokens=request.max_new_tokens, stop=(t.eoc,))
    written = generate(
        subject.graph,
        subject.params,
        [Prompt(tokens, sees, [one]) for one in media],
        settings,
        request.batch,
    )
    request.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, ((title, picture), new) in enumerate(zip(chosen, written, strict=True)):
        name = f"{number:03d}.png"
        Image.fromarray(picture.pixels).save(request.folder / name)
        text = t.decode([token for token in new.tokens if token != t.eoc]).strip()
        truth = caption(picture)
        row = {"group": title, "image": f"{request.folder.name}/{name}", "truth": truth}
        rows.append({**row, "generated": text, "correct": text == truth})
    return rows
