"""The sentence: one function a verb, each reading as what it does."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax

from flamingo_jax import (
    assemble,
    errors,
    evaluation,
    inputs,
    inspection,
    preemption,
    progress,
    samples,
    sharding,
    stages,
)
from flamingo_jax import config as configs
from flamingo_jax import report as reports
from flamingo_jax.data.prepare.job import Job
from flamingo_jax.sealed import remove_unfinished
from flamingo_jax.training import peak_rss_gb
from flamingo_jax.workdir import IDENTITY, Workdir, write_atomically

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "ml-collections", "numpy")
IDENTITY_OF_DATASET = ("layout", "batch", "length", "images", "frames")


def train(
    config_spec: str,
    overrides: dict[str, str] | None = None,
    workdir: str = "",
    check: bool = False,
) -> int:
    """Trains the config's stages in a workdir, resuming wherever it stands; returns the exit code.

    Args:
      config_spec: FILE.py[:variant].
      overrides: {"train.steps": "10"}.
      workdir: the run's folder.
      check: one batch, one step, one save, one restore of each stage, in a folder that is removed.
    """
    c = configs.load(config_spec, overrides)
    if check:
        return _check(c)
    if not workdir:
        raise errors.InputError("--workdir is empty; give the folder of the run")
    command = " ".join(["python -m flamingo_jax", *sys.argv[1:]]) if sys.argv[1:] else "run.train"
    return _train(configs.finish(c), Workdir(workdir), command)


def _check(c: Any) -> int:
    """A rehearsal of the real config, one step a stage: nothing is left behind."""
    configs.finish(c)
    for stage in c.stages:
        settings = configs.stage_settings(c, stage)
        settings.steps, settings.eval_batches, settings.eval_every = 1, 1, 0
    c.checkpoint.every, c.eval.tasks = 1, ()
    c.data.cache_features, c.data.features = False, ""  # they would be of other weights
    finished = configs.finish(c)
    with tempfile.TemporaryDirectory(prefix="flamingo-check-") as folder:
        for _ in range(2):  # the second time restores what the first has saved
            _train(finished, Workdir(folder), "check", rehearsal=True)
    print("check passed: a batch, a step, a save and a restore of every stage")
    return errors.EXIT_OK


def _train(c: Any, workdir: Workdir, command: str, rehearsal: bool = False) -> int:
    workdir.create()
    workdir.check_writable()
    with workdir.lock(), preemption.watch() as stop:
        if _is_finished(c, workdir):
            progress.say(f"{workdir.path} is finished; FRESH=1 or another --workdir trains again")
            reports.summary(workdir.path)
            return errors.EXIT_OK
        _begin_anew(workdir)
        mesh = sharding.make_mesh(c.mesh.replica, c.mesh.fsdp, c.mesh.tensor)
        tokenizer = inputs.tokenizer(c, workdir)
        identity = _identity(c, tokenizer.digest)
        for change in workdir.open_or_create(configs.to_json(c), identity):
            text = f"{change.field}: {change.old} before, {change.new} now"
            workdir.event("config", text)
            progress.say(f"config changed: {text}")
        (workdir.path / "finished").unlink(missing_ok=True)
        meta = _meta(c, command)
        run = inputs.Run(c, workdir, tokenizer, mesh, meta, stop)
        _check_disk(run)
        stages.check_data(run)
        facts = _describe(run, command)
        progress.say(
            f"{facts['devices']} x {facts['platform']}, f32 matrix products at "
            f"{facts['probe']['matmul_gflops']:.0f} GFLOP/s: times elsewhere scale with it"
        )
        for name in c.stages:
            outcome = stages.run_stage(run, name)
            _record_stage(workdir, facts, name, c, outcome)
            if stop.requested:
                raise errors.Preempted(f"stage {name} is finished; the same command goes on")
        if rehearsal:
            return errors.EXIT_OK
        evaluation.evaluate(run)
        facts["peak_rss_gb"] = max(peak_rss_gb(), facts.get("peak_rss_gb", 0.0))
        _write_facts(workdir, facts)
        write_atomically(workdir.path / "finished", json.dumps(_lengths(c)) + "\n")
        reports.write(workdir.path)
        reports.summary(workdir.path)
    return errors.EXIT_OK


def _begin_anew(workdir: Workdir) -> None:
    """Forgets what a start that saved nothing was made with: a mended config may use its folder."""
    for folder in workdir.path.glob("checkpoints/*"):
        remove_unfinished(folder)
    if not any(workdir.path.glob("checkpoints/*/[0-9]*")):
        (workdir.path / IDENTITY).unlink(missing_ok=True)
        shutil.rmtree(workdir.path / "tokenizer", ignore_errors=True)


def _lengths(c: Any) -> dict[str, Any]:
    """What a finished run has done: a config that asks for more is not finished."""
    steps = {stage: configs.stage_settings(c, stage).steps for stage in c.stages}
    return {"steps": steps, "tasks": list(c.eval.tasks), "split": c.eval.split}


def _is_finished(c: Any, workdir: Workdir) -> bool:
    mark = workdir.path / "finished"
    if not mark.is_file() or json.loads(mark.read_text()) != _lengths(c):
        return False
    tokenizer = inputs.tokenizer(c, workdir)
    changes = workdir.open_or_create(configs.to_json(c), _identity(c, tokenizer.digest))
    for change in changes:
        workdir.event("config", f"{change.field}: {change.old} before, {change.new} now")
    return True


def _identity(c: Any, tokenizer_digest: str) -> dict[str, Any]:
    """What may not change in a workdir (DESIGN.md §4.3), by dotted name."""
    whole = json.loads(configs.to_json(c))
    found: dict[str, Any] = {
        "stages": whole["stages"],
        "seed": c.seed,
        "tokenizer": tokenizer_digest,
    }

    def add(prefix: str, tree: dict[str, Any]) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                add(f"{prefix}.{key}", value)
            else:
                found[f"{prefix}.{key}"] = value

    add("tokenizer", {k: v for k, v in whole["tokenizer"].items() if k != "path"})
    add("model", {k: v for k, v in whole["model"].items() if k not in ("remat", "unroll")})
    found["trainable"] = whole["trainable"]
    found["data.image_size"] = c.data.image_size
    for stage in c.stages:
        where = "train" if stage == "flamingo" else f"pretrain.{stage}"
        for name, row in configs.stage_settings(c, stage).datasets.items():
            for field in IDENTITY_OF_DATASET:
                found[f"{where}.datasets.{name}.{field}"] = row[field]
    return found


def _meta(c: Any, command: str) -> dict[str, Any]:
    return {
        "config": json.loads(configs.to_json(c)),
        "versions": versions(),
        "git": git_state(),
        "command": command,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": sys.version.split()[0]}
    for name in (*PACKAGES, "flamingo_jax"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_state() -> dict[str, Any]:
    """The commit of the checkout this package is in, and whether it has uncommitted changes."""
    folder = pathlib.Path(__file__).parent

    def git(*words: str) -> str:
        call = ["git", "-C", str(folder), *words]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=10).stdout

    try:
        commit = git("rev-parse", "HEAD").strip()
        return {"commit": commit, "dirty": bool(git("status", "--porcelain", "-uno").strip())}
    except (OSError, subprocess.SubprocessError):
        return {"commit": "", "dirty": False}


def _check_disk(run: inputs.Run) -> None:
    """Three times the largest stage's state, or what the config asks for, must be free."""
    largest = 0
    for name in run.config.stages:
        stage = run.assemble(name)
        leaves = jax.tree.leaves((stage.state, stage.frozen))
        largest = max(largest, sum(a.size * a.dtype.itemsize for a in leaves))
    run.workdir.check_disk(int(run.config.checkpoint.min_free_gb * 1e9) or 3 * largest)


