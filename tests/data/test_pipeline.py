"""Batches by step: the same from any start, with any threads, on any number of hosts."""

import dataclasses
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from flamingo_jax.data.augment import AugmentSpec
from flamingo_jax.data.document import Document, Medium
from flamingo_jax.data.faults import LEAST_READS, Dropped
from flamingo_jax.data.pipeline import TRIES, Pipeline
from flamingo_jax.data.rows import DatasetSpec, make_row
from flamingo_jax.data.sources import SourceSpec, open_source
from flamingo_jax.data.tokenizer import open_tokenizer
from flamingo_jax.errors import InputError
from flamingo_jax.shapes import Batch

TOKENIZER = open_tokenizer("bytes")
SIDE, STEPS = 8, 6
AUGMENT = AugmentSpec(flip=0.5, brightness=0.3, hue=0.2, scale=(0.6, 1.2), shift=0.2)


class Ordered(list):
    """A source whose order is part of what it teaches."""

    ordered = True


def picture(number: int, frames: int = 1) -> Medium:
    pixels = np.random.default_rng(number).integers(0, 256, (frames, SIDE, SIDE, 3), np.uint8)
    return Medium(pixels, f"picture-{number}", "image" if frames == 1 else "clip")


PAIRS = [Document((picture(i), f"no. {i}"), f"pair-{i}") for i in range(23)]
CLIPS = [Document((picture(i, 2 + i), f"clip {i}"), f"clip-{i}") for i in range(4)]
PAGES = [
    Document(("first ", picture(3 * i), f"text {i} of <EOC> this", picture(3 * i + 1)), f"p{i}")
    for i in range(9)
]
TEXTS = [Document((f"a story that is long, no. {i}",), f"t{i}") for i in range(7)]
SOURCES: dict[str, Any] = {"alt": PAIRS, "clips": CLIPS, "pages": PAGES, "texts": TEXTS}


def spec(name: str, layout: str, batch: int, length: int, **fields: Any) -> DatasetSpec:
    fields = {"image_size": SIDE, "augment": AUGMENT} | fields
    return DatasetSpec(name, layout, batch, length, **fields)


SPECS = {
    "alt": spec("alt", "pair", 8, 12, leading_space=0.5),
    "pages": spec("pages", "page", 4, 24, images=2, p_next=0.5),
    "clips": spec("clips", "clip", 4, 16, frames=3),
    "texts": spec("texts", "text", 4, 10),
}


def pipeline(specs: Mapping[str, DatasetSpec] = SPECS, **options: Any) -> Pipeline:
    options = {"seed": 3, "steps": STEPS} | options
    return Pipeline(options.pop("sources", SOURCES), specs, TOKENIZER, **options)


def arrays(batches: dict[str, Batch]) -> dict[tuple[str, str], np.ndarray]:
    return {
        (name, field.name): getattr(batch, field.name)
        for name, batch in batches.items()
        for field in dataclasses.fields(batch)
    }


def same(left: dict[str, Batch], right: dict[str, Batch]) -> bool:
    a, b = arrays(left), arrays(right)
    return list(a) == list(b) and all(np.array_equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def straight() -> list[dict[str, Batch]]:
    """All steps, read one after the other without threads."""
    plain = pipeline(threads=1)
    return [plain[step] for step in range(STEPS)]


def test_shapes_and_dtypes(straight: list[dict[str, Batch]]) -> None:
    assert list(straight[0]) == list(SPECS)
    for name, row in SPECS.items():
        batch = straight[0][name]
        m = 0 if row.layout == "text" else row.images
        expected = {
            "tokens": (np.int32, (row.batch, row.length)),
            "positions": (np.int32, (row.batch, row.length)),
            "media": (np.uint8, (row.batch, m, row.frames, SIDE, SIDE, 3)),
            "frames": (np.int32, (row.batch, m)),
            "media_of_token": (np.int32, (row.batch, row.length)),
            "loss_mask": (np.float32, (row.batch, row.length)),
        }
        for field, (dtype, shape) in expected.items():
            array = getattr(batch, field)
            assert isinstance(array, np.ndarray)
            assert (array.dtype, array.shape) == (dtype, shape), (name, field)


@pytest.mark.parametrize("start", [0, 1, STEPS - 1, STEPS])
def test_any_start_sees_the_same_steps(straight: list[dict[str, Batch]], start: int) -> None:
    read = list(pipeline().iterate(start))
    assert len(read) == STEPS - start
    assert all(same(a, b) for a, b in zip(read, straight[start:], strict=True))


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 0), (3, 1), (16, 4)])
def test_threads_change_nothing(
    straight: list[dict[str, Batch]], threads: int, prefetch: int
) -> None:
    read = pipeline(threads=threads, prefetch=prefetch).iterate()
    assert all(same(a, b) for a, b in zip(read, straight, strict=True))


