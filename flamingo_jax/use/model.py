"""A loaded model: prompts of text, pictures and clips in; text, scores, features and logits out."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flamingo_jax.data import prompt as prompts_
from flamingo_jax.data.prompt import text as text_
from flamingo_jax.data.tokenizer import EOC, Tokenizer
from flamingo_jax.errors import InputError
from flamingo_jax.eval import decoding, generate, score
from flamingo_jax.eval import texts as texts_
from flamingo_jax.eval.media import MediaEncoder
from flamingo_jax.eval.rows import Graph, Prompt
from flamingo_jax.eval.shared import Shared, common
from flamingo_jax.shapes import Params, flatten_paths
from flamingo_jax.use import arguments, streams

Item = Any
"""Text, a PIL image, a path, a `Video`, u8[Y, X, 3] or u8[F, Y, X, 3]; see data/prompt.py."""


GROUP = 4
"""Batches of prompts whose pictures are held at once: more of them can be sorted by length."""


class LoadedFlamingo:
    """A model with its tokenizer, ready to be prompted.

    A prompt is a list of texts, pictures and clips in any order (data/prompt.py says how they are
    read). Results depend neither on which prompts are given together nor on padding.

    Attributes:
      config: the finished config it was made with.
      tokenizer: of the language model.
      params: all parameters, the canonical tree.
      about: where it comes from: path, stage, step.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: Tokenizer,
        graph: Graph,
        params: Params,
        about: Mapping[str, Any] | None = None,
    ):
        """Takes a model's parts; `from_parts` and `load` make them fit.

        Args:
          config: a finished config.
          tokenizer: of the language model.
          graph: the model.
          params: the canonical tree, trained and frozen; on devices, in any sharding.
          about: shown by `describe`.
        """
        self.config, self.tokenizer, self.params = config, tokenizer, params
        self.about: dict[str, Any] = dict(about or {})
        self._graph = graph
        self._size = config.data.image_size or config.model.vision.image_size
        sees = graph.config.resampler is not None
        self._media = MediaEncoder(graph, params) if sees else None
        self._digests: dict[str, str] = {}
        self._shared: Shared | None = None  # what the last prompts began with

    def generate(
        self,
        prompts: Sequence[Sequence[Item]],
        max_new_tokens: int = 32,
        *,
        beams: int = 1,
        length_penalty: float = 0.0,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (EOC,),
        batch: int | None = None,
        shared: Sequence[Item] = (),
    ) -> list[str]:
        """The text after each prompt, without what stopped it.

        Args:
          prompts: a list of prompts, each a list of items.
          max_new_tokens: at most so many.
          beams: width of a beam search; 1 = none.
          length_penalty: a beam's log-likelihood is divided by its length to this power; 0 = the
            likeliest text wins, 1 = the likeliest per token.
          temperature: 0 = the likeliest token; above, tokens are drawn.
          top_k: draw from the k likeliest; 0 = from all.
          top_p: draw from the likeliest that make up this probability.
          seed: of the draws. Prompt i draws the same in whatever batch it is run.
          stop: what ends a text: `<EOC>`, any other text, or nothing. The end of the language
            model's own texts always does.
          batch: sequences run at once; None = `config.eval.batch`.
          shared: items that stand before every prompt: shots that all of them share are read once.

        Raises:
          InputError: for a prompt or a setting that makes no sense.
        """
        ids, texts = arguments.stops(stop, self.tokenizer, self._knows_new_tokens)
        settings = arguments.settings(
            max_new_tokens, ids, beams, length_penalty, temperature, top_k, top_p, seed
        )
        rows = self._batch(batch)
        said = []
        for first, group, after in self._groups(prompts, rows, shared):
            found = generate.generate(self._graph, self.params, group, settings, rows, first, after)
            said += [streams.cut(self.tokenizer.decode(one.tokens), texts) for one in found]
        return said

    def stream(
        self,
        prompt: Sequence[Item],
        max_new_tokens: int = 32,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (EOC,),
    ) -> Iterator[str]:
        """Yields the text after one prompt piece by piece; arguments as for `generate`.

        The pieces make up what `generate([prompt])` returns.

        Raises:
          InputError: for a prompt or a setting that makes no sense.
        """
        ids, texts = arguments.stops(stop, self.tokenizer, self._knows_new_tokens)
        settings = arguments.settings(max_new_tokens, ids, 1, 0.0, temperature, top_k, top_p, seed)
        (made,), _ = self._encode([prompt], 0)
        tokens = generate.stream(self._graph, self.params, made, settings)
        return streams.pieces(tokens, self.tokenizer.decode, texts)

    def score(
        self,
        prompts: Sequence[Sequence[Item]],
        choices: Sequence[str] | Sequence[Sequence[str]],
        *,
        reduce: str = "sum",
        closing: bool | None = None,
        batch: int | None = None,
        shared: Sequence[Item] = (),
    ) -> np.ndarray:
        """How likely each choice is as the text after each prompt.

        Args:
          prompts: a list of prompts.
          choices: texts, the same for every prompt; or for each prompt a list of its own.
          reduce: "sum" of the tokens' log-likelihoods, or their "mean".
          closing: does the `<EOC>` after a choice count? None = for sums, not for means.
          batch: sequences run at once; None = `config.eval.batch`.
          shared: items that stand before every prompt, read once.

        Returns:
          f32[prompts, choices] in nats; -inf where a prompt has fewer choices than another.

        Raises:
          InputError: for a prompt or a choice that makes no sense.
        """
        if reduce not in ("sum", "mean"):
            raise InputError(f"score(reduce={reduce!r}): give 'sum' or 'mean'")
        closing = (reduce == "sum" and self._knows_new_tokens) if closing is None else closing
        count, rows = len(arguments.prompts(prompts)), self._batch(batch)
        own = arguments.choices(choices, count, self.tokenizer, closing)
        for number, of_row in enumerate(own):
            for choice in of_row:
                self._check_ids(choice, f"a choice of prompt {number}")
        scores = np.full((count, max(map(len, own), default=0)), -np.inf, np.float32)
        for first, group, after in self._groups(prompts, rows, shared):
            of_group = own[first : first + len(group)]
            found = score.score(self._graph, self.params, group, of_group, rows, after=after)
            for row, (values, of_row) in enumerate(zip(found, of_group, strict=True), first):
                lengths = np.asarray([len(choice) for choice in of_row], np.float32)
                values = values if reduce == "sum" else values / lengths
                scores[row, : len(of_row)] = values
        return scores

    def embed(self, images: Sequence[Item]) -> np.ndarray:
        """f32[images, E]: the encoder's features, averaged over positions (and a clip's frames).

        Raises:
          InputError: for what is no image, or a model without an encoder.
        """
        if not len(images):
            raise InputError("embed takes a list of at least one image")
        encoder = self._encoder("embed")
        return encoder.pooled([self._read(item, f"image {i}") for i, item in enumerate(images)])

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """f32[texts, D]: the last residual stream of each text alone, averaged over its tokens.

        Raises:
          InputError: for an empty list.
        """
        if not len(texts):
            raise InputError("embed_text takes a list of at least one text")
        laid = (self._lay_out([text_(one)], f"text {i}") for i, one in enumerate(texts))
        made = [Prompt(one.tokens, one.media_of_token) for one in laid]
        return texts_.pooled(self._graph, self.params, made, self._batch(None))

    def digest(self, part: str) -> str:
        """A digest of the parameters of a part, such as "vision"; of all for ""."""
        if part not in self._digests:
            self._digests[part] = self._digest(part)
        return self._digests[part]

    def _digest(self, part: str) -> str:
        digest = hashlib.blake2b(repr(self._graph.config).encode(), digest_size=16)
        for path, leaf in sorted(flatten_paths(self.params).items()):
            if not part or path.split("/")[0] == part:
                digest.update(path.encode())
                digest.update(np.ascontiguousarray(np.asarray(leaf)).view(np.uint8).data)
        return digest.hexdigest()

    def logits(
        self,
        tokens: np.ndarray,
        pixels: np.ndarray | None = None,
        media_of_token: np.ndarray | None = None,
        positions: np.ndarray | None = None,
    ) -> np.ndarray:
        """The full forward pass: f32[B, T, V + W], those at t predict token t + 1.

        Args:
          tokens: i32[B, T].
          pixels: u8[B, M, Y, X, 3] or u8[B, M, F, Y, X, 3] of the model's image size; None = none.
          media_of_token: i32[B, T], the medium each token sees, from 1; None = 0, nothing.
          positions: i32[B, T], -1 at padding; None = 0, 1, 2, …

        Raises:
          InputError: for arrays that do not fit together.
        """
        if pixels is not None:
            self._encoder("logits with pixels")
        resampler = self._graph.config.resampler
        width = 0 if resampler is None else resampler.in_width
        batch = arguments.batch(tokens, pixels, media_of_token, positions, self._size, width)
        self._check_ids(batch.tokens.reshape(-1), "tokens")
        return np.asarray(decoding.forward(self._graph, self.params, batch))

    def pixels(self, item: Item) -> np.ndarray:
        """What the model sees of a picture or a clip: u8[f, Y, X, 3].

        Raises:
          InputError: if it cannot be read.
        """
        return self._read(item, "the item")

    def count_tokens(self, prompts: Sequence[Sequence[Item]]) -> list[int]:
        """How many tokens each prompt has, `<BOS>` and `<image>`s included."""
        laid = (
            prompts_.lay_out(items, self.tokenizer, f"prompt {number}")
            for number, items in enumerate(arguments.prompts(prompts))
        )
        return [len(one.tokens) for one in laid]

    def describe(self) -> str:
        """A few lines: where the model comes from, its parts and sizes, its tokenizer."""
        shape = self._graph.config
        flat = flatten_paths(self.params)
        parts: dict[str, int] = {}
        for path, leaf in flat.items():
            part = path.split("/")[0]
            parts[part] = parts.get(part, 0) + math.prod(leaf.shape)
        lines = [f"{key}: {value}" for key, value in self.about.items()]
        lines.append(f"computes in {shape.dtype} on {jax.devices()[0].platform}")
        if self._media is not None:
            lines.append(f"pictures: {self._size} × {self._size}, {self.config.data.resize}")
        new = ", ".join(self.tokenizer.new_tokens)
        lines.append(f"tokens: {self.tokenizer.vocab}, and {new}")
        lines.append(f"parameters: {sum(parts.values()):,}")
        lines += [f"  {part:<10} {count:>15,}" for part, count in parts.items()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        count = sum(math.prod(leaf.shape) for leaf in flatten_paths(self.params).values())
        return f"<LoadedFlamingo {self.about.get('path', '')} {count:,} parameters>"

    def _groups(
        self, prompts: Sequence[Sequence[Item]], rows: int, shared: Sequence[Item]
    ) -> Iterator[tuple[int, list[Prompt], Shared | None]]:
        """(number of the first, prompts, what stands before them) of some batches at a time."""
        listed = arguments.prompts(prompts)
        size = GROUP * rows  # it bounds what is held
        for first in range(0, len(listed), size):
            yield first, *self._encode(listed[first : first + size], first, shared)

    def _encode(
        self, prompts: Sequence[Sequence[Item]], first: int, shared: Sequence[Item] = ()
    ) -> tuple[list[Prompt], Shared | None]:
        wholes = [
            self._lay_out([*shared, *items] if shared else items, f"prompt {number}")
            for number, items in enumerate(prompts, first)
        ]
        before, tokens, media = None, 0, 0
        if shared:
            before = self._lay_out(shared, "what all prompts share")
            tokens = common(before.tokens, [one.tokens for one in wholes])
            media = len(before.media)
            if tokens < len(before.tokens):
                media = max(before.media_of_token[:tokens], default=0)
        pixels: dict[Any, np.ndarray] = {}  # what stands in many prompts is read once
        for number, one in enumerate(wholes, first):
            for place, item in enumerate(one.media, start=1):
                if _key(item) not in pixels:
                    pixels[_key(item)] = self._read(item, f"prompt {number}, medium {place}")
        own = [pixels[_key(item)] for one in wholes for item in one.media[media:]]
        encoded = iter(self._encoder("a prompt").media_tokens(own) if own else [])
        after = None
        if before and tokens:
            after = self._after(before, tokens, [pixels[_key(one)] for one in before.media[:media]])
        made = [
            Prompt(
                one.tokens[tokens:],
                one.media_of_token[tokens:],
                [next(encoded) for _ in one.media[media:]],
            )
            for one in wholes
        ]
        return made, after

    def _after(self, before: prompts_.Layout, tokens: int, pixels: Sequence[np.ndarray]) -> Shared:
        """A layout's first tokens, to stand before prompts: the last ones again, or new ones."""
        media = self._encoder("a prompt").media_tokens(pixels) if pixels else []
        prompt = Prompt(before.tokens[:tokens], before.media_of_token[:tokens], media)
        kept = self._shared
        if kept is None or not kept.is_of(prompt):
            kept = self._shared = Shared(self._graph, self.params, prompt)
        return kept

    def _lay_out(self, items: Sequence[Item], where: str) -> prompts_.Layout:
        one = prompts_.lay_out(items, self.tokenizer, where)
        if one.media:
            self._encoder("a prompt with pictures")
        if not one.tokens:
            raise InputError(f"{where} is empty, and this model has no <BOS>")
        self._check_ids(one.tokens, where)
        return one

    def _read(self, item: Item, where: str) -> np.ndarray:
        resize, frames = self.config.data.resize, self._clip_frames()
        return prompts_.read_medium(item, self._size, resize, frames, where)

    def _clip_frames(self) -> int:
        """As many frames of a clip as training showed."""
        trained = [row.frames for row in self.config.train.datasets.values() if row.frames > 1]
        return max(trained, default=max(self.config.model.resampler.max_frames, 1))

    def _encoder(self, what: str) -> MediaEncoder:
        if self._media is None:
            raise InputError(
                f"{what} needs a model that sees, and this is the bare language model of the "
                "stage 'language'; load a Flamingo stage"
            )
        return self._media

    @property
    def _knows_new_tokens(self) -> bool:
        return self._graph.config.language.new_tokens > 0

    def _check_ids(self, ids: Sequence[int] | np.ndarray, where: str) -> None:
        language = self._graph.config.language
        rows = language.vocab + language.new_tokens
        largest = max(ids, default=0) if isinstance(ids, Sequence) else int(ids.max())
        if largest >= rows:
            raise InputError(
                f"{where} holds the token {largest}, and this model has {rows} tokens; the bare "
                "language model knows neither <EOC> nor <image>"
            )

    def _batch(self, batch: int | None) -> int:
        rows = self.config.eval.batch if batch is None else batch
        if rows < 1:
            raise InputError(f"batch={rows}: at least 1 sequence is run at once")
        return rows


def _key(item: Item) -> Any:
    """By which a medium is known again: its file, or the object itself."""
    return item if isinstance(item, os.PathLike | prompts_.Video) else id(item)
