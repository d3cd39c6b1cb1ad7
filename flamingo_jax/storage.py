"""Where runs are kept: folders of a disk, and gs:// addresses, behind one interface.

Both are `epath.Path`, which Orbax takes too. A bucket differs from a disk in three ways, for which
the functions here and in sealed.py, mirror.py and lease.py stand: it has objects and no folders,
nothing is renamed at once or appended to, and it may be out of reach.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import pathlib
import re
import secrets
import tempfile
from collections.abc import Iterator
from typing import Any

from etils import epath

from flamingo_jax.errors import InputError, OutOfReach

PROTOCOL = "gs://"
RUNS = "FLAMINGO_RUNS"
"""In the environment: where the working folders of runs in buckets are made."""

DEFAULT_RUNS = "~/.cache/flamingo_jax/runs"

# Words by which gcsfs and TensorStore tell that it was not an object that was at fault.
_FORBIDDEN = re.compile("Forbidden|Invalid Credentials|UNAUTHENTICATED|PERMISSION_DENIED")
_OUTAGE = re.compile(
    "UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|Cannot connect|disconnected|timed out"
)


def to_path(place: str | os.PathLike[str]) -> epath.Path:
    """The folder of a disk, as an absolute path, or the gs:// address that `place` names.

    Raises:
      InputError: for another protocol or no bucket's name, or if buckets need a package that is
        not installed.
    """
    text = os.fspath(place)
    if "://" not in text:
        return epath.Path(pathlib.Path(text).absolute())
    if not re.fullmatch(r"gs://[^/]+(/.*)?", text):
        raise InputError(f"{text!r} is no address of a bucket; give gs://BUCKET/FOLDER, or a path")
    if importlib.util.find_spec("gcsfs") is None:
        raise InputError(
            f'{text!r} needs a package that is not installed; pip install "flamingo_jax[gcs]"'
        )
    _prepare()
    return epath.Path(text.rstrip("/"))


def _prepare() -> None:
    """Sets gcsfs and etils up, before either has looked at a bucket."""
    import fsspec.config

    # Others write there too: a listing may not be kept.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    # Where TensorFlow is installed etils would reach buckets by it, with other errors.
    os.environ.setdefault("EPATH_USE_TF", "false")


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether this is an address of a bucket."""
    return os.fspath(path).startswith(PROTOCOL)


def filesystem() -> Any:
    """The fsspec file system of all buckets, for what `epath.Path` cannot do at once."""
    import fsspec

    return fsspec.filesystem("gcs")


def exists(path: epath.Path) -> bool:
    """Whether there is a file, a folder, an object, or any object below.

    `epath.Path` and gcsfs also say no where a bucket does not answer; this raises.
    """
    if not is_remote(path):
        return path.exists()
    try:
        filesystem().info(os.fspath(path))
    except FileNotFoundError:
        return False
    return True


def entries(folder: epath.Path) -> list[epath.Path]:
    """What is in a folder, by name; nothing if it is not there. Raises as `exists` does."""
    try:
        if not is_remote(folder):
            return sorted(folder.iterdir())
        names = filesystem().ls(os.fspath(folder), detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted({folder / name.rstrip("/").rpartition("/")[2] for name in names})


def copy_tree(folder: epath.Path, to: epath.Path) -> None:
    """Copies all objects of a folder of a bucket; none of them passes through this machine."""
    root = os.fspath(folder).removeprefix(PROTOCOL)
    for name in filesystem().find(root):
        filesystem().cp_file(name, f"{os.fspath(to).removeprefix(PROTOCOL)}{name[len(root) :]}")


def modified(path: epath.Path) -> float:
    """When a file or object was written, in seconds; 0 where there is none."""
    try:
        if not is_remote(path):
            return os.stat(path).st_mtime
        return filesystem().info(os.fspath(path))["mtime"].timestamp()
    except FileNotFoundError:
        return 0.0


def working_folder(address: epath.Path, user: str) -> pathlib.Path:
    """Where a process writes what a bucket cannot take row by row; made by nobody yet.

    Each user has its own, "process-0": those of one machine would else write the same files.
    """
    base = pathlib.Path(os.environ.get(RUNS) or DEFAULT_RUNS).expanduser().absolute()
    digest = hashlib.sha256(os.fspath(address).encode()).hexdigest()[:16]
    return base / digest / user / address.name


@contextlib.contextmanager
def temporary(beside: epath.Path | None) -> Iterator[epath.Path]:
    """A folder beside another one that is removed in the end; None = where the system has them."""
    if beside is None or not is_remote(beside):
        parent = None if beside is None else beside.parent
        with tempfile.TemporaryDirectory(prefix="flamingo-check-", dir=parent) as folder:
            yield epath.Path(folder)
        return
    made = beside.parent / f"flamingo-check-{secrets.token_hex(4)}"
    try:
        yield made
    finally:
        if exists(made):
            made.rmtree()


@contextlib.contextmanager
def told(place: epath.Path) -> Iterator[None]:
    """A bucket's refusals while the block asks it, as one sentence; disks raise as ever.

    Raises:
      InputError: if there is no such bucket or object, or no permission or login for it.
      OutOfReach: if it does not answer as a bucket does.
    """
    try:
        yield
    except (InputError, OutOfReach):
        raise
    except Exception as error:
        if not is_remote(place):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, FileNotFoundError) and error.errno is None:  # no local file
            raise InputError(
                f"{place}: there is no such bucket or object ({reason}); check the address, or "
                "make the bucket first"
            ) from error
        if _is_forbidden(error):
            raise InputError(
                f"{place}: you may not use this bucket ({reason}); log in by `gcloud auth "
                "application-default login`, or give the machine's service account the role "
                "Storage Object User"
            ) from error
        if not is_outage(error):
            raise
        raise OutOfReach(
            f"{place} cannot be reached ({type(error).__name__}: {reason}); check the network, and "
            "start again"
        ) from error


def _is_forbidden(error: BaseException) -> bool:
    if type(error).__name__ in ("DefaultCredentialsError", "RefreshError"):
        return True
    code = str(getattr(error, "code", ""))
    return code in ("401", "403") or _FORBIDDEN.search(str(error)) is not None


def is_outage(error: BaseException) -> bool:
    """Whether it is the bucket that failed, or the way to it, and not what an object holds."""
    if _is_forbidden(error) or isinstance(error, ConnectionError | TimeoutError):
        return True
    if type(error).__module__.partition(".")[0] in ("gcsfs", "aiohttp", "requests", "google"):
        return True
    return _OUTAGE.search(str(error)) is not None
