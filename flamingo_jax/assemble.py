"""From a finished config to dataclasses, abstract state and the jitted step; no I/O.

The config object dies here: below this floor functions take arrays, dicts and small dataclasses.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from flamingo_jax import config as configs
from flamingo_jax import offload, sharding
from flamingo_jax.data.augment import AugmentSpec
from flamingo_jax.data.interleave import Rules
from flamingo_jax.data.rows import DatasetSpec
from flamingo_jax.data.sources import SourceSpec
from flamingo_jax.errors import InputError
from flamingo_jax.layout import Layout
from flamingo_jax.model.contrastive import Contrastive, ContrastiveConfig
from flamingo_jax.model.flamingo import Flamingo, FlamingoConfig
from flamingo_jax.model.fused import kernel_of
from flamingo_jax.model.language import DecoderConfig
from flamingo_jax.model.nfnet import VARIANTS
from flamingo_jax.model.resampler import ResamplerConfig
from flamingo_jax.model.text import TextConfig
from flamingo_jax.model.vision import VisionConfig
from flamingo_jax.model.vit import ViTConfig
from flamingo_jax.model.xattn import XattnConfig
from flamingo_jax.shapes import Array, Batch, Params, abstract_batch, flatten_paths, unflatten_paths
from flamingo_jax.train import losses
from flamingo_jax.train import optimizer as opt
from flamingo_jax.train import step as steps
from flamingo_jax.train.parts import gradient


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What the model must know of a tokenizer: V and W."""

    size: int
    new: int


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training stage, ready to be run or compiled.

    Attributes:
      name: "language", "contrastive" or "flamingo".
      steps: updates in all.
      mesh: the devices.
      graph: the model's NNX graph definition; `nnx.merge(graph, params)` is the model.
      make: seed → the model with its initial values.
      abstract: ShapeDtypeStructs of all parameters, the canonical tree, in f32.
      heads: of the attentions, by path: `sharding.remarks(abstract, mesh, heads)`.
      trainable, frozen: abstract trees with shardings; frozen is in the compute dtype.
      state, state_shardings: abstract train state and its shardings.
      tx: the optimizer.
      update: jitted (state, frozen, batches) → (state, metrics); donates the state.
      evaluate: jitted (params, frozen, batches) → sums.
      datasets: {name: DatasetSpec}.
      weights: {name: λ}.
    """

    name: str
    steps: int
    mesh: Mesh
    graph: Any
    make: Callable[[int], nnx.Module]
    abstract: Params
    heads: sharding.Heads
    trainable: Params
    frozen: Params
    state: steps.TrainState
    state_shardings: steps.TrainState
    tx: optax.GradientTransformation
    update: Any
    evaluate: Any
    datasets: dict[str, DatasetSpec]
    weights: dict[str, float]

    def abstract_batches(self, media: tuple[int, ...] | None = None) -> dict[str, Batch]:
        """The global batches of a step, by dataset, with their shardings.

        Args:
          media: dims of a frame's cached features, (P, E); None = pixels.
        """
        rows = sharding.rows_sharding(self.mesh)

        def of(s: DatasetSpec) -> Batch:
            features = media if s.media else None
            sizes = (s.batch, s.length, (s.media, s.frames), s.image_size)
            return abstract_batch(*sizes, features, rows)

        return {name: of(spec) for name, spec in self.datasets.items()}

    def initial(self, seed: int, paths: set[str]) -> Params:
        """Initial values of the parameters at `paths`, in their dtypes; alike on every mesh."""
        wanted = flatten_paths(self.trainable) | flatten_paths(offload.on_devices(self.frozen))

        def make() -> dict[str, Array]:
            flat = flatten_paths(nnx.to_pure_dict(nnx.state(self.make(seed))))
            return {path: flat[path].astype(wanted[path].dtype) for path in sorted(paths)}

        out = {path: wanted[path].sharding for path in sorted(paths)}
        return unflatten_paths(jax.jit(make, out_shardings=out)())


def flamingo_config(c: Any, vocabulary: Vocabulary) -> FlamingoConfig:
    """The whole model's shape."""
    m, r, x = c.model, c.model.resampler, c.model.xattn
    language, vision = language_config(c, vocabulary), vision_config(c)
    resampler = ResamplerConfig(
        depth=r.depth,
        latents=r.latents,
        width=r.width,
        heads=r.heads,
        head_dim=r.head_dim,
        hidden=r.hidden,
        activation=r.activation,
        in_width=vision.width,
        project=r.project,
        max_frames=r.max_frames,
        latents_init=r.latents_init,
        remat=m.remat != "none",
        unroll=m.unroll,
    )
    xattn = XattnConfig(
        width=language.width,
        media_width=language.width if x.project else r.width,
        heads=x.heads,
        head_dim=x.head_dim,
        hidden=x.hidden,
        activation=x.activation,
        media_norm=x.media_norm,
    )
    return FlamingoConfig(
        language=language,
        vision=vision,
        resampler=resampler,
        xattn=xattn,
        every=x.every,
        offset=x.offset,
        attend=x.attend,
        project=x.project,
        remat=m.remat,
        loss_chunk=m.loss_chunk,
        unroll=m.unroll,
        unroll_blocks=m.unroll_blocks,
        dtype=m.dtype,
        vision_dtype=m.vision.dtype,
    )


