"""Compressed files, of which no part can be read alone: told by their names and first bytes."""

from __future__ import annotations

from flamingo_jax.errors import InputError

_UNPACK = {"gzip": "gunzip", "zstd": "unzstd", "bzip2": "bunzip2", "xz": "unxz", "lz4": "unlz4"}
_UNPACK["zip"] = "unzip"
_SUFFIXES = {
    ".gz": "gzip",
    ".tgz": "gzip",
    ".zst": "zstd",
    ".tzst": "zstd",
    ".bz2": "bzip2",
    ".tbz2": "bzip2",
    ".xz": "xz",
    ".txz": "xz",
    ".lz4": "lz4",
    ".zip": "zip",
}
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
}


def refuse(path: str, head: bytes = b"") -> None:
    """Refuses a compressed file.

    Args:
      path: its name.
      head: its first bytes, where they are at hand.

    Raises:
      InputError: if either is a compressed file's.
    """
    found = [how for suffix, how in _SUFFIXES.items() if path.lower().endswith(suffix)]
    found += [how for magic, how in _MAGIC.items() if head.startswith(magic)]
    if found:
        raise InputError(
            f"{path!r} is compressed ({found[-1]}), so its records cannot be read in any order; "
            f"decompress it with {_UNPACK[found[-1]]} first"
        )