def test_an_abandoned_iterator_leaves_the_pipeline_usable(
    straight: list[dict[str, Batch]],
) -> None:
    one = pipeline()
    iterator = one.iterate()
    next(iterator)
    iterator.close()
    assert same(one[4], straight[4])


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_make_their_parts_of_the_same_batch(
    straight: list[dict[str, Batch]], hosts: int
) -> None:
    parts = []
    for host in range(hosts):
        rows = {
            name: (row.batch // hosts * host, row.batch // hosts * (host + 1))
            for name, row in SPECS.items()
        }
        parts.append(pipeline(rows=rows))
    for step in (0, STEPS - 1):
        split = [arrays(part[step]) for part in parts]
        for key, whole in arrays(straight[step]).items():
            assert np.array_equal(np.concatenate([part[key] for part in split]), whole)


def test_seeds_differ_and_repeat(straight: list[dict[str, Batch]]) -> None:
    assert same(pipeline()[2], straight[2])
    other = arrays(pipeline(seed=4)[2])
    assert not np.array_equal(other["alt", "tokens"], straight[2]["alt"].tokens)
    for name in ("alt", "pages", "clips"):
        assert not np.array_equal(other[name, "media"], straight[2][name].media)


def test_each_epoch_shows_every_document_once() -> None:
    row = spec("alt", "pair", 5, 12)
    one = pipeline({"alt": row}, steps=23)
    seen = [one.row_index("alt", step, place) for step in range(23) for place in range(5)]
    epochs = [seen[start : start + 23] for start in range(0, 115, 23)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == len(epochs)  # another order each time
    texts = [texts_of(one[step]["alt"]) for step in range(23)]
    assert [t.strip() for step in texts for t in step] == [f"no. {i}" for i in seen]


def test_an_ordered_source_is_not_shuffled() -> None:
    one = pipeline({"alt": SPECS["alt"]}, sources={"alt": Ordered(PAIRS)})
    assert [one.row_index("alt", 2, place) for place in range(8)] == [*range(16, 23), 0]
    assert not np.array_equal(one[0]["alt"].media[0, 0], pixels_of(PAIRS[0]))  # yet augmented


def texts_of(batch: Batch) -> list[str]:
    return [
        TOKENIZER.decode(row[places >= 0])
        for row, places in zip(batch.tokens, batch.positions, strict=True)
    ]


def test_a_row_is_a_pure_function_of_seed_name_and_index(
    straight: list[dict[str, Batch]],
) -> None:
    one = pipeline()
    for name, row in SPECS.items():
        place = row.batch - 1
        document = SOURCES[name][one.row_index(name, 2, place)]
        made = make_row(document, row, TOKENIZER, 3, 2 * row.batch + place)
        for field, value in made.items():
            assert np.array_equal(value, getattr(straight[2][name], field)[place])


def test_a_dataset_added_later_begins_at_its_own_beginning(
    straight: list[dict[str, Batch]],
) -> None:
    late = pipeline(first_step={"pages": 2})
    for step in range(2, STEPS):
        batches = late[step]
        assert same({"pages": batches["pages"]}, {"pages": straight[step - 2]["pages"]})
        assert same({"alt": batches["alt"]}, {"alt": straight[step]["alt"]})
    with pytest.raises(IndexError, match="begins at step 2"):
        late[1]
    with pytest.raises(IndexError):
        late[STEPS]


def test_training_draws_what_validation_does_not(straight: list[dict[str, Batch]]) -> None:
    fixed = pipeline(train=False)
    for batches in straight[:2]:
        spaces = [text.startswith(" ") for text in texts_of(batches["alt"])]
        assert any(spaces) and not all(spaces)
    first = fixed[0]["alt"]
    assert texts_of(first) == [f"no. {i}" for i in range(8)]  # in the source's order
    clean = np.stack([pixels_of(PAIRS[i]) for i in range(8)])
    assert np.array_equal(first.media[:, 0], clean)
    assert texts_of(fixed[2]["alt"]) == [f"no. {i % 23}" for i in range(16, 24)]  # and around
    # p_next is never drawn: a page's first token after <BOS> sees no image
    whole = {"pages": dataclasses.replace(SPECS["pages"], length=80, p_next=1.0)}
    assert pipeline(whole, train=False)[0]["pages"].media_of_token[:, 1].tolist() == [0] * 4
    assert pipeline(whole)[0]["pages"].media_of_token[:, 1].tolist() == [1] * 4


def pixels_of(document: Document) -> np.ndarray:
    medium = next(item for item in document.items if isinstance(item, Medium))
    assert isinstance(medium.data, np.ndarray)
    return medium.data


def test_captions_cannot_smuggle_control_tokens(straight: list[dict[str, Batch]]) -> None:
    whole = {"pages": dataclasses.replace(SPECS["pages"], length=80)}
    batch = pipeline(whole, train=False)[0]["pages"]
    assert (np.sum(batch.tokens == TOKENIZER.eoc, axis=1) == 3).all()
    assert all("<EOC>" in text for text in texts_of(batch))


def test_clips_are_padded_with_absent_frames(straight: list[dict[str, Batch]]) -> None:
    batch = straight[0]["clips"]
    lengths = [min(len(pixels_of(CLIPS[i])), 3) for i in range(4)]
    assert sorted(batch.frames[:, 0].tolist()) == sorted(lengths)
    for media, frames in zip(batch.media[:, 0], batch.frames[:, 0], strict=True):
        assert media[:frames].any(axis=(1, 2, 3)).all() and not media[frames:].any()


def test_text_rows_have_no_media(straight: list[dict[str, Batch]]) -> None:
    batch = straight[0]["texts"]
    assert batch.media.shape[1] == 0 and not batch.media_of_token.any()
    windows = {text for step in straight for text in texts_of(step["texts"])}
    assert len(windows) > 7  # random windows of seven texts
    assert all(any(w in str(t.items[0]) for t in TEXTS) for w in windows)


def test_contrastive_rows() -> None:
    row = spec("alt", "contrastive", 4, 12)
    batch = pipeline({"alt": row})[0]["alt"]
    assert batch.media.shape == (4, 1, 1, SIDE, SIDE, 3) and (batch.frames == 1).all()
    assert not batch.media_of_token.any()
    assert np.array_equal(batch.loss_mask, batch.positions >= 0)
    assert not (batch.tokens >= TOKENIZER.vocab).any()


def spoilt(bad: int, total: int = 40) -> list[Document]:
    """A source some of whose pictures cannot be decoded."""
    good = [Document((picture(i), f"no. {i}"), f"{i}") for i in range(bad, total)]
    kinds = (
        Document((Medium(b"garbage", "bad"), "text"), "bad picture"),
        Document((picture(0),), "no text"),
        Document(("text",), "no medium"),
    )
    return [kinds[i % 3] for i in range(bad)] + good


def test_bad_records_are_replaced_the_same_way_each_time() -> None:
    row = {"alt": spec("alt", "pair", 8, 12)}
    one, two = (pipeline(row, sources={"alt": spoilt(20)}, threads=t) for t in (1, 8))
    batches = [one[step] for step in range(STEPS)]
    assert all(same(a, b) for a, b in zip(two.iterate(), batches, strict=True))
    texts = [text for step in batches for text in texts_of(step["alt"])]
    used = [one.row_index("alt", step, place) for step in range(STEPS) for place in range(8)]
    assert [f"no. {i}" for i in used] == texts
    listed = one.rejects("alt", STEPS - 1)
    assert {reject.reason for _, reject in listed} == {"not an image", "no text", "no medium"}
    first = [(step, reject.row, reject.index) for step, reject in listed if reject.attempt == 0]
    named = [order_index(one, step, p) for step in range(STEPS) for p in range(8)]
    assert first == [(row // 8, row, index) for row, index in enumerate(named) if index < 20]
    assert two.rejects("alt", 1) + two.rejects("alt", STEPS - 1) == listed
    assert not two.rejects("alt", STEPS - 1)


def test_replacements_are_forgotten_once_later_rejects_were_told() -> None:
    row = {"alt": spec("alt", "pair", 8, 12)}
    one = pipeline(row, sources={"alt": spoilt(20)})
    for step in range(STEPS):
        texts = texts_of(one[step]["alt"])
        assert [f"no. {one.row_index('alt', step, place)}" for place in range(8)] == texts
        one.rejects("alt", step)
        assert [f"no. {one.row_index('alt', step, place)}" for place in range(8)] == texts
        assert len(one._datasets["alt"]._reader._replaced) <= 8
        if step:
            with pytest.raises(IndexError, match="forgotten"):
                one.row_index("alt", step - 1, 0)


def test_a_page_that_breaks_off_leaves_no_pixels_behind() -> None:
    good = [Document((picture(i), f"no. {i}"), f"good-{i}") for i in range(3)]
    broken = Document((picture(7), "a", Medium(b"garbage", "bad"), "b"), "breaks off")
    row = {"pages": spec("pages", "page", 8, 24, images=2)}
    batch = pipeline(row, sources={"pages": [broken, *good]}, train=False)[0]["pages"]
    assert (batch.frames == [1, 0]).all()
    assert batch.media[:, 0].any(axis=(1, 2, 3, 4)).all() and not batch.media[:, 1].any()
    one = {"pages": dataclasses.replace(row["pages"], images=3, batch=1)}
    first = pipeline(one, sources={"pages": [broken, TEXTS[0]]}, train=False)[0]["pages"]
    assert not first.frames.any() and not first.media.any()


def order_index(one: Pipeline, step: int, place: int) -> int:
    """What the order names, before any replacement."""
    return one._datasets["alt"]._document(step * 8 + place)


def test_a_source_of_nothing_but_bad_records_is_named() -> None:
    row = {"alt": spec("alt", "pair", 2, 12)}
    one = pipeline(row, sources={"alt": spoilt(6, 6)})
    with pytest.raises(InputError, match=r"dataset 'alt'.*no medium"):
        one[0]
    with pytest.raises(InputError, match="dataset 'alt'"):
        next(one.iterate())
    assert len(one.rejects("alt", 0)) >= TRIES


def test_too_many_bad_records_stop_the_run() -> None:
    row = {"alt": spec("alt", "pair", 8, 12)}
    steps = LEAST_READS // 8 + 2
    with pytest.raises(InputError, match=r"dataset 'alt': \d+ of \d+ records .*max_bad=0.3"):
        list(pipeline(row, sources={"alt": spoilt(20)}, steps=steps, max_bad=0.3).iterate())
    one = pipeline(row, sources={"alt": spoilt(8)}, steps=steps, max_bad=0.3)
    assert len(list(one.iterate())) == steps


def test_what_rules_drop_does_not_count_as_bad() -> None:
    class Rules(list):
        def __getitem__(self, index):
            if index % 10:
                raise Dropped("dropped: one image", str(index))
            return super().__getitem__(index)

    row = {"alt": spec("alt", "pair", 8, 12)}
    steps = LEAST_READS // 8 + 2
    one = pipeline(row, sources={"alt": Rules(spoilt(0))}, steps=steps, max_bad=0.1)
    batches = list(one.iterate())
    assert {text for step in batches for text in texts_of(step["alt"])} == {
        f"no. {i}" for i in range(0, 40, 10)
    }
    assert {reject.reason for _, reject in one.rejects("alt", steps - 1)} == {"dropped: one image"}


def test_what_cannot_be_met_is_refused() -> None:
    cases = [
        ({"layout": "story"}, SOURCES, "layout is 'story'"),
        ({"resize": "bend"}, SOURCES, "resize"),
        ({"length": 2}, SOURCES, "at least 3"),
        ({"fps": 0.0}, SOURCES, "fps is 0.0"),
        ({}, {"alt": []}, "no documents"),
    ]
    for change, sources, words in cases:
        row = {"alt": dataclasses.replace(SPECS["alt"], **change)}
        with pytest.raises(InputError, match=words):
            pipeline(row, sources=sources)


def test_shared_pages(shared: pathlib.Path) -> None:
    folder = str(shared / "data" / "interleaved")
    pages = open_source(SourceSpec("obelics", f"{folder}/obelics/val*.parquet", folder))
    row = {"m3w": spec("m3w", "page", 4, 2048, images=3, image_size=32, p_next=0.5)}
    one = pipeline(row, sources={"m3w": pages}, steps=3)
    for batch in (batches["m3w"] for batches in one.iterate()):
        assert (batch.frames.sum(1) == batch.media_of_token.max(1)).all()
        assert batch.media[batch.frames > 0].std(axis=(1, 2, 3, 4)).min() > 0
        assert not batch.media[batch.frames == 0].any()
        assert batch.loss_mask.sum() > 0
    assert not one.rejects("m3w", 2)


def test_a_process_that_stops_in_the_middle_ends_quietly(tmp_path: pathlib.Path) -> None:
    script = tmp_path / "stops.py"
    script.write_text(
        "from flamingo_jax.data.document import Document\n"
        "from flamingo_jax.data.pipeline import Pipeline\n"
        "from flamingo_jax.data.rows import DatasetSpec\n"
        "from flamingo_jax.data.tokenizer import open_tokenizer\n"
        "source = [Document((f'text {i}',), str(i)) for i in range(9)]\n"
        "row = DatasetSpec('t', 'text', 64, 64)\n"
        "one = Pipeline({'t': source}, {'t': row}, open_tokenizer('bytes'), seed=0, steps=10_000)\n"
        "iterator = one.iterate()\n"
        "next(iterator)\n"
        "print('done')\n",
        encoding="utf-8",
    )
    ended = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")