def _describe(run: inputs.Run, command: str) -> dict[str, Any]:
    """The facts of run.json; those of an earlier start are kept."""
    before = _read_json(run.workdir.path / "run.json")
    facts = {
        "command": command,
        "versions": versions(),
        "git": git_state(),
        "devices": jax.device_count(),
        "platform": jax.devices()[0].platform,
        "mesh": dict(run.mesh.shape),
        "seed": run.config.seed,
        "parameters": [
            row for name in run.config.stages for row in _parameters(run.assemble(name))
        ],
        "probe": {"matmul_gflops": matmul_gflops()},
        "stages": before.get("stages", []),
        "peak_rss_gb": before.get("peak_rss_gb", 0.0),
        "attribution": inputs.attributions(run.config),
    }
    _write_facts(run.workdir, facts)
    return facts


def _parameters(stage: assemble.Stage) -> list[dict[str, Any]]:
    """A row for each part of the canonical tree."""
    rows = []
    for trainable, tree in ((True, stage.trainable), (False, stage.frozen)):
        for part in sorted(tree):
            count = sum(a.size for a in jax.tree.leaves(tree[part]))
            row = {"part": part, "count": count, "trainable": trainable, "stage": stage.name}
            rows.append(row)
    return rows


def matmul_gflops(size: int = 1024, seconds: float = 0.3) -> float:
    """GFLOP/s of f32 matrix products here: the scale that times on other machines go by."""
    a = jax.numpy.ones((size, size))
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        product(a).block_until_ready()
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - begin) / 1e9


