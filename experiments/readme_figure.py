# SPDX-License-Identifier: Apache-2.0
"""The picture of the README, drawn from the rows of the ledger and nothing else.

    python -m experiments.readme_figure

Left: final-loss ratio on the hold-out tasks, right: score on unseen bodies, each with its 95 %
interval; both are read from the tables of ``experiments/records/README.md``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from experiments import plots

LEDGER = Path(__file__).parent / "records" / "README.md"
PICTURE = LEDGER.with_name("zero-tuning.png")
_NUMBER = r"-?\d+(?:\.\d+)?"
_ESTIMATE = re.compile(rf"\**({_NUMBER})\** \[({_NUMBER}), ({_NUMBER})\]")
_OURS, _OTHERS = "#1b6ca8", "#808080"


class Estimate(NamedTuple):
    """One row: what it is called, the number, and the ends of its interval."""

    label: str
    value: float
    low: float
    high: float


class Panel(NamedTuple):
    """Which column of which table is drawn.

    Attributes:
      title: above the panel.
      heading: text of the ledger after which the table begins.
      label: column with the names.
      column: column with the numbers.
      rows: first words of a row's name, and what the picture calls it.
    """

    title: str
    heading: str
    label: str
    column: str
    rows: dict[str, str]


PANELS = (
    Panel(
        "20 hold-out tasks: final-loss ratio (Adam, best of 15 rates: 1)",
        "Hold-out suite",
        "optimizer",
        "final-loss ratio",
        {
            "**base `034a2ab19f8a`": "ours, zero tuning",
            "untrained": "ours, untrained",
            "Adam with cosine": "Adam with cosine, best of 9 rates",
            "schedule-free": "schedule-free AdamW, best of 9",
            "Muon with cosine": "Muon with cosine, best of 9",
        },
    ),
    Panel(
        "PPO on 3 unseen bodies: score (uniform random: 0)",
        "### Unseen bodies",
        "optimizer",
        "score",
        {
            "**shipped rl": "ours, zero tuning",
            "our mode": "ours, untrained",
            "Adam 3e-4": "Adam 3e-4",
            "KL-adaptive": "KL-adaptive Adam",
            "one Adam tuned": "Adam tuned on other robots",
            "oracle": "Adam tuned on each body",
        },
    ),
)


def read(panel: Panel, ledger: str) -> list[Estimate]:
    """The rows of a panel, in its order.

    Raises:
      ValueError: if the ledger has no such table, row or interval.
    """
    _, found, rest = ledger.partition(panel.heading)
    lines = [line for line in rest.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    if not found or panel.column not in cells[0]:
        raise ValueError(f"the ledger has no table with {panel.column!r} after {panel.heading!r}.")
    name, number = cells[0].index(panel.label), cells[0].index(panel.column)
    estimates = []
    for start, label in panel.rows.items():
        row = next((row for row in cells if len(row) > number and row[name].startswith(start)), [])
        match = _ESTIMATE.search(row[number]) if row else None
        if match is None:
            raise ValueError(f"the ledger has no {panel.column} with an interval of {start!r}.")
        estimates.append(Estimate(label, *map(float, match.groups())))
    return estimates


def draw(panels: list[tuple[str, list[Estimate]]]) -> Any:
    """A figure with a panel each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 2.6), layout="constrained")
    for axes, (title, rows) in zip(
        figure.subplots(1, len(panels), squeeze=False).ravel(), panels, strict=True
    ):
        for place, row in enumerate(reversed(rows)):
            color = _OURS if row.label.startswith("ours") else _OTHERS
            ends = [[row.value - row.low], [row.high - row.value]]
            axes.errorbar([row.value], [place], xerr=ends, fmt="o", color=color, capsize=2)
        axes.set_yticks(range(len(rows)), [row.label for row in reversed(rows)], fontsize=8)
        axes.axvline(1.0, color=_OTHERS, linewidth=0.6, linestyle=":")
        axes.set_title(title, fontsize=8, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="x", labelsize=8)
        axes.set_ylim(-0.5, len(rows) - 0.5)
    return figure


def main() -> None:
    """Draws the picture."""
    ledger = LEDGER.read_text()
    figure = draw([(panel.title, read(panel, ledger)) for panel in PANELS])
    print(plots.save(figure, PICTURE, dpi=120))


if __name__ == "__main__":
    main()
