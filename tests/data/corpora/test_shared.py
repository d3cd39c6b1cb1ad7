"""The corpora on real records: pages in three layouts, pairs, clips and texts."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flamingo_jax.data.corpora import assignment, clips, mmc4, obelics, pairs, texts
from flamingo_jax.data.document import Document, Medium
from flamingo_jax.data.readers.record import Record

Read = Callable[[str], list[Record]]


def media_of(document: Document) -> list[Medium]:
    return [item for item in document.items if isinstance(item, Medium)]


def text_of(document: Document, between: str = " ") -> str:
    return between.join(item for item in document.items if isinstance(item, str))


def words(text: str) -> list[str]:
    return text.split()


@pytest.fixture(scope="module")
def obelics_pages(shared: pathlib.Path, shared_records: Read, folder: Any) -> dict[str, Document]:
    """By doc_id."""
    files = folder(shared / "data" / "interleaved")
    options = obelics.ObelicsOptions(missing="page")
    return {
        json.loads(record.fields["general_metadata"])["doc_id"]: obelics.parse(
            record, options, files
        )
        for record in shared_records("interleaved/obelics/*.parquet")
    }


@pytest.fixture(scope="module")
def mmc4_records(shared_records: Read) -> dict[str, Record]:
    """By doc_id."""
    return {
        record.fields["doc_id"]: record for record in shared_records("interleaved/mmc4/*.jsonl")
    }


@pytest.fixture(scope="module")
def mmc4_files(shared: pathlib.Path, folder: Any) -> Any:
    return folder(shared / "data" / "interleaved" / "images")


@pytest.fixture(scope="module")
def mmc4_pages(mmc4_records: dict[str, Record], mmc4_files: Any) -> dict[str, Document]:
    options = mmc4.Mmc4Options(missing="page")
    return {key: mmc4.parse(record, options, mmc4_files) for key, record in mmc4_records.items()}


def test_every_obelics_page_is_what_is_stored(
    shared: pathlib.Path, shared_records: Read, obelics_pages: dict[str, Document]
) -> None:
    images = shared / "data" / "interleaved"
    for record in shared_records("interleaved/obelics/*.parquet"):
        page = obelics_pages[json.loads(record.fields["general_metadata"])["doc_id"]]
        stored = zip(record.fields["images"], record.fields["texts"], strict=True)
        expected = [
            text if image is None else (image, (images / image).read_bytes())
            for image, text in stored
        ]
        found = [item if isinstance(item, str) else (item.key, item.data) for item in page.items]
        assert found == expected


def test_obelics_pages_are_the_same_from_json_lines_as_from_parquet(
    shared: pathlib.Path, shared_records: Read, obelics_pages: dict[str, Document], folder: Any
) -> None:
    files = folder(shared / "data" / "interleaved")
    for record in shared_records("interleaved/obelics/*.jsonl"):
        page = obelics.parse(record, obelics.ObelicsOptions(missing="page"), files)
        metadata = record.fields["general_metadata"]
        metadata = json.loads(metadata) if isinstance(metadata, str) else metadata
        assert page.items == obelics_pages[metadata["doc_id"]].items


def test_every_mmc4_image_stands_before_its_sentence(
    mmc4_records: dict[str, Record], mmc4_pages: dict[str, Document]
) -> None:
    for key, record in mmc4_records.items():
        sentences, page = record.fields["text_list"], mmc4_pages[key]
        assert text_of(page) == " ".join(sentences)
        assert len(media_of(page)) == len(record.fields["image_info"])
        for info in record.fields["image_info"]:
            place = next(
                i
                for i, item in enumerate(page.items)
                if isinstance(item, Medium)
                and item.key == info["image_name"]
                and text_of(Document(page.items[:i], ""))
                == " ".join(sentences[: info["matched_text_index"]])
            )
            following = page.items[place + 1]
            assert isinstance(following, str)
            assert following.startswith(sentences[info["matched_text_index"]])


def test_pages_are_the_same_in_obelics_and_mmc4(
    obelics_pages: dict[str, Document],
    mmc4_records: dict[str, Record],
    mmc4_pages: dict[str, Document],
) -> None:
    """Text differs in white space alone (MMC4 is split into sentences), images in their order.

    MMC4 moves each image to a sentence like it: sorting by it gives one order from the other.
    """
    assert obelics_pages.keys() == mmc4_pages.keys()
    moved = 0
    for key, page in obelics_pages.items():
        assert words(text_of(page)) == words(text_of(mmc4_pages[key]))
        images = [medium.data for medium in media_of(page)]
        indices = [info["matched_text_index"] for info in mmc4_records[key].fields["image_info"]]
        order = sorted(range(len(images)), key=indices.__getitem__)
        assert [medium.data for medium in media_of(mmc4_pages[key])] == [images[i] for i in order]
        moved += order != sorted(order)
    assert 0 < moved < len(obelics_pages)  # otherwise half of the rule went untested


def test_pages_are_the_same_in_both_layouts_of_mmc4(
    shared_records: Read, mmc4_pages: dict[str, Document]
) -> None:
    for record in shared_records("interleaved/mmc4-webdataset/*.tar"):
        page = mmc4.parse(record, mmc4.Mmc4Options(missing="page"))  # no Files: it has its images
        other = mmc4_pages[json.loads(record.fields["json"])["doc_id"]]
        assert len(page.items) == len(other.items)
        for item, same in zip(page.items, other.items, strict=True):
            if isinstance(item, Medium) and isinstance(same, Medium):
                assert item.data == same.data
                assert item.key.startswith(f"{same.key}#")
            else:
                assert item == same


def test_one_key_is_one_picture(
    obelics_pages: dict[str, Document], mmc4_pages: dict[str, Document]
) -> None:
    for pages in (obelics_pages, mmc4_pages):
        met: dict[str, bytes] = {}
        all_media = [medium for page in pages.values() for medium in media_of(page)]
        for medium in all_media:
            assert isinstance(medium.data, bytes)
            assert met.setdefault(medium.key, medium.data) == medium.data
        assert len(met) < len(all_media)  # pages do share pictures


def test_openflamingos_rules_on_real_pages(
    mmc4_records: dict[str, Record], mmc4_files: Any
) -> None:
    """The optimum is no worse than the matching of the file, and takes each sentence once."""
    better = 0
    for key, record in mmc4_records.items():
        infos, matrix = record.fields["image_info"], record.fields["similarity_matrix"]
        optimal = assignment.optimal(np.array(matrix))
        assert [row for row, _ in optimal] == list(range(len(infos)))
        assert len({column for _, column in optimal}) == len(infos)
        total = sum(matrix[row][column] for row, column in optimal)
        given = sum(matrix[i][info["matched_text_index"]] for i, info in enumerate(infos))
        assert total >= given - 1e-9
        better += total > given + 1e-9
        options = mmc4.Mmc4Options(assignment="optimal", min_similarity=0.24, min_images=0)
        page = mmc4.parse(record, options, mmc4_files)
        kept = {column: infos[row] for row, column in optimal if matrix[row][column] >= 0.24}
        names = [kept[column]["image_name"] for column in sorted(kept)]
        assert [medium.key for medium in media_of(page)] == names, key
        assert text_of(page) == " ".join(record.fields["text_list"])
    assert better


@pytest.mark.parametrize("pattern", ["pairs/align/*.tar", "pairs/stamps/*.tar", "pairs/ltip/*.tar"])
def test_pairs_are_their_image_and_their_txt(shared_records: Read, pattern: str) -> None:
    keys = set()
    records = shared_records(pattern)
    for record in records:
        medium, text = pairs.parse(record, pairs.PairOptions()).items
        assert isinstance(medium, Medium)
        assert text == record.fields["txt"].decode("utf-8").strip()
        assert medium.data == record.fields["jpg" if "jpg" in record.fields else "png"]
        assert medium.kind == "image"
        same = pairs.PairOptions(captions=("json.caption",))
        assert pairs.parse(record, same).items == (medium, text)
        assert texts.parse(record, texts.TextOptions(strip=True)).items == (text,)
        keys.add(medium.key)
    assert len(keys) == len(records)


def test_captions_in_many_languages(shared_records: Read) -> None:
    path = ("json.captions_by_locale",)
    spoken = set()
    for record in shared_records("pairs/stamps/*.tar"):
        locales = json.loads(record.fields["json"]).get("captions_by_locale")
        if not locales:
            continue
        candidates = [text.strip() for text in locales.values()]
        options = {c: pairs.PairOptions(captions=path, choice=c) for c in pairs.CHOICES}
        found = {c: str(pairs.parse(record, option).items[1]) for c, option in options.items()}
        assert found["first"] == next(filter(None, candidates))
        assert len(found["longest"]) == max(map(len, candidates))
        assert found["random"] in candidates
        assert pairs.parse(record, options["random"]).items[1] == found["random"]
        spoken.add(next(name for name, text in locales.items() if text.strip() == found["random"]))
    assert len(spoken) > 10


def test_clips_are_their_film_and_their_txt(shared_records: Read) -> None:
    for record in shared_records("video/*.tar"):
        medium, text = clips.parse(record, clips.ClipOptions()).items
        assert isinstance(medium, Medium)
        assert (medium.kind, medium.data) == ("clip", record.fields["mp4"])
        assert text == record.fields["txt"].decode("utf-8").strip()


def test_clips_by_their_path(shared: pathlib.Path, shared_records: Read, folder: Any) -> None:
    files = folder(shared / "data" / "video")
    options = clips.ClipOptions(captions=("captions",))
    for record in shared_records("video/*.jsonl"):
        medium, text = clips.parse(record, options, files).items
        assert isinstance(medium, Medium)
        assert medium.key == record.fields["video"]
        assert medium.data == files.read(record.fields["video"])
        assert text == record.fields["captions"][0]
