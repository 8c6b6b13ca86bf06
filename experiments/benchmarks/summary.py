# SPDX-License-Identifier: Apache-2.0
"""From rows, one a task and optimizer, to the few numbers a claim is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import statistics
from experiments.benchmarks import scores

Row = dict[str, Any]


def by_optimizer(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of each optimizer, in the order in which they appear."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["optimizer"], []).append(row)
    return found


def summarize(rows: Sequence[Row]) -> dict[str, Row]:
    """IQMs over tasks with intervals, failures, and the worst task, of every optimizer."""
    groups = by_optimizer(rows)
    envelope = {row["task"]: np.asarray(row["finals"]) for row in groups["adam"]}
    untrained = {row["task"]: row["final"] for row in groups.get("untrained", [])}
    return {name: _summary(mine, envelope, untrained) for name, mine in groups.items()}


def _summary(
    mine: Sequence[Row], envelope: dict[str, np.ndarray], untrained: dict[str, float]
) -> Row:
    ratios = np.asarray([row["ratio"] for row in mine])
    speed_ups = np.asarray([row["speed_up"] for row in mine])
    worst = int(ratios.argmin())
    several = all(row["seed_curves"] is not None for row in mine)
    return {
        "tasks": len(mine),
        "seeds": min(row["seeds"] for row in mine),
        "ratio_iqm": statistics.iqm(ratios),
        "ratio_ci95": _ratio_interval(mine, envelope),
        "ratio_ci95_tasks": statistics.bootstrap(ratios, statistics.iqm),
        "speed_up_iqm": statistics.iqm(speed_ups),
        "speed_up_ci95": _speed_interval(mine) if several else None,
        "speed_up_ci95_tasks": statistics.bootstrap(speed_ups, statistics.iqm),
        "failure_rate": sum(r["failures"] for r in mine) / sum(r["seeds"] for r in mine),
        "worst_ratio": float(ratios[worst]),
        "worst_task": mine[worst]["task"],
        "tasks_below_0.9": [row["task"] for row in mine if row["ratio"] < 0.9],
        "tasks_not_above_untrained": [
            row["task"]
            for row in mine
            if row["optimizer"] != "untrained"
            and row["task"] in untrained
            and not row["final"] < untrained[row["task"]]
        ],
        "rates_at_edge": [row["task"] for row in mine if row["rate_at_edge"]],
        "below_floor": [row["task"] for row in mine if row["below_floor"]],
    }


def _ratio_interval(mine: Sequence[Row], envelope: dict[str, np.ndarray]) -> tuple[float, float]:
    """Over runs of both sides, within tasks; Adam's best rate stays the one that was chosen."""
    strata = [np.asarray(row["finals"]) for row in mine]
    strata += [envelope[row["task"]] for row in mine]

    def statistic(drawn: list[np.ndarray]) -> float:
        pairs = zip(mine, drawn[: len(mine)], drawn[len(mine) :], strict=True)
        return statistics.iqm(
            np.asarray(
                [
                    scores.final_ratio(rival.mean(), ours.mean(), row["floor"], row["initial"])
                    for row, ours, rival in pairs
                ]
            )
        )

    return statistics.stratified_bootstrap(strata, statistic)


def _speed_interval(mine: Sequence[Row]) -> tuple[float, float]:
    """Over our runs, within tasks; the envelope's curve is taken as known."""

    def statistic(drawn: list[np.ndarray]) -> float:
        values = []
        for row, curves in zip(mine, drawn, strict=True):
            steps, curve = np.asarray(row["curve_steps"]), scores.finite(curves).mean(axis=0)
            final = float(scores.final_loss(steps, curve))
            values.append(scores.speed_up(curve, final, _reference(row)))
        return statistics.iqm(np.asarray(values))

    return statistics.stratified_bootstrap([np.asarray(r["seed_curves"]) for r in mine], statistic)


def _reference(row: Row) -> scores.Reference:
    return scores.Reference(
        np.asarray(row["curve_steps"]),
        np.asarray(row["envelope_curve"]),
        row["envelope_final"],
        row["envelope_rate"],
        row["envelope_rate_at_edge"],
        row["floor"],
    )


def comparisons(rows: Sequence[Row], name: str) -> dict[str, Row]:
    """The claim rule for one optimizer against every other, on final-loss ratios a run."""
    groups = by_optimizer(rows)
    ours = [_run_scores(row) for row in groups[name]]
    return {
        rival: statistics.compare(ours, [_run_scores(row) for row in theirs])._asdict()
        for rival, theirs in groups.items()
        if rival != name
    }


def _run_scores(row: Row) -> np.ndarray:
    """The final-loss ratio of every run of a row."""
    return np.asarray(
        [
            scores.final_ratio(row["envelope_final"], final, row["floor"], row["initial"])
            for final in row["finals"]
        ]
    )
