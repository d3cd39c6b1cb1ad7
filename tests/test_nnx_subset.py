"""Flax NNX defines modules and nothing else: past `split`, parameters are plain dicts."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

ALLOWED = {
    *("Module", "Param", "List", "Rngs", "initializers", "GraphDef", "State"),
    *("vmap", "eval_shape", "split", "merge", "state", "to_pure_dict"),
}
SHARDING_METADATA = {"sharding", "sharding_names", "sharding_metadata", "out_sharding"}


def complaints(source: str) -> list[str]:
    """What a module does beyond the subset, as "line: what"."""
    tree = ast.parse(source)
    names: set[str] = set()  # what `flax.nnx` is called in this module
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "flax":
            for alias in node.names:
                if node.module == "flax" and alias.name == "nnx":
                    names.add(alias.asname or alias.name)
                else:
                    found.append((node.lineno, f"imports {node.module}.{alias.name}"))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "flax":
                    found.append((node.lineno, f"imports {alias.name}: from flax import nnx"))
    if not names and not found:
        return []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found += [(node.lineno, what) for what in _attribute(node, names)]
        elif isinstance(node, ast.Call):
            found += [(node.lineno, what) for what in _call(node, names)]
    found += [
        (line, "nnx.vmap where no module is made") for line in _vmaps_at_run_time(tree, names)
    ]
    return [f"{line}: {what}" for line, what in sorted(found)]


def _attribute(node: ast.Attribute, names: set[str]) -> list[str]:
    base = node.value.id if isinstance(node.value, ast.Name) else ""
    if base in names and node.attr not in ALLOWED:
        return [f"nnx.{node.attr}"]
    if node.attr == "value" and base != "self":  # self.value is a layer of this name
        return [".value: read a parameter with [...]"]
    if node.attr == "sow":
        return [".sow: return what is computed"]
    return []


def _call(node: ast.Call, names: set[str]) -> list[str]:
    function = ast.unparse(node.func)
    if function not in {f"{name}.Param" for name in names}:
        return []
    used = {keyword.arg for keyword in node.keywords}
    return [f"{name}= on a Param: sharding.py has the table" for name in used & SHARDING_METADATA]


def _vmaps_at_run_time(tree: ast.AST, names: set[str]) -> list[int]:
    """Lines of `nnx.vmap` outside functions that make modules, which are those that take `rngs`."""

    def vmaps(root: ast.AST) -> set[ast.Attribute]:
        return {
            node
            for node in ast.walk(root)
            if isinstance(node, ast.Attribute)
            and node.attr == "vmap"
            and isinstance(node.value, ast.Name)
            and node.value.id in names
        }

    makers = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and "rngs" in {argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]}
    )
    making = set().union(*(vmaps(node) for node in makers))
    return sorted(node.lineno for node in vmaps(tree) - making)


def test_the_package_keeps_to_the_subset():
    wrong = []
    for path in sorted((ROOT / "flamingo_jax").rglob("*.py")):
        found = complaints(path.read_text(encoding="utf-8"))
        wrong += [f"{path.relative_to(ROOT)}:{what}" for what in found]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "source",
    [
        "x = nnx.jit(f)",
        "x = nnx.Optimizer(model, tx)",
        "x = nnx.scan(f)",
        "x = nnx.remat(f)",
        "x = nnx.value_and_grad(f)",
        "x = layer.kernel.value",
        "x = self.kernel.value",
        "self.sow(nnx.Param, 'x', y)",
        "x = nnx.Param(y, sharding=('a',))",
        "def __call__(self, x):\n  return nnx.vmap(f)(x)",
        "from flax import linen",
        "from flax.nnx import jit",
        "import flax.linen as nn",
        "from flax import nnx as other\nx = other.grad(f)",
    ],
)
def test_the_rule_finds(source: str):
    assert complaints(f"from flax import nnx\n{source}")


@pytest.mark.parametrize(
    "source",
    [
        "class A(nnx.Module):\n  def __init__(self, *, rngs):\n    self.a = nnx.vmap(f)(k)",
        "g, s = nnx.split(model)",
        "y = nnx.merge(g, s).kernel[...]",
        "v = self.value(x, dtype)",
        "p = nnx.Param(init(key, (2, 3)))",
    ],
)
def test_the_rule_allows(source: str):
    assert not complaints(f"from flax import nnx\n{source}")
