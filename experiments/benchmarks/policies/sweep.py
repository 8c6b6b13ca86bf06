# SPDX-License-Identifier: Apache-2.0
"""``--sweep``: one setting of the training changed at a time, and how much of the score is kept.

A score is the gain over uniform random actions in the environment's own rewards, so a change of
the rewards that the learner sees does not change the scale.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

import mnemosyne
from experiments import cache, statistics
from experiments.benchmarks import provenance
from experiments.benchmarks.options import Options
from experiments.benchmarks.policies import report, rules, scores, suites
from experiments.benchmarks.policies.cells import Cell, scaled_network
from experiments.benchmarks.policies.records import Record, Store
from experiments.benchmarks.policies.rules import Rule
from experiments.benchmarks.report import markdown
from robotics.ppo.config import PPOConfig

BASE = "base"
SHORTER = "horizon / 4"
SEEDS = {"smoke": 2, "small": 4, "full": 8}
"""Rows of engineering, not of a claim."""
MOST = 4.0
"""Bound of the share that is kept."""
Row = dict[str, Any]


def variations(base: Cell) -> dict[str, Cell]:
    """Cells by what is different in them; ``"base"`` first.

    Raises:
      ValueError: for a cell of another algorithm than PPO.
    """
    config = base.config
    if not isinstance(config, PPOConfig):
        raise ValueError("--sweep varies the settings of PPO: leave out --algo es.")
    network, rewards = config.network, config.reward_scaling
    other = "relu" if network.activation != "relu" else "tanh"
    changes: dict[str, dict[str, Any]] = {
        BASE: {},
        "networks 4x wider": {"network": scaled_network(network, 4.0)},
        "networks 4x narrower": {"network": scaled_network(network, 0.25)},
        "minibatches / 8": {"num_minibatches": 8 * config.num_minibatches},
        "horizon x 4": {"num_timesteps": 4 * config.num_timesteps},
        SHORTER: {"num_timesteps": config.num_timesteps // 4},
        f"activation {other}": {"network": dataclasses.replace(network, activation=other)},
    }
    # Behind the normalization of rewards, if there is one: what value networks have to predict.
    targets = {
        "value targets x 1e-3": {"reward_scaling": 1e-3 * rewards},
        "value targets x 1e3": {"reward_scaling": 1e3 * rewards},
    }
    cells = {
        label: base._replace(config=dataclasses.replace(config, **fields))
        for label, fields in (changes | targets).items()
    } | {
        "rewards x 1e-3": base._replace(reward_factor=1e-3),
        "rewards x 1e3": base._replace(reward_factor=1e3),
        "gradients in bfloat16": base._replace(halved=True),
        "extras withheld": base._replace(withheld=True),
    }
    return {label: cell._replace(label=label) for label, cell in cells.items()}


def lineup(options: Options) -> list[Rule]:
    """Ours, what was given by ``--rival``, and default Adam."""
    return [*rules.judged(options.weights, options.rival), rules.hand_designed("ppo")[0]]


def kept(
    changed: Float[np.ndarray, " seeds"], base: Float[np.ndarray, " seeds"], random: float
) -> tuple[float, tuple[float, float]]:
    """Share of the base's gain over random actions that is left, with its interval.

    Args:
      changed: final returns with the change.
      base: final returns without; of the same seeds.
      random: return of random actions.

    Returns:
      The ratio of the IQMs of the gains, clipped to [-4, 4] because a base may have gained next
      to nothing, and its 95 % interval.
    """

    def ratio(drawn: list[np.ndarray]) -> float:
        gains = [statistics.iqm(values) - random for values in drawn]
        return float(np.clip(gains[0] / max(gains[1], 1e-9), -MOST, MOST))

    return ratio([changed, base]), statistics.stratified_bootstrap([changed, base], ratio)


def run(options: Options, store: Store) -> dict[str, Any]:
    """Trains every variation with ours and with Adam, prints a table for each environment.

    Raises:
      ValueError: for flags that fit nothing.
    """
    if options.split is None and options.size != "smoke":
        options = dataclasses.replace(options, split="validation")
    seeds = suites.judged_seeds(options.seeds or SEEDS[options.size])
    compared = lineup(options)
    rows: list[Row] = []
    for base in suites.sweep_cells(options):
        records: dict[str, dict[str, Record]] = {}
        for label, cell in variations(base).items():
            print(f"{base.label}, {label}:", end="", flush=True)
            records[label] = {rule.name: store.record(cell, rule, seeds) for rule in compared}
            print(flush=True)
        rows += environment_rows(base, records, store.random(base))
    return _conclude(rows, options)


def environment_rows(
    base: Cell, records: Mapping[str, Mapping[str, Record]], random: float
) -> list[Row]:
    """One row a variation and optimizer, in one environment."""
    return [
        _row(base.label, label, name, record, records[BASE][name], random)
        for label, mine in records.items()
        for name, record in mine.items()
    ]


def _row(env: str, label: str, name: str, record: Record, base: Record, random: float) -> Row:
    share, bounds = kept(record.finals, base.finals, random)
    failures = scores.failed(record.env_steps, record.returns, record.finite, random)
    row: Row = {
        "env": env,
        "variation": label,
        "optimizer": name,
        "seeds": list(record.seeds),
        "env_steps": int(record.env_steps[-1]),
        "random": random,
        "return_iqm": statistics.iqm(record.finals),
        "finals": record.finals,
        "kept": share,
        "kept_ci95": bounds,
        "failures": int(failures.sum()),
    }
    if label == SHORTER:
        # A quarter of the run cannot reach what the whole does; the base was there, too.
        reached = at_steps(base, record.env_steps[-1])
        row["kept_at_equal_steps"] = kept(record.finals, reached, random)[0]
    return row


def at_steps(record: Record, env_steps: float) -> Float[np.ndarray, " seeds"]:
    """Returns of every run after so many env steps, interpolated between evaluations."""
    return np.asarray([np.interp(env_steps, record.env_steps, curve) for curve in record.returns])


def _conclude(rows: list[Row], options: Options) -> dict[str, Any]:
    artifact = mnemosyne.load(options.weights)
    settings = {"size": options.size, "split": suites.split(options), "sweep": True}
    result = cache.rounded(
        {
            "benchmark": "policies",
            **settings,
            "weights": options.weights,
            "tensor_sha256": artifact.tensor_sha256,
            "config_hash": cache.key_hash([settings, artifact.config.to_dict(), options.envs]),
            **provenance.stamp(),
            "rows": rows,
        }
    )
    report.publish(table(result["rows"]), options.out)
    return result


def table(rows: list[Row]) -> str:
    """One table an environment: the share of the own base score that each variation keeps."""
    parts = ["share of the own base score that is kept (final return, IQM), 95 % interval"]
    for env in dict.fromkeys(row["env"] for row in rows):
        mine = [row for row in rows if row["env"] == env]
        names = list(dict.fromkeys(row["optimizer"] for row in mine))
        lines = [
            [label, *(_cell(row) for name in names for row in mine if _is(row, label, name))]
            for label in dict.fromkeys(row["variation"] for row in mine)
        ]
        parts.append(markdown([env, *names], lines))
    return "\n\n".join(parts)


def _is(row: Row, label: str, name: str) -> bool:
    return row["variation"] == label and row["optimizer"] == name


def _cell(row: Row) -> str:
    text = f"{report.number(row['kept'])}{report.interval(row['kept_ci95'])}"
    text += f" ({report.number(row['return_iqm'], '.4g')})"
    if "kept_at_equal_steps" in row:
        text += f", {report.number(row['kept_at_equal_steps'])} at equal env steps"
    return text + f", {row['failures']} failed" * bool(row["failures"])
