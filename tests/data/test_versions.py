"""Augmented versions of a picture: few, the same at each visit, and so are their features."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from flamingo_jax.data.augment import AugmentSpec
from flamingo_jax.data.document import Document, Medium
from flamingo_jax.data.pipeline import Pipeline
from flamingo_jax.data.rows import CLEAN, DatasetSpec, enumerate_media, render_version
from flamingo_jax.data.tokenizer import open_tokenizer
from flamingo_jax.errors import InputError

TOKENIZER = open_tokenizer("bytes")
SEED, SIDE, STEPS, K = 3, 8, 6, 3
AUGMENT = AugmentSpec(flip=0.5, brightness=0.3, hue=0.2, scale=(0.6, 1.2), shift=0.2)


def picture(number: int) -> Medium:
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    return Medium(pixels, f"picture-{number}")


PAIRS = [Document((picture(i), f"no. {i}"), f"pair-{i}") for i in range(23)]
PAGES = [
    Document((picture(3 * i), f"text {i}", picture(3 * i + 1), "and more"), f"page-{i}")
    for i in range(9)
]
SOURCES: dict[str, Any] = {"alt": PAIRS, "pages": PAGES}
FRESH = DatasetSpec("alt", "pair", 8, 12, image_size=SIDE, augment=AUGMENT)
VERSIONED = {
    "alt": dataclasses.replace(FRESH, versions=K),
    "pages": DatasetSpec("pages", "page", 4, 24, 2, image_size=SIDE, augment=AUGMENT, versions=K),
}


def pipeline(specs: Mapping[str, DatasetSpec], **options: Any) -> Pipeline:
    options = {"seed": SEED, "steps": STEPS, "sources": SOURCES} | options
    return Pipeline(options.pop("sources"), specs, TOKENIZER, **options)


def test_versions_are_few_and_the_same_in_every_dataset() -> None:
    looks = collections.defaultdict(set)
    one = pipeline(VERSIONED, steps=40)
    for step in range(40):
        batch = one[step]["alt"]
        for place, media in enumerate(batch.media[:, 0]):
            looks[one.row_index("alt", step, place)].add(media.tobytes())
    for number, seen in looks.items():
        medium = PAIRS[number].items[0]
        assert isinstance(medium, Medium)
        # rendered for another dataset: names do not count
        rendered = {render_version(medium, VERSIONED["pages"], SEED, v).tobytes() for v in range(K)}
        assert len(rendered) == K and seen <= rendered
    assert len(looks) == 23 and sum(map(len, looks.values())) > 60
    fresh = pipeline({"alt": FRESH}, steps=40)
    seen = [fresh[s]["alt"].media[r].tobytes() for s in range(40) for r in range(8)]
    assert len(set(seen)) == len(seen)


class Table:
    """Features that tell what they were made of: the means of eight parts of the picture."""

    shape = (2, 4)

    def __init__(self, spec: DatasetSpec, source: Any) -> None:
        self.rows = {}
        for medium in enumerate_media(source):
            for version in (CLEAN, *range(K)):
                pixels = render_version(medium, spec, SEED, version)
                self.rows[medium.key, version] = features_of(pixels)

    def __getitem__(self, key: tuple[str, int]) -> np.ndarray:
        return self.rows[key]


def features_of(pixels: np.ndarray) -> np.ndarray:
    """bf16[F, 2, 4] of u8[F, Y, X, 3]."""
    parts = pixels.reshape(len(pixels), 2, SIDE // 2, 4, SIDE // 4, 3)
    return parts.mean((2, 4, 5)).astype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("train", [True, False])
def test_cached_features_are_those_of_the_pixels(train: bool) -> None:
    tables = {name: Table(row, SOURCES[name]) for name, row in VERSIONED.items()}
    cached = pipeline(VERSIONED, features=tables, train=train)
    pixels = pipeline(VERSIONED, train=train)
    for step in range(3):
        for name, row in VERSIONED.items():
            left, right = cached[step][name], pixels[step][name]
            assert left.media.dtype == ml_dtypes.bfloat16
            assert left.media.shape == (row.batch, row.images, row.frames, 2, 4)
            for field in ("tokens", "positions", "frames", "media_of_token", "loss_mask"):
                assert np.array_equal(getattr(left, field), getattr(right, field))
            for seen, shown, frames in zip(left.media, right.media, right.frames, strict=True):
                for m, count in enumerate(frames):
                    assert np.array_equal(seen[m, :count], features_of(shown[m, :count]))
                    assert not seen[m, count:].any()


def test_what_could_not_be_encoded_is_replaced_like_what_cannot_be_decoded() -> None:
    row = {"alt": VERSIONED["alt"]}
    table = Table(row["alt"], PAIRS)
    for version in (CLEAN, *range(K)):
        del table.rows["picture-3", version]
    source = [*PAIRS[:3], Document((Medium(b"", "x"), "no. 3"), "x")]
    cached = pipeline(row, sources={"alt": PAIRS[:4]}, features={"alt": table})
    pixels = pipeline(row, sources={"alt": source})
    for step in range(STEPS):
        assert np.array_equal(cached[step]["alt"].tokens, pixels[step]["alt"].tokens)
    lists = [
        [(step, r.row, r.attempt, r.index) for step, r in one.rejects("alt", STEPS - 1)]
        for one in (cached, pixels)
    ]
    assert lists[0] == lists[1] != []


def test_features_need_versions() -> None:
    table = Table(FRESH, PAIRS)
    with pytest.raises(InputError, match="versions"):
        pipeline({"alt": FRESH}, features={"alt": table})
    plain = dataclasses.replace(FRESH, augment=AugmentSpec())
    assert pipeline({"alt": plain}, features={"alt": table})[0]["alt"].media.ndim == 5


def keys(source: Any) -> list[str]:
    return [medium.key for medium in enumerate_media(source)]


def test_media_are_enumerated_once() -> None:
    assert keys(PAIRS) == [f"picture-{i}" for i in range(23)]
    assert len(keys(PAGES)) == 18
    shared = [*PAIRS[:3], *PAIRS[1:4], Document(("text",), "t")]
    assert keys(shared) == [f"picture-{i}" for i in range(4)]

    class Quick(list):
        def media(self) -> list[Medium]:
            return [picture(1), picture(1), picture(2)]

    assert keys(Quick()) == ["picture-1", "picture-2"]
