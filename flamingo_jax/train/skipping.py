"""Steps that are not taken: gradients that are not finite, or far larger than those before.

One bad batch, or one bad bit of a chip, may undo weeks. PaLM (Chowdhery et al., 2022, §5.1) went
back and left out the batches around a spike; here the step is left out when it comes, by a rule
that every device computes alike, and counted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flamingo_jax.shapes import Array

DECAY = 0.99
"""Of the running mean of gradient norms: it looks back over about 100 steps."""
WARM_UP = 100
"""Steps that are taken before a norm counts as too large: at first they fall by themselves."""


class SkipState(NamedTuple):
    """The optimizer's state, and what the rule goes by.

    Attributes:
      inner: the state of the optimizer that is guarded.
      norm: f32[], running mean of the gradient norms of the steps that were taken.
      taken: i32[], steps that were taken.
      skipped: i32[], steps that were not.
      in_a_row: i32[], of these the last ones without one that was taken.
    """

    inner: Any
    norm: Array
    taken: Array
    skipped: Array
    in_a_row: Array


def skip_bad_steps(
    inner: optax.GradientTransformation, factor: float
) -> optax.GradientTransformation:
    """Leaves out steps whose gradient's global norm is not finite or too large.

    A step that is left out changes neither parameters nor moments, nor the optimizer's own count:
    only the counts here, and whoever counts updates elsewhere.

    Args:
      inner: the optimizer; its updates are finite where its gradients are.
      factor: a norm of more than so many times the running mean is too large; 0 = none is.
    """

    def init(params: optax.Params) -> SkipState:
        # An array each: one that is in the state twice cannot be donated.
        norm, *numbers = (jnp.zeros((), dtype) for dtype in (jnp.float32, *(jnp.int32,) * 3))
        return SkipState(inner.init(params), norm, *numbers)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, SkipState]:
        norm = optax.tree.norm(updates)
        good = jnp.isfinite(norm)
        if factor:
            good &= (state.taken < WARM_UP) | (norm <= factor * state.norm)
        found, after = inner.update(updates, state.inner, params)

        def chosen(new: Array, old: Array) -> Array:
            return jnp.where(good, new, old)

        # The mean of the first steps is theirs, not that of a zero before them.
        weight = jnp.maximum(1.0 / (state.taken + 1), 1.0 - DECAY)
        return jax.tree.map(lambda u: chosen(u, jnp.zeros_like(u)), found), SkipState(
            inner=jax.tree.map(chosen, after, state.inner),
            norm=chosen(state.norm + weight * (norm - state.norm), state.norm),
            taken=state.taken + good,
            skipped=state.skipped + ~good,
            in_a_row=jnp.where(good, 0, state.in_a_row + 1),
        )

    return optax.GradientTransformation(init, update)


def counts(opt: Any) -> dict[str, Array]:
    """Steps that were skipped, in all and since the last one taken; nothing if none can be."""
    guards = jax.tree.leaves(opt, is_leaf=lambda node: isinstance(node, SkipState))
    found = [guard for guard in guards if isinstance(guard, SkipState)]
    if not found:
        return {}
    return {"skipped": found[0].skipped, "skipped_in_a_row": found[0].in_a_row}
