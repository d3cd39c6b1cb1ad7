"""What can be wrong with `bad_inputs`: damage to their bytes, and what records may not hold."""

import copy
import dataclasses
import gzip
import importlib.util
import pathlib
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flamingo_jax.data.readers import codec

_SPEC = importlib.util.spec_from_file_location(
    "bad_inputs", pathlib.Path(__file__).with_name("bad_inputs.py")
)
assert _SPEC is not None and _SPEC.loader is not None
sound = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(sound)


def _png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def _jpeg(width: int, height: int) -> bytes:
    data = sound.picture(0, "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def _claiming(form: str, at: int, layout: str) -> bytes:
    """A picture whose header claims 60,000 × 60,000 pixels."""
    data = bytearray(sound.picture(0, form))
    struct.pack_into(layout, data, at, 60_000, 60_000)
    return bytes(data)


BAD_IMAGES = {
    "giant PNG": _png(60_000, 60_000, b""),
    "giant JPEG": _jpeg(60_000, 60_000),
    "giant GIF": _claiming("GIF", 6, "<HH"),
    "giant BMP": _claiming("BMP", 18, "<ii"),
    "a bomb": _png(16_384, 8_192, zlib.compress(bytes((16_384 // 8 + 1) * 8_192), 9)),
    "half a JPEG": (lambda data: data[: len(data) // 2])(sound.picture(1, "JPEG")),
    "half a PNG": (lambda data: data[: len(data) // 2])(sound.picture(1)),
    "text": b"no picture at all",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "gzip": gzip.compress(sound.picture(2), mtime=0),
    "a list of files": b"ffconcat version 1.0\nfile /etc/passwd\n",
}
BAD_LINES = (b"[" * 200_000, b'{"text": ' + b"9" * 10_000 + b"}", b'{"text": "\xff"}', b"{", b"1")
BAD_TEXTS = (7, True, {"x": 1}, "\ud800", float("nan"))
BAD_NUMBERS = (float("nan"), float("inf"), 10**400, "0.5", None, True, [])
BAD_NAMES = ("../secret", "/etc/passwd", "in/../../secret", "C:\\secret", "in/\0.png", "", "\ud800")
JUNK = (None, True, 0, -1, 10**30, float("nan"), "\udfff", [], {}, [None], {"bytes": 1}, [[]])


@dataclasses.dataclass(frozen=True)
class Case:
    """A set with something wrong, and what must hold of it.

    Attributes:
      about: what is wrong, for messages.
      files: all of its files.
      touched: records that the damage lies in.
      expected: what becomes of those: "bad" records, the same texts with an "image" that cannot be
        decoded, the same "texts" with any image, or "any".
      intact: is all there that is not touched, at its place?
      opens: may opening not fail?
      first: records before this one must be there at their place.
    """

    about: str
    files: dict[str, bytes]
    touched: frozenset[int]
    expected: str = "any"
    intact: bool = False
    opens: bool = False
    first: int = 0


def damage(rng: np.random.Generator, data: bytes) -> tuple[str, bytes]:
    """(what was done, the damaged bytes)."""
    size = len(data)
    at = int(rng.integers(size + 1))
    length = int(min(2 ** rng.integers(0, 12), size - at))
    noise = rng.bytes(length or 1)
    how = int(rng.integers(12))
    if how <= 3:
        flipped = bytearray(data)
        for place in rng.integers(size, size=1 if how < 3 else 6):
            flipped[place] ^= 1 << int(rng.integers(8))
        return "flipped bits", bytes(flipped)
    other = int(rng.integers(max(size - length, 0) + 1))
    done = {
        4: ("cut", data[:at]),
        5: ("overwritten", data[:at] + noise[:length] + data[at + length :]),
        6: ("zeroed", data[:at] + bytes(length) + data[at + length :]),
        7: ("bytes added within", data[:at] + noise + data[at:]),
        8: ("bytes lost within", data[:at] + data[at + length :]),
        9: ("another part's bytes", data[:at] + data[other : other + length] + data[at + length :]),
        10: ("bytes added behind", data + noise),
    }
    wholes = [b"", noise, bytes(size), rng.bytes(size), gzip.compress(data, mtime=0), data[::-1]]
    return done.get(how) or ("replaced", wholes[int(rng.integers(len(wholes)))])


def damaged(rng: np.random.Generator, kind: Any, packed: Any) -> Case:
    """A case of which the bytes of one file are damaged."""
    files, spans = packed
    name = sorted(files)[int(rng.integers(len(files)))]
    data = files[name]
    how, broken = damage(rng, data)
    start, stop = _changed(data, broken)
    if len(broken) == len(data):
        pairs = np.frombuffer(data, np.uint8) != np.frombuffer(broken, np.uint8)
        places = np.flatnonzero(pairs)
    else:
        places = np.arange(max(start - 1, 0), stop + 1)
    met = [span for span in spans.get(name, []) if ((span[0] <= places) & (places < span[1])).any()]
    covered = np.zeros(len(places), bool)
    for begin, end, *_ in met:
        covered |= (begin <= places) & (places < end)
    touched = {span[2] for span in met}
    image = all(span[3] == "image" for span in met)
    if kind.corpus == "folder" or kind.pack is sound.whole or name == "images.tar":
        inside = name.endswith(".png") or (name == "images.tar" and image)
    else:
        inside = broken.count(b"\n") == data.count(b"\n") or name.endswith((".tar", ".parquet"))
    same = len(broken) == len(data) and bool(covered.all())
    if name.endswith(".png"):  # a file of its own, whose size is its own too
        inside = same = True
        touched = {spans[name][0][2]} if broken != data else set()
    intact = same and inside
    # A header of a tar is its member's: its check sum is a mere sum, which two flips may keep.
    if name.endswith(".tar") and not covered.all() and how != "cut":
        begins = [(begin - 512, owner) for begin, _, owner, _ in spans[name]]
        touched |= {o for b, o in begins if ((b <= places) & (places < b + 512)).any()}
    first = 0
    if kind.pack in (sound.tar, sound.lines) and name != "images.tar" and kind.corpus != "folder":
        later = [span[2] for span in spans.get(name, []) if span[1] >= start]
        slack = 1 if kind.pack is sound.tar else 0
        first = max(min(later, default=sound.RECORDS) - slack, 0)
    expected = "texts" if intact and image and name.endswith((".tar", ".png")) and broken else "any"
    about = f"{how}: {name}, {start} to {stop} of {len(data)}"
    return Case(about, files | {name: broken}, frozenset(touched), expected, intact, intact, first)


def _changed(data: bytes, broken: bytes) -> tuple[int, int]:
    """The first byte that is another, and the one after the last."""
    prefix = _alike(data, broken)
    return prefix, len(data) - _alike(data[prefix:][::-1], broken[prefix:][::-1])


def _alike(one: bytes, other: bytes) -> int:
    """With how many equal bytes two begin."""
    least = min(len(one), len(other))
    first, second = (np.frombuffer(data[:least], np.uint8) for data in (one, other))
    return int(np.append(np.flatnonzero(first != second), least)[0])


def crafted(rng: np.random.Generator, kind: Any, number: int) -> Case | None:
    """A case of which one record holds what it may not; None where a set has no such."""
    rows = kind.rows()
    place = int(rng.integers(len(rows)))
    row = rows[place]
    options = list(_recipes(rng, kind, row))
    if not options:
        return None
    about, change, expected = options[number % len(options)]  # few cases meet each of them
    replaced = change()
    if replaced is not None:
        rows[place] = replaced
    whole = kind.pack is sound.whole or kind.corpus == "folder"  # one bad row may refuse them all
    files, _ = kind.packed(rows)
    touched = frozenset({place})
    moved = about.startswith("named")
    return Case(f"{about} in record {place}", files, touched, expected, not moved, not whole)


def _recipes(
    rng: np.random.Generator, kind: Any, row: Any
) -> Iterator[tuple[str, Callable[[], Any], str]]:
    """Yields (what is wrong, what does it to the row or gives another, see `Case.expected`)."""

    def pick(values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    table, tar = kind.pack is sound.table, kind.pack is sound.tar
    if kind.image is not None:
        name = pick(sorted(BAD_IMAGES))
        clip = kind.corpus == "clips"  # FFmpeg takes some pictures for clips
        yield name, lambda: kind.image(row, BAD_IMAGES[name]), "texts" if clip else "image"
        if kind.corpus != "prepared":
            yield "empty image", lambda: kind.image(row, b""), "bad"
    if kind.text is not None and not table:
        text = b"\xff\xfe" if tar and kind.corpus != "mmc4" else pick(BAD_TEXTS)
        yield f"text {text!r}", lambda: kind.text(row, text), "bad"
    if kind.text is not None and table:
        text = b"\xff\xfe" if kind.corpus == "pairs" else None
        yield f"text {text!r}", lambda: kind.text(row, text), "bad"
    if kind.pack in (sound.lines, sound.whole, sound.captions):
        line = pick(BAD_LINES)
        yield f"line {line[:20]!r}", lambda: line, "bad"
        yield "junk", lambda: _junk(row, pick), "any"
    if kind.corpus == "mmc4":
        page = row["json"] if tar else row
        number = pick(BAD_NUMBERS)
        yield f"similarity {number!r}", lambda: _similar(page, number), "bad"
    if kind.files or kind.corpus == "folder":
        folder = kind.corpus == "folder"  # which looks for its files when they are decoded
        bad = pick(BAD_NAMES[:5] if folder else BAD_NAMES)
        yield f"image {bad!r}", lambda: _rename(row, bad), "image" if folder else "bad"
    if tar:
        field = pick(sorted(row))
        for bad in (f"../{field}", f"/etc/a.{field}", f"a/../../b.{field}"):
            yield f"named {bad}", lambda bad=bad: {bad: row.pop(field), **row}, "bad"
        yield "a link", lambda: row.update({field: None}), "bad"
        yield "broken JSON", lambda: {**row, "json": pick(BAD_LINES[:4])}, "any"
    if kind.corpus == "prepared":
        data = bytearray(codec.encode(row["document"]))
        data[int(rng.integers(len(data)))] ^= 4
        yield "flipped bit", lambda: bytes(data), "bad"
        yield "cut", lambda: bytes(data[: int(rng.integers(len(data)))]), "bad"
    elif kind.pack is not sound.tensorflow_set and len(row) > 1:
        gone = pick(sorted(row))
        yield f"no {gone}", lambda: {k: v for k, v in row.items() if k != gone}, "any"


def _similar(page: dict[str, Any], number: Any) -> None:
    page["similarity_matrix"][1][0] = number


def _rename(row: dict[str, Any], name: str) -> None:
    if "images" in row:
        row["images"][3] = name
    else:
        row["image"] = name


def _junk(row: Any, pick: Callable[[Any], Any]) -> Any:
    """The row with junk in place of one of its values, however deep."""
    row = copy.deepcopy(row)
    part = row
    while True:
        keys = list(part) if isinstance(part, dict) else list(range(len(part)))
        key = pick(keys)
        if not isinstance(part[key], dict | list) or not part[key] or pick((True, False)):
            part[key] = pick(JUNK)
            return row
        part = part[key]
