"""A folder of pictures or clips with their texts in one file, `captions.jsonl` or `captions.csv`.

    {"image": "cats/1.jpg", "text": "a cat asleep", "split": "validation"}

`image` is a path inside the folder (a clip, by its suffix, is read as one); a row without it is
plain text. `split` is optional: without it, one row in twenty, chosen by a hash of its image and
text, is held out for validation, so that a longer file leaves earlier rows where they were. In CSV
the same names stand in the first line.
"""

from __future__ import annotations

import csv
import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

from flamingo_jax.data.document import Document, Medium
from flamingo_jax.errors import InputError

CLIP_SUFFIXES = (".avi", ".mkv", ".mov", ".mp4", ".webm")
_HELD_OUT = 20  # one in so many


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


def open_folder(path: str, split: str, captions: str = "captions") -> FolderSource:
    """Opens a folder.

    Args:
      path: the folder.
      split: "train" or "validation".
      captions: the name of the captions file, without its suffix.

    Raises:
      InputError: if the folder or its captions file is missing, or a row of it is malformed.
    """
    folder = pathlib.Path(path)
    if not path or not folder.is_dir():
        raise InputError(f"source 'folder': there is no folder {path!r}; set the dataset's path")
    for suffix, read in ((".jsonl", _read_jsonl), (".csv", _read_csv)):
        file = folder / (captions + suffix)
        if file.is_file():
            rows = [_row(file, line, fields) for line, fields in read(file)]
            chosen = [(image, text) for image, text, held in rows if held == (split != "train")]
            return FolderSource(folder, chosen)
    raise InputError(
        f"source 'folder': {path!r} holds neither {captions}.jsonl nor {captions}.csv; "
        "give one of them, with the fields image and text"
    )


def _read_jsonl(file: pathlib.Path) -> Iterator[tuple[int, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    fields = json.loads(line.decode("utf-8"))
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{file}, line {number}: not JSON ({error})") from error
                yield number, fields


def _read_csv(file: pathlib.Path) -> Iterator[tuple[int, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        try:
            for row in reader:
                yield reader.line_num, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{file}, line {reader.line_num + 1}: not CSV ({error})") from error


def _row(file: pathlib.Path, line: int, fields: Any) -> tuple[str, str, bool]:
    """(image, text, is it held out for validation?)."""
    if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
        raise InputError(f"{file}, line {line}: a row needs the field 'text', a string")
    text, image, split = fields["text"], fields.get("image") or "", fields.get("split") or ""
    if (
        not isinstance(image, str)
        or pathlib.PurePath(image).is_absolute()
        or ".." in image
        or "\0" in image
    ):
        raise InputError(f"{file}, line {line}: 'image' must be a path inside the folder")
    try:
        f"{image}{text}".encode()
    except UnicodeEncodeError as error:  # JSON can write half a surrogate pair
        raise InputError(f"{file}, line {line}: no Unicode text ({error.reason})") from error
    if split not in ("", "train", "validation"):
        raise InputError(f"{file}, line {line}: 'split' is {split!r}; train or validation")
    if split:
        return image, text, split == "validation"
    return image, text, zlib.crc32(f"{image}\n{text}".encode()) % _HELD_OUT == 0
