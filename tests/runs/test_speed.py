"""What speed.jsonl tells is so, and the step is compiled once a start, whatever a run does."""

import collections
import dataclasses

import jax
import pytest

from flamingo_jax import config, inputs, pace, sharding, stages
from flamingo_jax.data.tokenizer import train_tokenizer
from flamingo_jax.model import counts
from flamingo_jax.planning import analytic, chips
from flamingo_jax.preemption import StopRequest
from flamingo_jax.workdir import Workdir
from tests.runs.conftest import Folder

FIRST, LAST, EVERY = 7, 12, 2  # steps of the first start and of both; log_every of the experiment
EVENT = "/jax/core/compile/{}_duration"
FAKE = dataclasses.replace(chips.CHIPS["v4"], kind="fake", peak=3e9, names=("cpu",))


@dataclasses.dataclass
class Twice:
    """A run of two starts in this process, of the second on devices of a known peak.

    Attributes:
      folder: the run's.
      counts: of each start, {(event, function): how often}.
    """

    folder: Folder
    counts: list[collections.Counter[tuple[str, str]]]


@pytest.fixture(scope="module")
def twice(trainer, tmp_path_factory) -> Twice:
    """It validates, saves and logs in both starts."""
    folder = tmp_path_factory.mktemp("twice") / "run"
    counted: list[collections.Counter[tuple[str, str]]] = []

    def count(event: str, duration_secs: float, **kwargs: str | int) -> None:
        del duration_secs
        counted[-1][event, str(kwargs.get("fun_name"))] += 1

    make = sharding.make_mesh
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                sharding, "make_mesh", lambda *a, **k: make(*a, **k, devices=jax.devices()[:1])
            )
            counted.append(collections.Counter())
            assert trainer.here(folder, f"--config.train.steps={FIRST}") == 0
            patch.setitem(chips.CHIPS, "fake", FAKE)
            counted.append(collections.Counter())
            assert trainer.here(folder) == 0
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    return Twice(Folder(folder), counted)


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("function", ["update", "evaluate"])
def test_one_trace_and_one_program_a_start(twice, start, function):
    """With validations, saves, a resume and what it restores in between."""
    metrics = twice.folder.rows("metrics")
    assert {row["step"] for row in metrics if row["kind"] == "validation"} == {5, 7, 10, 12}
    found = twice.counts[start]
    assert found[EVENT.format("jaxpr_trace"), function] == 1
    assert found[EVENT.format("backend_compile"), f"jit({function})"] == 1


@pytest.mark.slow
def test_rates_are_those_of_the_steps(twice, trainer):
    """Model FLOP/s from shapes and the seconds of computing; MFU where a peak is published."""
    c = config.finish(config.load(f"{trainer.experiment}:flamingo"))
    run = a_run(c, inputs.tokenizer(c, Workdir(twice.folder.path)), twice.folder.path)
    total = analytic.work(c, run.assemble("flamingo"), run.vocabulary).total
    rows = twice.folder.rows("speed")
    # Where nothing is finished since the row before, there is none, and its interval goes on.
    assert {4, 6, 7, 10, 12} <= {row["step"] for row in rows} <= {2, 4, 6, 7, 10, 12}
    steps = 0
    for row in rows:
        parts = ("compute_seconds", "data_wait_seconds", "checkpoint_seconds")
        assert sum(row[part] for part in parts) == pytest.approx(row["seconds"])
        done = row["steps_per_second"] * row["seconds"]
        assert done == pytest.approx(round(done)) and 1 <= round(done) <= EVERY + 2
        steps += round(done)
        rate = total * done / row["compute_seconds"]
        assert row["model_tflops"] == pytest.approx(rate / 1e12)
        if row["step"] > FIRST:
            assert row["mfu"] == pytest.approx(rate / FAKE.peak)
        else:
            assert "mfu" not in row  # no peak of a CPU is published
    assert steps == LAST - 2  # of each start the first is compiling


def a_run(c, tokenizer, folder) -> inputs.Run:
    mesh = sharding.make_mesh(fsdp=2, devices=jax.devices()[:2])
    return inputs.Run(c, Workdir(folder), tokenizer, mesh, {}, StopRequest())


@pytest.mark.parametrize("name", ["language", "contrastive", "flamingo"])
def test_every_stage_has_work(trainer, tmp_path, monkeypatch, name):
    """Of the Flamingo stage without the encoder, whose features are cached."""
    monkeypatch.setitem(chips.CHIPS, "fake", FAKE)
    c = config.finish(config.load(f"{trainer.experiment}:stages"))
    run = a_run(c, train_tokenizer(["a red square"], 300, image="new"), tmp_path)
    stage = run.assemble(name)
    media = inputs.cached_shape(c, stage)
    found = stages.step_work(run, stage, cached=media is not None)
    counted = analytic.work(c, stage, run.vocabulary, cached=name == "flamingo")
    assert found == pace.Work(counted.tokens, counted.images, counted.total, 2 * FAKE.peak)
    assert found.model_flops > 0
    if name == "flamingo":
        pixels = stages.step_work(run, stage, cached=False)
        encoder = analytic.work(c, stage, run.vocabulary).weights[counts.VISION].total
        assert pixels.model_flops - found.model_flops == encoder > 0


def test_work_that_is_not_counted_is_left_out(trainer, tmp_path):
    """Only the new tokens are trained: no rate is told rather than a wrong one."""
    overrides = {"trainable": "('^embed/new$',)"}
    c = config.finish(config.load(f"{trainer.experiment}:flamingo", overrides))
    run = a_run(c, train_tokenizer(["a red square"], 300, image="new"), tmp_path)
    found = stages.step_work(run, run.assemble("flamingo"), cached=False)
    assert found.model_flops == 0 and found.tokens > 0
