# SPDX-License-Identifier: Apache-2.0
"""Adam tuned by random search: per environment, the oracle, or once on M, the fair rival.

Both searches try the same settings, drawn from a fixed seed; seeds of trials are never those of
judged runs. What a search costs is counted in env steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.benchmarks.policies import rules
from experiments.benchmarks.policies.cells import Algo, Cell
from experiments.benchmarks.policies.records import Record, Store
from experiments.benchmarks.policies.rules import AdamSettings

SEARCH_SEED = 0xADA
TRIAL_SEED = 5000
"""First seed of the runs of a search."""
RATES: dict[Algo, tuple[float, float]] = {"ppo": (1e-5, 1e-2), "es": (1e-3, 1.0)}
BETAS = ((0.9, 0.999), (0.9, 0.99), (0.99, 0.99))
CLIPS = (math.inf, 0.5)
"""No clipping, or the usual bound of PPO on the norm of the whole gradient."""


class Search(NamedTuple):
    """The outcome of a search.

    Attributes:
      settings: what was tried.
      scores: of each, higher is better.
      best: the chosen settings.
      env_steps: that the search took.
    """

    settings: list[AdamSettings]
    scores: Float[np.ndarray, " trials"]
    best: AdamSettings
    env_steps: int


def trials(count: int, algo: Algo = "ppo") -> list[AdamSettings]:
    """Random settings of Adam.

    Rates are log-uniform, one in each of ``count`` equal parts of the range: a random search that
    leaves no gaps. All other choices are independent.

    Args:
      count: at least 1.
      algo: whose range of rates to take.
    """
    rng = np.random.default_rng([SEARCH_SEED, count])
    low, high = np.log10(RATES[algo])
    parts = (rng.permutation(count) + rng.random(count)) / count
    found = []
    for part in parts:
        b1, b2 = BETAS[rng.integers(len(BETAS))]
        rate = float(f"{10 ** (low + part * (high - low)):.3g}")
        anneal, clip = bool(rng.integers(2)), CLIPS[rng.integers(len(CLIPS))]
        found.append(AdamSettings(rate, b1, b2, anneal, clip))
    return found


def _run(store: Store, cell: Cell, count: int, num_seeds: int) -> list[Record]:
    tried = [
        rules.adam(f"trial{i}", settings) for i, settings in enumerate(trials(count, cell.algo))
    ]
    seeds = range(TRIAL_SEED, TRIAL_SEED + num_seeds)
    return store.records(cell, tried, seeds)


def _cost(records: Sequence[Record]) -> int:
    return round(sum(record.env_steps[-1] * len(record.seeds) for record in records))


def _finals(records: Sequence[Record]) -> Float[np.ndarray, " trials"]:
    return np.asarray([record.finals.mean() for record in records])


def oracle(store: Store, cell: Cell, count: int, num_seeds: int) -> Search:
    """The best settings for one cell, by mean final return.

    Args:
      store: runs what is missing.
      cell: where to search.
      count: trials.
      num_seeds: runs a trial.
    """
    records = _run(store, cell, count, num_seeds)
    scores = _finals(records)
    return _search(trials(count, cell.algo), scores, _cost(records))


def across(store: Store, cells: Sequence[Cell], count: int, num_seeds: int) -> Search:
    """The one setting that is best on average over cells.

    In each cell the best trial scores 1 and uniform random actions 0; worse than random is 0 too.

    Args:
      store: runs what is missing.
      cells: where to search; of M.
      count: trials.
      num_seeds: runs a trial in each cell.
    """
    normalized, cost = [], 0
    for cell in cells:
        print(f"{cell.label}:", end="", flush=True)
        records = _run(store, cell, count, num_seeds)
        finals, random = _finals(records), store.random(cell)
        normalized.append(np.maximum(finals - random, 0.0) / max(finals.max() - random, 1e-9))
        cost += _cost(records)
        print(flush=True)
    scores = np.mean(normalized, axis=0)
    return _search(trials(count, cells[0].algo), scores, cost)


def _search(settings: list[AdamSettings], scores: np.ndarray, env_steps: int) -> Search:
    return Search(settings, scores, settings[int(scores.argmax())], env_steps)


def describe(search: Search) -> dict[str, Any]:
    """A search as JSON and tables say it."""
    best = search.best
    return {
        "best": best.text(),
        "rate": best.rate,
        "rate_at_edge": best.rate in (min(_rates(search)), max(_rates(search))),
        "trials": len(search.settings),
        "env_steps": search.env_steps,
        "scores": {s.text(): x for s, x in zip(search.settings, search.scores, strict=True)},
    }


def _rates(search: Search) -> list[float]:
    return [settings.rate for settings in search.settings]
