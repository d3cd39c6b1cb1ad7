"""What is imported is declared, what is declared is pinned, and the pins lie in the ranges."""

import ast
import importlib.metadata
import pathlib
import re
import runpy
import sys
import types
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import flamingo_jax

ROOT = pathlib.Path(__file__).resolve().parents[1]
UNTESTED = {"gpu", "tpu", "plan", "s3", "wandb", "eval"}  # what tests can do without


@pytest.fixture(scope="module")
def setup_call() -> dict[str, Any]:
    """The arguments of `setup(…)` in setup.py."""
    caught: dict[str, Any] = {}
    fake = types.ModuleType("setuptools")
    vars(fake)["setup"] = caught.update
    vars(fake)["find_namespace_packages"] = lambda **_: []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "setuptools", fake)
        runpy.run_path(str(ROOT / "setup.py"))
    return caught


@pytest.fixture(scope="module")
def pins() -> dict[str, Version]:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = [re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+!]+)", line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    return {canonicalize_name(match[1]): Version(match[2]) for match in found if match}


def imported(tree: ast.Module, top_level: bool) -> set[str]:
    """Names of the packages a module imports: only when it is imported itself, or at any time."""
    nodes = ast.walk(tree)
    if top_level:
        inside = {id(n) for f in ast.walk(tree) if _is_function(f) for n in ast.walk(f)}
        nodes = (node for node in ast.walk(tree) if id(node) not in inside)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"flamingo_jax"}


def _is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def undeclared(setup_call: dict[str, Any], extras: bool, top_level: bool) -> list[str]:
    groups = [setup_call["install_requires"]]
    groups += setup_call["extras_require"].values() if extras else []
    declared = {canonicalize_name(Requirement(r).name) for group in groups for r in group}
    distributions = importlib.metadata.packages_distributions()
    wrong = []
    for path in sorted((ROOT / "flamingo_jax").rglob("*.py")):
        for name in imported(ast.parse(path.read_text(encoding="utf-8")), top_level):
            owners = {canonicalize_name(owner) for owner in distributions.get(name, [name])}
            if not owners & declared:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    return wrong


def test_imports_are_declared(setup_call):
    assert not undeclared(setup_call, extras=True, top_level=False)


def test_extras_are_imported_where_they_are_used(setup_call):
    """Without an extra every module can still be imported."""
    assert not undeclared(setup_call, extras=False, top_level=True)


def test_versions(setup_call, pins):
    assert setup_call["version"] == flamingo_jax.__version__
    groups = {"": setup_call["install_requires"], **setup_call["extras_require"]}
    for extra, requirements in groups.items():
        for requirement in map(Requirement, requirements):
            assert requirement.specifier, f"{requirement} has no lower bound"
            if extra not in UNTESTED:
                name = canonicalize_name(requirement.name)
                assert name in pins, f"{requirement} is not in constraints.txt"
                assert requirement.specifier.contains(pins[name], prereleases=True), requirement


def test_every_folder_of_code_is_packaged(setup_call):
    """No folder name that setup.py's search would miss, and the script calls the command line."""
    for path in (ROOT / "flamingo_jax").rglob("*.py"):
        assert all(part.isidentifier() for part in path.relative_to(ROOT).parent.parts), path
    assert setup_call["entry_points"] == {
        "console_scripts": ["flamingo = flamingo_jax.__main__:main"]
    }


def test_licence_and_changelog():
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence and "The flamingo_jax authors" in licence
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", changelog, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
