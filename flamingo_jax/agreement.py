"""Do all hosts run the same? Compared at start, as what differs would train a wrong model."""

from __future__ import annotations

import collections
import hashlib
import json
import pathlib
import socket
from collections.abc import Mapping
from typing import Any

import jax

from flamingo_jax import installed, processes
from flamingo_jax.errors import InputError

ABSENT = "nothing"
SECONDS = 300.0
NAMED = 5
"""At most so many differences are told."""


def facts(verb: str, config_json: str) -> dict[str, Any]:
    """What must be the same on every host; asks for the devices.

    Args:
      verb: what they were told to do.
      config_json: the resolved config.
    """
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise InputError(
            f"there are {jax.process_count()} hosts and they have not been joined; set "
            "FLAMINGO_COORDINATOR=auto on all of them"
        )
    return {
        "verb": verb,
        "versions": installed.versions(),
        "files": _files(),
        "config": json.loads(config_json),
        "devices": {"local": jax.local_device_count(), "kind": jax.local_devices()[0].device_kind},
    }


def check(found: Mapping[str, Any], seconds: float = SECONDS) -> None:
    """Compares what every process has found; a digest travels, and the rest if digests differ.

    Args:
      found: nested JSON values by name.
      seconds: how long the others may take to come.

    Raises:
      InputError: on every process, naming those that differ from most, and what differs.
      HostsMissing: if one does not come.
    """
    mine = _flat(found)
    text = json.dumps(mine, sort_keys=True)
    digests = processes.gather("agreement", _digest(text.encode()), seconds)
    if len(set(digests)) == 1:
        return
    told = json.dumps([socket.gethostname(), mine])
    rows = [json.loads(row) for row in processes.gather("disagreement", told, seconds)]
    complaints = list_differences([(host, values) for host, values in rows])
    more = f" (and {len(complaints) - NAMED} differences more)" if len(complaints) > NAMED else ""
    raise InputError(
        f"the hosts do not run the same: {'; '.join(complaints[:NAMED])}{more}; make them alike "
        "and start again"
    )


def list_differences(rows: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """A sentence for each field and value that is not what most processes have.

    Where no value is that of most, process 0's counts.

    Args:
      rows: (host, {dotted name: value}) of each process.
    """
    complaints = []
    for field in sorted({field for _, values in rows for field in values}):
        said = [json.dumps(values.get(field, ABSENT)) for _, values in rows]
        counts = collections.Counter(said)
        common = max(counts, key=lambda value: (counts[value], value == said[0]))
        for value in dict.fromkeys(said):
            if value == common:
                continue
            names = [
                processes.name_of(process, host)
                for process, (host, _) in enumerate(rows)
                if said[process] == value
            ]
            verb = "have" if len(names) > 1 else "has"
            complaints.append(
                f"{processes.list_names(names)} {verb} {field} = {value}, where "
                f"{'most have' if counts[common] > 1 else 'process 0 has'} {common}"
            )
    return complaints


def _files() -> dict[str, str]:
    """{path in the package: digest} of its source files."""
    folder = pathlib.Path(__file__).parent
    paths = sorted(folder.rglob("*.py"))
    return {str(path.relative_to(folder)): _digest(path.read_bytes())[:12] for path in paths}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of nested mappings."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
