"""What a run costs: parameters by part and stage, time, rates, memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from flamingo_jax.report import charts, curves, reading, wording
from flamingo_jax.report.markup import Markup, join, left_out, table, tag
from flamingo_jax.report.reading import Run


def parameters(run: Run) -> Markup:
    """Parts by stages: how many parameters, trained or frozen."""
    entries = run.listed("parameters")
    if not entries:
        return left_out("No parameters: run.json does not list them yet.")
    stages = list(dict.fromkeys(str(entry.get("stage") or "") for entry in entries))
    parts = list(dict.fromkeys(str(entry.get("part")) for entry in entries))

    def cell(of: list[dict[str, Any]]) -> Markup:
        if not of:
            return Markup(wording.NOTHING)
        return join(*(
            tag("span", wording.count(e.get("count")), " ",
                tag("span", word, class_=f"tag {word}"), class_="parameter")
            for e in of for word in ["trained" if e.get("trainable") else "frozen"]
        ))  # fmt: skip

    def chosen(stage: str, part: str | None = None) -> list[dict[str, Any]]:
        mine = [e for e in entries if str(e.get("stage") or "") == stage]
        return [e for e in mine if part is None or str(e.get("part")) == part]

    rows: list[list[Any]] = [[part, *(cell(chosen(s, part)) for s in stages)] for part in parts]
    total: list[Any] = ["together"]
    for stage in stages:
        trained = sum(e.get("count") or 0 for e in chosen(stage) if e.get("trainable"))
        every = sum(e.get("count") or 0 for e in chosen(stage))
        share = charts.bar(trained, None, None, every)
        text = f"{wording.count(trained)} of {wording.count(every)} trained"
        total.append(join(text, share))
    rows.append(total)
    return table(["part", *(stage or "count" for stage in stages)], rows, foot=1)


def stage_seconds(run: Run) -> dict[str, float]:
    """Seconds of each stage (run.json, or else what speed.jsonl adds up to) and of evaluation."""
    found: dict[str, float] = {}
    for row in run.listed("stages"):
        if reading.is_number(row.get("seconds")):
            found[str(row.get("stage"))] = float(row["seconds"])
    for stage in run.stages:
        logged = [r["seconds"] for r in run.speed if r.get("stage") == stage and "seconds" in r]
        if stage not in found and logged:
            found[stage] = float(sum(s for s in logged if reading.is_number(s)))
    seconds = [task.seconds for task in run.tasks if task.seconds is not None]
    return found | ({"evaluation": sum(seconds)} if seconds else {})


def memory(run: Run) -> float | None:
    """Peak resident memory in GB."""
    logged = [row["rss_gb"] for row in run.speed if reading.is_number(row.get("rss_gb"))]
    peak = run.facts.get("peak_rss_gb")
    if isinstance(peak, int | float):
        logged.append(peak)
    return max(logged, default=None)


def speed(run: Run) -> Markup:
    """Rates by stage (medians of what was logged), waiting for data, memory, and the probe."""
    timings = stage_seconds(run)
    if not timings and not run.speed:
        return left_out("No speed: neither speed.jsonl nor run.json tells of a stage yet.")
    told = {str(row.get("stage")): row for row in run.listed("stages")}
    rows = []
    for stage in dict.fromkeys([*run.stages, *timings]):
        mine = [row for row in run.speed if row.get("stage") == stage]
        seconds, waited, saving = (
            sum(r[key] for r in mine if reading.is_number(r.get(key)))
            for key in ("seconds", "data_wait_seconds", "checkpoint_seconds")
        )
        peak = max((r["rss_gb"] for r in mine if reading.is_number(r.get("rss_gb"))), default=None)
        logged = max((row["step"] for row in run.rows if row.get("stage") == stage), default=None)
        steps = told.get(stage, {}).get("steps", logged)
        rows.append([
            stage, wording.NOTHING if steps is None else f"{steps:,}",
            wording.duration(timings.get(stage)),
            wording.duration(told.get(stage, {}).get("compile_seconds")),
            *(_median(mine, f"{key}_per_second") for key in ("steps", "tokens", "images")),
            *(f"{part / seconds:.1%}" if seconds else wording.NOTHING for part in (waited, saving)),
            _median(mine, "model_tflops"), _share(mine, "mfu", statistics.median),
            wording.gigabytes(peak),
        ])  # fmt: skip
    total = ["together", "", wording.duration(sum(timings.values()))]
    rows.append([*total, "", "", "", "", "", "", "", "", wording.gigabytes(memory(run))])
    head = ["stage", "steps", "time", "compiling", "steps/s", "tokens/s", "images/s",
            "waiting for data", "saving", "model TFLOP/s", "MFU", "peak memory"]  # fmt: skip
    probe = run.facts.get("probe")
    rate = probe.get("matmul_gflops") if isinstance(probe, dict) else None
    note = "Rates are medians of the logged intervals."
    goodput = _share(run.speed, "goodput", lambda values: values[-1])
    restarts = max((row["restarts"] for row in run.speed if "restarts" in row), default=0)
    if goodput != wording.NOTHING:
        note += f" Goodput {goodput}: of the time since the first start, so much went into steps "
        note += f"that still count; {restarts} restarts."
    if any("model_tflops" in row for row in run.speed):
        note += " Model TFLOP/s are of all devices while they compute, without what is recomputed;"
        note += " MFU is their share of the published peak, and there is none of a CPU."
    if reading.is_number(rate):
        note += f" A matrix product on this machine reached {wording.number(rate)} GFLOP/s."
    return join(
        table(head, rows, class_="numbers", foot=1),
        tag("p", note, class_="note"),
        curves.speed(run),
    )


def _share(rows: list[dict[str, Any]], key: str, choose: Callable[[list[float]], float]) -> str:
    """One of the values of a field that is a share, as per cent."""
    values = [float(row[key]) for row in rows if reading.is_number(row.get(key))]
    return f"{choose(values):.1%}" if values else wording.NOTHING


def _median(rows: list[dict[str, Any]], key: str) -> str:
    values = [row[key] for row in rows if reading.is_number(row.get(key)) and row[key] > 0]
    return wording.number(statistics.median(values)) if values else wording.NOTHING
