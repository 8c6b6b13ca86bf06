# SPDX-License-Identifier: Apache-2.0
"""From stored runs to rows, one a cell and optimizer, and to the few numbers a claim is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import statistics
from experiments.benchmarks.policies import scores
from experiments.benchmarks.policies.cells import Cell
from experiments.benchmarks.policies.records import Record, TimeRatio
from experiments.benchmarks.policies.scores import LEVELS, Scale
from experiments.benchmarks.policies.tuning import Search

Row = dict[str, Any]


class CellResults(NamedTuple):
    """Everything that was measured in one cell.

    Attributes:
      cell: where.
      random: mean return of uniform random actions.
      oracle: the search for the best Adam here.
      records: by name of the rule; ``"oracle"`` and ``"adam"`` among them.
      times: of training relative to Adam's, by name, where they are known.
    """

    cell: Cell
    random: float
    oracle: Search
    records: dict[str, Record]
    times: dict[str, TimeRatio]

    @property
    def scale(self) -> Scale:
        """Where 0 and 1 are."""
        return Scale(self.random, statistics.iqm(self.records["oracle"].finals))


def row(results: CellResults, name: str) -> Row:
    """Everything about one optimizer in one cell."""
    record, scale = results.records[name], results.scale
    low, high = statistics.bootstrap(record.finals, statistics.iqm)
    failures = scores.failed(record.env_steps, record.returns, record.finite, scale.random)
    normalized = scale.normalize(record.finals) if scale.usable else None
    return {
        "cell": results.cell.label,
        "algo": results.cell.algo,
        "backend": results.cell.backend,
        "optimizer": name,
        "seeds": list(record.seeds),
        "env_steps": int(record.env_steps[-1]),
        "updates": record.updates,
        "random": scale.random,
        "oracle": scale.oracle,
        "return_iqm": statistics.iqm(record.finals),
        "return_ci95": (low, high),
        "finals": record.finals,
        "normalized": normalized,
        "failed": failures.astype(int),
        "failures": int(failures.sum()),
        "distance_m": None if record.distance is None else float(record.distance.mean()),
        "kl_mean": None if record.kl is None else float(np.mean(record.kl)),
        "times": _times(results, name),
        "time_ratio": results.times[name].ratio if name in results.times else None,
        "curve_steps": record.env_steps,
        "curves": record.returns,
        "trainer": list(record.trainer),
        "machine": record.machine,
    }


def _times(results: CellResults, name: str) -> Row:
    """Env steps and seconds to shares of the oracle's gain, censored runs counted."""
    record, found = results.records[name], {}
    end, pace = float(record.env_steps[-1]), results.times.get(name)
    # Of all runs side by side, since that is how they were timed.
    rate = None if pace is None else pace.ratio * pace.seconds_per_env_step * len(record.seeds)
    for share in LEVELS:
        reached = scores.times(record.env_steps, record.returns, results.scale.level(share))
        steps = scores.restricted(reached, end)
        found[f"{share:g}"] = {
            "reached": float(np.isfinite(reached).mean()),
            "env_steps": float(steps.mean()),
            "fraction_of_run": steps / end,
            "seconds": None if rate is None else float(steps.mean()) * rate,
        }
    return found


