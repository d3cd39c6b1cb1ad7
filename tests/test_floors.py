"""The house (CONTRIBUTING.md): who may import whom, and how long a file and a function may be."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "flamingo_jax"

# A room (a module or folder of the package) imports only rooms of the rows above its own.
FLOORS = (
    {"errors", "installed"},
    {"shapes", "checks", "overrides", "model_fields", "eval_fields", "storage", "memory"},
    {"config", "offload"},
    {"sharding", "fingerprint", "processes", "preemption", "progress"},
    {"layout", "distributed", "agreement", "watchdog", "pace", "profiling", "tracking"},
    {"mirror", "lease"},
    {"data", "model", "logs"},
    {"pretrained", "train", "sealed"},
    {"checkpoint", "workdir"},
    {"eval"},
    {"assemble"},
    {"planning", "report", "use", "serve", "features", "inspection"},
    {"plan", "benchmarking", "measuring"},
    {"training"},
    {"inputs"},
    {"samples", "stages", "facts", "periodic"},
    {"evaluation", "feature_job"},
    {"preparing"},
    {"__init__", "run"},
    {"__main__"},
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
LAZY = ("load", "text", "Video")  # what flamingo_jax/__init__.py fetches from `use`
NEVER = {("train", "data")}  # although it lies below
FOREIGN = {"torch", "tensorflow", "transformers"}  # weights and data are read without them
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}  # reading runs code

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80


def sources(*folders: str) -> list[pathlib.Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found, f"no Python files in {folders}"
    return found


def room_of(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """(line, "a.b.c") of everything a module imports, inside functions too.

    Of `from a import b` it is "a.b", as b may be a module. Relative imports are resolved against
    `package`, the dotted name of the module's folder.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(parents if node.level else ()), *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
            "import_module",
            "__import__",
        ):
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant):
                yield node.lineno, str(name.value)


def imported_rooms(source: str, package: str) -> list[tuple[int, str]]:
    """(line, room) of every room that a module of `package` imports."""
    rooms = []
    for line, name in imports(ast.parse(source), package):
        top, _, rest = name.partition(".")
        if top == "flamingo_jax" and rest != "__version__":
            room = rest.partition(".")[0]
            rooms.append((line, "__init__" if room in ("", *LAZY) else room))
    return rooms


def complaint(room: str, other: str) -> str:
    """Why `room` may not import `other`; empty where it may."""
    if other == room or not {room, other} <= set(LEVEL):
        return ""
    if other == "config" and LEVEL[room] < LEVEL["assemble"]:
        return "a config dies in assemble"
    if (room, other) in NEVER:
        return f"{room} never does"
    return "" if LEVEL[other] < LEVEL[room] else "a room imports only downwards"


def test_every_room_has_a_floor():
    unknown = sorted({room_of(path) for path in sources("flamingo_jax")} - set(LEVEL))
    assert not unknown, f"give {unknown} a floor in FLOORS, and in DECISIONS.md a reason"


def test_imports_go_downwards():
    wrong = []
    for path in sources("flamingo_jax"):
        package = ".".join(path.relative_to(ROOT).parent.parts)
        for line, other in imported_rooms(path.read_text(encoding="utf-8"), package):
            if why := complaint(room_of(path), other):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {other}: {why}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("room", "source", "allowed"),
    [
        ("model", "from flamingo_jax.shapes import Batch", True),
        ("model", "from flamingo_jax.model.layers import Linear", True),
        ("model", "from . import layers", True),
        ("model", "from flamingo_jax.data import images", False),
        ("data", "def f():\n  from flamingo_jax import model", False),
        ("data", "from .. import model", False),
        ("data", "import flamingo_jax", False),
        ("data", "import importlib\nimportlib.import_module('flamingo_jax.train.step')", False),
        ("train", "from flamingo_jax import data", False),
        ("train", "from flamingo_jax import config", False),
        ("run", "from flamingo_jax import config", True),
        ("report", "from flamingo_jax import use", False),
        ("checkpoint", "import flamingo_jax.eval.generate", False),
    ],
)
def test_the_rule_itself(room: str, source: str, allowed: bool):
    rooms = imported_rooms(source, f"flamingo_jax.{room}")
    assert rooms
    assert all(not complaint(room, other) for _, other in rooms) == allowed


def test_the_version_is_everybodys():
    assert not imported_rooms("from flamingo_jax import __version__", "flamingo_jax")


def test_neither_foreign_frameworks_nor_pickles():
    wrong = []
    for path in sources("flamingo_jax"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        where = path.relative_to(ROOT)
        for line, name in imports(tree, "flamingo_jax"):
            if name.partition(".")[0] in FOREIGN | UNSAFE:
                wrong.append(f"{where}:{line} imports {name}")
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                    wrong.append(f"{where}:{node.value.lineno} may unpickle")
    assert not wrong, "\n".join(wrong)


def test_rooms_are_small():
    wrong = []
    for path in sources("flamingo_jax", "experiments", "launch", "tests"):
        text = path.read_text(encoding="utf-8")
        where = path.relative_to(ROOT)
        lines = len(text.splitlines())
        if lines > MAX_FILE_LINES:
            wrong.append(f"{where} has {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    wrong.append(f"{where}:{node.lineno} {node.name} has {length} lines")
    assert not wrong, "split by idea, not by length:\n" + "\n".join(wrong)
