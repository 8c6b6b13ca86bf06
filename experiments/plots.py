# SPDX-License-Identifier: Apache-2.0
"""Pictures of benchmark results, drawn from their rows alone."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.scores import finite
from mnemosyne.artifacts import write_atomically

Row = dict[str, Any]
STYLES: dict[str, dict[str, Any]] = {
    "ours": {"color": "#1b6ca8", "linewidth": 2.0, "zorder": 5},
    "untrained": {"color": "#1b6ca8", "linewidth": 1.0, "linestyle": ":"},
    "adam-cosine": {"color": "#d1495b", "linewidth": 1.0},
    "schedule-free": {"color": "#2e933c", "linewidth": 1.0},
    "muon-cosine": {"color": "#edae49", "linewidth": 1.0},
}
_OTHERS = ("#8d5a97", "#00798c", "#5c4d3c", "#d17b49", "#3c4d5c")


def learning_curves(rows: Sequence[Row], path: Path) -> Path:
    """A grid of pictures, one a task: ours, the envelope of Adam's rates, the others at their best.

    Args:
      rows: of ``mnemosyne benchmark optimizers``, or of its JSON file.
      path: picture to write (.png, .svg, .pdf).

    Returns:
      The path.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["task"] for row in rows))
    if not names:
        raise ValueError("there is nothing to draw: no task was run.")
    columns = min(4, len(names))
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(3.4 * columns, 2.5 * lines + 0.5), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(grid, names, strict=False):
        _draw_task(axes, [row for row in rows if row["task"] == name])
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(6, 2 * columns),
        frameon=False,
        fontsize=8,
    )
    return save(figure, path)


def save(figure: Any, path: Path, dpi: int = 110) -> Path:
    """Writes a figure of matplotlib whole or not at all; its folder is made.

    Args:
      figure: what to write.
      path: .png, .svg or .pdf; PNG without any of them.
      dpi: pixels an inch.

    Returns:
      The path.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.removeprefix(".") or "png", dpi=dpi)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, picture.getvalue())
    return path


def _draw_task(axes: Any, rows: Sequence[Row]) -> None:
    """One task: loss on the fixed evaluation batch over updates, logarithmic."""
    others = [row["optimizer"] for row in rows if row["optimizer"] not in (*STYLES, "adam")]
    extra = {name: {"color": _OTHERS[i % len(_OTHERS)]} for i, name in enumerate(others)}
    first = rows[0]
    axes.plot(
        first["curve_steps"],
        finite(first["envelope_curve"]),
        color="#808080",
        linewidth=1.6,
        label="Adam, best of its rates",
    )
    for row in rows:
        if row["optimizer"] == "adam":
            continue
        label = row["optimizer"]
        style = STYLES.get(label) or extra[label]
        axes.plot(row["curve_steps"], finite(row["curve"]), label=label, **style)
    axes.set_title(first["task"], fontsize=8)
    axes.set_yscale("log")
    # Diverged and untrained runs must not squeeze the others.
    axes.set_ylim(top=1.5 * float(finite(first["envelope_curve"])[0]))
    axes.tick_params(labelsize=7, which="both")
    axes.spines[["top", "right"]].set_visible(False)
