"""Corpora opened as a config names them: formats, files, splits, options."""

import dataclasses
import json
import pathlib
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.data import sources
from flamingo_jax.data.corpora import mmc4
from flamingo_jax.data.corpora.source import CORPORA, Places, make_options
from flamingo_jax.data.document import Medium
from flamingo_jax.data.sources import SourceSpec
from flamingo_jax.errors import InputError


def jsonl(path: pathlib.Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("total", [0, 1, 5, 10, 11, 23])
@pytest.mark.parametrize("every", [0, 2, 5, 10])
def test_every_record_is_in_one_split(total: int, every: int) -> None:
    train, held = Places(total, every), Places(total, every, held=True)
    found = [train[i] for i in range(len(train))] + [held[i] for i in range(len(held))]
    assert sorted(found) == list(range(total))
    assert [train[i] for i in range(len(train))] == sorted(train[i] for i in range(len(train)))
    assert len(held) == (total // every if every else 0)
    for places in (train, held):
        with pytest.raises(IndexError):
            places[len(places)]


def test_splits(tmp_path: pathlib.Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": f"text {i}"} for i in range(20)])
    other = jsonl(tmp_path / "b.jsonl", [{"text": "another"}])

    def texts(split: str, **fields) -> list:
        source = sources.open_source(SourceSpec("texts", path, **fields), split)
        return [source[i].items[0] for i in range(len(source))]

    assert len(texts("train")) == 20
    assert texts("validation", held_out=10) == ["text 9", "text 19"]
    assert not {"text 9", "text 19"} & set(texts("train", held_out=10))
    assert texts("validation", validation_path=other) == ["another"]
    assert len(texts("train", validation_path=other, held_out=10)) == 20
    with pytest.raises(InputError, match="no validation split"):
        texts("validation")
    for held_out in (1, -1):
        for split in sources.SPLITS:
            with pytest.raises(InputError, match=f"held_out is {held_out}"):
                texts(split, held_out=held_out)
    with pytest.raises(InputError, match=r"one record in 21 is held out, but .* has 20; lower"):
        texts("validation", held_out=21)
    assert len(texts("train", held_out=21)) == 20


@given(st.integers(0, 300), st.integers(2, 40) | st.just(0))
def test_splits_are_for_good(total: int, every: int) -> None:
    """Disjoint, all of it, evenly spread, and what comes behind changes none that was there."""

    def both(count: int) -> tuple[list[int], list[int]]:
        train, held = Places(count, every), Places(count, every, held=True)
        return [train[i] for i in range(len(train))], [held[i] for i in range(len(held))]

    train, held = both(total)
    assert sorted(train + held) == list(range(total)) and train == sorted(train)
    assert not every or held == list(range(every - 1, total, every))
    more_train, more_held = both(total + 7)
    assert (more_train[: len(train)], more_held[: len(held)]) == (train, held)
    assert both(total) == (train, held)
    for places in (Places(total, every), Places(total, every, held=True)):
        for index in (-1, len(places)):
            with pytest.raises(IndexError):
                places[index]


def test_options(tmp_path: pathlib.Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"note": " long enough ", "text": "no"}])
    spec = SourceSpec("texts", path, options={"texts": ["note"], "strip": True})
    assert sources.open_source(spec)[0].items == ("long enough",)
    for options, said in (
        (
            {"txts": ("note",)},
            r"'texts' has no option 'txts' \(do you mean 'texts'\?\); it has texts",
        ),
        ({"min_charcters": 3}, "do you mean 'min_characters'"),
        ({"q": 3}, "no option 'q'; it has texts, strip"),
        ({"strip": 1}, "takes a bool"),
        ({"texts": [1]}, "texts: texts is .* list of names"),
        ({"texts": ["text", ""]}, "texts: texts is .* list of names"),
        ({"texts": []}, "texts: texts is .* list of names"),
        ({"texts": {"text"}}, "takes a tuple"),
        ({"min_characters": True}, "takes a int"),
        ({"texts": "note"}, "takes a tuple"),
    ):
        with pytest.raises(InputError, match=said):
            sources.open_source(SourceSpec("texts", path, options=options))
    made = make_options(
        "mmc4", mmc4.Mmc4Options, {"seed": 3}, {"min_similarity": 0, "min_bytes": 7}
    )
    assert made == mmc4.Mmc4Options(seed=3, min_similarity=0.0, min_bytes=7)
    assert make_options("mmc4", mmc4.Mmc4Options, {"seed": 3}, {"seed": 4}).seed == 4


def test_formats_and_files(tmp_path: pathlib.Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"picture")
    path = jsonl(tmp_path / "a.jsonl", [{"image": "a.png", "caption": "one"}])
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(tmp_path / "pictures" / "a.png", "a.png")
    for files in (str(tmp_path / "pictures"), str(tmp_path / "images.tar")):
        medium, text = sources.open_source(SourceSpec("pairs", path, files))[0].items
        assert isinstance(medium, Medium) and (medium.data, medium.key) == (b"picture", "a.png")
        assert text == "one"
    (tmp_path / "b.csv").write_text("x")
    for bad, said in (
        (str(tmp_path), r"mixes \.jsonl and \.tar"),
        (str(tmp_path / "b.csv"), "no known format"),
        (str(tmp_path / "absent.tar"), "there is no file"),
    ):
        with pytest.raises(InputError, match=said):
            sources.open_source(SourceSpec("pairs", bad))
    with pytest.raises(InputError, match="not prepared"):
        sources.open_source(SourceSpec("prepared", path))
    with pytest.raises(InputError, match="no part 'x'"):
        sources.open_source(SourceSpec("pairs:x", path))


def test_every_corpus_is_a_source() -> None:
    assert CORPORA.keys() <= sources.REGISTRY.keys()


def test_every_option_is_told_of() -> None:
    """Each option stands in its class's docstring or in that of a class above, has a default, and
    takes that very default; messages say whose option is wrong."""
    for corpus, (_, kind) in CORPORA.items():
        told = "".join(cls.__doc__ or "" for cls in kind.__mro__)
        options = {field.name: field.default for field in dataclasses.fields(kind)}
        assert not [name for name in options if f"\n      {name}: " not in told]
        assert make_options(corpus, kind, {}, options) == kind()
        for name, value in options.items():
            wrong = {int: -1, float: float("nan"), tuple: (), str: "none", bool: None}[type(value)]
            if name in ("between", "seed"):  # any text, any number
                assert getattr(make_options(corpus, kind, {}, {name: wrong}), name) == wrong
                continue
            with pytest.raises(InputError, match=corpus):
                make_options(corpus, kind, {}, {name: wrong})
    with pytest.raises(InputError, match="'prepared' has no option 'x'; it has none"):
        make_options("prepared", CORPORA["prepared"][1], {}, {"x": 1})
