"""A tiny Flamingo with random parameters and open gates."""

from typing import Any

import numpy as np
import pytest

SIDE = 16


def flamingo_config(vocab: int, positions: str) -> Any:
    """Two new tokens, four blocks and a gated layer before every other one."""
    # Imported here: this file may be read before tests/conftest.py has set JAX up.
    from flamingo_jax.model.flamingo import FlamingoConfig
    from flamingo_jax.model.language import DecoderConfig
    from flamingo_jax.model.nfnet import NFNetConfig, quad_stem
    from flamingo_jax.model.resampler import ResamplerConfig
    from flamingo_jax.model.vision import VisionConfig
    from flamingo_jax.model.xattn import XattnConfig

    vision = NFNetConfig(
        widths=(16, 16),
        depths=(1, 1),
        strides=(1, 2),
        stem=quad_stem(16),
        group_width=8,
        final_width=16,
    )
    return FlamingoConfig(
        DecoderConfig(vocab, 32, 4, 2, 16, 48, positions=positions, new_tokens=2),
        VisionConfig(nfnet=vision),
        ResamplerConfig(1, 3, 24, 2, 16, 48, in_width=16, max_frames=4),
        XattnConfig(32, 32, 2, 16, 48),
        every=2,
        dtype="float32",
        vision_dtype="float32",
    )


class Tiny:
    """A graph, its parameters, and prompts for them."""

    def __init__(self, vocab: int, positions: str = "xl", seed: int = 0):
        from flamingo_jax.eval.media import MediaEncoder
        from flamingo_jax.eval.rows import Graph
        from flamingo_jax.shapes import map_paths

        self.vocab = vocab
        self.graph = Graph(flamingo_config(vocab, positions))
        rng = np.random.default_rng(seed)

        def fill(path, leaf):
            values = rng.standard_normal(leaf.shape).astype(np.float32)
            if path.endswith("scale"):
                return 1 + 0.1 * values
            if "gate_" in path:
                return 1 + 0 * values
            fan_in = leaf.shape[-2] if leaf.ndim > 1 else 4
            # Large enough that tokens, and what they see, change what follows.
            return values * (2.0 if path.startswith("embed") else 1.2) * fan_in**-0.5

        self.params = map_paths(fill, self.graph.abstract)
        self.encoder = MediaEncoder(self.graph, self.params)

    def pixels(self, seed: int, frames: int = 1) -> np.ndarray:
        shape = (frames, SIDE, SIDE, 3)
        return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)

    def prompt(self, seed: int, length: int, media: int) -> Any:
        """A `Prompt` of random text, with media at random places."""
        from flamingo_jax.eval.rows import Prompt

        rng = np.random.default_rng(seed)
        tokens = rng.integers(0, self.vocab + 2, length)
        owners = np.sort(rng.integers(0, media + 1, length))
        pixels = [self.pixels(seed * 10 + i, 1 + i % 2) for i in range(media)]
        return Prompt(tokens.tolist(), owners.tolist(), self.encoder.media_tokens(pixels))


@pytest.fixture(scope="session")
def make_tiny() -> type[Tiny]:
    """`Tiny`, for other vocabularies."""
    return Tiny


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """V = 40, Transformer-XL positions."""
    return Tiny(40)


@pytest.fixture(scope="session")
def rotary() -> Tiny:
    """V = 40, rotary positions."""
    return Tiny(40, "rotary")


@pytest.fixture(scope="session")
def minute() -> Tiny:
    """V = 3: so few sequences that all of them can be tried."""
    return Tiny(3)
