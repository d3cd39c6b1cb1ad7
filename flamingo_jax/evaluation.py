"""What a finished run is asked, and a drawing of one of its pages: results.json and samples/."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from PIL import Image

from flamingo_jax import assemble, offload
from flamingo_jax import config as configs
from flamingo_jax.checkpoint import list_steps, load_frozen, load_params
from flamingo_jax.data import interleave
from flamingo_jax.data import sources as data_sources
from flamingo_jax.data.rows import controls_of, make_row
from flamingo_jax.eval import tasks
from flamingo_jax.eval.rows import Graph
from flamingo_jax.inputs import Run
from flamingo_jax.shapes import merge_trees
from flamingo_jax.workdir import write_atomically

CHUNK = 64
"""Pictures or texts that the contrastive towers take at once; one shape is compiled."""


def evaluate(run: Run) -> None:
    """Runs the config's tasks on the last stage's parameters and writes results.json."""
    c = run.config
    if not c.eval.tasks:
        return
    subject = _subject(run)
    samples = run.workdir.path / "samples"
    request = tasks.Request(
        c.eval.split, c.seed, c.eval.queries, c.eval.max_new_tokens, c.eval.batch, samples
    )
    found = {}
    for name in c.eval.tasks:
        begin = time.monotonic()
        found[name] = tasks.run(name, subject, request)
        found[name]["page"] = _page(run)
        found[name]["seconds"] = time.monotonic() - begin
    text = json.dumps({"tasks": found}, indent=1) + "\n"
    write_atomically(run.workdir.path / "results.json", text)


def _subject(run: Run) -> tasks.Subject:
    stage = run.assemble("flamingo")
    restored = load_params(run.workdir.checkpoints("flamingo"), stage.trainable)
    # Decoding reads every weight for each token.
    targets = offload.on_devices(stage.frozen)
    frozen = load_frozen(run.workdir.place, restored.meta["frozen"], targets)
    c = run.config
    return tasks.Subject(
        graph=Graph(assemble.flamingo_config(c, run.vocabulary), run.mesh),
        params=merge_trees(restored.params, frozen),
        tokenizer=run.tokenizer,
        image_size=c.data.image_size or c.model.vision.image_size,
        towers=_Towers(run) if list_steps(run.workdir.checkpoints("contrastive")) else None,
    )


class _Towers:
    """The contrastive stage's model."""

    def __init__(self, run: Run):
        stage = run.assemble("contrastive")
        params = load_params(run.workdir.checkpoints("contrastive"), stage.trainable).params
        image = jax.jit(lambda p, pixels: nnx.merge(stage.graph, p).embed_images(pixels))
        text = jax.jit(lambda p, *row: nnx.merge(stage.graph, p).embed_texts(*row))
        self._image = lambda pixels: image(params, pixels)
        self._text = lambda tokens, positions: text(params, tokens, positions)
        self._tokenizer = run.tokenizer
        self._length = run.config.model.text.max_length

    def images(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """u8[Y, X, 3] each → unit vectors f32[n, A]."""
        return _in_chunks(self._image, np.stack(pixels))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts → unit vectors f32[n, A]."""
        controls = controls_of(self._tokenizer)
        rows = [
            interleave.contrastive(self._tokenizer.encode(text), controls, self._length)
            for text in texts
        ]
        tokens, positions = (
            np.stack([getattr(r, f) for r in rows]) for f in ("tokens", "positions")
        )
        return _in_chunks(self._text, tokens, positions)


def _in_chunks(function: Any, *arrays: np.ndarray) -> np.ndarray:
    """Calls `function` on CHUNK rows at a time, the last ones filled up."""
    count = len(arrays[0])
    found = []
    for start in range(0, count, CHUNK):
        part = [a[start : start + CHUNK] for a in arrays]
        filled = [np.concatenate([a, a[:1].repeat(CHUNK - len(a), axis=0)]) for a in part]
        found.append(np.asarray(function(*filled))[: len(part[0])])
    return np.concatenate(found)


def _page(run: Run) -> dict[str, Any]:
    """One validation page as the model gets it: tokens, what each attends to, the loss mask."""
    c = run.config
    specs, places = assemble.dataset_specs(c, "flamingo"), assemble.source_specs(c, "flamingo")
    for name, row in configs.stage_settings(c, "flamingo").datasets.items():
        if row.layout != "page" or not row.validation:
            continue
        spec = specs[name]
        source = data_sources.open_source(places[name], "validation", c.seed, spec.image_size)
        made = make_row(source[0], spec, run.tokenizer, c.seed, 0, train=False)
        used = made["positions"] >= 0
        folder = run.workdir.path / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        names = []
        for number in range(int(np.sum(made["frames"] > 0))):
            names.append(f"samples/page-{number}.png")
            Image.fromarray(made["media"][number, 0]).save(run.workdir.path / names[-1])
        return {
            "tokens": [run.tokenizer.decode([int(t)], control=True) for t in made["tokens"][used]],
            "media_of_token": made["media_of_token"][used].tolist(),
            "loss_mask": [int(x) for x in made["loss_mask"][used]],
            "images": names,
        }
    return {}