def by_optimizer(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of each optimizer in cells where scores can be normalized, in order of appearance."""
    found: dict[str, list[Row]] = {}
    for one in rows:
        found.setdefault(one["optimizer"], [])
        if one["normalized"] is not None:
            found[one["optimizer"]].append(one)
    return found


def summarize(rows: Sequence[Row], costs: Mapping[str, int]) -> dict[str, Row]:
    """Aggregates over cells of every optimizer.

    Args:
      rows: see :func:`row`.
      costs: env steps that tuning took, by optimizer; 0 where nothing is tuned.

    Raises:
      ValueError: if no cell has an oracle that learned anything.
    """
    groups = by_optimizer(rows)
    if not any(groups.values()):
        raise ValueError("the oracle is no better than random actions anywhere: train for longer.")
    adam = {one["cell"]: one for one in groups["adam"]}
    return {
        name: _summary(mine, adam, [r for r in rows if r["optimizer"] == name])
        | {"tuning_env_steps": costs.get(name, 0)}
        for name, mine in groups.items()
    }


def _summary(mine: Sequence[Row], adam: Mapping[str, Row], every: Sequence[Row]) -> Row:
    strata = [np.asarray(one["normalized"]) for one in mine]
    worst = min(mine, key=lambda one: statistics.iqm(np.asarray(one["normalized"])))
    return {
        "cells": len(mine),
        "left_out": [one["cell"] for one in every if one["normalized"] is None],
        "seeds": min(len(one["seeds"]) for one in mine),
        "score_iqm": _pooled_iqm(strata),
        "score_ci95": statistics.stratified_bootstrap(strata, _pooled_iqm),
        "score_mean": float(np.mean(np.concatenate(strata))),
        "failure_rate": sum(r["failures"] for r in every) / sum(len(r["seeds"]) for r in every),
        "worst_cell": worst["cell"],
        "worst_score": statistics.iqm(np.asarray(worst["normalized"])),
        "times": {
            f"{share:g}": _time_summary(f"{share:g}", mine, [adam[r["cell"]] for r in mine])
            for share in LEVELS
        },
    }


def _pooled_iqm(strata: Sequence[np.ndarray]) -> float:
    return statistics.iqm(np.concatenate([np.asarray(values) for values in strata]))


def _time_summary(level: str, mine: Sequence[Row], adam: Sequence[Row]) -> Row:
    """Mean share of the run to a level, and its ratio to that of default Adam, over all cells."""
    strata = [np.asarray(one["times"][level]["fraction_of_run"]) for one in (*mine, *adam)]

    def ratio(drawn: Sequence[np.ndarray]) -> float:
        means = [values.mean() for values in drawn]
        return float(np.sum(means[: len(mine)]) / np.sum(means[len(mine) :]))

    paces = [one["time_ratio"] for one in mine]
    seconds = None
    if None not in paces:
        slowed = [values * pace for values, pace in zip(strata, paces, strict=False)]
        seconds = ratio([*slowed, *strata[len(mine) :]])
    return {
        "reached": float(np.mean([one["times"][level]["reached"] for one in mine])),
        "fraction_of_run": float(np.mean([values.mean() for values in strata[: len(mine)]])),
        "ratio_to_adam": ratio(strata),
        "ratio_ci95": statistics.stratified_bootstrap(strata, ratio),
        "seconds_ratio_to_adam": seconds,
    }


def comparisons(rows: Sequence[Row], name: str = "ours") -> dict[str, Row]:
    """The claim rule for one optimizer against every other, on normalized scores of runs."""
    groups = by_optimizer(rows)
    ours = [np.asarray(one["normalized"]) for one in groups[name]]
    return {
        rival: statistics.compare(ours, [np.asarray(one["normalized"]) for one in theirs])._asdict()
        for rival, theirs in groups.items()
        if rival != name
    }


def doubts(results: Sequence[CellResults]) -> list[str]:
    """What speaks against comparing the rows of a cell with each other, in sentences."""
    found = []
    for one in results:
        reference = one.records["adam"]
        for name, record in one.records.items():
            if not np.allclose(record.trainer, reference.trainer, rtol=0.02):
                found.append(
                    f"{one.cell.label}: {name} was trained by another version of the trainer "
                    "than adam."
                )
            count = min(len(record.seeds), len(reference.seeds))
            if not _start_alike(record.returns[:count, 0], reference.returns[:count, 0]):
                found.append(
                    f"{one.cell.label}: {name} did not start from the same policies as adam."
                )
    return found


def _start_alike(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether most seeds start at the same return; contacts may amplify the last bit in a few."""
    near = np.isclose(first, second, rtol=0.02, atol=1e-3)
    return bool(near.mean() >= 0.5)
