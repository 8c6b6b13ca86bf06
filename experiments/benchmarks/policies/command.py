# SPDX-License-Identifier: Apache-2.0
"""The benchmark from its flags to its result; every run is stored, see :mod:`.records`."""

from __future__ import annotations

from typing import Any, NamedTuple

from experiments.benchmarks.options import Options
from experiments.benchmarks.policies import rules, suites, tuning
from experiments.benchmarks.policies.cells import Cell
from experiments.benchmarks.policies.records import Record, Store
from experiments.benchmarks.policies.tuning import Search


class CellResults(NamedTuple):
    """Everything that was measured in one cell.

    Attributes:
      cell: where.
      random: mean return of uniform random actions.
      oracle: the search for the best Adam here.
      records: by name of the rule.
    """

    cell: Cell
    random: float
    oracle: Search
    records: dict[str, Record]


def rivals(
    store: Store, cell: Cell, adam_m: Search, size: suites.Thoroughness, weights: str
) -> CellResults:
    """All rivals by hand and our untrained mode, from the store or by training them."""
    seeds = range(suites.JUDGED_SEED, suites.JUDGED_SEED + size.rival_seeds)
    print(f"{cell.label}:", end="", flush=True)
    random = store.random(cell)
    oracle = tuning.oracle(store, cell, size.trials, size.trial_seeds)
    found = {"oracle": store.record(cell, rules.adam("oracle", oracle.best), seeds)}
    found["adam-m"] = store.record(cell, rules.adam("adam-m", adam_m.best), seeds)
    for rule in [*rules.hand_designed(cell.algo), rules.untrained(weights)]:
        found[rule.name] = store.record(cell, rule, seeds)
    print(flush=True)
    return CellResults(cell, random, oracle, found)


def run(options: Options) -> dict[str, Any]:
    """Runs what the store lacks.

    Raises:
      ValueError: for flags that fit nothing.
    """
    size = suites.thoroughness(options)
    cells = suites.judged_cells(options)
    store = Store(options.cache, size.rival_seeds)
    searched = suites.search_cells(options)
    adam_m = tuning.across(store, searched, size.trials, size.trial_seeds)
    for cell in cells:
        rivals(store, cell, adam_m, size, options.weights)
    return {"benchmark": "policies", "rows": []}
