"""What the demo has learnt, on pictures it has never seen, every figure beside its controls.

Sight is judged by the shuffled control (the same question about another picture): what remains
right there is owed to the text. "Chance" is what an answer without looking gets.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
NEW_FORMAT, SERIES = "new format", "series"
CURVES = {
    NEW_FORMAT: f"a format never trained (“{probes.NEW_FORMAT}”), one of 16 names",
    SERIES: "one of its own family, after examples of that family",
}
"""What is asked with 0, 2, 4 and 8 shots, by its key."""
SHORT = {
    NEW_FORMAT: "format never trained, one of 16 names",
    SERIES: "page of its family, one of it",
}
"""The same in a row of the table."""
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
    checked: list[Callable[[], list[Check]]] = [
        *(functools.partial(_naming, known, examiner, request, group) for group in GROUPS),
        functools.partial(_family, known, examiner, request),
        *(functools.partial(_colour, known, examiner, request, group) for group in GROUPS),
        functools.partial(_motion, known, examiner, request),
        functools.partial(_order, known, examiner, request),
        functools.partial(_retrieval, known, subject.towers, request),
    ]
    points = [functools.partial(_points, known, examiner, request, shots) for shots in probes.SHOTS]
    samples = functools.partial(_samples, known, subject, request)
    found = _two_at_a_time([*points, *checked, samples])
    of_shots, of_checks = found[: len(points)], found[len(points) : -1]
    curves = {curve: [of_curve[curve] for of_curve in of_shots] for curve in CURVES}
    return {
        "title": "OpenMoji, held-out pictures",
        "split": request.split,
        "seed": request.seed,
        "checks": [
            dataclasses.asdict(check)
            for check in (
                *itertools.chain.from_iterable(of_checks),
                _largest_gate(subject),
                *(point.check() for point in itertools.chain.from_iterable(curves.values())),
            )
        ],
        "curves": [_curve(curve, of_curve) for curve, of_curve in curves.items()],
        "samples": found[-1],
    }


def _two_at_a_time(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """The jobs' results, in order: while one's programs are compiled, another's run."""
    with ThreadPoolExecutor(2, thread_name_prefix="evaluate") as pool:
        waiting = [pool.submit(job) for job in jobs]
        try:
            return [job.result() for job in waiting]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


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


def _naming(known: Collection, examiner: Examiner, request: Request, group: str) -> list[Check]:
    title = GROUPS[group]
    probe = probes.naming(known, request.split, request.seed, group)
    right, shuffled, none = _asked(probe, examiner, request.queries, blind=True)
    assert none is not None
    n, chance = len(right.answers), 100 * probe.chance
    return [
        Check(
            f"{group}/names", f"{title}: one of 16 random names", "%", n,
            right.right(), shuffled.right(), chance=chance,
        ),
        Check(
            f"{group}/names minus prior", f"{title}: the same, minus no-picture score", "%", n,
            right.right(none), shuffled.right(none), chance=chance,
        ),
        Check(
            f"{group}/nll gap", f"{title}: shuffled minus right, NLL of the name", "nats/token", n,
            shuffled.nll() - right.nll(), none.nll() - right.nll(), "no picture minus right",
        ),
        Check(
            f"{group}/nll", f"{title}: NLL of the name", "nats/token", n,
            right.nll(), shuffled.nll(),
        ),
    ]  # fmt: skip


def _family(known: Collection, examiner: Examiner, request: Request) -> list[Check]:
    probe = probes.within_family(known, request.split, request.seed)
    title = f"{GROUPS[splits.COMBINATIONS]}: one of its own family"
    return [_choice(f"{splits.COMBINATIONS}/family", title, probe, examiner, request.queries)]


def _colour(known: Collection, examiner: Examiner, request: Request, group: str) -> list[Check]:
    probe = probes.first_colour(known, request.split, request.seed, group)
    title = f"{GROUPS[group]}: first colour, 11-way"
    return [_choice(f"{group}/colour", title, probe, examiner, request.queries)]


def _motion(known: Collection, examiner: Examiner, request: Request) -> list[Check]:
    probe = probes.motion(known, request.split, request.seed)
    title, limit = "clips: which of six motions", _limit(request, CLIP_QUERIES)
    return [_choice("clips/motion", title, probe, examiner, limit)]


