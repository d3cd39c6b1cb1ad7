"""The benchmark of the training step has the peers' model, and runs without them."""

import dataclasses
import os
import pathlib
import runpy
import subprocess
import sys

import pytest

from flamingo_jax import assemble
from flamingo_jax.model.segments import segments
from flamingo_jax.pretrained import clip, llama, open_flamingo

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "benchmarks"
SCRIPT = BENCHMARKS / "train_step.py"
LANGUAGE = {  # as torch_speed.py gives them to transformers' LlamaConfig
    "vocab_size": 32_000,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 2_048,
    "rms_norm_eps": 1e-6,
}
VISION = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}  # and to open_clip


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def test_the_model_is_the_peers(script):
    """Equal to what the peers' own arguments are read as, but for how it is computed."""
    for case in script["CASES"]:
        c = script["experiment"](case)
        cfg = assemble.flamingo_config(c, script["VOCABULARY"])
        assert cfg.vision is not None and cfg.resampler is not None
        language = dataclasses.replace(cfg.language, kv_heads=cfg.language.kv)
        assert language == llama.config(LANGUAGE, new_tokens=script["VOCABULARY"].new)
        assert cfg.vision.identity().vit == clip.open_clip_config(VISION, quick_gelu=True)
        resampler = dataclasses.replace(cfg.resampler, unroll=False)
        assert resampler == open_flamingo.resampler_config({"dim": 768})
        assert cfg.xattn == open_flamingo.xattn_config({"dim": 768, "dim_visual": 768})
        assert cfg.segments == segments(12, case.every, case.every - 1) and not cfg.project
        assert (cfg.dtype, cfg.vision_dtype) == (script["DTYPES"][case.dtype][0],) * 2
        assert c.data.cache_features == (case.media == "cached")


def test_every_case_is_measured_beside_every_peer(script):
    cases = [case for case in script["CASES"] if case.every == 4]
    turns = script["_turns"](cases, ["ours", "one", "other"])
    assert [case for case, side in turns if side == "ours"] == cases
    for peer in ("one", "other"):  # once a dtype, on pixels
        assert [(c.dtype, c.media) for c, side in turns if side == peer] == [
            ("f32", "pixels"),
            ("bf16", "pixels"),
        ]


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    root = BENCHMARKS.parents[1]
    kept = {k: v for k, v in os.environ.items() if not k.endswith(("_PYTHON", "XLA_FLAGS"))}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *flags],
        env=kept | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("flag", "told"), [("--cases=2/bf16/pixels", "is no case"), ("--peers=no.py", "no such file")]
)
def test_what_cannot_be_measured_is_told(script, capsys, monkeypatch, flag, told):
    monkeypatch.setenv("THREADS", "")  # it is set for the peers, and comes back
    assert script["main"]([flag]) == 2
    found = capsys.readouterr()
    assert told in found.err and not found.out


@pytest.mark.slow
def test_our_side_alone(tmp_path):
    done = run("--cases=4/bf16/cached", "--rounds=1", "--steps=1", f"--out={tmp_path / 'rows'}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum("is left out" in line for line in lines) == 2
    (row,) = [line for line in lines if line.startswith("4/bf16/cached")]
    assert row.split()[1] == "ours" and row.endswith("%")
    assert len((tmp_path / "rows").read_text().splitlines()) == 1
