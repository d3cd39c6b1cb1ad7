"""Runs of all three stages: killed in each of them, begun again, stages that are behind us."""

import shutil
import signal

import pytest

pytestmark = pytest.mark.slow  # three stages take long before anything is tested


def test_killed_in_each_of_three_stages(trainer, three_stages, same, folder):
    for die, stage in (
        ("metrics.jsonl:2", "language"),
        ("metrics.jsonl:7", "contrastive"),
        ("rows.jsonl:7", "flamingo"),
    ):
        assert trainer.process(folder.path, variant="stages", die=die).code == -signal.SIGKILL
        assert folder.rows("events")[-1]["stage"] == stage
    assert trainer.process(folder.path, variant="stages").code == 0
    same(folder, three_stages, "language", "contrastive", "flamingo")


def test_a_stage_behind_us_cannot_be_lengthened(trainer, three_stages, tmp_path, capsys):
    folder = three_stages.copy(tmp_path / "run")
    more = "--config.pretrain.language.steps=6"
    assert trainer.here(folder.path, more, variant="stages") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "config.pretrain.language.steps is 6" in last and "has begun from its step 4" in last
    assert folder.text("metrics") == three_stages.text("metrics")


def test_the_tokenizer_is_the_same_each_time(trainer, three_stages, tmp_path, capsys):
    """A start that was killed before it saved anything is begun anew, tokenizer included."""
    folder = three_stages.copy(tmp_path / "run")
    shutil.rmtree(folder.path / "checkpoints")
    huge = "--config.checkpoint.min_free_gb=1e9"
    assert trainer.here(folder.path, huge, variant="stages") == 2
    for name in ("identity.json", "tokenizer/tokenizer.json"):
        assert (folder.path / name).read_bytes() == (three_stages.path / name).read_bytes()
