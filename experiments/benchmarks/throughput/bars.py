# SPDX-License-Identifier: Apache-2.0
"""What throughput has to be, and the tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.benchmarks.report import markdown
from experiments.benchmarks.throughput import rows as of_rows

Row = dict[str, Any]

LANES = 0.9
"""Time of several seeds side by side, at most this share of as many single runs."""
LEARNED = 0.9
"""Env steps a second with Mnemosyne, at least this share of those with Adam."""


class Bar(NamedTuple):
    """A demand; ``value`` is ``None`` where it could not be measured."""

    name: str
    value: float | None
    demand: float
    at_least: bool

    @property
    def verdict(self) -> str:
        """``met``, ``missed`` or ``not measured``."""
        if self.value is None:
            return "not measured"
        met = self.value >= self.demand if self.at_least else self.value <= self.demand
        return "met" if met else "missed"

    def row(self) -> Row:
        """As JSON knows it."""
        return self._asdict() | {"verdict": self.verdict}


def bars(rows: Sequence[Row]) -> list[Bar]:
    """Every demand on what was measured."""
    found: list[Bar] = []
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["part"], row["where"]), []).append(row)
    for (part, where), group in groups.items():
        if part in ("ppo", "es", "envs"):
            found += _against(part, where, group)
        if part == "ppo":
            pace = of_rows.pace_ratio(group, "ours, mnemosyne", "ours")
            found.append(Bar(f"{part}: mnemosyne's steps/s / Adam's, {where}", pace, LEARNED, True))
        if part == "gym":
            pace = of_rows.pace_ratio(group, "ours", "plain loop")
            found.append(Bar(f"{part}: steps/s / plain loop's, {where}", pace, 1.0, True))
        if part == "seeds":
            value = group[0]["ratio"]
            found.append(Bar(f"seeds: time / that of single runs, {where}", value, LANES, False))
    return found


def _against(part: str, where: str, group: Sequence[Row]) -> list[Bar]:
    """Ours against each peer in a race."""
    found = []
    for peer in (row["who"] for row in group if not row["who"].startswith("ours")):
        pace = of_rows.pace_ratio(group, "ours", peer)
        compiled = of_rows.ratio(group, "ours", peer, "compile_s")
        found.append(Bar(f"{part}: steps/s / {peer}'s, {where}", pace, 1.0, True))
        found.append(Bar(f"{part}: compile time / {peer}'s, {where}", compiled, 1.0, False))
        if any("target" in row for row in group):
            time = of_rows.ratio(group, "ours", peer, "seconds_to_target")
            found.append(Bar(f"{part}: time to return / {peer}'s, {where}", time, 1.0, False))
    return found


def race_table(rows: Sequence[Row]) -> str:
    """A race: pace, compilation, time to the return."""
    target = next((row["target"] for row in rows if "target" in row), None)
    header = [f"{rows[0]['part']}: {rows[0]['where']}", "env steps/s", "updates/s", "compile s"]
    if target is not None:
        header += [f"reached {target:g}", "env steps", "s training", "s with compilation"]
        header += ["final returns"]
    return markdown([*header, "note"], [_cells(row, target) for row in rows])


def _cells(row: Row, target: float | None) -> list[str]:
    if row["skipped"]:
        return [row["who"], *[""] * (3 if target is None else 8), f"skipped: {row['skipped']}"]
    cells = [row["who"], f"{row['env_steps_per_s']:,.0f}", f"{row['updates_per_s']:.3g}"]
    cells += [f"{row['compile_s']:.1f}"]
    if target is not None:
        cells += [f"{row['reached']:.0%}", f"{row['env_steps_to_target']:,.0f}"]
        cells += [f"{row['train_s_to_target']:.1f}", f"{row['seconds_to_target']:.1f}"]
        cells += [" ".join(f"{value:.4g}" for value in row["final_returns"])]
    return [*cells, ""]


def shares_table(rows: Sequence[Row]) -> str:
    """Where the time of training goes, and how much of a whole run compilation is."""
    parts = list(rows[0]["shares"])
    header = [f"shares: {rows[0]['where']}", "ms a rollout", *parts, "optimizer us an update"]
    header += ["compile s", f"compilation, of {rows[0]['env_steps']:,} env steps"]
    lines = [
        [
            row["who"],
            f"{1e3 * row['seconds_per_rollout']:.1f}",
            *(f"{row['shares'][part]:.1%}" for part in parts),
            f"{row['optimizer_us']:.0f}",
            f"{row['compile_s']:.1f}",
            f"{row['compile_share']:.1%}",
        ]
        for row in rows
    ]
    return markdown(header, lines)


def seeds_table(rows: Sequence[Row]) -> str:
    """Several seeds side by side against as many single runs."""
    header = [f"seeds: {rows[0]['where']}", "compile s: 1, all", "s a chunk: 1, all"]
    header += ["env steps/s: 1, all", "time / single runs", "without compilation"]
    row = rows[0]
    pairs = (
        [f"{value:.3g}" for value in row[name]]
        for name in ("compile_s", "chunk_s", "env_steps_per_s")
    )
    cells = [row["who"], *(", ".join(pair) for pair in pairs)]
    return markdown(
        header, [[*cells, f"{row['ratio']:.2f}", f"{row['ratio_without_compile']:.2f}"]]
    )


def bars_table(found: Sequence[Bar]) -> str:
    """Demands and verdicts."""
    lines = [
        [
            bar.name,
            "" if bar.value is None else f"{bar.value:.3f}",
            f"{'at least' if bar.at_least else 'at most'} {bar.demand:g}",
            bar.verdict,
        ]
        for bar in found
    ]
    return markdown(["bar", "measured", "demanded", "verdict"], lines)
