"""The peers' stored outputs, and how near to them we must come.

JAX is imported in functions only: when this file is read, it is not set up yet.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flamingo_jax.pretrained.files import read_json, read_safetensors

TOLERANCE = 1e-4  # of the peer's largest magnitude


class Peer:
    """One folder of `parity`: its config, weights, and arrays, each to be used once at least."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.config = read_json(folder / "config.json")
        self.meta = read_json(folder / "meta.json")
        with np.load(folder / "io.npz", allow_pickle=False) as arrays:
            self.io = {name: arrays[name] for name in arrays.files}
        assert set(self.io) == set(self.meta["io"]), "io.npz is not what meta.json tells of"
        self.used: set[str] = set()

    @property
    def stored(self) -> bool:
        """Are the weights in the folder, rather than made by a rule?"""
        return (self.folder / "model.safetensors").exists()

    def weights(self, prefix: str = "") -> dict[str, np.ndarray]:
        """The weights whose names start with the prefix."""
        arrays = read_safetensors(self.folder / "model.safetensors")
        return {name: array for name, array in arrays.items() if name.startswith(prefix)}

    def __getitem__(self, name: str) -> np.ndarray:
        self.used.add(name)
        return self.io[name]

    def compare(self, name: str, ours, where: np.ndarray | None = None) -> None:
        """Asserts that `ours` is the peer's array `name` (at the places where `where` is true)."""
        theirs, ours = self[name], np.asarray(ours)
        assert ours.shape == theirs.shape, (name, ours.shape, theirs.shape)
        near(ours, theirs, f"{self.folder.name}: {name}", where)

    def assert_all_used(self) -> None:
        """Asserts that no array of the folder was overlooked."""
        assert set(self.io) == self.used, sorted(set(self.io) - self.used)


def near(ours, theirs, name: str, where: np.ndarray | None = None) -> None:
    """Asserts that two arrays differ by no more than the tolerance."""
    difference = np.abs(np.asarray(ours, np.float64) - theirs)
    if where is not None:
        difference, theirs = difference[where], theirs[where]
    largest = np.abs(theirs).max()
    assert difference.size and largest > 0, f"{name} says nothing"
    assert difference.max() <= TOLERANCE * largest, f"{name}: {difference.max() / largest:.2e}"


@pytest.fixture(scope="session")
def peers(shared: pathlib.Path) -> Callable[[str], list[Peer]]:
    """The folders of `parity` that match a pattern."""

    def matching(pattern: str) -> list[Peer]:
        found = [Peer(folder) for folder in sorted((shared / "parity").glob(pattern))]
        assert found, f"no folder of {shared / 'parity'} matches {pattern!r}"
        return found

    return matching


@pytest.fixture(scope="session")
def nearly() -> Callable[..., None]:
    """`near`, for tests."""
    return near


@pytest.fixture(scope="session")
def abstract() -> Callable[[Callable[[], Any]], tuple]:
    """make() → its graph definition and its parameters' shapes, without making any of them."""
    from flax import nnx

    def shapes(make: Callable[[], Any]) -> tuple:
        graph, state = nnx.split(nnx.eval_shape(make))
        return graph, nnx.to_pure_dict(state)

    return shapes
