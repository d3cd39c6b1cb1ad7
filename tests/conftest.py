"""What all tests share: eight simulated devices, a compilation cache, the folder of shared data."""

import os
import pathlib
import platform
import zlib
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def machine() -> str:
    """A name for this kind of processor: what is compiled for one may not run on another."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    kind = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    about = "\n".join(sorted(set(kind))) or platform.processor()
    return f"{platform.machine()}-{zlib.crc32(about.encode()):08x}"


# At import, as a test's folder may have a conftest.py that imports JAX. What is in the environment
# also reaches the processes that tests start; the number of devices does not, so that those run as
# a user's would.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("FLAMINGO_CACHE", str(ROOT / ".cache" / "indexes"))  # of shared shards, too
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax" / machine()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Thousands of small programs that run once: LLVM's optimisation and MLIR's emitters are more than
# half of what they cost. XLA's own passes are as ever, but for what is wrapped as a fusion.
# `make check` sets XLA_FLAGS to nothing for its long tests, which so test what users run.
QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
)
os.environ.setdefault("XLA_FLAGS", " ".join(QUICK))


# gcsfs asks Google what kind of bucket it has, also where the bucket is of tests/bucket.py.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


def pytest_configure(config: pytest.Config) -> None:
    """Sets JAX up before any test imports it."""
    import jax
    from absl import flags

    jax.config.update("jax_num_cpu_devices", 8)
    flags.FLAGS.mark_as_parsed()
    # The same examples each time, and no limit on one: the first may have to compile.
    hypothesis.settings.register_profile("flamingo", deadline=None, derandomize=True, database=None)
    hypothesis.settings.load_profile("flamingo")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips what needs an accelerator where there is none; gives long tests time.

    Whole runs and notebooks come first: their files take longest, and two processes then end at
    about the same time.
    """
    items.sort(key=lambda item: {"runs", "test_notebook.py"}.isdisjoint(item.path.parts))
    on_cpu = os.environ["JAX_PLATFORMS"] == "cpu"
    timed = config.pluginmanager.hasplugin("timeout")
    for item in items:
        if on_cpu and item.get_closest_marker("accelerator"):
            item.add_marker(pytest.mark.skip(reason="needs an accelerator: set JAX_PLATFORMS"))
        if timed and item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="module")
def smallest() -> Iterator[None]:
    """Lets configs name the encoder of tests/small.py."""
    from flamingo_jax.model import nfnet
    from tests.small import ENCODER

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(nfnet.VARIANTS, "smallest", ENCODER)
        yield


@pytest.fixture(scope="session")
def served() -> Iterator[Any]:
    """A bucket on this machine, for this process and those that it starts."""
    pytest.importorskip("gcsfs")
    from tests import bucket

    with bucket.serve() as made, pytest.MonkeyPatch.context() as patch:
        for name, value in bucket.environment(made).items():
            patch.setenv(name, value)
        yield made


@pytest.fixture
def bucket(served, monkeypatch, tmp_path) -> Iterator[Any]:
    """The same, empty, with an empty folder for what is written beside it: see tests/bucket.py."""
    monkeypatch.setenv("FLAMINGO_RUNS", str(tmp_path / "working"))
    yield served
    served.clear()


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of shared data: FLAMINGO_SHARED, or `shared` beside the project's folder."""
    named = os.environ.get("FLAMINGO_SHARED")
    if named is None:
        folder = ROOT.parent / "shared"
        if not folder.is_dir():
            pytest.skip("there is no shared data: set FLAMINGO_SHARED to its folder")
        return folder
    if not named or not pathlib.Path(named).is_dir():
        pytest.fail(f"FLAMINGO_SHARED={named!r} is not a folder")
    return pathlib.Path(named).resolve()
