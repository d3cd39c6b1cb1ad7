"""What turns plain text into ids and back: bytes, SentencePiece, and `tokenizers` JSON files.

None of them knows the new tokens `<EOC>` and `<image>`; that is `tokenizer.Tokenizer`'s part.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Protocol

from flamingo_jax.errors import InputError

BOS, EOS = "<BOS>", "<EOS>"
BYTES = 256
# How published tokenizers name the ends of a text, for files that come without a
# tokenizer_config.json; the first one that the vocabulary holds counts.
_BOS_NAMES = (BOS, "<s>", "<|begin_of_text|>", "<bos>", "<|endoftext|>", "</s>")
_EOS_NAMES = (EOS, "</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>")


class TextModel(Protocol):
    """Text to ids and back, without control tokens.

    Attributes:
      kind: the name in `config.tokenizer.kind` that opens it.
      vocab: V, how many ids there are; all ids are below it.
      bos: the id that begins a text, where there is one.
      eos: the id that ends a text, where there is one.
      blob: what defines the model, as the bytes of one file (empty for bytes).
    """

    kind: str
    vocab: int
    bos: int | None
    eos: int | None
    blob: bytes

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; `bos` and `eos` are never among them."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, which hold neither `bos` nor `eos`."""
        ...

    def name(self, token: int) -> str:
        """How a control token is written out."""
        ...


class ByteModel:
    """UTF-8 bytes as ids 0…255, then <BOS> and <EOS>."""

    kind = "bytes"
    vocab = BYTES + 2
    bos: int | None = BYTES
    eos: int | None = BYTES + 1
    blob = b""

    def encode(self, text: str) -> list[int]:
        """One id for each byte."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """The text; bytes that are not UTF-8 become U+FFFD."""
        return bytes(ids).decode(errors="replace")

    def name(self, token: int) -> str:
        """<BOS> or <EOS>."""
        return BOS if token == self.bos else EOS


class SentencePieceModel:
    """A SentencePiece `.model`; its control symbols cannot be reached from text."""

    kind = "sentencepiece"

    def __init__(self, blob: bytes, where: str) -> None:
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(blob)
        except RuntimeError as error:
            raise InputError(
                f"{where} is not a SentencePiece model; give the .model file of the language model"
            ) from error
        self._processor = processor
        self.blob = blob
        self.vocab: int = processor.vocab_size()
        self.bos: int | None = processor.bos_id() if processor.bos_id() >= 0 else None
        self.eos: int | None = processor.eos_id() if processor.eos_id() >= 0 else None

    def encode(self, text: str) -> list[int]:
        """Ids of the best segmentation."""
        return self._processor.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self._processor.decode(list(ids))

    def name(self, token: int) -> str:
        """The piece of an id."""
        return self._processor.id_to_piece(token)


class JsonModel:
    """A `tokenizer.json` of the `tokenizers` package.

    Tokens such as "<|endoftext|>" inside a text are encoded as plain characters
    (`encode_special_tokens`), and no template of the file is applied.
    """

    kind = "tokenizers"

    def __init__(self, blob: bytes, where: str, bos: str | None, eos: str | None) -> None:
        import tokenizers

        try:
            data = json.loads(blob)
            for token in data.get("added_tokens", ()):
                # Only tokens marked special are left alone in text, and some files do not mark.
                token["special"] = token["special"] or token["content"] in (bos, eos)
            tokenizer = tokenizers.Tokenizer.from_str(json.dumps(data))
        except Exception as error:  # the package raises bare Exception on malformed files
            raise InputError(
                f"{where} is not a tokenizer of the tokenizers package; give a tokenizer.json"
            ) from error
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.blob = blob
        self.vocab: int = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.bos = self._id(bos, where)
        self.eos = self._id(eos, where)

    def _id(self, name: str | None, where: str) -> int | None:
        if name is None:
            return None
        token = self._tokenizer.token_to_id(name)
        if token is None:
            raise InputError(
                f"{where} holds no token {name!r}, which its configuration names; mend that file"
            )
        return token

    def encode(self, text: str) -> list[int]:
        """Ids of the text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def name(self, token: int) -> str:
        """The token of an id."""
        return self._tokenizer.id_to_token(token) or ""


def ends_of(path: pathlib.Path, blob: bytes) -> tuple[str | None, str | None]:
    """The names of a `tokenizer.json`'s <BOS> and <EOS>.

    They stand in a `tokenizer_config.json` beside it; without one, known names are looked for.
    """
    beside = path.with_name("tokenizer_config.json")
    if beside.is_file():
        config = json.loads(beside.read_text(encoding="utf-8"))
        named = (config.get("bos_token"), config.get("eos_token"))
        bos, eos = (value.get("content") if isinstance(value, dict) else value for value in named)
        return bos, eos
    try:
        added = {token["content"] for token in json.loads(blob).get("added_tokens", ())}
    except (ValueError, KeyError, TypeError, AttributeError):
        added = set()  # JsonModel says what is wrong with the file
    bos = next((name for name in _BOS_NAMES if name in added), None)
    eos = next((name for name in _EOS_NAMES if name in added), None)
    return bos, eos


def train_bpe(texts: Iterable[str], vocab: int) -> JsonModel:
    """Learns byte-level BPE: all 256 bytes, <BOS>, <EOS>, and the merges that pay most.

    Every text round-trips exactly. The same texts give the same bytes. GPT-2's pattern keeps
    punctuation and letters apart, so that no merge can ever spell "<BOS>".

    Args:
      texts: what to learn on.
      vocab: V, how many tokens to end with; texts with too little variety give fewer.

    Raises:
      InputError: if `vocab` cannot hold the bytes and the two ends.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab < BYTES + 2:
        raise InputError(
            f"config.tokenizer.vocab={vocab} cannot hold 256 bytes, <BOS> and <EOS>; "
            f"give at least {BYTES + 2}"
        )
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return JsonModel(tokenizer.to_str().encode(), "the trained tokenizer", BOS, EOS)
