"""FLOPs of a traced program: its products and convolutions, those in loops as often as they run.

A compiler's own count takes the body of a loop once; here a scan's is taken `length` times. The
jaxpr is the program before it is partitioned, so that the count is that of all devices together.
What rematerialisation computes again is in the jaxpr and is counted ("hardware FLOPs"). A product
of [M, K] and [K, N] is 2·M·K·N. A convolution is counted with its full window at every output,
padding included, as a matrix unit computes it; holes of a dilated input (the gradient of a strided
convolution) are left out. Elementwise work and reductions are not counted.

A fused kernel is never free: Pallas kernels have a price by their name (`KERNELS`), cuDNN's
attention by its primitive. Attention's compute scores block by block: the forward pass is 2
products of [T, H] and [H, S] a head (scores, values), the gradient of queries 3 (scores again,
their gradient, the queries'), that of keys and values 4 (scores again, their gradient, the keys',
the values'), all three in one kernel 5 (Dao 2023, FlashAttention-2, §3.1.2). So the forward pass
costs what plain attention's does, and the gradient a product more. The full square is counted, as
in plain attention: blocks that a causal kernel skips, and padding, too.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
from jax.extend.core import Literal, jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr

CALLS = frozenset(
    {
        *("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint"),
        *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_partitioning"),
    }
)
"""Primitives that run the jaxprs they hold once."""

UNCOUNTED = re.compile(
    r"^(ragged_dot.*|cholesky|triangular_solve|lu|qr|geqrf|eigh?|svd|fft|custom_linear_solve"
    r"|dot_product_attention.*|ffi_call|scaled_matmul.*|triton.*|mosaic.*|tpu_custom_call)$"
)
"""Primitives that cost FLOPs and are priced by nobody here: refused, never taken as free."""

_WRAPPED = re.compile(r"^(?:jvp|transpose|vmap|jit|remat|rematted_computation|checkpoint)\((.*)\)$")
_OWN = frozenset({"", "checkpoint", "rematted_computation"})  # scopes that JAX itself opens
AGAIN = "rematted_computation"


@dataclasses.dataclass
class Flops:
    """FLOPs of a program, over all devices.

    Attributes:
      by_kind: "product" (of a matrix), "batched product" (attention's kind), "convolution" and
        "kernel" (fused: Pallas, cuDNN) → FLOPs.
      by_dtype: dtype of the operands, the wider of the two → FLOPs.
      by_scope: first `jax.named_scope` around it, "" where there is none → FLOPs.
      by_kernel: of the kind "kernel", the kernel's name → FLOPs.
      again: of these, what rematerialisation computes a second time.
      devices: over how many they are spread.
    """

    by_kind: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    by_dtype: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    by_scope: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    by_kernel: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    again: int = 0
    devices: int = 1

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.by_kind.values())

    @property
    def per_device(self) -> float:
        """A device's share where all are equally busy."""
        return self.total / self.devices

    def include(self, other: Flops, times: int = 1) -> None:
        """Adds another count, so many times."""
        for name in ("by_kind", "by_dtype", "by_scope", "by_kernel"):
            mine = getattr(self, name)
            for key, flops in getattr(other, name).items():
                mine[key] += flops * times
        self.again += other.again * times


def count(closed_jaxpr: Any, mesh_devices: int = 1) -> Flops:
    """FLOPs of a closed jaxpr (`jax.make_jaxpr(f)(*args)`, or a `Traced`'s `jaxpr`).

    Args:
      closed_jaxpr: of the program, on global arrays.
      mesh_devices: over how many devices it will run, for `per_device`.

    Raises:
      ValueError: for a loop whose number of turns cannot be told, a Pallas kernel without a price,
        or a primitive that costs FLOPs nobody has counted.
    """
    # A custom rule for the backward pass may give gradients that nothing uses: no compiler keeps
    # them.
    used, _ = dce_jaxpr(closed_jaxpr.jaxpr, True)
    found = _count(used, "", False)
    return dataclasses.replace(found, devices=mesh_devices)


def _count(jaxpr: Any, scope: str, again: bool) -> Flops:
    found = Flops()
    for equation in jaxpr.eqns:
        name, stack = equation.primitive.name, str(equation.source_info.name_stack)
        here, repeated = scope or _first_scope(stack), again or AGAIN in stack
        price = PRICES.get(name)
        if price is not None:
            kind, dtype, flops = price(equation)
            kernel = {kernel_name(equation): flops} if kind == "kernel" else {}
            found.include(
                Flops(
                    by_kind=collections.Counter({kind: flops}),
                    by_dtype=collections.Counter({dtype: flops}),
                    by_scope=collections.Counter({here: flops}),
                    by_kernel=collections.Counter(kernel),
                    again=flops if repeated else 0,
                )
            )
        elif UNCOUNTED.match(name):
            raise ValueError(f"the FLOPs of {name!r} are not known; add it to planning/flops.py")
        else:
            for part, times in _inside(equation, here, repeated):
                found.include(part, times)
    return found


def _inside(equation: Any, scope: str, again: bool) -> Iterator[tuple[Flops, int]]:
    """(FLOPs, how often) of what an equation runs."""
    name, params = equation.primitive.name, equation.params
    inner = [_count(jaxpr, scope, again) for jaxpr in jaxprs_in_params(params)]
    if not sum(part.total for part in inner):
        return
    if name == "scan":
        yield inner[0], params["length"]
    elif name == "while":
        turns = _turns(equation)
        body, test = (
            _count(params[key].jaxpr, scope, again) for key in ("body_jaxpr", "cond_jaxpr")
        )
        yield body, turns
        yield test, turns + 1
    elif name == "cond":
        yield max(inner, key=lambda part: part.total), 1
    elif name == "shard_map":
        # Arrays inside are one device's along the axes that are manual.
        yield inner[0], math.prod(params["mesh"].shape[a] for a in params["newly_manual_axes"])
    elif name in CALLS:
        for part in inner:
            yield part, 1
    else:
        raise ValueError(f"how often {name!r} runs what it holds is not known to planning/flops.py")


def _dot(equation: Any) -> tuple[str, str, int]:
    (contracted, _), (batch, _) = equation.params["dimension_numbers"]
    left = equation.invars[0].aval
    inner = math.prod(left.shape[i] for i in contracted)
    kind = "batched product" if batch else "product"
    return kind, _dtype(equation), 2 * math.prod(equation.outvars[0].aval.shape) * inner


def _convolution(equation: Any) -> tuple[str, str, int]:
    params, kernel = equation.params, equation.invars[1].aval.shape
    numbers, out = params["dimension_numbers"], equation.outvars[0].aval.shape
    # The kernel's input channels are those of one group already.
    flops = 2 * out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]]
    for i, (out_dim, kernel_dim) in enumerate(
        zip(numbers.out_spec[2:], numbers.rhs_spec[2:], strict=True)
    ):
        flops *= _taps(
            out[out_dim],
            kernel[kernel_dim],
            params["window_strides"][i],
            params["rhs_dilation"][i],
            params["lhs_dilation"][i],
            params["padding"][i][0],
        )
    return "convolution", _dtype(equation), flops


