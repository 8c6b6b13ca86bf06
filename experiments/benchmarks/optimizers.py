# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne benchmark optimizers``: zero tuning against tuned rivals on tasks never seen.

Every line of every task is cached by content; a candidate pays for its own runs only. Formulas are
in :mod:`experiments.benchmarks.scores`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import mnemosyne
from experiments import cache, rivals
from experiments.benchmarks import provenance, records, report, runs, scores, selection, summary
from experiments.benchmarks.options import Options
from experiments.benchmarks.records import Record
from experiments.benchmarks.selection import Thoroughness
from experiments.rivals import Line
from experiments.tasks import BenchmarkTask

TAKEN = ("ours", "untrained", "adam", "adam-cosine", "schedule-free", "muon-cosine", "floor")
"""Names that a learned rival cannot have."""


def candidates(options: Options) -> list[Line]:
    """What is judged as it is: ours, our untrained mode, learned rivals.

    Raises:
      ValueError: for an artifact that is not there, or a name given twice.
    """
    names = [*TAKEN, *(spec.partition("=")[0] for spec in options.rival)]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ValueError(f"--rival {name}=...: that name is taken, choose another.")
    artifact = mnemosyne.load(options.weights)
    found = [rivals.ours("ours", artifact), rivals.untrained(artifact.config)]
    return found + [rivals.learned(spec) for spec in options.rival]


def _steps(task: BenchmarkTask, size: Thoroughness, horizon: float | None) -> int:
    return max(1, round((size.steps or task.steps) * (1.0 if horizon is None else horizon)))


def floor(
    task: BenchmarkTask, known: dict[str, Record], size: Thoroughness, steps: int, options: Options
) -> float:
    """``L*``: known where evaluation is free of noise, else the lowest loss of any rule by hand.

    The estimate is one for the fixed evaluation batch, as all losses are. It includes runs of
    annealed Adam, longer by ``size.longer``, at the best rate of the cosine line and at half of it.
    """
    if task.group == "function" or hasattr(task.task, "expected_loss"):
        return task.floor
    cosine = known["adam-cosine"]
    best = float(cosine.rates[cosine.best])
    line = rivals.annealed((best, float(f"{best / 2:.4g}")))
    runner = runs.Runner(task.task, steps * size.longer)
    longer = records.record(task, line, runner, steps * size.longer, 1, options.cache)
    lowest = [np.min(record.curves) for record in (longer, *known.values())]
    # A bound that is known is not reached from above by noise alone.
    return min(float(np.min(lowest)), task.floor or np.inf)


def on_task(
    task: BenchmarkTask, size: Thoroughness, judged: list[Line], options: Options
) -> list[dict[str, Any]]:
    """One row a line, on one task; without rows if only rivals were asked for."""
    steps = _steps(task, size, options.horizon)
    runner = runs.Runner(task.task, steps)

    def collect(lines: list[Line], num_seeds: int) -> dict[str, Record]:
        found = {}
        for line in lines:
            print(f" {line.name}", end="", flush=True)
            found[line.name] = records.record(task, line, runner, steps, num_seeds, options.cache)
        return found

    hand_designed = rivals.hand_designed(size.adam_rates, size.short_rates)
    known = collect(hand_designed, size.rival_seeds)
    lowest = floor(task, known, size, steps, options)
    if options.rivals_only:
        return []
    known |= collect(judged, size.seeds)
    records.check_same_task(task.name, known)
    adam = known["adam"]
    envelope = scores.reference(adam.rates, adam.steps, adam.curves, adam.finals, lowest)
    return [row(task, name, record, envelope) for name, record in known.items()]


def row(
    task: BenchmarkTask, name: str, record: Record, envelope: scores.Reference
) -> dict[str, Any]:
    """Everything about one line on one task; a tuned line at its best rate."""
    best = record.best
    finals, curve = record.finals[best], record.curves[best]
    final, initial = float(finals.mean()), float(record.initials.mean())
    seed_curves = record.seed_curves
    return {
        "task": task.name,
        "group": task.group,
        "steps": int(record.steps[-1]),
        "optimizer": name,
        "tuned": len(record.rates) > 1,
        "rate": float(record.rates[best]),
        "rate_at_edge": len(record.rates) > 1 and best in (0, len(record.rates) - 1),
        "seeds": len(finals),
        "initial": initial,
        "final": final,
        "finals": finals.tolist(),
        "envelope_final": envelope.final,
        "envelope_rate": envelope.rate,
        "envelope_rate_at_edge": envelope.at_edge,
        "floor": envelope.floor,
        "below_floor": final < envelope.floor,
        "ratio": scores.final_ratio(envelope.final, final, envelope.floor, initial),
        "speed_up": scores.speed_up(curve, final, envelope),
        "failures": int(scores.failed(record.initials, finals).sum()),
        "curve_steps": record.steps.tolist(),
        "curve": curve.tolist(),
        "envelope_curve": envelope.curve.tolist(),
        "seed_curves": None if seed_curves is None else seed_curves.tolist(),
    }


def run(options: Options) -> dict[str, Any]:
    """Runs what the cache lacks, prints the table, draws the curves.

    Raises:
      ValueError: for flags that fit nothing.
    """
    size = selection.thoroughness(options)
    if options.horizon is not None and options.horizon <= 0:
        raise ValueError(f"--horizon must be positive, got {options.horizon}.")
    tasks = selection.tasks(options, selection.smoke_tasks)
    judged = [] if options.rivals_only else candidates(options)
    rows = []
    for task in tasks:
        print(f"{task.name}:", end="", flush=True)
        rows += on_task(task, size, judged, options)
        print(flush=True)
    if options.rivals_only:
        return {"benchmark": "optimizers", "rows": []}
    return _conclude(rows, options)


def _conclude(rows: list[dict[str, Any]], options: Options) -> dict[str, Any]:
    """Table, picture, and the record of what made them."""
    from robotics.run_folder import check_writable

    found = summary.summarize(rows)
    text = report.table(rows, found)
    print(text)
    artifact = mnemosyne.load(options.weights)
    settings = {
        "size": options.size,
        "suite": selection.suite(options),
        "horizon": options.horizon,
    }
    result = {
        "benchmark": "optimizers",
        **settings,
        "weights": options.weights,
        "tensor_sha256": artifact.tensor_sha256,
        "config_hash": cache.key_hash([settings, artifact.config.to_dict(), list(options.rival)]),
        **provenance.stamp(),
        "summary": found,
        "comparisons": summary.comparisons(rows, "ours"),
        # Curves of single seeds are in the cache; here they would be most of the file.
        "rows": cache.rounded([one | {"seed_curves": None} for one in rows]),
    }
    if options.out is not None:
        from experiments import plots

        check_writable(options.out)
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "table.md").write_text(text + "\n")
        print(f"picture: {plots.learning_curves(rows, options.out / 'curves.png')}")
    return result