def _record_stage(workdir: Workdir, facts: dict[str, Any], name: str, c: Any, outcome: Any) -> None:
    """Adds a stage's times; a resumed stage's add up."""
    if outcome.finished_before:
        return
    before = {row["stage"]: row for row in facts["stages"]}
    row = before.get(name, {"seconds": 0.0, "compile_seconds": 0.0})
    before[name] = {
        "stage": name,
        "steps": configs.stage_settings(c, name).steps,
        "seconds": row["seconds"] + outcome.seconds,
        "compile_seconds": row["compile_seconds"] + outcome.compile_seconds,
    }
    facts["stages"] = list(before.values())
    facts["peak_rss_gb"] = max(peak_rss_gb(), facts["peak_rss_gb"])
    _write_facts(workdir, facts)


def _write_facts(workdir: Workdir, facts: dict[str, Any]) -> None:
    write_atomically(workdir.path / "run.json", json.dumps(facts, indent=1) + "\n")


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def report(workdirs: list[str], markdown: bool = False) -> int:
    """Writes one run's report again, or lays several over each other.

    Args:
      workdirs: the runs' folders.
      markdown: print the table of checks as Markdown, and nothing else.
    """
    path = reports.write(workdirs[0]) if len(workdirs) == 1 else reports.compare(workdirs)
    if markdown:
        print(reports.table(workdirs, markdown=True), end="")
    elif len(workdirs) == 1:
        reports.summary(workdirs[0])
    else:
        print(reports.table(workdirs), end="")
        print(f"report   {path}")
    return errors.EXIT_OK


def prepare(job: Job, out: str, workers: int = 1) -> int:
    """Makes ArrayRecord shards with a manifest of a source's documents.

    Args:
      job: what and how.
      out: the folder of the shards.
      workers: processes.
    """
    from flamingo_jax import preparing

    preparing.documents(job, out, workers)
    print(inspection.describe(out), end="")
    return errors.EXIT_OK


def prepare_features(out: str, **options: Any) -> int:
    """Makes a folder of the features of a config's media; see `preparing.features`."""
    from flamingo_jax import preparing

    preparing.features(out, **options)
    print(inspection.describe(out), end="")
    return errors.EXIT_OK


def inspect(
    folder: str,
    config_spec: str = "",
    overrides: dict[str, str] | None = None,
    stage: str = "",
    out: str = "",
    rows: int = samples.ROWS,
) -> int:
    """Prints what a run, a checkpoint, prepared documents or features hold, without loading them.

    With a config instead of a folder: writes the page of its datasets, see `samples.write`.
    """
    if config_spec:
        c = configs.finish(configs.load(config_spec, overrides))
        print(f"page     {samples.write(c, stage, out, rows)}")
    else:
        print(inspection.describe(folder), end="")
    return errors.EXIT_OK


def generate(checkpoint: str, items: list[str], **options: Any) -> int:
    """Continues one prompt of pictures, clips and text."""
    from flamingo_jax import use

    use.generate_command(checkpoint, items, **options)
    return errors.EXIT_OK
