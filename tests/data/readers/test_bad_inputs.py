"""Whatever is wrong with files and records: told, or read as they were; never wrong in silence.

Damage is done to the bytes of sound sets (`bad_inputs`) and to what their records hold
(`bad_cases`). Opening gives an InputError or a source; each index a document or a BadRecord; each
medium pixels or a BadRecord. Records that the damage does not touch are exactly what they were.
"""

import collections
import importlib.util
import os
import pathlib
import shutil
import time
import zlib
from typing import Any

import numpy as np
import pytest

from flamingo_jax.data import images, video
from flamingo_jax.data.document import Document, Medium
from flamingo_jax.data.faults import BadRecord
from flamingo_jax.errors import InputError

_SPEC = importlib.util.spec_from_file_location(
    "bad_cases", pathlib.Path(__file__).with_name("bad_cases.py")
)
assert _SPEC is not None and _SPEC.loader is not None
cases = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(cases)
sound = cases.sound

FEW, MANY = 24, 770  # cases of each kind of set: some 300 and 10,000 in all
SIZE = 32  # pixels a medium is decoded to
SECONDS = 20  # that a case may take; most take milliseconds
MOST = 50  # records of a damaged set that are read

Outcome = Document | BadRecord


def read(kind: Any, folder: pathlib.Path, files: dict[str, bytes]) -> list[Outcome] | None:
    """What each record of a set becomes; None if it cannot be opened."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    try:
        source = kind.open(folder)
    except InputError as error:
        assert str(error)
        return None
    found: list[Outcome] = []
    for index in range(min(len(source), MOST)):
        try:
            document = source[index]
            assert isinstance(document, Document)
            found.append(document)
        except BadRecord as error:
            assert error.reason
            found.append(error)
    for index in (-1, len(source)):
        with pytest.raises(IndexError):
            source[index]
    return found


def content(outcome: Outcome, folder: pathlib.Path) -> tuple[Any, ...] | None:
    """What a document holds, whatever it is called and wherever its files lie."""
    if isinstance(outcome, BadRecord):
        return None

    def plain(data: Any) -> Any:
        return os.path.relpath(data, folder) if isinstance(data, str) else data

    return tuple(
        (plain(item.data), item.key, item.kind) if isinstance(item, Medium) else item
        for item in outcome.items
    )


def texts(outcome: Outcome) -> list[str]:
    assert isinstance(outcome, Document)
    return [item for item in outcome.items if isinstance(item, str)]


def undecoded(outcome: Outcome) -> int:
    """How many media of a document cannot be decoded; the others give pixels."""
    failed = 0
    for item in outcome.items if isinstance(outcome, Document) else ():
        if not isinstance(item, Medium):
            assert item.encode("utf-8") or item == ""
            continue
        try:
            if item.kind == "clip":
                pixels = video.frames(item.data, 4, SIZE)
                assert pixels.shape[1:] == (SIZE, SIZE, 3) and 1 <= len(pixels) <= 4
            else:
                pixels = images.decode(item.data, SIZE)
                assert pixels.shape == (SIZE, SIZE, 3)
            assert pixels.dtype == np.uint8
        except BadRecord:
            failed += 1
    return failed


def check(case: Any, found: list[Outcome] | None, folder: pathlib.Path, whole: list) -> None:
    """Holds a damaged set against what it was: `whole`, (key, content, texts) of each record."""
    if found is None:
        assert not case.opens
        return
    contents = [content(outcome, folder) for outcome in found]
    known = collections.Counter(one for _, one, _ in whole)
    foreign = [index for index, one in enumerate(contents) if one is not None and one not in known]
    failed = {index: undecoded(found[index]) for index in foreign}
    # What is not as it was is a record that was touched, or the halves of one.
    assert len(foreign) <= 2 * len(case.touched)
    assert contents[: case.first] == [one for _, one, _ in whole[: case.first]]
    if not case.intact:
        if case.expected == "bad":
            lost = [whole[index][1] for index in case.touched]
            kept = [one for _, one, _ in whole if one not in lost]
            assert not foreign
            assert [one for one in contents if one is not None and one not in lost] == kept
        return
    assert len(found) == len(whole)
    for index, (key, one, said) in enumerate(whole):
        outcome = found[index]
        if index not in case.touched:
            assert isinstance(outcome, Document) and (outcome.key, contents[index]) == (key, one)
        elif case.expected == "bad":
            assert isinstance(outcome, BadRecord)
        elif case.expected in ("image", "texts"):
            assert texts(outcome) == said
            # A file that is named stays the same document, whatever the file holds.
            assert case.expected == "texts" or failed.get(index) or undecoded(outcome)


def run(name: str, numbers: range, folder: pathlib.Path) -> None:
    kind = sound.KINDS[name]
    packed = kind.packed()
    whole = []
    for outcome in read(kind, folder, packed[0]) or []:
        assert isinstance(outcome, Document) and not undecoded(outcome)
        whole.append((outcome.key, content(outcome, folder), texts(outcome)))
    assert len(whole) == len({key for key, *_ in whole}) == sound.RECORDS
    for number in numbers:
        rng = np.random.default_rng([zlib.crc32(name.encode()), number])
        case = cases.crafted(rng, kind, number // 2) if number % 2 else None
        case = case or cases.damaged(rng, kind, packed)
        place = folder / f"case{number}"
        began = time.monotonic()
        try:
            check(case, read(kind, place, case.files), place, whole)
        except Exception as error:
            raise AssertionError(f"{name}, case {number}: {case.about}: {error!r}") from error
        assert time.monotonic() - began < SECONDS, f"{name}, case {number}: {case.about}"
        shutil.rmtree(place)


@pytest.mark.parametrize("name", sound.KINDS)
def test_bad_inputs(name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAMINGO_CACHE", str(tmp_path / "indexes"))
    run(name, range(FEW), tmp_path)


def test_what_is_no_file_is_not_waited_for(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "none", "nul\0", "\ud800"):
        with pytest.raises(BadRecord, match="missing image file"):
            images.decode(str(tmp_path / name), SIZE)
        with pytest.raises(BadRecord, match="missing video file"):
            video.frames(str(tmp_path / name), 2, SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("name", sound.KINDS)
def test_many_bad_inputs(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAMINGO_CACHE", str(tmp_path / "indexes"))
    run(name, range(FEW, FEW + MANY), tmp_path)
