# SPDX-License-Identifier: Apache-2.0
"""The benchmark from its flags to its result; every run is stored, see :mod:`.records`."""

from __future__ import annotations

from typing import Any

import mnemosyne
from experiments import cache
from experiments.benchmarks import provenance
from experiments.benchmarks.options import Options
from experiments.benchmarks.policies import report, rules, suites, summary, sweep, tuning
from experiments.benchmarks.policies.cells import Cell
from experiments.benchmarks.policies.records import Store, TimeRatio
from experiments.benchmarks.policies.rules import Rule
from experiments.benchmarks.policies.summary import CellResults
from experiments.benchmarks.policies.tuning import Search

ADAMS = ("oracle", "adam-m", "adam")
"""One program with other numbers, so they take the same time."""


def rivals(
    store: Store, cell: Cell, adam_m: Search, size: suites.Thoroughness, weights: str
) -> CellResults:
    """All rivals by hand and our untrained mode, from the store or by training them."""
    seeds = suites.judged_seeds(size.rival_seeds)
    random = store.random(cell)
    oracle = tuning.oracle(store, cell, size.trials, size.trial_seeds)
    found = {"oracle": store.record(cell, rules.adam("oracle", oracle.best), seeds)}
    found["adam-m"] = store.record(cell, rules.adam("adam-m", adam_m.best), seeds)
    for rule in [*rules.hand_designed(cell.algo), rules.untrained(weights)]:
        found[rule.name] = store.record(cell, rule, seeds)
    return CellResults(cell, random, oracle, found, {})


def judge(
    store: Store, results: CellResults, judged: list[Rule], size: suites.Thoroughness
) -> CellResults:
    """The same with what is judged, ours first, and with its time beside Adam's."""
    cell, seeds = results.cell, suites.judged_seeds(size.seeds)
    adam = rules.hand_designed(cell.algo)[0]
    found, times = {}, {}
    for rule in judged:
        found[rule.name] = store.record(cell, rule, seeds)
        times[rule.name] = store.time_ratio(cell, rule, adam, seeds)
    pace = times["ours"].seconds_per_env_step
    times |= {name: TimeRatio(1.0, pace) for name in ADAMS}
    return results._replace(records=found | results.records, times=times)


def run(options: Options) -> dict[str, Any]:
    """Runs what the store lacks, prints the tables, draws the figures.

    Raises:
      ValueError: for flags that fit nothing.
    """
    size = suites.thoroughness(options)
    store = Store(options.cache, size.rival_seeds)
    if options.sweep:
        return sweep.run(options, store)
    cells = suites.judged_cells(options)
    judged = [] if options.rivals_only else rules.judged(options.weights, options.rival)
    searched = suites.search_cells(options)
    print("one Adam for all, searched on M")
    adam_m = tuning.across(store, searched, size.trials, size.trial_seeds)
    results = []
    for cell in cells:
        print(f"{cell.label}:", end="", flush=True)
        found = rivals(store, cell, adam_m, size, options.weights)
        results.append(judge(store, found, judged, size) if judged else found)
        print(flush=True)
    if options.rivals_only:
        return {"benchmark": "policies", "rows": []}
    return _conclude(results, adam_m, options)


def _conclude(results: list[CellResults], adam_m: Search, options: Options) -> dict[str, Any]:
    """Tables, figures, and the record of what made them."""
    rows = [summary.row(one, name) for one in results for name in one.records]
    searched = sum(one.oracle.env_steps for one in results)
    found = summary.summarize(rows, {"oracle": searched, "adam-m": adam_m.env_steps})
    artifact = mnemosyne.load(options.weights)
    settings = {"size": options.size, "split": suites.split(options), "algo": options.algo}
    cells = [one.cell.description() for one in results]
    judged = [artifact.config.to_dict(), list(options.rival)]
    result = {
        "benchmark": "policies",
        **settings,
        "weights": options.weights,
        "tensor_sha256": artifact.tensor_sha256,
        "config_hash": cache.key_hash([settings, cells, judged]),
        **provenance.stamp(),
        "searches": {
            "adam-m": tuning.describe(adam_m),
            "oracle": {one.cell.label: tuning.describe(one.oracle) for one in results},
        },
        "summary": found,
        "comparisons": summary.comparisons(rows),
        "doubts": summary.doubts(results),
        "rows": rows,
    }
    result = cache.rounded(result)
    report.publish(report.table(result), options.out)
    if options.out is not None:
        from experiments.benchmarks.policies import figures

        for picture in figures.draw(result, options.out):
            print(f"picture: {picture}")
    return result
