"""The notebooks run to their ends on a tiny checkpoint."""

import importlib.util
import os
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    names = ["01_prompt", "02_evaluate", "03_pod_checkpoint"]
    assert [path.stem for path in NOTEBOOKS] == names


def run(path, workdir, monkeypatch) -> tuple[str, list[str]]:
    """What a notebook prints, and what it shows as HTML."""
    for package in ("nbclient", "nbformat", "ipykernel"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install flamingo_jax[notebook]")
    import nbclient
    import nbformat

    monkeypatch.setenv("FLAMINGO_CHECKPOINT", str(workdir.path))
    search = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, search)))
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs"), "notebooks are kept without outputs"
    client = nbclient.NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    printed = "".join(
        output.get("text", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    shown = [
        output.data["text/html"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "text/html" in output.get("data", {})
    ]
    return printed, shown


def test_prompting(tiny_workdir, monkeypatch):
    printed, shown = run(NOTEBOOKS[0], tiny_workdir, monkeypatch)
    assert "stage: flamingo" in printed
    assert "right picture" in printed
    assert sum("<img" in one for one in shown) >= 8
    assert any("gate_attention" in one for one in shown)


def test_evaluating(tiny_workdir, monkeypatch):
    printed, shown = run(NOTEBOOKS[1], tiny_workdir, monkeypatch)
    assert "<image>Question: What colour is it? Answer: " in printed
    for setting in ("0 shots, random", "4 shots, rices", "4 shots, random"):
        assert f"{setting}: " in printed
    assert any("<svg" in one for one in shown) and any("<img" in one for one in shown)


def test_a_pods_checkpoint(tiny_workdir, monkeypatch):
    printed, shown = run(NOTEBOOKS[2], tiny_workdir, monkeypatch)
    assert "stage: flamingo" in printed and "steps that are kept: " in printed
    assert "xattn" in printed and printed.count(": says ") == 2
    assert any("gate_attention" in one for one in shown)
