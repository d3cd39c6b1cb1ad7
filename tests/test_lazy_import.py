"""`import flamingo_jax` and `--help` cost nothing: what is heavy is imported where it is used."""

import json
import subprocess
import sys

import pytest

import flamingo_jax

HEAVY = {
    *("torch", "tensorflow", "tensorflow_datasets", "transformers"),
    *("jax", "jaxlib", "flax", "optax", "orbax", "grain", "array_record", "tensorboardX"),
    *("numpy", "PIL", "av", "tokenizers", "sentencepiece", "rich", "ml_collections", "chex"),
}

IMPORT = """
import json, sys, time
before = time.process_time()
import flamingo_jax
seconds = time.process_time() - before
print(json.dumps({"seconds": seconds, "modules": sorted(sys.modules), "names": dir(flamingo_jax)}))
"""


def tops(modules: list[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def test_import_is_light():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True, timeout=60
    )
    result = json.loads(done.stdout)
    own = [name for name in result["modules"] if name.startswith("flamingo_jax")]
    assert own == ["flamingo_jax"]
    assert not tops(result["modules"]) & HEAVY
    assert result["seconds"] < 1.0
    assert {"load", "text", "Video", "__version__"} <= set(result["names"])


def test_help_imports_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "flamingo_jax", "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    modules = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines()]
    assert "argparse" in modules
    assert not tops(modules) & HEAVY


def test_names_come_from_use():
    from flamingo_jax import use

    assert flamingo_jax.load is use.load
    assert flamingo_jax.text is use.text
    assert flamingo_jax.Video is use.Video


def test_unknown_name():
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        _ = flamingo_jax.laod
