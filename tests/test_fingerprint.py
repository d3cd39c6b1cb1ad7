"""Fingerprints are of the values alone, and of every bit and place of them."""

import hashlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flamingo_jax import fingerprint

DTYPES = ("float32", "bfloat16", "float16", "int32", "uint32", "int8", "uint8", "bool")


def random_array(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random bits as `dtype`."""
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    size = jnp.dtype(dtype).itemsize
    raw = rng.integers(0, 256, (*shape, size), dtype=np.uint8)
    return raw.view(jnp.dtype(dtype))[..., 0]


def of(x) -> str:
    return fingerprint.fingerprints({"x": x})["x"]


def reference(x: np.ndarray) -> str:
    """The definition in the module's docstring, in Python's integers."""

    def mix(v: int) -> int:
        v = (v ^ (v >> 16)) * 0x85EBCA6B % 2**32
        v = (v ^ (v >> 13)) * 0xC2B2AE35 % 2**32
        return v ^ (v >> 16)

    words = np.ascontiguousarray(x).reshape(-1).view(f"u{x.dtype.itemsize}")
    sum_a = sum_b = 0
    for low, word in enumerate(int(w) for w in words):
        key = mix(low)
        sum_a += mix(word ^ key ^ mix(fingerprint.SEED_A))
        sum_b += mix(word ^ (key * fingerprint.ODD % 2**32) ^ mix(fingerprint.SEED_B))
    return f"{sum_a % 2**32:08x}{sum_b % 2**32:08x}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_definition(dtype):
    shapes = [(), (1,), (7,), (7,), (3, 4, 5), (2, 0, 3)]
    tree = {f"{i}": random_array(dtype, shape, i) for i, shape in enumerate(shapes)}
    assert fingerprint.fingerprints(tree) == {path: reference(x) for path, x in tree.items()}


def test_elements_of_64_bits():
    x = random_array("uint32", (5, 2)).view(np.float64)[:, 0]
    with pytest.raises(TypeError, match="narrow"):
        of(x)
    with jax.enable_x64(True):
        assert of(x) == of(x.view(np.uint32))


def test_never_changes():
    """Checkpoints on disk hold these: another value would make all of them look damaged."""
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    prints = fingerprint.fingerprints({"a": x, "b": {"c": x.astype(jnp.bfloat16)}})
    assert prints == GOLDEN
    assert (
        fingerprint.digest(prints, {"a": "float32[3,4]", "b/c": "bfloat16[3,4]"})
        == (
            hashlib.sha256(
                f"a float32[3,4] {GOLDEN['a']}\nb/c bfloat16[3,4] {GOLDEN['b/c']}\n".encode()
            ).hexdigest()[:32]
        )
    )


GOLDEN = {"a": "88ad037a8f8213cd", "b/c": "a75c1f6d1f157c76"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_counts(dtype):
    x = random_array(dtype, (4, 3))
    raw = x.reshape(-1).view(np.uint8)
    variants = []
    for i in range(raw.size):
        for bit in range(1 if dtype == "bool" else 8):
            changed = raw.copy()
            changed[i] ^= 1 << bit
            variants.append(changed.view(x.dtype).reshape(x.shape))
    prints = fingerprint.fingerprints(
        {"x": x, "variants": {str(i): v for i, v in enumerate(variants)}}
    )
    assert len(set(prints.values())) == len(variants) + 1


def test_every_place_counts():
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    variants = {"x": x, "turned": x[::-1], "rolled": np.roll(x, 1)}
    for i in range(24):
        for j in range(i):
            swapped = x.reshape(-1).copy()
            swapped[[i, j]] = swapped[[j, i]]
            variants[f"{i}-{j}"] = swapped.reshape(x.shape)
    assert len(set(fingerprint.fingerprints(variants).values())) == len(variants)


def test_signs_flipped_in_pairs_count():
    """A sum of the bits times odd weights, modulo a power of two, is blind to these."""
    x = random_array("float32", (64,))
    pairs = {"x": x}
    for i in range(0, 64, 2):
        flipped = x.copy()
        flipped[i : i + 2] *= -1
        pairs[str(i)] = flipped
    pairs["all"] = -x
    assert len(set(fingerprint.fingerprints(pairs).values())) == len(pairs)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((1, 8, 1), PartitionSpec("fsdp")),
        ((1, 2, 4), PartitionSpec(("fsdp", "tensor"))),
        ((2, 2, 2), PartitionSpec("tensor", "fsdp")),
        ((1, 1, 8), PartitionSpec(None, "tensor")),
        ((8, 1, 1), PartitionSpec()),
    ],
)
def test_does_not_depend_on_the_mesh(shape, spec):
    mesh = jax.make_mesh(shape, ("replica", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    sharded, whole = NamedSharding(mesh, spec), NamedSharding(mesh, PartitionSpec())
    alone, together = {}, {}
    for i, dtype in enumerate(("float32", "bfloat16", "int32", "bool")):
        sizes = {"large": (16, 16, 4, 64), "small": (8, 16), "another": (8, 16), "scalar": ()}
        for j, (name, size) in enumerate(sizes.items()):
            x = random_array(dtype, size, 10 * i + j)
            alone[f"{dtype}-{name}"] = of(x)
            together[f"{dtype}-{name}"] = jax.device_put(x, sharded if size else whole)
    assert fingerprint.fingerprints(together) == alone


def test_is_not_gathered():
    """Between devices go the sums alone, and no device makes room for the whole array."""
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    x = jax.device_put(random_array("float32", (64, 512)), rows)
    compiled = fingerprint._compiled(NamedSharding(mesh, PartitionSpec())).lower(x).compile()
    travels = re.findall(r"= (\S+) (?:all|collective|reduce-scatter)\S*\(", compiled.as_text())
    assert travels
    for result in travels:
        assert result.startswith("u32"), result
        sizes = [int(n) for n in re.findall(r"\d+", result[3:].split("{")[0])]
        assert np.prod(sizes) <= 2 * 8
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * x.nbytes / 8


def test_one_program_for_each_kind_of_leaf():
    """However many trees there are: compiling is what small runs wait for."""
    compiled = fingerprint._compiled(None)
    compiled.clear_cache()
    for count in (1, 3, 5):
        tree = {str(i): jnp.full((3, 7), i, jnp.float32) for i in range(count)}
        fingerprint.fingerprints({"params": tree, "mu": tree, "step": jnp.zeros((), jnp.int32)})
    assert compiled._cache_size() == 2


def test_may_be_donated_once_started():
    x = jnp.arange(1 << 20, dtype=jnp.float32)
    want = of(x)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    pending = fingerprint.start_fingerprints({"x": x})
    for _ in range(5):
        x = add(x)
    assert fingerprint.finish_fingerprints(pending) == {"x": want}


@pytest.mark.parametrize(
    "shape", [(), (5,), (16,), (3, 5), (4, 4, 4), (2, 3, 7), (5, 2, 8), (9, 1, 9)]
)
def test_index_words_of_many_elements(shape):
    """As with arrays of more than 2³² elements, here with words of four bits."""
    high, low = (np.asarray(x) for x in fingerprint.index_words(shape, limit=16))
    assert high.shape == low.shape == shape
    assert int(low.max()) < 16 and int(high.max()) < 16
    assert len(set(zip(high.flat, low.flat, strict=True))) == max(1, int(np.prod(shape)))
    if np.prod(shape) <= 16:
        assert not high.any() and np.array_equal(low.flat, np.arange(low.size))


def test_too_many_elements_are_refused():
    with pytest.raises(ValueError, match="too large"):
        fingerprint.index_words((17,), limit=16)


def test_large_abstract_arrays_can_be_fingerprinted():
    """The stacked weights of 80 layers have more than 2³² elements; nothing of them is made."""
    x = jax.ShapeDtypeStruct((80, 8192, 28672), jnp.bfloat16)
    assert jax.eval_shape(fingerprint._sums, x).shape == (2,)


def test_dtypes_without_a_fingerprint():
    with pytest.raises(TypeError, match="complex64"):
        of(np.zeros(3, np.complex64))


def test_paths_are_those_of_optimizers_too():
    import optax

    params = {"resampler": {"gate": jnp.zeros(3)}, "embed": {"new": jnp.ones((2, 2))}}
    state = optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(params)
    leaves = fingerprint.tree_leaves(state)
    assert sorted(leaves) == sorted(fingerprint.fingerprints(state))
    assert {path.rpartition("mu/")[2] for path in leaves if "/mu/" in path} == {
        "resampler/gate",
        "embed/new",
    }
    assert any(path.endswith("count") for path in leaves)


def test_signatures():
    tree = {"a": jnp.zeros((2, 3), jnp.bfloat16), "b": {"c": np.zeros((), np.int32)}}
    signatures = fingerprint.signature(tree)
    assert signatures == {"a": "bfloat16[2,3]", "b/c": "int32[]"}
    assert fingerprint.signature(jax.eval_shape(lambda: tree)) == signatures
    for path, leaf in fingerprint.tree_leaves(tree).items():
        assert fingerprint.parse_signature(signatures[path]) == (leaf.shape, leaf.dtype)
    for bad in ("float32", "float99[2]", "float32[a]", "[2]", "float32[2"):
        with pytest.raises(ValueError):
            fingerprint.parse_signature(bad)


def test_digest_tells_paths_shapes_and_dtypes_apart():
    def digest(tree) -> str:
        return fingerprint.digest(fingerprint.fingerprints(tree), fingerprint.signature(tree))

    x = np.zeros((2, 3), np.float32)
    others = [
        {"a": x},
        {"b": x},
        {"a": x, "b": x},
        {"a": x.reshape(3, 2)},
        {"a": x.view(np.int32)},
        {"a": -x},
        {},
    ]
    assert len({digest(tree) for tree in others}) == len(others)
    assert digest({"a": x}) == digest({"a": jnp.asarray(x)})
    assert len(digest({"a": x})) == fingerprint.DIGEST_DIGITS == 32
