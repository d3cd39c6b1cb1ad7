"""The jitted update: one gradient a dataset, weighted and summed, one optimizer step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flamingo_jax.shapes import Array, Batch, Params
from flamingo_jax.train import skipping
from flamingo_jax.train.parts import GradientFn, gradient

Encode = Callable[[Params, Params, dict[str, Batch]], dict[str, Batch]]
"""(trainable, frozen, batches) → batches whose pixels have become features."""

LossFn = Callable[..., tuple[Array, dict[str, Array]]]
"""(trainable, frozen, batch, key) → loss f32[], {name: f32[]} to be logged."""


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
    loss_fns: dict[str, tuple[LossFn, float]],
    tx: optax.GradientTransformation,
    lr: optax.Schedule,
    seed: int,
    watch: Callable[[Params], dict[str, Array]],
    gradient_of: Callable[[str, LossFn], GradientFn] = lambda name, loss_fn: gradient(loss_fn),
    encode: Encode = as_given,
) -> Callable[[TrainState, Params, dict[str, Batch]], tuple[TrainState, dict[str, Array]]]:
    """Builds the update function, to be jitted.

    Args:
      loss_fns: {dataset: (loss, λ)}; Flamingo §2.4 accumulates Σ λ ∇loss over the datasets.
      tx: the optimizer.
      lr: its schedule, for the log alone.
      seed: all randomness is fold_in(fold_in(seed, step), dataset's place).
      watch: scalars of the parameters to be logged (gates).
      gradient_of: how a dataset's gradient is taken, where not of its batch at once.
      encode: what is done to all datasets' batches before, outside the gradient.

    Returns:
      A function (state, frozen, batches) → (state, metrics); metrics are f32[] each.
    """

    gradients = {name: gradient_of(name, loss_fn) for name, (loss_fn, _) in loss_fns.items()}

    def update(
        state: TrainState, frozen: Params, batches: dict[str, Batch]
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        batches = encode(state.params, frozen, batches)
        grads = jax.tree.map(jnp.zeros_like, state.params)
        total, metrics = jnp.zeros(()), {}
        for place, (name, (_, weight)) in enumerate(loss_fns.items()):
            (loss, aux), g = gradients[name](
                state.params, frozen, batches[name], jax.random.fold_in(key, place)
            )
            grads = jax.tree.map(lambda a, b, w=weight: a + w * b, grads, g)
            total += weight * loss
            metrics[f"{name}/loss"] = loss
            metrics |= {f"{name}/{key}": x for key, x in aux.items()}
        updates, opt = tx.update(grads, state.opt, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        metrics |= {"loss": total, "grad_norm": optax.tree.norm(grads), "lr": lr(state.step)}
        metrics |= watch(params) | skipping.counts(opt)
        return TrainState(state.step + 1, params, opt), metrics

    return update


def eval_step(
    measures: dict[str, Callable[[Params, Params, Batch], dict[str, Array]]],
    encode: Encode = as_given,
) -> Callable[[Params, Params, dict[str, Batch]], dict[str, Array]]:
    """Builds the validation function, to be jitted: sums, so that batches add up exactly."""

    def evaluate(params: Params, frozen: Params, batches: dict[str, Batch]) -> dict[str, Array]:
        batches = encode(params, frozen, batches)
        return {
            f"{name}/{key}": value
            for name, measure in measures.items()
            for key, value in measure(params, frozen, batches[name]).items()
        }

    return evaluate
