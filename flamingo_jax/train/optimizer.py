"""AdamW as the paper runs it: clipping, decay by path, warm-up, then a schedule."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flamingo_jax.shapes import Array, Params, map_paths
from flamingo_jax.train.skipping import skip_bad_steps


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """See config.py for the fields' meaning; defaults are Flamingo's (§B.1.2)."""

    lr: float = 1e-4
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.1
    no_decay: tuple[str, ...] = ("^resampler/",)
    clip: float = 1.0
    agc: float = 0.0
    agc_paths: tuple[str, ...] = ()
    warmup: int = 5_000
    schedule: str = "constant"
    end: float = 0.0
    multipliers: tuple[tuple[str, float], ...] = ()
    skip_above: float = 0.0


def matches(patterns: tuple[str, ...], path: str) -> bool:
    """Whether any of the regexes is found in the path."""
    return any(re.search(pattern, path) for pattern in patterns)


def schedule(spec: OptimizerSpec, steps: int) -> optax.Schedule:
    """Linear from 0 over `warmup` steps, then constant, or cosine or linear to `end`·lr at `steps`.

    Raises:
      ValueError: for a schedule that there is not.
    """
    rest = max(steps - spec.warmup, 1)
    if spec.schedule == "constant":
        after: optax.Schedule = optax.constant_schedule(spec.lr)
    elif spec.schedule == "cosine":
        after = optax.cosine_decay_schedule(spec.lr, rest, alpha=spec.end)
    elif spec.schedule == "linear":
        after = optax.linear_schedule(spec.lr, spec.lr * spec.end, rest)
    else:
        raise ValueError(f"the schedule is constant, cosine or linear, not {spec.schedule!r}")
    if not spec.warmup:
        return after
    # From lr / warmup, not 0: the first step is not wasted.
    rise = optax.linear_schedule(spec.lr / spec.warmup, spec.lr, max(spec.warmup - 1, 1))
    return optax.join_schedules([rise, after], [spec.warmup])


def unit_norm(x: Array) -> Array:
    """Norms over a unit's fan-in (Brock et al. 2021b, §4): all but the output axis of a kernel.

    Kernels [..., I, O] and convolutions [..., Y, X, I, O]; a leading stack axis is kept.
    """
    axes = (-4, -3, -2) if x.ndim >= 4 else (-2,)
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))


def adaptive_clip(clipping: float, paths: tuple[str, ...]) -> optax.GradientTransformation:
    """Adaptive gradient clipping of kernels at `paths` (Brock et al. 2021b, eq. (3); eps 1e-3)."""

    def update(updates: Any, params: Any) -> Any:
        def clip(path: str, pair: tuple[Array, Array]) -> Array:
            g, p = pair
            if g.ndim < 2 or not matches(paths, path):
                return g
            largest = clipping * jnp.maximum(unit_norm(p), 1e-3)
            norm = unit_norm(g)
            return jnp.where(norm > largest, g * (largest / jnp.maximum(norm, 1e-6)), g)

        return map_paths(clip, jax.tree.map(lambda g, p: (g, p), updates, params))

    return optax.stateless(update)


def multiply(multipliers: tuple[tuple[str, float], ...]) -> optax.GradientTransformation:
    """Multiplies the updates of the paths that a regex is found in by its factor."""

    def factor(path: str) -> float:
        total = 1.0
        for pattern, value in multipliers:
            total *= value if re.search(pattern, path) else 1.0
        return total

    def update(updates: Any, params: Any) -> Any:
        del params
        return map_paths(lambda path, u: u * factor(path), updates)

    return optax.stateless(update)


def make(spec: OptimizerSpec, steps: int) -> optax.GradientTransformation:
    """Adaptive clipping, global clipping, Adam with decoupled decay, multipliers; no bad step."""
    chain: list[Any] = []
    if spec.agc:
        chain.append(adaptive_clip(spec.agc, spec.agc_paths))
    if spec.clip:
        chain.append(optax.clip_by_global_norm(spec.clip))

    def decays(params: Params) -> Params:
        return map_paths(lambda path, _: not matches(spec.no_decay, path), params)

    chain.append(
        optax.adamw(
            schedule(spec, steps),
            b1=spec.b1,
            b2=spec.b2,
            eps=spec.eps,
            weight_decay=spec.weight_decay,
            mask=decays,
        )
    )
    if spec.multipliers:
        chain.append(multiply(spec.multipliers))
    return skip_bad_steps(optax.chain(*chain), spec.skip_above)
