"""Which reader reads a path: by what its shards' names end in, or "tfds:" before it."""

from __future__ import annotations

import glob
import os

from flamingo_jax.data.document import Source
from flamingo_jax.data.readers import compression, paths
from flamingo_jax.data.readers.record import Files, Reader
from flamingo_jax.errors import InputError

JSON = (".jsonl", ".ndjson", ".json")
FORMATS = {".tar": "WebDataset", ".parquet": "Parquet", ".array_record": "prepared documents"} | {
    suffix: "JSON" for suffix in JSON
}
TFDS = "tfds:"
"""Before the name of a TFDS set, "tfds:NAME/CONFIG@FOLDER[#SPLIT]"; FOLDER is its data_dir."""


def open_reader(path: str, split: str = "train") -> Reader:
    """Opens shards of any format whose records are read as they are stored.

    Args:
      path: a file, folder, glob or pattern of shards of one format (see `paths`), or a TFDS set.
      split: of a TFDS set that names none.

    Raises:
      InputError: if nothing is there, the shards are of several formats or of none that is known.
    """
    if path.startswith(TFDS):
        from flamingo_jax.data.readers import tfds_reader

        name, _, rest = path.removeprefix(TFDS).partition("@")
        folder, _, own = rest.partition("#")
        return tfds_reader.open_tfds(name, folder, own or split)
    shards = _without_side_files(paths.expand(path, tuple(FORMATS)))
    suffix = suffix_of(path, shards)
    if suffix == ".tar":
        from flamingo_jax.data.readers import tars

        return tars.open_tars(shards)
    if suffix == ".parquet":
        from flamingo_jax.data.readers import parquet

        return parquet.open_parquet(shards)
    if suffix in JSON:
        from flamingo_jax.data.readers import jsonl

        return jsonl.open_jsonl(shards)
    raise InputError(f"{path!r} holds {FORMATS[suffix]}; read it with the source 'prepared'")


def open_prepared(path: str) -> Source:
    """Opens shards of prepared documents.

    Args:
      path: a folder that `prepare` finished, of which the shards of its manifest are read; a file,
        glob or pattern of shards; or a TFDS set of documents ("tfds:…").

    Raises:
      InputError: if nothing is there, it is of another format, half prepared, or not as its
        manifest has it.
    """
    from flamingo_jax.data.prepare import manifest
    from flamingo_jax.data.readers import array_records

    if path.startswith(TFDS):
        from flamingo_jax.data.readers import tfds_documents

        name, _, rest = path.removeprefix(TFDS).partition("@")
        folder, _, split = rest.partition("#")
        return tfds_documents.open_documents(name, folder, split or "train")
    paths.refuse_url(path, "prepared documents")
    folder = os.path.expanduser(path)
    if os.path.isfile(os.path.join(folder, manifest.MANIFEST)):
        return array_records.open_array_records(manifest.read(folder).paths)
    if os.path.isfile(os.path.join(folder, manifest.PLAN)):
        manifest.read(folder)  # says that it is half prepared
    if glob.glob(os.path.join(glob.escape(folder), f"*{manifest.SUFFIX}")):
        raise InputError(
            f"{path!r} has shards without a {manifest.MANIFEST}, perhaps not all of them; finish "
            f"or fetch the folder, or name its files: {os.path.join(path, '*' + manifest.SUFFIX)}"
        )
    shards = paths.expand(path, tuple(FORMATS))
    suffix = suffix_of(path, shards)
    if suffix != ".array_record":
        raise InputError(
            f"{path!r} holds {FORMATS[suffix]}, which is not prepared; name its corpus"
        )
    for parent in sorted({os.path.dirname(shard) for shard in shards}):
        if os.path.isfile(os.path.join(parent, manifest.PLAN)):
            manifest.read(parent)  # files of a folder that is not finished
    return array_records.open_array_records(shards)


def _without_side_files(shards: list[str]) -> list[str]:
    """Leaves out what img2dataset writes beside a shard: its table of URLs, what it counted."""
    tars = {shard.removesuffix(".tar") for shard in shards if shard.endswith(".tar")}
    tables = {shard.removesuffix(".parquet") for shard in shards if shard.endswith(".parquet")}
    beside = {f"{stem}.parquet" for stem in tars} | {f"{s}_stats.json" for s in tars | tables}
    return [shard for shard in shards if shard not in beside]


def suffix_of(path: str, shards: list[str]) -> str:
    """What all shards' names end in, one of `FORMATS`.

    Raises:
      InputError: if they do not agree, or it is none of these.
    """
    found = sorted({next((s for s in FORMATS if shard.endswith(s)), "") for shard in shards})
    if len({FORMATS.get(suffix) for suffix in found}) > 1:
        raise InputError(f"{path!r} mixes {' and '.join(s or 'others' for s in found)}; name one")
    if not found[0]:
        compression.refuse(shards[0])
        raise InputError(f"{shards[0]!r} is of no known format; shards end in {', '.join(FORMATS)}")
    return found[0]


def open_files(path: str) -> Files:
    """Opens the files that records name: a folder, or tars.

    Raises:
      InputError: if there is no such folder or tar.
    """
    if path.endswith(".tar") or ".tar," in path or ".tar::" in path:
        from flamingo_jax.data.readers import tars

        return tars.open_tar_files(path)
    from flamingo_jax.data.readers import files

    paths.refuse_url(path, "files that records name, unless they are in tars,")
    return files.FolderFiles(path)
