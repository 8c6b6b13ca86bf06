# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne plot``: learning curves of runs in one picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import tyro


@dataclasses.dataclass(frozen=True)
class Plot:
    """Draw return over env steps, pooled over the seeds of runs with the same settings."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run folders, or folders with runs below them (then all of them)."""
    out: Path | None = None
    """Picture to write (.png, .svg, .pdf); default: summary.png in the run, else ./curves.png."""
    statistic: Literal["iqm", "mean"] = "iqm"
    """Interquartile mean or mean over seeds; the band is its 95 % bootstrap interval."""
    json: Path | None = None
    """File to write the numbers to that are drawn."""


def run(config: Plot) -> dict[str, Any]:
    """Writes the picture and says where it is.

    Raises:
      ValueError: no run, a run without evaluations, or a place that cannot be written.
    """
    from robotics import curves
    from robotics.plots import draw
    from robotics.run_folder import check_writable, find_runs

    if not config.runs:
        raise ValueError("name at least one run: mnemosyne plot RUN [RUN ...]")
    folders = [folder for path in config.runs for folder in find_runs(path)]
    default = folders[0] / "summary.png" if len(folders) == 1 else Path("curves.png")
    out = default if config.out is None else config.out
    check_writable(out.parent)
    pooled = curves.pool([curves.read_curve(folder) for folder in folders], config.statistic)
    picture = draw(pooled, out, config.statistic)
    for curve in pooled:
        print(_row(curve))
        for seed, folder in curve.left_out:
            print(f"  left out: seed {seed} of {folder}, another run has it already")
    print(f"picture: {picture}")
    drawn = curves.numbers(pooled, config.statistic)
    return {"picture": picture, "runs": folders, "curves": drawn}


def _row(curve: Any) -> str:
    """Where a curve ends."""
    seeds, steps = len(curve.seeds), f"{int(curve.steps[-1]):,}"
    interval = f"{curve.low[-1]:.4g} to {curve.high[-1]:.4g}"
    over = f"over {seeds} seeds" if seeds > 1 else "over the episodes of 1 seed"
    value = f"{curve.value[-1]:.4g} (95 % {over}: {interval})"
    return f"{curve.env} | {curve.label} | {steps} env steps | return {value}"
