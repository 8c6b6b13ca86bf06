# SPDX-License-Identifier: Apache-2.0
"""Tables for people, and rows for the results ledger.

    python -m experiments.benchmarks.policies.report RESULT.json [FOLDER]

prints the ledger rows of a result, and draws its figures.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.report import markdown
from mnemosyne.artifacts import write_atomically

Row = dict[str, Any]


def interval(bounds: Sequence[float | None] | None, form: str = ".2f") -> str:
    """``" [low, high]"``, nothing where there is none."""
    if bounds is None:
        return ""
    low, high = ("-inf" if bound is None else format(bound, form) for bound in bounds)
    return f" [{low}, {high}]"


def number(value: float | None, form: str = ".2f") -> str:
    """A number; what JSON cannot say is a return of minus infinity."""
    return "-inf" if value is None else format(value, form)


def table(result: Row) -> str:
    """Returns in every cell, aggregates, times, the verdicts, and what was searched."""
    parts = [_returns(result), _aggregates(result), _verdicts(result), _searches(result)]
    return "\n\n".join([*parts, *(f"DOUBT: {sentence}" for sentence in result["doubts"])])


def _returns(result: Row) -> str:
    rows = result["rows"]
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    lines = []
    for name in dict.fromkeys(row["optimizer"] for row in rows):
        mine = {row["cell"]: row for row in rows if row["optimizer"] == name}
        lines.append([name, *(_return(mine[cell]) for cell in cells)])
    first = {row["cell"]: row for row in rows}
    lines.append(["uniform random", *(f"{first[cell]['random']:.4g}" for cell in cells)])
    header = [f"{cell} ({_where(first[cell])})" for cell in cells]
    title = "final return of the deterministic policy: IQM over seeds, 95 % interval"
    return f"{title}\n\n{markdown(['optimizer', *header], lines)}"


def _where(row: Row) -> str:
    parts = [row["algo"].upper(), row["backend"], f"{row['env_steps']:,} env steps"]
    return ", ".join(part for part in parts if part)


def _return(row: Row) -> str:
    failed = f", {row['failures']} of {len(row['seeds'])} failed" * bool(row["failures"])
    return f"{number(row['return_iqm'], '.4g')}{interval(row['return_ci95'], '.4g')}{failed}"


def _aggregates(result: Row) -> str:
    header = ["optimizer", "normalized IQM", "failures", "worst cell", "tuning env steps"]
    header += ["to 50 %: reached, env steps / Adam's", "to 75 %", "to 90 %", "seconds to 75 %"]
    lines = []
    for name, one in result["summary"].items():
        seconds = one["times"]["0.75"]["seconds_ratio_to_adam"]
        lines.append(
            [
                name,
                f"{number(one['score_iqm'], '.3f')}{interval(one['score_ci95'], '.3f')}",
                f"{one['failure_rate']:.1%}",
                f"{one['worst_cell']} {number(one['worst_score'])}",
                f"{one['tuning_env_steps']:,}",
                *(_time(one["times"][level]) for level in ("0.5", "0.75", "0.9")),
                "" if seconds is None else f"{seconds:.2f}",
            ]
        )
    title = (
        "normalized score: random actions 0, oracle 1; times are restricted means, runs that never "
        "arrive count as whole runs"
    )
    return f"{title}\n\n{markdown(header, lines)}"


def _time(one: Row) -> str:
    return f"{one['reached']:.0%}, {one['ratio_to_adam']:.2f}{interval(one['ratio_ci95'])}"


def _verdicts(result: Row) -> str:
    header = ["ours against", "difference of scores, IQM", "P(improvement)", "better in", "verdict"]
    lines = [
        [
            rival,
            f"{number(one['difference'], '.3f')}{interval(one['difference_ci95'], '.3f')}",
            f"{one['improvement']:.2f}{interval(one['improvement_ci95'])}",
            f"{one['wins']} of {result['summary'][rival]['cells']}",
            one["verdict"],
        ]
        for rival, one in result["comparisons"].items()
    ]
    return markdown(header, lines)


def _searches(result: Row) -> str:
    searches = {"adam-m": result["searches"]["adam-m"]}
    searches |= {f"oracle, {k}": v for k, v in result["searches"]["oracle"].items()}
    lines = [
        f"{name}: {one['best']}{' (at edge)' * one['rate_at_edge']}, best of {one['trials']} "
        f"trials, {one['env_steps']:,} env steps"
        for name, one in searches.items()
    ]
    return "\n".join(lines)


def publish(text: str, folder: Path | None) -> None:
    """Prints a table and, if there is a folder, writes it there."""
    from robotics.run_folder import check_writable

    print(text)
    if folder is not None:
        check_writable(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "table.md", f"{text}\n".encode())


LEDGER_HEADER = (
    "| date | optimizer | cells x seeds | normalized IQM | env steps to 75 % / Adam's | failures | "
    "worst cell | tuning env steps | ours against it | machine | config | commit | command |"
)


def ledger_rows(result: Row, date: str) -> list[str]:
    """Rows of ``experiments/records/README.md``, one an optimizer, ours first.

    Args:
      result: what ``mnemosyne benchmark policies --json`` wrote.
      date: of the measurement.
    """
    commit = result["versions"]["commit"] or "none"
    made_by = [result["machine"], f"`{result['config_hash'][:8]}`", f"`{commit[:8]}`"]
    made_by += [f"`{result['command']}`"]
    lines = []
    for name, one in result["summary"].items():
        rival = result["comparisons"].get(name)
        label = f"{result['weights']} `{result['tensor_sha256'][:12]}`" if name == "ours" else name
        time = one["times"]["0.75"]
        cells = [date, label, f"{one['cells']} x {one['seeds']}"]
        cells += [f"{number(one['score_iqm'], '.3f')}{interval(one['score_ci95'], '.3f')}"]
        cells += [f"{time['ratio_to_adam']:.2f}{interval(time['ratio_ci95'])}"]
        cells += [f"{one['failure_rate']:.1%}"]
        cells += [f"{one['worst_cell']} {number(one['worst_score'])}"]
        cells += [f"{one['tuning_env_steps']:,}"]
        cells += ["" if rival is None else f"{rival['verdict']}, better in {rival['wins']}"]
        lines.append("| " + " | ".join([*cells, *made_by]) + " |")
    return lines


def main(arguments: Sequence[str]) -> None:
    """Prints the ledger rows of a result, draws its figures."""
    file, *folder = (Path(argument) for argument in arguments)
    result = json.loads(file.read_text())
    date = datetime.date.fromtimestamp(file.stat().st_mtime).isoformat()
    columns = LEDGER_HEADER.count("|") - 1
    print(LEDGER_HEADER, "|" + "---|" * columns, *ledger_rows(result, date), sep="\n")
    if folder:
        from experiments.benchmarks.policies import figures

        for picture in figures.draw(result, folder[0]):
            print(f"picture: {picture}")


if __name__ == "__main__":
    main(sys.argv[1:])