def _taps(out: int, size: int, stride: int, spread: int, holes: int, before: int) -> int:
    """How often along one side a kernel's element meets one of the input's, or padding.

    Args:
      out: the output's length.
      size: the kernel's.
      stride: of the window.
      spread: dilation of the kernel.
      holes: dilation of the input: all but one place of so many are holes.
      before: padding before the first element.
    """
    if holes == 1:
        return out * size
    places = (o * stride + k * spread - before for o in range(out) for k in range(size))
    return sum(place % holes == 0 for place in places)


def kernel_name(equation: Any) -> str:
    """A kernel's name: the one it was given, else its function's; cuDNN's is its primitive's."""
    if equation.primitive.name != "pallas_call":
        return equation.primitive.name
    return equation.params.get("name") or equation.params["jaxpr"].debug_info.func_name


def kernel_flops(name: str, equation: Any) -> int:
    """FLOPs of one `pallas_call`, over its whole grid.

    Raises:
      ValueError: for a kernel that no row of `KERNELS` names.
    """
    for pattern, price in KERNELS:
        if re.search(pattern, name):
            return price(equation)
    raise ValueError(f"no row of planning.flops.KERNELS prices the Pallas kernel {name!r}")


def _pairs(equation: Any) -> tuple[int, int]:
    """FLOPs of one product of all queries with all keys, and the number of outputs as large.

    The first two operands of floats are q [..., N, T, H] and k [..., (N,) S, H].
    """
    floats = [v.aval for v in equation.invars if jnp.issubdtype(v.aval.dtype, jnp.floating)]
    q, k = floats[:2]
    large = [v.aval for v in equation.outvars if len(v.aval.shape) >= len(q.shape)]
    return 2 * math.prod(q.shape) * k.shape[-2], len(large)


