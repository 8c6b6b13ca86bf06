# SPDX-License-Identifier: Apache-2.0
"""Pictures of a result: learning curves in every cell, and the performance profile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments import plots, statistics
from experiments.benchmarks.policies import scores

Row = dict[str, Any]
_STYLES: dict[str, dict[str, Any]] = {
    "ours": plots.STYLES["ours"],
    "untrained": plots.STYLES["untrained"],
    "oracle": {"color": "#808080", "linewidth": 1.6},
    "adam": {"color": "#d1495b", "linewidth": 1.2},
    "adam-m": {"color": "#d1495b", "linewidth": 1.0, "linestyle": "--"},
    "adam-kl": {"color": "#2e933c", "linewidth": 1.0},
}
_OTHERS = ("#8d5a97", "#00798c", "#edae49", "#5c4d3c", "#d17b49", "#3c4d5c", "#b0b0b0")
_BANDS = ("ours", "oracle")
_DRAWS = 300  # of the intervals along a curve: their width is seen, not quoted


def draw(result: Row, folder: Path) -> list[Path]:
    """Writes ``curves.png`` and ``profile.png``.

    Args:
      result: of the benchmark, as JSON holds it.
      folder: made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    styles = _styles([row["optimizer"] for row in result["rows"]])
    made = [folder / "curves.png", folder / "profile.png"]
    _learning_curves(result["rows"], styles, made[0])
    _performance_profile(result["rows"], styles, made[1])
    return made


def _styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    others = [name for name in dict.fromkeys(names) if name not in _STYLES]
    extra = {
        name: {"color": _OTHERS[i % len(_OTHERS)], "linewidth": 0.8}
        for i, name in enumerate(others)
    }
    return {name: _STYLES.get(name) or extra[name] for name in dict.fromkeys(names)}


def _figure(columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained")
    grid = list(figure.subplots(1, columns, squeeze=False).ravel())
    for axes in grid:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
    return figure, grid


def _save(figure: Any, first: Any, path: Path) -> None:
    handles, labels = first.get_legend_handles_labels()
    columns = max(1, round(figure.get_figwidth()))  # an entry is about an inch wide
    place = {"loc": "outside lower center", "ncols": columns, "frameon": False, "fontsize": 7}
    figure.legend(handles, labels, **place)
    plots.save(figure, path, dpi=120)


def _learning_curves(rows: Sequence[Row], styles: dict[str, Any], path: Path) -> None:
    """IQM of the returns over seeds, along env steps."""
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    figure, grid = _figure(len(cells), 4.2, 3.6)
    for axes, cell in zip(grid, cells, strict=True):
        for row in [row for row in rows if row["cell"] == cell]:
            _curve(axes, row, styles[row["optimizer"]])
        axes.set_title(cell, fontsize=8)
        axes.set_xlabel("env steps", fontsize=7)
    grid[0].set_ylabel("return, IQM over seeds", fontsize=7)
    _save(figure, grid[0], path)


def _curve(axes: Any, row: Row, style: dict[str, Any]) -> None:
    """One optimizer's curve; diverged evaluations count as random actions here."""
    steps, curves = np.asarray(row["curve_steps"]), np.asarray(row["curves"], np.float64)
    curves = np.where(np.isfinite(curves), curves, row["random"])
    middle = [statistics.iqm(column) for column in curves.T]
    axes.plot(steps, middle, label=row["optimizer"], **style)
    if row["optimizer"] in _BANDS:
        bounds = [statistics.bootstrap(column, statistics.iqm, draws=_DRAWS) for column in curves.T]
        low, high = np.asarray(bounds).T
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _performance_profile(rows: Sequence[Row], styles: dict[str, Any], path: Path) -> None:
    """Share of all runs that score at least so much."""
    figure, (axes,) = _figure(1, 5.6, 4.0)
    levels = np.linspace(0.0, 1.5, 151)
    for name, style in styles.items():
        strata = [_scores(row) for row in rows if row["optimizer"] == name and row["normalized"]]
        if strata:
            shares = np.mean([scores.profile(values, levels) for values in strata], axis=0)
            axes.plot(levels, shares, label=name, **style)
    axes.set_xlabel("normalized score (random actions 0, oracle 1)", fontsize=7)
    axes.set_ylabel("share of runs that reach it", fontsize=7)
    _save(figure, axes, path)


def _scores(row: Row) -> Float[np.ndarray, " runs"]:
    return np.asarray(row["normalized"], np.float64)
