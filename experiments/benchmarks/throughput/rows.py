# SPDX-License-Identifier: Apache-2.0
"""From turns to numbers: env steps a second, seconds to a return, ratios of neighbors in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.benchmarks.throughput.race import WARM_UP, Run, Turn

Row = dict[str, Any]


def summarize(
    part: str, where: str, runs: Mapping[str, Sequence[Run]], target: float | None = None
) -> list[Row]:
    """One row a contestant, those that could not run included.

    Args:
      part: of the benchmark.
      where: environment and sizes.
      runs: by name, one a seed.
      target: return to reach, if there is one.
    """
    return [_row(part, where, name, of_name, target) for name, of_name in runs.items()]


def _row(part: str, where: str, name: str, runs: Sequence[Run], target: float | None) -> Row:
    row: Row = {"part": part, "where": where, "who": name, "seeds": len(runs)}
    skipped = [run.skipped for run in runs if run.skipped is not None]
    if skipped:
        return row | {"skipped": skipped[0]}
    later = [turn for run in runs for turn in run.turns[WARM_UP:]]
    pace = [turn.env_steps / turn.seconds for turn in later]
    row |= {
        "env_steps_per_s": float(np.median(pace)),
        "updates_per_s": float(np.median([turn.updates / turn.seconds for turn in later])),
        "pace_by_turn": pace,
        # Programs of later seeds may come from the first one's compilation.
        "compile_s": runs[0].compile_s,
        "skipped": None,
    }
    if target is not None:
        row |= _to_target(runs, target)
    return row


def _to_target(runs: Sequence[Run], target: float) -> Row:
    """Time to a return; a run that never gets there counts as a whole run."""
    times = [time_to(run.turns, target) for run in runs]
    seconds = [time[1] for time in times]
    return {
        "target": target,
        "reached": float(np.mean([time[2] for time in times])),
        "env_steps_to_target": float(np.median([time[0] for time in times])),
        "train_s_to_target": float(np.median(seconds)),
        "seconds_to_target": runs[0].compile_s + float(np.median(seconds)),
        "final_returns": [run.turns[-1].score for run in runs],
    }


def time_to(turns: Sequence[Turn], target: float) -> tuple[int, float, bool]:
    """Env steps and seconds of training up to the first evaluation at or above a return.

    Returns:
      Both, of the whole run if it never gets there, and whether it does.
    """
    steps, seconds = 0, 0.0
    for turn in turns:
        steps, seconds = steps + turn.env_steps, seconds + turn.seconds
        if turn.score is not None and turn.score >= target:
            return steps, seconds, True
    return steps, seconds, False


def pace_ratio(rows: Sequence[Row], one: str, other: str) -> float | None:
    """How many times the env steps a second of ``other`` those of ``one`` are.

    The median over turns that were neighbors in time.
    """
    found = {row["who"]: row for row in rows}
    if any(name not in found or found[name]["skipped"] for name in (one, other)):
        return None
    paces = [np.asarray(found[name]["pace_by_turn"]) for name in (one, other)]
    return float(np.median(paces[0] / paces[1]))


def ratio(rows: Sequence[Row], one: str, other: str, field: str) -> float | None:
    """``field`` of ``one`` divided by that of ``other``; ``None`` where one of them is missing."""
    found = {row["who"]: row for row in rows}
    if any(name not in found or not found[name].get(field) for name in (one, other)):
        return None
    return found[one][field] / found[other][field]
