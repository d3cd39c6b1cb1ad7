"""The first rows of a dataset in training, with what a page tells besides.

They come from the pipeline that training reads, in its order and with its draws. What a row does
not tell (which media of a document it shows, what they are without augmentation) is read off
further rows of the same document, with the same draws, under a changed spec.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from flamingo_jax.data.augment import AugmentSpec
from flamingo_jax.data.document import Document, Medium, Source
from flamingo_jax.data.pipeline import Pipeline
from flamingo_jax.data.rows import DatasetSpec, make_row
from flamingo_jax.data.tokenizer import Tokenizer
from flamingo_jax.errors import InputError
from flamingo_jax.report.laid import LaidRow, Picture, Piece
from flamingo_jax.samples.statistics import numbered, stored_size
from flamingo_jax.shapes import Batch

_UNFINISHED = "\ufffd"  # a character of which bytes are missing
_LONGEST = 6  # tokens of one character


def first_rows(
    source: Source, spec: DatasetSpec, tokenizer: Tokenizer, seed: int, count: int
) -> tuple[list[LaidRow], str]:
    """The first rows that a run sees, and why there are no more, if anything ails them.

    Raises:
      InputError: if the source is empty or the spec cannot be met.
    """
    pipeline = Pipeline(
        {spec.name: source},
        {spec.name: spec},
        tokenizer,
        seed=seed,
        steps=-(-count // spec.batch),
        rows={spec.name: (0, min(spec.batch, count))},  # no more of a step than are shown
        threads=2,
    )
    found: list[LaidRow] = []
    for step in range(len(pipeline)):
        try:
            batch = pipeline[step][spec.name]
        except InputError as error:
            return found, str(error)
        rejects: dict[int, list[str]] = {}
        for _, reject in pipeline.rejects(spec.name, step):
            told = f"document {reject.index:,}: {reject.reason} ({reject.detail})"
            rejects.setdefault(reject.row, []).append(told)
        for row in range(min(len(batch.tokens), count - len(found))):
            number = step * spec.batch + row
            index = pipeline.row_index(spec.name, step, row)
            laid = _laid(batch, row, number, source[index], spec, tokenizer, seed)
            told = tuple(rejects.get(number, ()))
            found.append(dataclasses.replace(laid, document=index, replaced=told))
    return found, ""


def _laid(
    batch: Batch,
    row: int,
    number: int,
    document: Document,
    spec: DatasetSpec,
    tokenizer: Tokenizer,
    seed: int,
) -> LaidRow:
    """A row of a batch with what the page tells besides, its document's index aside."""
    count = int((np.asarray(batch.positions[row]) >= 0).sum())
    plain = dataclasses.replace(spec, augment=AugmentSpec())
    dyed, small = numbered(document), dataclasses.replace(plain, image_size=1, frames=1)
    places = make_row(dyed, small, tokenizer, seed, number)
    previous = make_row(dyed, dataclasses.replace(small, p_next=0.0), tokenizer, seed, number)
    clean = make_row(document, plain, tokenizer, seed, number)["media"]
    media = [item for item in document.items if isinstance(item, Medium)]
    pictures = []
    for place, frames in enumerate(np.asarray(batch.frames[row])):
        if frames:
            high, middle, low = map(int, places["media"][place, 0, 0, 0])
            medium = media[high << 16 | middle << 8 | low]
            seen = np.asarray(batch.media[row, place, :frames])
            pair = seen, clean[place, :frames]
            size, is_clip = stored_size(medium), medium.kind == "clip"
            pictures.append(Picture(*pair, medium.key, size, is_clip))
    following = any(
        (places[field] != previous[field]).any() for field in ("tokens", "media_of_token")
    )
    return LaidRow(
        number=number,
        document=-1,
        key=document.key,
        pieces=pieces(
            tokenizer,
            np.asarray(batch.tokens[row, :count]).tolist(),
            np.asarray(batch.media_of_token[row, :count]).tolist(),
            np.asarray(batch.loss_mask[row, :count]).tolist(),
        ),
        length=spec.length,
        pictures=tuple(pictures),
        following=following,
    )


def pieces(
    tokenizer: Tokenizer, tokens: Sequence[int], media: Sequence[int], loss: Sequence[float]
) -> tuple[Piece, ...]:
    """A row's tokens with the text of each; together they are what `decode` gives.

    Where <image> is plain characters, it is told from the same characters in a text by not being a
    target of the loss.
    """
    found: list[Piece] = []
    image = list(tokenizer.image)
    controls = {tokenizer.bos, tokenizer.eos, tokenizer.eoc} - {None}
    run: list[int] = []

    def flush() -> None:
        start = len(found)
        for place, text in enumerate(_texts(tokenizer, run), start=start):
            found.append(Piece(text, media[place], loss[place] > 0))
        run.clear()

    at = 0
    while at < len(tokens):
        is_image = list(tokens[at : at + len(image)]) == image and not any(
            loss[at : at + len(image)]
        )
        if is_image or tokens[at] in controls:
            flush()
            wide = len(image) if is_image else 1
            name = tokenizer.decode(tokens[at : at + wide], control=True)
            kind = "image" if is_image else "control"
            for place in range(at, at + wide):
                text = name if place == at else ""
                found.append(Piece(text, media[place], loss[place] > 0, kind))
            at += wide
            continue
        run.append(int(tokens[at]))
        at += 1
    flush()
    return tuple(found)


def _texts(tokenizer: Tokenizer, run: list[int]) -> list[str]:
    """What each token adds to the text; a character's last token brings it."""
    texts = [""] * len(run)
    start = read = 0
    for end in range(1, len(run) + 1):
        now = tokenizer.decode(run[start:end])
        waits = now.endswith(_UNFINISHED) and end < len(run) and end - read < _LONGEST
        if not waits:
            # With the token before: some tokenizers write a space only between two.
            texts[end - 1] = now[len(tokenizer.decode(run[start:read])) :]
            start, read = read, end
    return texts
