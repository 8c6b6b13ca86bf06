# SPDX-License-Identifier: Apache-2.0
"""Tables for people, and rows for the results ledger.

    python -m experiments.benchmarks.report RESULT.json [PICTURE.png]

prints the ledger row of a result, and draws its learning curves.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.summary import by_optimizer

Row = dict[str, Any]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table with columns of equal width."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = [
        "| " + " | ".join(f"{x:<{w}}" for x, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    return "\n".join([text[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *text[1:]])


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f" [{bounds[0]:.2f}, {bounds[1]:.2f}]"


def table(rows: Sequence[Row], found: dict[str, Row]) -> str:
    """Final-loss ratio and speed-up of every optimizer on every task, then the aggregates."""
    groups = by_optimizer(rows)
    names = [name for name in groups if name != "adam"]
    header = ["task", "updates", "Adam (rate)", *names]
    lines = [
        [
            adam["task"],
            f"{adam['steps']}",
            f"{adam['final']:.4g} ({adam['rate']:.2g}{', at edge' * adam['rate_at_edge']})",
            *(_cell(groups[name][i]) for name in names),
        ]
        for i, adam in enumerate(groups["adam"])
    ]
    return "\n".join(
        [
            "final-loss ratio, speed-up against the envelope of Adam's rates; above 1 is better",
            "",
            markdown(header, lines),
            "",
            _aggregates(found),
        ]
    )


def _cell(row: Row) -> str:
    marks = "*" * row["below_floor"] + f" {row['failures']} failed" * bool(row["failures"])
    return f"{row['ratio']:.2f} {row['speed_up']:.2f}x{marks}"


def _aggregates(found: dict[str, Row]) -> str:
    header = ["optimizer", "ratio IQM", "speed-up IQM", "failures", "worst task", "below 0.9"]
    header += ["not above untrained"]
    lines = [
        [
            name,
            f"{one['ratio_iqm']:.3f}{_interval(one['ratio_ci95'])}",
            f"{one['speed_up_iqm']:.2f}{_interval(one['speed_up_ci95'])}",
            f"{one['failure_rate']:.1%}",
            f"{one['worst_task']} {one['worst_ratio']:.2f}",
            f"{len(one['tasks_below_0.9'])}/{one['tasks']}",
            f"{len(one['tasks_not_above_untrained'])}/{one['tasks']}",
        ]
        for name, one in found.items()
        if name != "adam"
    ]
    return markdown(header, lines)


LEDGER_HEADER = (
    "| date | weights | suite | tasks x seeds | against | final-loss ratio | speed-up | failures | "
    "worst task | verdict | machine | config | commit | command |"
)


def ledger_rows(result: Row, date: str) -> list[str]:
    """Rows of ``experiments/records/README.md``: ours first, then every other optimizer.

    Args:
      result: what ``mnemosyne benchmark optimizers --json`` wrote.
      date: of the measurement.
    """
    suite = f"{result['suite']}, {result['size']}"
    if result["horizon"]:
        suite += f" x{result['horizon']:g}"
    commit = result["versions"]["commit"] or "none"
    made_by = [result["machine"], f"`{result['config_hash'][:8]}`", f"`{commit[:8]}`"]
    made_by += [f"`{result['command']}`"]
    names = ["ours", *(n for n in result["summary"] if n not in ("ours", "adam"))]
    lines = []
    for name in names:
        one, ours = result["summary"][name], name == "ours"
        rival = result["comparisons"]["adam" if ours else name]
        label = f"{result['weights']} `{result['tensor_sha256'][:12]}`" if ours else name
        verdict = f"ours {rival['verdict']}{' tuned Adam' * ours}, "
        verdict += f"better on {rival['wins']}/{one['tasks']}"
        cells = [date, label, suite, f"{one['tasks']} x {one['seeds']}", "Adam's envelope"]
        cells += [f"{one['ratio_iqm']:.3f}{_interval(one['ratio_ci95'])}"]
        cells += [f"{one['speed_up_iqm']:.2f}{_interval(one['speed_up_ci95'])}"]
        cells += [f"{one['failure_rate']:.1%}", f"{one['worst_task']} {one['worst_ratio']:.2f}"]
        lines.append("| " + " | ".join([*cells, verdict, *made_by]) + " |")
    return lines


def main(arguments: Sequence[str]) -> None:
    """Prints the ledger rows of a result."""
    file, *picture = (Path(argument) for argument in arguments)
    result = json.loads(file.read_text())
    date = datetime.date.fromtimestamp(file.stat().st_mtime).isoformat()
    columns = LEDGER_HEADER.count("|") - 1
    print(LEDGER_HEADER, "|" + "---|" * columns, *ledger_rows(result, date), sep="\n")
    if picture:
        from experiments import plots

        print(f"picture: {plots.learning_curves(result['rows'], picture[0])}")


if __name__ == "__main__":
    main(sys.argv[1:])
