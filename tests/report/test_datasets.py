"""The page of datasets: what it shows is what the pipeline gives, and nothing in it runs."""

import base64
import dataclasses
import html.parser
import io
import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flamingo_jax import config, report, samples
from flamingo_jax.data import folder, images
from flamingo_jax.data.augment import AugmentSpec
from flamingo_jax.data.document import Document, Medium
from flamingo_jax.data.faults import BadRecord, Dropped
from flamingo_jax.data.pipeline import Pipeline
from flamingo_jax.data.rows import DatasetSpec
from flamingo_jax.data.sources import SourceSpec, open_source
from flamingo_jax.data.tokenizer import Tokenizer, open_tokenizer, train_tokenizer
from flamingo_jax.errors import InputError
from flamingo_jax.report import datasets, histograms, laid
from flamingo_jax.samples.rows import pieces

ROOT = pathlib.Path(__file__).resolve().parents[2]
HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> \"'&amp; </p> \ud800 \x00 \x1b[1m é 🙂"
)
WORDS = "a picture of something else that is told at length, é and 🙂 and more. "


def encoded(seed: int, width: int = 20, height: int = 12) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(out, "PNG")
    return out.getvalue()


class Pages:
    """Pages of 0 to 4 images; some cannot be read, of some the picture is broken."""

    def __init__(self, count: int = 60, hostile: str = "", faults: bool = False) -> None:
        self.count, self.hostile, self.faults = count, hostile, faults

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Document:
        key = f"{self.hostile}page {index}"
        if self.faults and index % 5 == 1:
            raise Dropped("too dull" + self.hostile, key)
        if self.faults and index % 7 == 2:
            raise BadRecord("no text", key)
        items: list[str | Medium] = [f"{self.hostile}Page {index} <image> <EOC>. "]
        for place in range(index % 5):
            data = b"broken" if self.faults and index % 5 == 3 else encoded(index * 9 + place)
            items += [Medium(data, f"{self.hostile}{index}/{place}"), WORDS[: 20 + 7 * place]]
        return Document(tuple(items), key)