def language_config(c: Any, vocabulary: Vocabulary) -> DecoderConfig:
    """The decoder's shape, with rows for the new tokens."""
    fields = dict(c.model.language)
    fields["vocab"] = fields["vocab"] or vocabulary.size
    if fields["vocab"] < vocabulary.size:
        raise InputError(
            f"config.model.language.vocab={fields['vocab']} is less than the tokenizer's "
            f"{vocabulary.size} tokens; set it to 0 to take the tokenizer's"
        )
    return DecoderConfig(**fields, new_tokens=vocabulary.new)


def vision_config(c: Any) -> VisionConfig:
    """The encoder's shape: a row of the NFNet table with the config's fields, or a ViT."""
    v = c.model.vision
    if v.kind == "vit":
        vit = ViTConfig(v.image_size, **dict(v.vit), unroll=c.model.unroll)
        return VisionConfig(None, True, v.standardise, v.mean, v.std, vit)
    if v.variant not in VARIANTS:
        raise InputError(
            f"config.model.vision.variant={v.variant!r} is not one of {', '.join(sorted(VARIANTS))}"
        )
    nfnet = dataclasses.replace(
        VARIANTS[v.variant], ws_eps=v.ws_eps, stochastic_depth=v.stochastic_depth
    )
    return VisionConfig(nfnet, v.activated, v.standardise, v.mean, v.std)


def contrastive_config(c: Any, vocabulary: Vocabulary) -> ContrastiveConfig:
    """Both towers of the contrastive stage."""
    t, k = c.model.text, c.model.contrastive
    vision = dataclasses.replace(vision_config(c), activated=True, standardise=False)
    text = TextConfig(vocab=vocabulary.size, **dict(t))
    return ContrastiveConfig(vision, text, k.width, k.temperature, k.label_smoothing, dtype=k.dtype)


def dataset_specs(c: Any, stage: str) -> dict[str, DatasetSpec]:
    """The stage's datasets as the data floor knows them."""
    augment = AugmentSpec(**dict(c.data.augment))
    size = c.data.image_size or c.model.vision.image_size
    rows = {}
    for name, row in configs.stage_settings(c, stage).datasets.items():
        rows[name] = DatasetSpec(
            name=name,
            layout=row.layout,
            batch=row.batch,
            length=row.length,
            images=row.images,
            frames=row.frames,
            fps=row.fps,
            p_next=row.p_next,
            next_layout=row.next_layout,
            leading_space=row.leading_space,
            rules=Rules(row.first_eoc, row.loss_before_media, row.loss_on_eos),
            image_size=size,
            resize=c.data.resize,
            augment=augment,
            versions=row.versions or (c.data.versions if stage == "flamingo" else 0),
        )
    return rows


def source_specs(c: Any, stage: str) -> dict[str, SourceSpec]:
    """Where the documents of the stage's datasets come from."""
    return {
        name: SourceSpec(
            name=row.source,
            path=row.path,
            files=row.files,
            validation_path=row.validation_path,
            held_out=row.held_out if row.validation else 0,
            options=dict(row.options),
        )
        for name, row in configs.stage_settings(c, stage).datasets.items()
    }


def optimizer_spec(c: Any, stage: str) -> opt.OptimizerSpec:
    """The stage's optimizer."""
    return opt.OptimizerSpec(**dict(configs.stage_settings(c, stage).optimizer))


