"""A corpus in shards as a source of documents: a reader, and what makes its records documents."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

from flamingo_jax.data.corpora import clips, mmc4, obelics, pairs, texts
from flamingo_jax.data.document import Document, Source
from flamingo_jax.data.readers import formats
from flamingo_jax.data.readers.record import Files, Reader
from flamingo_jax.errors import InputError

Parse = Callable[[Any, Any, Files | None], Document]


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """Of documents that are read as they were prepared."""

    def needed(self) -> tuple[tuple[str, ...], ...]:
        """Fields of a record, of each group one."""
        return ()


def _as_prepared(document: Document, options: NoOptions, files: Files | None = None) -> Document:
    return document


CORPORA: dict[str, tuple[Parse, type]] = {
    "clips": (clips.parse, clips.ClipOptions),
    "mmc4": (mmc4.parse, mmc4.Mmc4Options),
    "obelics": (obelics.parse, obelics.ObelicsOptions),
    "pairs": (pairs.parse, pairs.PairOptions),
    "prepared": (_as_prepared, NoOptions),
    "texts": (texts.parse, texts.TextOptions),
}
"""How a corpus's records are read, and the options of that."""


@dataclasses.dataclass(frozen=True)
class Places:
    """Some of a reader's records: all, all but one in so many, or those.

    Attributes:
      total: records of the reader.
      every: one in so many is held out, the last of each so many; 0 = none.
      held: are these the ones held out?
    """

    total: int
    every: int = 0
    held: bool = False

    def __len__(self) -> int:
        kept_back = self.total // self.every if self.every else 0
        return kept_back if self.held else self.total - kept_back

    def __getitem__(self, index: int) -> int:
        """The place in the reader of the record at `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        if self.held:
            return (index + 1) * self.every - 1
        return index + index // (self.every - 1) if self.every else index


class CorpusSource:
    """Documents of a corpus; `document.Source`."""

    def __init__(
        self,
        reader: Reader | Source,
        parse: Parse,
        options: Any,
        files: Files | None = None,
        places: Places | None = None,
    ) -> None:
        """Takes what a record is read from and how; `places` = which records, all by default."""
        self._reader, self._parse, self._options, self._files = reader, parse, options, files
        self._places = places or Places(len(reader))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Document:
        """The document at `index`.

        Raises:
          BadRecord: if its record is damaged, malformed, or not used by the options.
          IndexError: beyond the end.
        """
        return self._parse(self._reader[self._places[index]], self._options, self._files)


def open_corpus(
    corpus: str,
    path: str,
    split: str,
    *,
    files: str = "",
    validation_path: str = "",
    held_out: int = 0,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> CorpusSource:
    """Opens a corpus.

    Args:
      corpus: one of `CORPORA`.
      path: its shards, see `formats.open_reader`.
      split: "train" or "validation".
      files: the folder or tars in which the files lie that records name; "" = records hold all.
      validation_path: shards of the validation split.
      held_out: where there are none, one record in so many is held out for it.
      seed: of draws that the options leave to it.
      options: fields of the corpus's options.

    Raises:
      InputError: for options that there are not, shards or files that are not there, or a
        validation split that nothing is held out for.
    """
    parse, kind = CORPORA[corpus]
    chosen = make_options(corpus, kind, {"seed": seed}, options or {})
    opened = formats.open_files(files) if files else None
    if validation_path:
        shards = path if split == "train" else validation_path
        return CorpusSource(_records(corpus, shards, split, chosen), parse, chosen, opened)
    if held_out == 1 or held_out < 0:
        raise InputError(
            f"held_out is {held_out}; one record in so many, at least 2, or 0 for none"
        )
    if split != "train" and not held_out:
        raise InputError(
            f"the source {corpus!r} at {path!r} has no validation split; give validation_path or "
            "held_out, or set validation=False"
        )
    reader = _records(corpus, path, "train", chosen)
    places = Places(len(reader), held_out, held=split != "train")
    if split != "train" and not len(places):
        raise InputError(
            f"one record in {held_out} is held out, but {path!r} has {len(reader)}; lower held_out "
            "or give validation_path"
        )
    return CorpusSource(reader, parse, chosen, opened, places)


def _records(corpus: str, path: str, split: str, options: Any) -> Reader | Source:
    if corpus == "prepared":
        return formats.open_prepared(path)
    reader = formats.open_reader(path, split)
    names: tuple[str, ...] = getattr(reader, "names", ())  # of formats that declare their fields
    for group in options.needed() if names else ():
        if not any(name in names or name.partition(".")[0] in names for name in group):
            raise InputError(
                f"{path!r} has none of the fields {', '.join(group)} that the source {corpus!r} "
                f"reads, but {', '.join(names)}; name yours in the dataset's options"
            )
    return reader


def make_options(
    corpus: str, kind: type, defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> Any:
    """A corpus's options from a config's fields.

    Args:
      corpus: its name, for messages.
      kind: the dataclass.
      defaults: values of fields that are not given, where the dataclass has such fields.
      given: {field: value}; integers will do for floats, lists for tuples.

    Raises:
      InputError: for a field that there is not, or a value that is not of its type.
    """
    own = {field.name: field.default for field in dataclasses.fields(kind)}
    values = {name: value for name, value in defaults.items() if name in own}
    for name, value in given.items():
        if name not in own:
            near = difflib.get_close_matches(str(name), own, n=1)
            hint = f" (do you mean {near[0]!r}?)" if near else ""
            raise InputError(
                f"the source {corpus!r} has no option {name!r}{hint}; "
                f"it has {', '.join(own) or 'none'}"
            )
        wanted = type(own[name])
        if wanted is float and type(value) is int:
            value = float(value)
        if wanted is tuple and isinstance(value, list):
            value = tuple(value)
        if type(value) is not wanted:
            raise InputError(
                f"option {name!r} of the source {corpus!r} is {value!r}; "
                f"it takes a {wanted.__name__}"
            )
        values[name] = value
    return kind(**values)
