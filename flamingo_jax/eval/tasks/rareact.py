"""RareAct: unusual actions ("hammer a phone"), every clip ranked under every action, without shots.

rareact.csv: id, video_id, start, end, class_id, verb, noun, annotation (1 = the action is seen, 0 =
it is not, 2 to 4 = only the verb, only the noun, or both but not together). A clip is scored
against all classes; how annotations make mWAP of that is the metric's business, which needs every
row: a missing clip leaves its row out, and the score is then of the rest.

A class reads "cuts a laptop" (Flamingo v1: the verb in the third person, and an article).
"""

from __future__ import annotations

from flamingo_jax.eval.examples import CHOICE, Example
from flamingo_jax.eval.tasks.entries import Entry, Files, Need, Pools
from flamingo_jax.eval.tasks.reading import read_csv

_PAGE = "https://github.com/antoine77340/RareAct"
_COLUMNS = ("id", "video_id", "start", "end", "class_id", "verb", "noun", "annotation")
_SEEN = 1
_NO_ARTICLE = {"bacon", "chocolate", "corn", "hair"}
"""Nouns of the set that are not counted."""


def phrase(verb: str, noun: str) -> str:
    """What a person does: ("wash", "apple") → "washes an apple"."""
    if verb.endswith(("s", "sh", "ch", "x", "z", "o")):
        verb += "es"
    elif verb.endswith("y") and verb[-2:-1] not in "aeiou":
        verb = verb[:-1] + "ies"
    else:
        verb += "s"
    plural = noun.endswith("s") and not noun.endswith("ss")
    article = "" if plural or noun in _NO_ARTICLE else "an " if noun[:1] in "aeiou" else "a "
    return f"{verb} {article}{noun}"


def _read(files: Files) -> Pools:
    clips, path = files.clips("all.clips"), files.file("annotations")
    records = list(read_csv(path, _COLUMNS))
    names: dict[int, str] = {}
    for record in records:
        number = record.integer("class_id")
        name = phrase(record.filled("verb"), record.filled("noun"))
        if names.setdefault(number, name) != name:
            raise record.wrong(f"class_id {number} is {name!r} here and {names[number]!r} before")
    if sorted(names) != list(range(len(names))):
        raise records[-1].wrong(f"class_id has gaps: {len(names)} classes, up to {max(names)}")
    classes = tuple(names[number] for number in range(len(names)))
    queries = []
    for record in records:
        number, annotation = record.integer("class_id"), record.integer("annotation")
        start, end = record.number("start"), record.number("end")
        if not 0 <= start < end:
            raise record.wrong(f"start {start:g} and end {end:g} are no part of a clip")
        clip = clips.part(record.filled("video_id"), start, end)
        if clip is None:
            continue
        about = {name: record.text(name) for name in ("video_id", "verb", "noun")}
        numbers = {name: record.integer(name) for name in ("id", "class_id", "annotation")}
        seen = annotation == _SEEN
        queries.append(
            Example(
                record.filled("id"),
                clip,
                answers=(classes[number],) if seen else (),
                choices=classes,
                right=number if seen else None,
                label=classes[number],
                about={**about, **numbers},
            )
        )
    return Pools((), queries, classes, clips.check(len(queries)))


RAREACT = Entry(
    name="rareact",
    title="RareAct",
    kind=CHOICE,
    metric="mwap",
    medium="video",
    page=_PAGE,
    licence="Apache 2.0 for the annotations",
    needs=(
        Need("annotations", ("rareact.csv",), "actions of all clips", _PAGE),
        Need("all.clips", ("videos", "rareact"), "all recordings",
             "https://www.rocq.inria.fr/cluster-willow/amiech/rareact.zip"),
    ),
    splits=("test",),
    read=_read,
)  # fmt: skip
