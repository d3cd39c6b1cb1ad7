"""A folder of pictures or clips with their texts in one file, `captions.jsonl` or `captions.csv`.

    {"image": "cats/1.jpg", "text": "a cat asleep", "split": "validation"}

`image` is a path inside the folder (a clip, by its suffix, is read as one); a row without it is
plain text. Instead of `text` a row may have `question` and `answer`, which become the text
"Question: … Answer: …" of the paper's prompts. `split` is optional: where no row
is marked for validation, one picture in so many of those without it, chosen by a hash of its name,
is held out with all its texts, so that a longer file leaves earlier rows where they were. In CSV
the same names stand in the first line.
"""

from __future__ import annotations

import csv
import itertools
import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

from flamingo_jax.data.document import Document, Medium
from flamingo_jax.errors import InputError

CLIP_SUFFIXES = (".avi", ".mkv", ".mov", ".mp4", ".webm")
HELD_OUT = 20  # one in so many, for who does not say otherwise
_SOUGHT = 100  # pictures of which one must be there: one missing may happen, all is a slip
_ASKED = ("question", "answer")


class FolderSource:
    """Pairs (or plain texts) of a captions file; pictures are read when a row is made."""

    def __init__(self, folder: pathlib.Path, rows: list[tuple[str, str]]) -> None:
        self._folder = folder
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Document:
        """The pair at `index`, in the file's order; IndexError beyond the end."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        image, text = self._rows[index]
        if not image:
            return Document((text,), key=str(index))
        kind = "clip" if image.lower().endswith(CLIP_SUFFIXES) else "image"
        medium = Medium(str(self._folder / image), key=image, kind=kind)
        return Document((medium, text), key=image)


def open_folder(
    path: str, split: str, captions: str = "captions", held_out: int = HELD_OUT
) -> FolderSource:
    """Opens a folder.

    Args:
      path: the folder, or the captions file in it.
      split: "train" or "validation".
      captions: the name of the captions file, without its suffix, where `path` is the folder.
      held_out: where no row is marked for validation, one in so many is held out for it, of two or
        more rows at least one; 0 = none.

    Raises:
      InputError: if the folder or its captions file is missing, a row of it is malformed, or none
        of the first pictures that it names is there.
    """
    if held_out == 1 or held_out < 0:
        raise InputError(
            f"source 'folder': held_out is {held_out}; one row in so many, at least 2, or 0 for "
            "none"
        )
    file = _find(path, captions)
    read = _read_csv if file.suffix == ".csv" else _read_jsonl
    try:
        rows = [_row(file, line, fields) for line, fields in read(file)]
    except OSError as error:
        raise InputError(
            f"source 'folder': cannot read {str(file)!r} ({error.strerror})"
        ) from error
    _check_pictures(file, [image for image, _, _ in rows if image])
    held = _held_out(rows, held_out)
    chosen = [row[:2] for row, out in zip(rows, held, strict=True) if out == (split != "train")]
    return FolderSource(file.parent, chosen)


def _find(path: str, captions: str) -> pathlib.Path:
    """The captions file."""
    folder = pathlib.Path(path)
    if path and folder.is_file() and folder.suffix in (".jsonl", ".csv"):
        return folder
    if not path or not folder.is_dir():
        raise InputError(
            f"source 'folder': there is no folder {path!r}; set the dataset's path to a folder of "
            f"pictures with {captions}.csv or {captions}.jsonl"
        )
    for suffix in (".jsonl", ".csv"):
        file = folder / (captions + suffix)
        if file.is_file():
            return file
    raise InputError(
        f"source 'folder': {path!r} holds neither {captions}.jsonl nor {captions}.csv; "
        "give one of them, with the fields image and text"
    )


def _read_jsonl(file: pathlib.Path) -> Iterator[tuple[int, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    fields = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{file}, line {number}: not JSON ({error})") from error
                yield number, fields


def _read_csv(file: pathlib.Path) -> Iterator[tuple[int, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        try:
            names = list(reader.fieldnames or ())
            if "text" not in names and not set(_ASKED) <= set(names):
                raise InputError(
                    f"{file}: its first line names {', '.join(names) or 'nothing'}; it must name "
                    "the columns image and text (or image, question and answer)"
                )
            for row in reader:
                if None in row:  # part of a text would be lost
                    raise InputError(
                        f"{file}, line {reader.line_num}: more fields than the first line names; "
                        "put a text with commas in double quotes"
                    )
                yield reader.line_num, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{file}, line {reader.line_num + 1}: not CSV ({error})") from error


def _row(file: pathlib.Path, line: int, fields: Any) -> tuple[str, str, str]:
    """(image, text, split)."""
    text = _text(fields) if isinstance(fields, dict) else None
    if text is None:
        raise InputError(
            f"{file}, line {line}: a row needs the field 'text', a string (or 'question' and "
            "'answer')"
        )
    image, split = fields.get("image") or "", fields.get("split") or ""
    if (
        not isinstance(image, str)
        or pathlib.PurePath(image).is_absolute()
        or pathlib.PureWindowsPath(image).drive
        or ".." in pathlib.PureWindowsPath(image).parts  # it knows both kinds of slashes
        or "\0" in image
    ):
        raise InputError(f"{file}, line {line}: 'image' must be a path inside the folder")
    try:
        f"{image}{text}".encode()
    except UnicodeEncodeError as error:  # JSON can write half a surrogate pair
        raise InputError(f"{file}, line {line}: no Unicode text ({error.reason})") from error
    if split not in ("", "train", "validation"):
        raise InputError(f"{file}, line {line}: 'split' is {split!r}; train or validation")
    return image, text, split


def _text(fields: dict[str, Any]) -> str | None:
    text = fields.get("text")
    if text is None and all(isinstance(fields.get(name), str) for name in _ASKED):
        return f"Question: {fields['question']} Answer: {fields['answer']}"
    return text if isinstance(text, str) else None


def _held_out(rows: list[tuple[str, str, str]], every: int) -> list[bool]:
    """Which rows are for validation."""
    marked = [split == "validation" for _, _, split in rows]
    if not every or any(marked):
        return marked
    places = [place for place, row in enumerate(rows) if not row[2]]
    # By the picture: one with several texts is not shown in training and asked for in validation.
    rest = [zlib.crc32((rows[i][0] or rows[i][1]).encode()) % every for i in places]
    limit = min(rest, default=0) if len(rows) > 1 else 0
    chosen = {place for place, left in zip(places, rest, strict=True) if left <= limit}
    return [place in chosen for place in range(len(rows))]


def _check_pictures(file: pathlib.Path, named: list[str]) -> None:
    """Raises InputError if none of the first pictures is there, two or more."""
    sought = list(itertools.islice(dict.fromkeys(named), _SOUGHT))
    if len(sought) > 1 and not any((file.parent / image).is_file() for image in sought):
        raise InputError(
            f"{file}: none of the {len(sought)} pictures sought is there, such as {sought[0]!r}; "
            f"'image' is a path inside {str(file.parent)!r}"
        )