class Tokens(html.parser.HTMLParser):
    """What a browser makes of a page: each row's tokens and pictures, every element's name."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.rows: list[list[dict[str, Any]]] = []
        self.media: list[list[dict[str, Any]]] = []
        self.bars: dict[str, int] = {}
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self._token: dict[str, Any] | None = None
        self._chart = ""
        self._bold = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        kinds = given.get("class", "").split()
        self.names.add(tag)
        self.attributes |= set(given)
        self.links += [given[name] for name in ("src", "href") if name in given]
        if tag == "article":
            self.rows.append([])
            self.media.append([])
        elif tag == "span" and "token" in kinds and self.rows:
            self._token = {"kinds": kinds, "text": "", "style": given.get("style", "")}
            self._token["medium"] = int(given.get("data-medium", 0))
            self.rows[-1].append(self._token)
        elif tag == "figure" and "row-medium" in kinds:
            self.media[-1].append({"medium": int(given["data-medium"]), "images": []})
            self.media[-1][-1]["style"] = given["style"].split(";")[0]
        elif tag == "img":
            self.media[-1][-1]["images"].append(given["src"])
        elif tag == "figcaption":
            self._chart = ""
        elif tag == "b":
            self._bold = True
        elif tag == "rect":
            self.bars[self._chart] = self.bars.get(self._chart, 0) + int(given["data-count"])

    def handle_endtag(self, tag: str) -> None:
        if tag == "span":
            self._token = None
        if tag == "b":
            self._bold = False

    def handle_data(self, data: str) -> None:
        if self._token is not None and not self._bold:
            self._token["text"] += data
        elif self._bold and data.split(" of ")[0] in ("Tokens", "Images", "Sizes"):
            self._chart = data


def pixels(uri: str) -> np.ndarray:
    kind, body = uri.split(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))).convert("RGB"))


def page_of(*made: datasets.Dataset, **facts: Any) -> str:
    return datasets.render(datasets.Mixture("mine", made, **facts))


PAGE = DatasetSpec("pages", "page", batch=5, length=90, images=3, p_next=0.5, image_size=16,
                   augment=AugmentSpec(flip=0.5, brightness=0.3, shift=0.2))  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([WORDS * 20], 300)


@pytest.mark.parametrize("image", ["new", "text"])
@pytest.mark.parametrize("next_layout", ["kept", "text_first"])
def test_the_page_shows_what_the_pipeline_gives(image: str, next_layout: str):
    tokenizer = train_tokenizer([WORDS * 20], 300, image)
    spec = dataclasses.replace(PAGE, next_layout=next_layout)
    made = samples.dataset(Pages(), spec, tokenizer, seed=3, rows=12, documents=20)
    read = Tokens(page_of(made))
    real = Pipeline({"pages": Pages()}, {"pages": spec}, tokenizer, seed=3, steps=3)
    assert len(read.rows) == 12
    colours: dict[int, str] = {}
    followed = 0
    for number, (tokens, media) in enumerate(zip(read.rows, read.media, strict=True)):
        step, row = divmod(number, spec.batch)
        batch = real[step]["pages"]
        used = int((batch.positions[row] >= 0).sum())
        owners = batch.media_of_token[row, :used].tolist()
        assert [token["medium"] for token in tokens] == owners
        told = [float("target" in token["kinds"]) for token in tokens]
        assert told == batch.loss_mask[row, :used].tolist()
        controls = tokenizer.decode(batch.tokens[row, :used].tolist(), control=True)
        text = "".join(token["text"] for token in tokens)
        assert text.replace("␣", " ") == controls.replace("\n", "↵")
        for token in tokens:
            assert bool(token["style"]) == bool(token["medium"])
            if token["medium"]:
                assert colours.setdefault(token["medium"], token["style"]) == token["style"]
        frames = batch.frames[row]
        assert [one["medium"] for one in media] == list(range(1, int((frames > 0).sum()) + 1))
        for one in media:
            assert colours.setdefault(one["medium"], one["style"]) == one["style"]
            seen, clean = map(pixels, one["images"])
            np.testing.assert_array_equal(seen, batch.media[row, one["medium"] - 1, 0])
            index = real.row_index("pages", step, row)
            keys = [item for item in Pages()[index].items if isinstance(item, Medium)]
            stored = [images.decode(item.data, 16) for item in keys]
            match = [place for place, decoded in enumerate(stored) if (decoded == clean).all()]
            picture = made.rows[number].pictures[one["medium"] - 1]
            assert [keys[place].key for place in match] == [picture.key]
            assert picture.stored == (20, 12)
        assert made.rows[number].document == real.row_index("pages", step, row)
        followed += made.rows[number].following
    assert len(set(colours.values())) == len(colours) > 1
    assert 0 < followed < 12


def test_control_tokens_are_chips_and_text_like_them_is_not(tokenizer: Tokenizer):
    made = samples.dataset(Pages(), PAGE, tokenizer, rows=10, documents=1)
    for tokens in Tokens(page_of(made)).rows:
        text = "".join(token["text"] for token in tokens if "chip" not in token["kinds"])
        chips = [token["text"] for token in tokens if "chip" in token["kinds"]]
        assert set(chips) <= {"<BOS>", "<EOS>", "<EOC>", "<image>"}
        if chips[:1] == ["<BOS>"] and not made.rows[0].following:
            assert "<image> <EOC>" in text  # the page's own words


def test_nothing_of_the_data_is_markup(tokenizer: Tokenizer, tmp_path: pathlib.Path):
    spec = dataclasses.replace(PAGE, name=HOSTILE, length=400)
    source = Pages(hostile=HOSTILE, faults=True)
    origin = SourceSpec(HOSTILE, HOSTILE, options={HOSTILE: HOSTILE})
    made = samples.dataset(source, spec, tokenizer, rows=8, documents=40, origin=origin)
    calm = samples.dataset(Pages(faults=True), PAGE, tokenizer, rows=8, documents=40)
    mixture = datasets.Mixture(HOSTILE, [made], HOSTILE, 3, {"x": HOSTILE}, [])
    written = report.write_datasets(mixture, tmp_path / "out").read_text(encoding="utf-8")
    hostile, other = Tokens(written), Tokens(page_of(calm))
    assert hostile.names == other.names
    assert hostile.attributes <= other.attributes | {"data-medium"}
    assert written.count("<script") == page_of(calm).count("<script")
    assert "onerror=alert(2)&gt;" in written and "\x00" not in written and "\x1b" not in written
    assert any("alert" in "".join(t["text"] for t in row) for row in hostile.rows)


def test_the_page_needs_nothing_else(tokenizer: Tokenizer):
    made = samples.dataset(Pages(), PAGE, tokenizer, rows=6, documents=30)
    page = page_of(made)
    assert "default-src 'none'; img-src data:" in page.replace("&#x27;", "'")
    assert all(link.startswith(("data:", "#")) for link in Tokens(page).links)
    assert not re.search(r"https?://|@import|url\(", page)
    assert "prefers-color-scheme: dark" in page


def test_histograms_count_everything_once(tokenizer: Tokenizer):
    source = Pages(faults=True)
    made = samples.dataset(source, PAGE, tokenizer, rows=2, documents=10_000)
    found = made.statistics
    dropped = {drop.reason: drop.count for drop in found.drops}
    usable = [
        i for i in range(60) if i % 5 not in (1, 3) and i % 7 != 2
    ]  # of 3 images the broken one may lie outside of the window
    sound = len(found.whole)
    assert found.documents == 60 and sound + sum(dropped.values()) == 60
    assert dropped["too dull"] == sum(i % 5 == 1 for i in range(60))
    assert dropped["no text"] == sum(i % 5 != 1 and i % 7 == 2 for i in range(60))
    assert dropped["not an image"] == 60 - sound - dropped["too dull"] - dropped["no text"]
    assert sound >= len(usable)
    assert {drop.reason for drop in found.drops if drop.by_rule} == {"too dull"}
    bars = Tokens(page_of(made)).bars
    assert bars["Tokens of a document"] == bars["Images of a document"] == sound
    assert bars["Sizes of pictures"] == 2 * len(found.sizes)
    page = re.sub(r"<[^>]*>", " ", page_of(made))
    assert f"{sound} of the first 60 documents are used" in page
    for reason, count in dropped.items():
        assert re.search(rf"{reason}\s+a (rule|fault)\s+{count}\s+{count / 60:.1%}", page), reason


def test_lengths_are_those_before_the_window(tokenizer: Tokenizer):
    source = Pages(count=20)
    short, long = (
        samples.dataset(source, dataclasses.replace(PAGE, length=length, images=most),
                        tokenizer, rows=1).statistics
        for length, most in ((20, 1), (2_000, 9))
    )  # fmt: skip
    assert short.whole == long.whole == long.used and short.held == long.held
    assert max(short.used) == 20 < min(max(long.used), 2_000)
    assert sorted(short.held) == sorted(i % 5 for i in range(20))
    assert max(short.media) <= 1 and long.media == long.held


@pytest.mark.parametrize(
    "values",
    [[0], [7] * 9, [1, 1, 2], list(range(1000)), [3] * 500 + [90_000], [0, 1_000_000], [5, 6, 9]],
)
def test_bins_hold_every_value_in_its_place(values: list[int]):
    bins = histograms.binned({"a": values, "b": values[:1]})
    assert sum(bins.counts["a"]) == len(values) and sum(bins.counts["b"]) == 1
    assert 1 < bins.number <= histograms.MOST_BINS + 1
    last = bins.number - 1
    for place, count in enumerate(bins.counts["a"]):
        low = bins.first + place * bins.step
        inside = [v for v in values if v >= low and (place == last or v < low + bins.step)]
        assert len(inside) == count, bins.name(place)
    assert bins.open == (max(values) >= bins.first + bins.number * bins.step)


def test_tokens_of_one_character_show_it_once():
    tokenizer = open_tokenizer("bytes")
    ids = [tokenizer.bos or 0, *tokenizer.encode("é🙂a"), 0x99, *tokenizer.encode("b\n")]
    found = pieces(tokenizer, ids, [0] * len(ids), [1.0] * len(ids))
    texts = [piece.text for piece in found]
    assert texts == ["<BOS>", "", "é", "", "", "", "🙂", "a", "", "\ufffdb", "\n"]
    assert "".join(texts) == tokenizer.decode(ids, control=True)


def test_a_row_tells_what_it_stands_for(tokenizer: Tokenizer):
    made = samples.dataset(Pages(faults=True), PAGE, tokenizer, rows=20, documents=1)
    replaced = [row for row in made.rows if row.replaced]
    assert replaced and all("document" in text for row in replaced for text in row.replaced)
    assert laid.shown(replaced[0].replaced[0]) in re.sub(r"<[^>]*>", "", page_of(made))


class Hopeless(Pages):
    """Nothing in it can be used."""

    def __getitem__(self, index: int) -> Document:
        raise BadRecord("no text", str(index))


def test_a_dataset_of_which_nothing_can_be_used_has_a_page_too(tokenizer: Tokenizer):
    made = samples.dataset(Hopeless(9), PAGE, tokenizer)
    assert not made.rows and "no text" in made.problem
    page = page_of(made)
    assert "0 of the first 9 documents are used" in page and "No values." in page


def write_folder(path: pathlib.Path) -> None:
    rows = []
    for index in range(12):
        (path / f"{index}.png").write_bytes(encoded(index, 30 + index, 40))
        rows.append({"image": f"{index}.png", "text": f"thing {index}", "split": "train"})
    (path / "captions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.mark.parametrize("layout", ["pair", "contrastive", "text"])
def test_a_small_folder(layout: str, tmp_path: pathlib.Path, tokenizer: Tokenizer):
    write_folder(tmp_path)
    source = folder.open_folder(str(tmp_path), "train")
    spec = DatasetSpec("mine", layout, batch=8, length=16, image_size=16, leading_space=1.0)
    made = samples.dataset(source, spec, tokenizer, rows=12)
    read = Tokens(page_of(made))
    assert len(read.rows) == 12 and made.documents == 12
    for row, tokens, media in zip(made.rows, read.rows, read.media, strict=True):
        assert len(media) == (layout != "text")
        text = "".join(t["text"] for t in tokens if "chip" not in t["kinds"])
        assert text == ("␣" if layout == "pair" else "") + f"thing {row.document}"
        assert {t["medium"] for t in tokens[1:-1]} == ({1} if layout == "pair" else {0})
    if layout == "text":
        assert set(read.bars) == {"Tokens of a document"}
    else:
        assert sorted(made.statistics.sizes) == [(30 + index, 40) for index in range(12)]


def test_real_clips(shared: pathlib.Path, tokenizer: Tokenizer):
    """Augmented and clean frames are of the same moments; sizes are those in the header."""
    import av

    place = SourceSpec("clips", f"{shared}/data/video/*.tar")
    source = open_source(place)
    spec = DatasetSpec("films", "clip", batch=2, length=40, frames=4, image_size=32)
    still = samples.dataset(source, spec, tokenizer, rows=3, documents=4, origin=place)
    moved = dataclasses.replace(spec, augment=AugmentSpec(brightness=0.5))
    bright = samples.dataset(source, moved, tokenizer, rows=3, documents=4, origin=place)
    assert len(still.statistics.sizes) == len(still.statistics.whole) == 4
    for row, other in zip(still.rows, bright.rows, strict=True):
        [medium] = [item for item in source[row.document].items if isinstance(item, Medium)]
        assert isinstance(medium.data, bytes)
        container: Any = av.open(io.BytesIO(medium.data))
        frame = next(container.decode(video=0))
        [picture], [changed] = row.pictures, other.pictures
        assert picture.clip and picture.stored == (frame.width, frame.height)
        np.testing.assert_array_equal(picture.seen, picture.clean)
        np.testing.assert_array_equal(changed.clean, picture.clean)
        assert (changed.seen != changed.clean).any()


def test_the_demo(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    c = config.load(str(ROOT / "experiments" / "openmoji.py"), {"tokenizer.vocab": "400"})
    config_file = tmp_path / "mine.py"
    config_file.write_text(
        "import json\nfrom flamingo_jax import config\n\n\ndef get_config(variant='full'):\n"
        f"    c = config.load({str(ROOT / 'experiments' / 'openmoji.py')!r} + ':tiny')\n"
        "    c.tokenizer.vocab = 400\n"
        "    c.model.vision.image_size = 64\n"  # as tests/data draw them: once a process
        "    return c\n"
    )
    from flamingo_jax import run

    out = tmp_path / "out"
    assert run.inspect("", str(config_file), {"seed": "4"}, "", str(out), 3) == 0
    assert str(out / "index.html") in capsys.readouterr().out
    page = (out / "index.html").read_text(encoding="utf-8")
    read = Tokens(page)
    assert len(read.rows) == 3 * len(c.train.datasets)
    assert all(f'id="dataset-{place}"' in page for place in range(4)) and "OpenMoji" in page
    with pytest.raises(InputError, match=r"--stage=vision.*language, contrastive, flamingo"):
        run.inspect("", str(config_file), {}, "vision", str(out), 3)
