# SPDX-License-Identifier: Apache-2.0
"""Pictures of learning curves, drawn from ``metrics.jsonl`` and ``result.json`` alone."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robotics import run_folder
from robotics.curves import Pooled, Statistic, pool, read_curve

_FIXED = {
    "mnemosyne": "#1b6ca8",
    "adam": "#808080",
}  # one color per optimizer in every figure; Adam is gray
_OTHERS = ("#d1495b", "#2e933c", "#edae49", "#8d5a97", "#00798c", "#5c4d3c")
_WIDTH, _HEIGHT = 4.6, 3.3  # inches of one panel where there are several
_MAX_COLUMNS = 3


def plot_runs(folders: Sequence[Path], path: Path, statistic: Statistic = "iqm") -> Path:
    """Draws return over env steps: one panel an environment, one color an optimizer.

    Args:
      folders: run folders, at least one.
      path: picture to write; its ending (``.png``, ``.svg``, ``.pdf``) chooses the format.
      statistic: over seeds.

    Returns:
      The path.

    Raises:
      ValueError: no run, or an unknown kind of picture.
    """
    if not folders:
        raise ValueError("there is nothing to plot: name at least one run")
    return draw(pool([read_curve(folder) for folder in folders], statistic), path, statistic)


def draw(pooled: Sequence[Pooled], path: Path, statistic: Statistic = "iqm") -> Path:
    """Draws pooled curves: a line with a 95 % band, seeds as thin lines, random as a level.

    Args:
      pooled: from :func:`robotics.curves.pool`, at least one.
      path: picture to write.
      statistic: what ``value`` is, for the caption.

    Returns:
      The path.

    Raises:
      ValueError: an unknown kind of picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    envs = list(dict.fromkeys(curve.env for curve in pooled))
    columns = min(len(envs), _MAX_COLUMNS)
    rows = math.ceil(len(envs) / columns)
    size = (7.0, 4.6) if len(envs) == 1 else (_WIDTH * columns, _HEIGHT * rows + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    valid = FigureCanvasAgg(figure).get_supported_filetypes()
    kind = path.suffix.removeprefix(".").lower()
    if kind not in valid:
        raise ValueError(f"cannot draw into {path}: the file name must end in .png, .svg or .pdf")
    colors = _colors(pooled)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, env in zip(grid, envs, strict=False):
        _draw_panel(axes, [curve for curve in pooled if curve.env == env], colors)
    for axes in grid[len(envs) :]:
        axes.set_axis_off()
    figure.supxlabel(_caption(pooled, statistic), fontsize=8, color="#555555")
    picture = io.BytesIO()
    figure.savefig(picture, format=kind, dpi=150)
    path.parent.mkdir(parents=True, exist_ok=True)
    run_folder.write_atomic(path, picture.getvalue())
    return path


def _draw_panel(axes: Any, curves: Sequence[Pooled], colors: dict[str, str]) -> None:
    """One environment."""
    for curve in curves:
        _draw_curve(axes, curve, colors[curve.label])
    levels = [curve.random_return for curve in curves if curve.random_return is not None]
    if levels:
        style = {"color": "#333333", "linestyle": (0, (1, 2)), "linewidth": 1.2}
        axes.axhline(float(np.mean(levels)), label="uniform random actions", zorder=1, **style)
    axes.set_title(curves[0].env, fontsize=11)
    axes.set_xlabel("environment steps of one seed", fontsize=9)
    axes.set_ylabel("episode return", fontsize=9)
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.tick_params(labelsize=8, length=3, color="#999999")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.margins(x=0.01, y=0.07)
    axes.legend(frameon=False, fontsize=8, loc="best", handlelength=1.6)


def _draw_curve(axes: Any, curve: Pooled, color: str) -> None:
    """One setting: line, band, and a thin line for every seed."""
    seeds = len(curve.seeds)
    # Ours on top; markers show where evaluations are, where there are few of them.
    order = 4 if curve.optimizer == "mnemosyne" else 3
    axes.fill_between(
        curve.steps, curve.low, curve.high, color=color, alpha=0.18, linewidth=0, zorder=order - 1
    )
    if seeds > 1:
        axes.plot(curve.steps, curve.returns, color=color, linewidth=0.5, alpha=0.35, zorder=order)
    marker = {"marker": "o", "markersize": 3} if len(curve.steps) <= 12 else {}
    label = f"{curve.label}, {seeds} seed{'s' if seeds > 1 else ''}"
    axes.plot(
        curve.steps, curve.value, color=color, linewidth=2, label=label, zorder=order + 2, **marker
    )


def _caption(pooled: Sequence[Pooled], statistic: Statistic) -> str:
    """What lines and bands are, so that the picture can be read alone."""
    counts = {len(curve.seeds) for curve in pooled}
    name = {"iqm": "interquartile mean", "mean": "mean"}[statistic]
    if counts == {1}:
        return "line: mean over episodes; band: its 95 % interval over episodes, not over seeds"
    text = f"line: {name} over seeds; band: 95 % bootstrap over seeds; thin lines: seeds"
    return text + ("; with 1 seed: over its episodes" if 1 in counts else "")


def short(value: float | int) -> str:
    """A number of env steps for an axis.

    Example:
      >>> short(0), short(20_000), short(1_500_000), short(2e9)
      ('0', '20k', '1.5M', '2G')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _colors(pooled: Sequence[Pooled]) -> dict[str, str]:
    """A color for every label; the first one of an optimizer with a color of its own has that."""
    colors: dict[str, str] = {}
    free = iter(_OTHERS * (1 + len(pooled)))
    for curve in pooled:
        fixed = _FIXED.get(curve.optimizer)
        if curve.label not in colors:
            colors[curve.label] = fixed if fixed and fixed not in colors.values() else next(free)
    return colors
