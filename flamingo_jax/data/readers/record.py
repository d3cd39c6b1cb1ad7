"""What every reader returns: a record as it is stored, by its index, nothing decoded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class Record:
    """One stored record.

    Attributes:
      key: its name, unique within the reader and the same at every visit: "shard-0003.tar/00012".
      fields: by name, as the format has them: {"jpg": bytes, "txt": bytes, "json": bytes} of a
        WebDataset sample, the columns of a Parquet row, the keys of a JSON object.
    """

    key: str
    fields: Mapping[str, Any]


class Reader(Protocol):
    """Random access to the records of any number of shards, the same index the same record."""

    def __len__(self) -> int:
        """How many records there are."""
        ...

    def __getitem__(self, index: int) -> Record:
        """The record at `index`, 0 ≤ index < len.

        Raises:
          BadRecord: if this record cannot be read; its neighbours still can.
          IndexError: beyond the end.
        """
        ...


class Files(Protocol):
    """Named files beside the records: images that a record names by a path or a key."""

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
          BadRecord: if there is no such file, it is too large, or the name leaves its folder.
        """
        ...
