# SPDX-License-Identifier: Apache-2.0
"""The benchmark from its flags to its table; runs are stored as those of ``policies``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mnemosyne
from experiments import cache
from experiments.benchmarks import provenance
from experiments.benchmarks.options import Options
from experiments.benchmarks.policies import report, rules, suites, summary, tuning
from experiments.benchmarks.policies.records import Store, TimeRatio
from experiments.benchmarks.policies.suites import Thoroughness
from experiments.benchmarks.policies.summary import CellResults
from experiments.benchmarks.warm_start import tables
from experiments.benchmarks.warm_start.pairs import Pair, pairs
from experiments.benchmarks.warm_start.warm import Source, WarmStore
from robotics import warmstart

NAMES = ("adam", "adam-warm", "ours", "ours-warm")
"""The two by two; ``oracle``, the tuned Adam with a new start, says where 50, 75 and 90 % are."""


def measure(
    store: Store, pair: Pair, size: Thoroughness, weights: str, parts: Sequence[str]
) -> CellResults:
    """All runs of one pair, from the store or by training them."""
    target, seeds = pair.target, suites.judged_seeds(size.seeds)
    artifact = mnemosyne.load(weights)
    adam, ours = rules.hand_designed(target.algo)[0], rules.judged(weights, ())[0]
    random = store.random(target)
    oracle = tuning.oracle(store, target, size.trials, size.trial_seeds)
    warm = WarmStore(store, Source(store, pair.source, ours, artifact.config, parts))
    found = {"oracle": store.record(target, rules.adam("oracle", oracle.best), seeds)}
    for name, rule in (("adam", adam), ("ours", ours)):
        found[name] = store.record(target, rule, seeds)
    pace = store.time_ratio(target, ours, adam, seeds)
    for name, rule in (("adam", adam), ("ours", ours)):
        found[f"{name}-warm"] = warm.record(target, rule, seeds)
    # A start changes nothing about how long an env step takes.
    times = {name: pace if name.startswith("ours") else TimeRatio(1.0, pace[1]) for name in found}
    ordered = {name: found[name] for name in (*NAMES, "oracle")}
    return CellResults(target, random, oracle, ordered, times)


def run(options: Options) -> dict[str, Any]:
    """Runs what the store lacks, prints the table.

    Raises:
      ValueError: for flags that fit nothing.
    """
    chosen, size, parts = pairs(options), suites.thoroughness(options), _parts(options)
    store = Store(options.cache, size.rival_seeds)
    results = []
    for pair in chosen:
        print(f"{pair.source.label} -> {pair.target.label}:", end="", flush=True)
        results.append(measure(store, pair, size, options.weights, parts))
        print(flush=True)
    return _conclude(chosen, results, options)


def _parts(options: Options) -> tuple[str, ...]:
    if unknown := sorted(set(options.only) - set(warmstart.PARTS)):
        names = ", ".join(warmstart.PARTS)
        raise ValueError(f"--only takes names of {names}; got {unknown[0]!r}.")
    return options.only or warmstart.default_parts(same_env=False)


def _conclude(chosen: list[Pair], results: list[CellResults], options: Options) -> dict[str, Any]:
    """The table, and the record of what made it."""
    rows = [
        summary.row(one, name)
        | {"source": pair.source.label, "start": "warm" if name.endswith("-warm") else "new"}
        for pair, one in zip(chosen, results, strict=True)
        for name in one.records
    ]
    artifact = mnemosyne.load(options.weights)
    settings = {"size": options.size, "split": options.split or "meta-train"}
    settings["parts"] = " ".join(_parts(options))
    cells = [[cell.description() for cell in pair] for pair in chosen]
    new = [one._replace(records=_new_starts(one)) for one in results]
    result = {
        "benchmark": "warm-start",
        **settings,
        "weights": options.weights,
        "tensor_sha256": artifact.tensor_sha256,
        "config_hash": cache.key_hash([settings, cells, artifact.config.to_dict()]),
        **provenance.stamp(),
        "searches": {one.cell.label: tuning.describe(one.oracle) for one in results},
        "summary": summary.summarize(rows, {"oracle": sum(r.oracle.env_steps for r in results)}),
        "comparisons": {
            f"{ours} against {rival}": summary.comparisons(rows, ours)[rival]
            for ours, rival in tables.COMPARED
        },
        # Runs that start warm are meant to start otherwise.
        "doubts": summary.doubts(new),
        "rows": rows,
    }
    result = cache.rounded(result)
    report.publish(tables.table(result), options.out)
    return result


def _new_starts(results: CellResults) -> dict[str, Any]:
    return {name: one for name, one in results.records.items() if not name.endswith("-warm")}
