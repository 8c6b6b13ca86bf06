# SPDX-License-Identifier: Apache-2.0
"""The two by two for people: every row, losses included, and what the claim rule says."""

from __future__ import annotations

from typing import Any

from experiments.benchmarks.policies.report import interval, number
from experiments.benchmarks.report import markdown

Row = dict[str, Any]
LEVELS = ("0.5", "0.75", "0.9")
COMPARED = (
    ("ours-warm", "ours"),
    ("adam-warm", "adam"),
    ("ours", "adam"),
    ("ours-warm", "adam-warm"),
    ("ours-warm", "adam"),
)
"""Each against what it differs from in one thing, and both together."""


def table(result: Row) -> str:
    """Rows, verdicts and doubts."""
    parts = [_rows(result["rows"]), _aggregates(result["summary"]), _verdicts(result)]
    return "\n\n".join([*parts, *(f"DOUBT: {sentence}" for sentence in result["doubts"])])


def _rows(rows: list[Row]) -> str:
    header = ["from -> to", "optimizer", "start", "seeds", "first return", "final return, IQM"]
    header += [f"to {float(level):.0%}: reached, env steps, s" for level in LEVELS]
    lines = []
    for row in rows:
        failed = f", {row['failures']} failed" * bool(row["failures"])
        first = [curve[0] for curve in row["curves"] if curve[0] is not None]
        lines.append(
            [
                f"{row['source']} -> {row['cell']}",
                row["optimizer"].removesuffix("-warm"),
                row["start"],
                f"{len(row['seeds'])}",
                number(sum(first) / len(first) if first else None, ".4g"),
                f"{number(row['return_iqm'], '.4g')}{interval(row['return_ci95'], '.4g')}{failed}",
                *(_time(row["times"][level]) for level in LEVELS),
            ]
        )
    title = (
        "return of the deterministic policy, and time to shares of the gain of the tuned Adam "
        "(oracle): means over seeds, a run that never arrives counts as a whole run"
    )
    return f"{title}\n\n{markdown(header, lines)}"


def _time(one: Row) -> str:
    seconds = "" if one["seconds"] is None else f", {one['seconds']:.3g}"
    return f"{one['reached']:.0%}, {one['env_steps']:,.0f}{seconds}"


def _aggregates(found: dict[str, Row]) -> str:
    header = ["optimizer", "normalized IQM", "failures"]
    header += [f"to {float(level):.0%}: env steps / Adam's, seconds / Adam's" for level in LEVELS]
    lines = []
    for name, one in found.items():
        score = f"{number(one['score_iqm'], '.3f')}{interval(one['score_ci95'], '.3f')}"
        times = []
        for level in LEVELS:
            time = one["times"][level]
            seconds = time["seconds_ratio_to_adam"]
            words = f"{time['ratio_to_adam']:.2f}{interval(time['ratio_ci95'])}"
            times.append(words + ("" if seconds is None else f", {seconds:.2f}"))
        lines.append([name, score, f"{one['failure_rate']:.1%}", *times])
    return markdown(header, lines)


def _verdicts(result: Row) -> str:
    header = ["pair", "difference of scores, IQM", "P(improvement)", "verdict"]
    lines = [
        [
            name,
            f"{number(one['difference'], '.3f')}{interval(one['difference_ci95'], '.3f')}",
            f"{one['improvement']:.2f}{interval(one['improvement_ci95'])}",
            one["verdict"],
        ]
        for name, one in result["comparisons"].items()
    ]
    return markdown(header, lines)
