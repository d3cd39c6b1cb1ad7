"""What the corpora share: strict, bounded reading of a record's fields, and the rules of a page.

What is malformed is a `BadRecord`. A picture that is merely not there (a dead link, a null, an
empty file) is `Unresolved`, which a page may outlive without it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from flamingo_jax.data import images, video
from flamingo_jax.data.document import Medium
from flamingo_jax.data.faults import BadRecord, Dropped
from flamingo_jax.data.randomness import generator
from flamingo_jax.data.readers.record import Files, Record
from flamingo_jax.errors import InputError

MAX_CHARACTERS = 1 << 24  # of one text, and of all texts of a page
MAX_JSON = 1 << 28  # bytes of a record's JSON, pictures in base64 included
MAX_PLACES = 1 << 16  # texts and pictures of a page
MAX_IMAGES = 1 << 10  # pictures of a page
MAX_PAGE_BYTES = 1 << 28  # of all encoded pictures of a page
MAX_BYTES = {"image": images.MAX_BYTES, "clip": video.MAX_BYTES}  # of one encoded medium
MISSING = ("image", "page")
_TOO_MANY = {"image": "too many bytes in an image", "clip": "too many bytes in a video"}


@dataclasses.dataclass(frozen=True)
class PageOptions:
    """Which pages are used, whatever the corpus; the default leaves out only what cannot be had.

    Attributes:
      min_images: a page with fewer is not used.
      max_images: of the images that may be used, at most so many, the first; 0 = no limit (rows
        have their own).
      drop_single: probability that a page with one image is not used (OpenFlamingo's 0.5).
      seed: what that is drawn from, with the record's key.
      missing: what an image that cannot be had takes with it: "image", itself, or "page".
    """

    corpus: ClassVar[str] = "pages"
    min_images: int = 1
    max_images: int = 0
    drop_single: float = 0.0
    seed: int = 0
    missing: str = "image"

    def __post_init__(self) -> None:
        check_range(f"{self.corpus}: min_images", self.min_images, 0, MAX_IMAGES)
        check_range(f"{self.corpus}: max_images", self.max_images, 0, MAX_IMAGES)
        check_range(f"{self.corpus}: drop_single", self.drop_single, 0, 1)
        check_choice(f"{self.corpus}: missing", self.missing, MISSING)


class Unresolved(BadRecord):
    """A medium that its record names but that cannot be had."""


def columns(record: Record, names: Sequence[str]) -> Mapping[str, Any]:
    """The record's fields, or those of the JSON in its field "json" where it has none of `names`.

    Raises:
      BadRecord: if the JSON is broken, or one of `names` is missing.
    """
    found = record.fields
    if "json" in found and not any(name in found for name in names):
        found = json_object(found["json"], record.key)
    for name in names:
        if found.get(name) is None:
            raise BadRecord(f"no field {name}", record.key)
    return found


def json_object(value: Any, where: str) -> Mapping[str, Any]:
    """A JSON object, from its bytes or text, or one that is already parsed.

    Raises:
      BadRecord: if it is broken, too large, nested too deeply, or no object.
    """
    if isinstance(value, str | bytes):
        if len(value) > MAX_JSON:
            raise BadRecord("too many bytes of JSON", f"{where}: {len(value)}")
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRecord("broken JSON", f"{where}: {error}") from error
    if not isinstance(value, Mapping):
        raise BadRecord("JSON is no object", f"{where}: {type(value).__name__}")
    return value


def lookup(record: Record, path: str) -> Any:
    """A field by its name, or "json.a.b": key b of key a of the JSON in the field "json".

    Returns:
      Its value, None where there is none.

    Raises:
      BadRecord: if the JSON is broken.
    """
    if path in record.fields:
        return record.fields[path]
    name, *keys = path.split(".")
    value = record.fields.get(name)
    if value is None:
        return None
    value = json_object(value, f"{record.key}, {name}")
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def first_present(record: Record, paths: Sequence[str], missing: str) -> tuple[str, Any]:
    """The first of `paths` (see `lookup`) that is there and not null, with its value.

    Raises:
      BadRecord: with the reason `missing`, if there is none; if a record's JSON is broken.
    """
    for path in paths:
        value = lookup(record, path)
        if value is not None:
            return path, value
    raise BadRecord(missing, f"{record.key}: none of {', '.join(paths)}")


def listed(value: Any, where: str, most: int) -> Sequence[Any]:
    """A list of at most so many entries.

    Raises:
      BadRecord: if it is none, or too long.
    """
    if not isinstance(value, list | tuple):
        raise BadRecord("field is no list", f"{where}: {type(value).__name__}")
    if len(value) > most:
        raise BadRecord("list too long", f"{where}: {len(value)}")
    return value


def text(value: Any, where: str) -> str:
    """A text, exactly as it is stored.

    Raises:
      BadRecord: if it is neither a string nor UTF-8 (half a surrogate pair, which JSON can write,
        is not), or too long.
    """
    if not isinstance(value, str | bytes):
        raise BadRecord("text is no string", f"{where}: {type(value).__name__}")
    if len(value) > MAX_CHARACTERS:
        raise BadRecord("text too long", f"{where}: {len(value)}")
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8")
        value.encode("utf-8")
    except UnicodeError as error:
        raise BadRecord("text is not UTF-8", f"{where}: {error}") from error
    return value


def medium(
    value: Any, record: Record, place: int | str, files: Files | None, kind: str = "image"
) -> Medium:
    """A medium with the key that it goes by.

    A file is known by its name, so that pages that share it share its key. Bytes inside a record
    are known by the record's key and their place; with a name beside them by that name and their
    digest, as such names repeat in some corpora ("0.jpg" in every folder).

    Args:
      value: encoded bytes, the name of one of `files`, or {"bytes": …, "path": …} with either null.
      record: what it belongs to.
      place: its place there, an index or a field's name.
      files: where names are looked up; without them only bytes can be had.
      kind: "image" or "clip".

    Raises:
      Unresolved: if it is null, empty, too large or no file.
      BadRecord: if it is none of these things.
    """
    where = f"{record.key}, {kind} {place}"
    data, name = value, None
    if isinstance(value, Mapping):
        data, name = value.get("bytes"), value.get("path")
        data = name if data is None else data
    if data is None:
        raise Unresolved(f"missing {kind}", where)
    if name is not None:
        name = text(name, where)
    if isinstance(data, str):
        key = text(data, where)
        data = _read(key, files, kind, where)
    elif not isinstance(data, bytes):
        raise BadRecord(f"{kind} is neither bytes nor a name", f"{where}: {type(data).__name__}")
    elif name:
        key = f"{name}#{hashlib.blake2b(data, digest_size=8).hexdigest()}"
    else:
        key = f"{record.key}#{place}"
    if not data:
        raise Unresolved(f"empty {kind}", where)
    check_bytes(len(data), kind, where)
    return Medium(data, key, kind)


def check_bytes(count: int, kind: str, where: str) -> None:
    """Raises Unresolved for more encoded bytes than a medium may have."""
    if count > MAX_BYTES[kind]:
        raise Unresolved(_TOO_MANY[kind], f"{where}: {count}")


def _read(name: str, files: Files | None, kind: str, where: str) -> bytes:
    if files is None:
        raise Unresolved(f"missing {kind}", f"{where}: {name!r}")
    try:
        return files.read(name)
    except BadRecord as error:
        raise Unresolved(error.reason, f"{where}: {name!r}") from error


def join(items: Sequence[str | Medium], between: str) -> tuple[str | Medium, ...]:
    """The items with texts that follow each other made one, `between` between them.

    Empty texts are left out: they would double what stands between.
    """
    joined: list[str | Medium] = []
    run: list[str] = []
    for item in items:
        if isinstance(item, Medium):
            joined += [between.join(run)] * bool(run)
            joined.append(item)
            run = []
        elif item:
            run.append(item)
    return (*joined, between.join(run)) if run else tuple(joined)


def check_page(items: Sequence[str | Medium], key: str, options: PageOptions) -> None:
    """Says whether a page is used.

    Args:
      items: its texts and images.
      key: the record's; with the seed it decides the draw, so that a page is in or out for good.
      options: the corpus's.

    Raises:
      BadRecord: if it has no text, too much, too few images, or was drawn to be dropped.
    """
    texts = [item for item in items if isinstance(item, str)]
    count = len(items) - len(texts)
    if not any(item.strip() for item in texts):
        raise BadRecord("no text", key)
    if sum(map(len, texts)) > MAX_CHARACTERS:
        raise BadRecord("text too long", key)
    if count < options.min_images:
        raise Dropped("too few images", f"{key}: {count}")
    if count == 1 and generator("one image", options.seed, key).random() < options.drop_single:
        raise Dropped("dropped: one image", key)


def check_names(option: str, value: Sequence[str]) -> None:
    """Raises InputError unless an option is a list of one or more names."""
    if isinstance(value, str) or not value or not all(isinstance(n, str) and n for n in value):
        raise InputError(f"{option} is {value!r}; it takes a list of names of fields")


def check_choice(option: str, value: str, allowed: Collection[str]) -> None:
    """Raises InputError unless an option is one of those there are."""
    if value not in allowed:
        raise InputError(f"{option} is {value!r}; it takes {', '.join(allowed)}")


def check_range(option: str, value: float, low: float, high: float) -> None:
    """Raises InputError unless low ≤ value ≤ high."""
    if not low <= value <= high:  # NaN too
        raise InputError(f"{option} is {value}; it takes {low:g} to {high:g}")