def _attention(products: int) -> Callable[[Any], int]:
    return lambda equation: products * _pairs(equation)[0]


def _keys_values(equation: Any) -> int:
    """Gradients of keys and values, with a third large output also of the queries."""
    flops, large = _pairs(equation)
    return flops * (5 if large > 2 else 4)


KERNELS: tuple[tuple[str, Callable[[Any], int]], ...] = (
    (r"^_flash_attention_kernel", _attention(2)),
    (r"^_flash_attention_dkv_kernel$", _attention(4)),
    (r"^_flash_attention_dq_kernel$", _attention(3)),
    (r"^splash_m[hq]a_fwd", _attention(2)),
    (r"^splash_m[hq]a_dkv", _keys_values),
    (r"^splash_m[hq]a_dq", _attention(3)),
)
"""(regex of the kernel's name, its price): those of `jax.experimental.pallas.ops.tpu`."""


def _kernel(equation: Any) -> tuple[str, str, int]:
    return "kernel", _dtype(equation), kernel_flops(kernel_name(equation), equation)


def _cudnn(products: int) -> Callable[[Any], tuple[str, str, int]]:
    """Of q [B, T, N, H] and k [B, S, K, H], as `jax.nn.dot_product_attention` hands them on."""

    def price(equation: Any) -> tuple[str, str, int]:
        q, k = (v.aval for v in equation.invars[:2])
        return "kernel", _dtype(equation), products * 2 * math.prod(q.shape) * k.shape[1]

    return price


def _dtype(equation: Any) -> str:
    """The wider of the first two floating operands' dtypes."""
    dtypes = [var.aval.dtype for var in equation.invars if var.aval.shape]
    floats = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)] or dtypes
    return jnp.promote_types(*(floats * 2)[:2]).name


PRICES: dict[str, Callable[[Any], tuple[str, str, int]]] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "pallas_call": _kernel,
    "dot_product_attention_fwd_wrapper": _cudnn(2),
    "dot_product_attention_bwd_wrapper": _cudnn(5),
}
"""Primitive → function of an equation: (kind, dtype, FLOPs)."""


def _first_scope(stack: str) -> str:
    """The first named scope of a name stack, "" without one: "jvp(vision)/conv" is "vision"."""
    for part in stack.split("/"):
        while found := _WRAPPED.match(part):
            part = found[1]
        if part not in _OWN and "->" not in part:  # an einsum's own is its formula
            return part
    return ""


def _turns(equation: Any) -> int:
    """How often a `while` turns: a counter from one literal to another by a literal step.

    Raises:
      ValueError: where it is not that simple.
    """
    body, test = equation.params["body_jaxpr"].jaxpr, equation.params["cond_jaxpr"].jaxpr
    skip = equation.params["cond_nconsts"] + equation.params["body_nconsts"]
    start = equation.invars[skip:]
    known = dict(zip(test.invars[equation.params["cond_nconsts"] :], start, strict=True))
    try:
        (compare,) = test.eqns
        counter, limit = compare.invars
        place = test.invars.index(counter) - equation.params["cond_nconsts"]
        own = body.invars[equation.params["body_nconsts"] + place]
        (step,) = (e for e in body.eqns if body.outvars[place] in e.outvars)
        limit = limit if isinstance(limit, Literal) else _kept(body, equation, test, limit, known)
        values = [known[counter], limit, step.invars[1]]
        simple = compare.primitive.name in ("lt", "le") and step.primitive.name == "add"
        if simple and step.invars[0] is own and all(isinstance(v, Literal) for v in values):
            first, last, by = (int(v.val) for v in values)
            last += compare.primitive.name == "le"
            return len(range(first, last, max(by, 0)))  # a step of 0 is refused
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(
        "how often a while loop with products inside turns cannot be told from its jaxpr "
        f"({equation.source_info.name_stack or 'no named scope'}); use a scan, or fixed bounds"
    )


def _kept(body: Any, equation: Any, test: Any, limit: Any, known: dict[Any, Any]) -> Any:
    """The initial value of a carried limit that the body hands on as it is.

    Raises:
      ValueError: if the body changes it.
    """
    place = test.invars.index(limit) - equation.params["cond_nconsts"]
    if body.outvars[place] is not body.invars[equation.params["body_nconsts"] + place]:
        raise ValueError("the limit changes")
    return known[limit]