def split_trainable(paths: list[str], patterns: tuple[str, ...]) -> tuple[set[str], set[str]]:
    """Paths that are trained and paths that are frozen.

    Raises:
      InputError: if a pattern is found in no path.
    """
    for pattern in patterns:
        if not any(opt.matches((pattern,), path) for path in paths):
            raise InputError(
                f"config.trainable: {pattern!r} is found in no parameter's path; "
                f"the paths begin with {', '.join(sorted({p.split('/')[0] for p in paths}))}"
            )
    trained = {path for path in paths if opt.matches(patterns, path)}
    return trained, set(paths) - trained


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What a kind of stage brings: its model, its losses, its measures, what it trains."""

    make: Callable[[int], nnx.Module]
    losses: Any
    measures: Any
    patterns: tuple[str, ...]


def _kind(c: Any, name: str, vocabulary: Vocabulary, mesh: Mesh) -> _Kind:
    platform = mesh.devices.flat[0].platform  # which need not be this process's own
    if name == "contrastive":
        both = contrastive_config(c, vocabulary)
        both = dataclasses.replace(both, vision=both.vision.computed_on(platform))
        return _Kind(
            lambda seed: Contrastive(both, rngs=nnx.Rngs(params=seed)),
            losses.contrastive_losses,
            losses.contrastive_measures,
            ("",),
        )
    whole = flamingo_config(c, vocabulary)
    if whole.vision is not None:
        whole = dataclasses.replace(whole, vision=whole.vision.computed_on(platform))
    if name == "language":
        language = dataclasses.replace(whole.language, new_tokens=0)
        bare: dict[str, Any] = dict.fromkeys(("vision", "resampler", "xattn"))
        whole = dataclasses.replace(whole, language=language, every=1, offset=0, **bare)
    kernel, rounded = kernel_of(c.model.attention, platform), c.model.partial_sums == "model"
    layout = Layout(mesh, c.mesh.sequence, kernel, rounded)
    return _Kind(
        lambda seed: Flamingo(whole, rngs=nnx.Rngs(params=seed), layout=layout),
        losses.text_losses,
        losses.text_measures,
        ("",) if name == "language" else _patterns(c),
    )


def stage(c: Any, name: str, vocabulary: Vocabulary, mesh: Mesh) -> Stage:
    """Assembles one stage of a finished config."""
    kind = _kind(c, name, vocabulary, mesh)
    graph, abstract_model = nnx.split(nnx.eval_shape(lambda: kind.make(0)))
    abstract = nnx.to_pure_dict(abstract_model)
    flat = flatten_paths(abstract)
    trained, fixed = split_trainable(list(flat), kind.patterns)
    dtype = jnp.dtype(c.model.dtype)
    trainable = unflatten_paths({p: flat[p] for p in sorted(trained)})
    frozen = unflatten_paths({p: jax.ShapeDtypeStruct(flat[p].shape, dtype) for p in sorted(fixed)})
    datasets = dataset_specs(c, name)
    settings = configs.stage_settings(c, name)
    for row, dataset in datasets.items():
        sharding.check_batch(row, dataset.batch, mesh, settings.micro_batches)
    spec = optimizer_spec(c, name)
    tx = opt.make(spec, settings.steps)
    whole = sharding.replicated(mesh)
    heads = head_counts(c)
    shardings = sharding.param_shardings(trainable, mesh, heads)
    over = ("tensor",) if c.mesh.frozen == "replicated" else sharding.AXES
    frozen_shardings = sharding.param_shardings(frozen, mesh, heads, over)
    seeing = {path for path in flat if path.startswith("vision/")}
    frozen_sight = bool(seeing) and seeing <= fixed
    if c.mesh.offload == "frozen":
        frozen_shardings = offload.placed(frozen, frozen_shardings, frozen_sight)
    state, state_shardings = steps.state_shardings(trainable, tx, shardings, whole)
    weights = {row: settings.datasets[row].weight for row in datasets}
    encode = functools.partial(losses.encoded, graph) if frozen_sight else steps.as_given
    update = steps.train_step(
        functools.partial(kind.losses, graph),
        weights,
        tx,
        opt.schedule(spec, settings.steps),
        c.seed,
        losses.gates,
        lambda loss: gradient(
            loss,
            settings.micro_batches,
            functools.partial(sharding.split_rows, mesh=mesh),
            functools.partial(jax.lax.with_sharding_constraint, shardings=shardings),
        ),
        encode,
    )
    rows = sharding.rows_sharding(mesh)
    return Stage(
        name=name,
        steps=settings.steps,
        mesh=mesh,
        graph=graph,
        make=kind.make,
        abstract=abstract,
        heads=heads,
        trainable=sharding.with_shardings(trainable, shardings),
        frozen=sharding.with_shardings(frozen, frozen_shardings),
        state=sharding.with_shardings(state, state_shardings),
        state_shardings=state_shardings,
        tx=tx,
        update=jax.jit(
            update,
            donate_argnums=0,
            in_shardings=(state_shardings, frozen_shardings, rows),
            out_shardings=(state_shardings, whole),
            compiler_options=sharding.compiler_options(mesh),
        ),
        evaluate=jax.jit(
            steps.eval_step(functools.partial(kind.measures, graph), encode),
            in_shardings=(shardings, frozen_shardings, rows),
            out_shardings=whole,
            compiler_options=sharding.compiler_options(mesh),
        ),
        datasets=datasets,
        weights=weights,
    )


def head_counts(c: Any) -> sharding.Heads:
    """How many heads the attentions of the config's models have, by path."""
    m = c.model
    return (
        (r"^language/.*/(key|value)/", m.language.kv_heads or m.language.heads),
        (r"^language/", m.language.heads),
        (r"^xattn/", m.xattn.heads),
        (r"^resampler/", m.resampler.heads),
        (r"^text/", m.text.heads),
        (r"^vision/vit/", m.vision.vit.heads),
    )


def _patterns(c: Any) -> tuple[str, ...]:
    """The trainable patterns, less those of parts that this model does not have."""
    absent = set()
    if c.model.language.tied:
        absent.add("^head/new$")
    if not c.model.xattn.project:
        absent.add("^project/")
    return tuple(p for p in c.trainable if p not in absent)
