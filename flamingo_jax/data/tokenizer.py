"""Text to ids and back, with the tokens that Flamingo adds to a language model.

`<EOC>` is always a new token, learnt while the language model is frozen (Flamingo v1 §3.2.1);
`<image>` is plain text there and a new token in OpenFlamingo and IDEFICS. New tokens follow the
language model's own vocabulary: `<EOC>` is `V`, a new `<image>` is `V + 1`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Sequence

from etils import epath

from flamingo_jax import storage
from flamingo_jax.data import textmodels
from flamingo_jax.errors import InputError

EOC, IMAGE = "<EOC>", "<image>"
KINDS = ("bytes", "sentencepiece", "tokenizers", "train")
_FILES = {"sentencepiece": "tokenizer.model", "tokenizers": "tokenizer.json"}
_META = "meta.json"


class Tokenizer:
    """A language model's vocabulary and the new tokens behind it.

    Attributes:
      vocab: V, the language model's own vocabulary (its embedding's rows, padding included).
      bos: the id that begins a text, where there is one.
      eos: the id that ends a text, where there is one.
      new_tokens: names of the new tokens; that of index i has the id V + i.
      eoc: the id of <EOC>, which is V.
      image: the ids that <image> becomes: one new token, or the ids of its characters.
    """

    def __init__(self, model: textmodels.TextModel, image: str = "new", vocab: int = 0) -> None:
        """Adds the new tokens behind a text model's vocabulary.

        Args:
          model: what encodes plain text.
          image: "new" for a token of its own, "text" for plain characters.
          vocab: V where the language model's embedding has more rows than the text model has
            tokens; 0 = as many.

        Raises:
          InputError: if `vocab` is smaller than the text model's, or `image` is neither of both.
        """
        if image not in ("new", "text"):
            raise InputError(f"config.tokenizer.image is {image!r}; new or text")
        if vocab and vocab < model.vocab:
            raise InputError(
                f"the language model's vocabulary of {vocab} is smaller than the tokenizer's "
                f"{model.vocab}; give the tokenizer that belongs to the model"
            )
        self._model = model
        self._image_kind = image
        self.vocab: int = vocab or model.vocab
        self.bos: int | None = model.bos
        self.eos: int | None = model.eos
        self.new_tokens: tuple[str, ...] = (EOC, IMAGE) if image == "new" else (EOC,)
        self.eoc: int = self.vocab
        self.image: tuple[int, ...] = (
            (self.vocab + 1,) if image == "new" else tuple(model.encode(IMAGE))
        )

    def encode(self, text: str) -> list[int]:
        """The ids of plain text; never a control token, whatever characters the text holds.

        Lone surrogates, which no encoding has, become "?".
        """
        if not text:
            return []
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode(errors="replace").decode()
        return self._model.encode(text)

    def decode(self, ids: Iterable[int], control: bool = False) -> str:
        """The text of ids.

        Args:
          ids: token ids; those that stand for nothing (an embedding's padding rows) are left out.
          control: are <BOS>, <EOS> and the new tokens written out? Otherwise they are left out.
        """
        pieces: list[str] = []
        run: list[int] = []
        for token in map(int, ids):
            name = self._control_name(token)
            if name is None:
                if 0 <= token < self._model.vocab:
                    run.append(token)
            elif control:
                pieces += [self._decode_run(run), name]
                run = []
        return "".join([*pieces, self._decode_run(run)])

    def _decode_run(self, run: Sequence[int]) -> str:
        return self._model.decode(run) if run else ""

    def _control_name(self, token: int) -> str | None:
        if token in (self.bos, self.eos):
            return self._model.name(token)
        if self.vocab <= token < self.vocab + len(self.new_tokens):
            return self.new_tokens[token - self.vocab]
        return None

    def _meta(self) -> dict[str, object]:
        model = self._model
        return {
            "kind": model.kind,
            "image": self._image_kind,
            "vocab": self.vocab,
            "bos": None if model.bos is None else model.name(model.bos),
            "eos": None if model.eos is None else model.name(model.eos),
            "sha256": hashlib.sha256(model.blob).hexdigest(),
        }

    @functools.cached_property
    def digest(self) -> str:
        """sha256 (hex) of all that decides what ids a text gets."""
        return hashlib.sha256(json.dumps(self._meta(), sort_keys=True).encode()).hexdigest()

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes what `load_tokenizer` reads: meta.json and the model's own file, if it has one."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self._model.kind in _FILES:
            (folder / _FILES[self._model.kind]).write_bytes(self._model.blob)
        text = json.dumps(self._meta(), indent=1, sort_keys=True) + "\n"
        (folder / _META).write_text(text, encoding="utf-8")


def open_tokenizer(kind: str, path: str = "", image: str = "new", vocab: int = 0) -> Tokenizer:
    """The tokenizer of a language model, from its published file.

    Args:
      kind: "bytes", "sentencepiece" or "tokenizers".
      path: the .model or tokenizer.json file; none for bytes.
      image: is <image> a "new" token or plain "text"?
      vocab: V, the rows of the language model's embedding; 0 = as many as the tokenizer has.

    Raises:
      InputError: for a kind or a file that there is not.
    """
    if kind == "bytes":
        return Tokenizer(textmodels.ByteModel(), image, vocab)
    if kind == "train":
        raise InputError("a tokenizer of kind 'train' is learnt from texts; it has no file to open")
    if kind not in KINDS:
        raise InputError(f"config.tokenizer.kind is {kind!r}; one of {', '.join(KINDS)}")
    file = pathlib.Path(path)
    blob = _read(file, f"config.tokenizer.path names a {kind} file")
    if kind == "sentencepiece":
        return Tokenizer(textmodels.SentencePieceModel(blob, str(file)), image, vocab)
    model = textmodels.JsonModel(blob, str(file), *textmodels.ends_of(file, blob))
    return Tokenizer(model, image, vocab)


def train_tokenizer(texts: Iterable[str], vocab: int, image: str = "new") -> Tokenizer:
    """Learns byte-level BPE of `vocab` tokens on texts; the same texts give the same tokenizer.

    Raises:
      InputError: if `vocab` is below 258 (all bytes and the two ends of a text).
    """
    return Tokenizer(textmodels.train_bpe(texts, vocab), image)


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """A tokenizer that `Tokenizer.save` has written, on a disk or in a bucket.

    Raises:
      InputError: if the folder holds none, or a file was changed since.
    """
    folder = storage.to_path(folder)
    blob = _read(folder / _META, "a saved tokenizer has that file")
    try:
        meta = json.loads(blob)
        kind, image, vocab = meta["kind"], meta["image"], meta["vocab"]
        bos, eos, sha256 = meta["bos"], meta["eos"], meta["sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / _META} is damaged; copy the tokenizer's folder anew"
        ) from error
    if kind == "bytes":
        return Tokenizer(textmodels.ByteModel(), image, vocab)
    if kind not in _FILES:
        raise InputError(f"{folder / _META} names a tokenizer of unknown kind {kind!r}")
    file = folder / _FILES[kind]
    blob = _read(file, "a saved tokenizer has that file")
    if hashlib.sha256(blob).hexdigest() != sha256:
        raise InputError(f"{file} is not the file that was saved; copy the tokenizer's folder anew")
    if kind == "sentencepiece":
        return Tokenizer(textmodels.SentencePieceModel(blob, str(file)), image, vocab)
    return Tokenizer(textmodels.JsonModel(blob, str(file), bos, eos), image, vocab)


def _read(file: pathlib.Path | epath.Path, why: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {str(file)!r} ({error.strerror}); {why}") from error
