"""The jitted update: the gradient of all datasets' weighted losses, one optimizer step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flamingo_jax.shapes import Array, Batch, Params
from flamingo_jax.train import skipping
from flamingo_jax.train.parts import GradientFn, WeightedLoss, gradient

Encode = Callable[[Params, Params, dict[str, Batch]], dict[str, Batch]]
"""(trainable, frozen, batches) → batches whose pixels have become features."""

LossesFn = Callable[..., tuple[dict[str, Array], dict[str, dict[str, Array]]]]
"""(trainable, frozen, batches, key) → {dataset: f32[]}, {dataset: {name: f32[]}} to be logged.

Where a gradient is taken in parts it also takes `counts` (`parts.gradient`).
"""

MeasuresFn = Callable[[Params, Params, dict[str, Batch]], dict[str, dict[str, Array]]]
"""(trainable, frozen, batches) → {dataset: {name: sum f32[]}}."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes: nothing frozen is in it.

    Attributes:
      step: i32[], updates done.
      params: the trainable parameters, f32.
      opt: the optimizer's state, moments of `params` alone.
    """

    step: Array
    params: Params
    opt: Any


def init_state(params: Params, tx: optax.GradientTransformation) -> TrainState:
    """The state before the first update."""
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def state_shardings(
    abstract_params: Params, tx: optax.GradientTransformation, shardings: Params, whole: Any
) -> tuple[TrainState, TrainState]:
    """Abstract state and its shardings; moments are sharded as their parameters.

    jit would leave the moments replicated: their shardings are said outright.

    Args:
      abstract_params: ShapeDtypeStructs of the trainable parameters.
      tx: the optimizer.
      shardings: of the parameters.
      whole: the sharding of scalars.
    """
    opt = jax.eval_shape(tx.init, abstract_params)
    opt_shardings = optax.tree_utils.tree_map_params(
        tx, lambda _, s: s, opt, shardings, transform_non_params=lambda _: whole
    )
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return TrainState(step, abstract_params, opt), TrainState(whole, shardings, opt_shardings)


def as_given(params: Params, frozen: Params, batches: dict[str, Batch]) -> dict[str, Batch]:
    """Batches as they are: of text, of features, or of an encoder that is trained."""
    del params, frozen
    return batches


def train_step(
    losses: LossesFn,
    weights: dict[str, float],
    tx: optax.GradientTransformation,
    lr: optax.Schedule,
    seed: int,
    watch: Callable[[Params], dict[str, Array]],
    gradient_of: Callable[[WeightedLoss], GradientFn] = gradient,
    encode: Encode = as_given,
) -> Callable[[TrainState, Params, dict[str, Batch]], tuple[TrainState, dict[str, Array]]]:
    """Builds the update function, to be jitted.

    Args:
      losses: of the datasets' batches.
      weights: {dataset: λ}. Flamingo §2.4 accumulates Σ λ ∇loss over the datasets: the gradient of
        Σ λ loss, which is taken at once.
      tx: the optimizer.
      lr: its schedule, for the log alone.
      seed: all randomness is fold_in(seed, step).
      watch: scalars of the parameters to be logged (gates).
      gradient_of: how the gradient is taken, where not of the batches at once.
      encode: what is done to the batches before, outside the gradient.

    Returns:
      A function (state, frozen, batches) → (state, metrics); metrics are f32[] each.
    """

    def weighted(
        params: Params, frozen: Params, batches: dict[str, Batch], key: Array, **counts: Any
    ) -> tuple[Array, dict[str, Array]]:
        found, aux = losses(params, frozen, batches, key, **counts)
        told = {f"{name}/loss": loss for name, loss in found.items()}
        told |= {f"{name}/{key}": x for name, row in aux.items() for key, x in row.items()}
        return sum((weights[name] * found[name] for name in weights), jnp.zeros(())), told

    gradient_fn = gradient_of(weighted)

    def update(
        state: TrainState, frozen: Params, batches: dict[str, Batch]
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        batches = encode(state.params, frozen, batches)
        (total, metrics), grads = gradient_fn(state.params, frozen, batches, key)
        updates, opt = tx.update(grads, state.opt, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        metrics |= {"loss": total, "grad_norm": optax.tree.norm(grads), "lr": lr(state.step)}
        metrics |= watch(params) | skipping.counts(opt)
        return TrainState(state.step + 1, params, opt), metrics

    return update


def eval_step(
    measures: MeasuresFn, encode: Encode = as_given
) -> Callable[[Params, Params, dict[str, Batch]], dict[str, Array]]:
    """Builds the validation function, to be jitted: sums, so that batches add up exactly."""

    def evaluate(params: Params, frozen: Params, batches: dict[str, Batch]) -> dict[str, Array]:
        found = measures(params, frozen, encode(params, frozen, batches))
        return {f"{name}/{key}": x for name, row in found.items() for key, x in row.items()}

    return evaluate