def _order(known: Collection, examiner: Examiner, request: Request) -> list[Check]:
    probe = probes.succession(known, request.split, request.seed)
    title, limit = "clips: which of two pictures came first", _limit(request, CLIP_QUERIES)
    return [_choice("clips/order", title, probe, examiner, limit)]


def _choice(key: str, title: str, probe: probes.Probe, examiner: Examiner, limit: int) -> Check:
    right, shuffled, _ = _asked(probe, examiner, limit)
    n, chance = len(right.answers), 100 * probe.chance
    return Check(key, title, "%", n, right.right(), shuffled.right(), chance=chance)


def _limit(request: Request, most: int) -> int:
    return min(request.queries or most, most)


def _retrieval(known: Collection, towers: Towers | None, request: Request) -> list[Check]:
    """The contrastive encoder alone: which of 64 names is the picture's?"""
    checks = []
    if towers is None:
        return []
    asked = [(group, rivals) for group in GROUPS for rivals in (None, group)]
    for group, rivals in asked:
        title = GROUPS[group]
        sought = probes.retrieval(known, request.split, request.seed, group, rivals)
        if not sought.media:
            continue
        images = towers.images([_pixels(medium.data)[0] for medium in sought.media])
        names = sorted({name for gallery in sought.galleries for name in gallery})
        places = {name: place for place, name in enumerate(names)}
        columns = np.asarray([[places[n] for n in gallery] for gallery in sought.galleries])
        scores = images @ towers.texts(names).T
        right, shuffled = _found(scores, columns), _found(np.roll(scores, 1, axis=0), columns)
        key, among = ("retrieval", "") if rivals is None else ("retrieval in group", f" of {title}")
        checks.append(
            Check(
                f"{group}/{key}", f"{title}: contrastive retrieval among 64 names{among}", "%",
                len(columns), right, shuffled, chance=100 / probes.GALLERY,
            )
        )  # fmt: skip
    return checks


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


@dataclasses.dataclass(frozen=True)
class Point:
    """What is found with one number of shots: percentages, and nats a token."""

    curve: str
    shots: int
    right: float
    shuffled: float
    chance: float
    nll: float
    n: int

    def check(self) -> Check:
        """Its row of the table."""
        group = splits.COMBINATIONS
        title = f"{GROUPS[group]}: {SHORT[self.curve]}, {self.shots} shots"
        key = f"{group}/{self.curve}, {self.shots} shots"
        return Check(key, title, "%", self.n, self.right, self.shuffled, chance=self.chance)


def _points(
    known: Collection, examiner: Examiner, request: Request, shots: int
) -> dict[str, Point]:
    """Every curve's point at one number of shots: asked together, they share their programs."""
    group = splits.COMBINATIONS
    asked = {
        NEW_FORMAT: probes.new_format(known, request.split, request.seed, group, shots),
        SERIES: probes.series(known, request.split, request.seed, shots),
    }
    limit = _limit(request, CURVE_QUERIES)
    own = {curve: _questions(probe, limit) for curve, probe in asked.items()}
    questions = [question for of_curve in own.values() for question in of_curve]
    [ends] = {probe.ends for probe in asked.values()}
    right = examiner.ask(questions, "right", ends)
    shuffled = examiner.ask(questions, "shuffled", ends)
    points, start = {}, 0
    for curve, probe in asked.items():
        n = len(own[curve])
        part, start = slice(start, start + n), start + n
        seen, other = right.part(part), shuffled.part(part)
        chance = 100 * probe.chance
        points[curve] = Point(curve, shots, seen.right(), other.right(), chance, seen.nll(), n)
    return points


def _curve(key: str, points: Sequence[Point]) -> dict[str, Any]:
    """Accuracy and NLL over the number of shots."""
    return {
        "key": f"{splits.COMBINATIONS}/{key}",
        "title": f"{GROUPS[splits.COMBINATIONS]}: {CURVES[key]} (n = {points[-1].n})",
        "x": list(probes.SHOTS),
        "x_name": "shots",
        "y_name": "right, %",
        "series": [
            {"name": "right picture", "y": [point.right for point in points]},
            {"name": "shuffled picture", "y": [point.shuffled for point in points]},
            {"name": "chance", "y": [point.chance for point in points]},
        ],
        "nll": [point.nll for point in points],
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
