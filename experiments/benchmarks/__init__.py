# SPDX-License-Identifier: Apache-2.0
"""What ``mnemosyne benchmark`` can measure, by name; each in a module of its own."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.benchmarks.options import Options

__all__ = ["BENCHMARKS", "Benchmark", "Options", "run"]


class Benchmark(NamedTuple):
    """One benchmark.

    Attributes:
      module: has ``run(options) -> dict``.
      summary: what it measures.
      flags: fields of :class:`Options` that it reads.
    """

    module: str
    summary: str
    flags: tuple[str, ...]


_JUDGED = ("size", "weights", "data_dir", "tasks", "stress", "validation", "seeds", "cache")
BENCHMARKS: Mapping[str, Benchmark] = {
    "optimizers": Benchmark(
        "experiments.benchmarks.optimizers",
        "learning curves against tuned Adam and other rivals",
        (*_JUDGED, "rival", "horizon", "rivals_only", "out"),
    ),
    "policies": Benchmark(
        "experiments.benchmarks.policies",
        "returns of policies against tuned Adam and other rivals, on robots never seen",
        (
            *("size", "weights", "split", "envs", "algo", "seeds", "rival", "rivals_only"),
            *("sweep", "cache", "out"),
        ),
    ),
    "warm-start": Benchmark(
        "experiments.benchmarks.warm_start",
        "new and warm starts of policies, with Adam and with ours: a table of two by two",
        ("size", "weights", "split", "envs", "seeds", "cache", "out"),
    ),
    "cost": Benchmark(
        "experiments.benchmarks.cost",
        "time, memory and compilation of one update",
        ("weights", "params", "layout", "only", "rounds", "max_gib"),
    ),
    "stability": Benchmark(
        "experiments.benchmarks.stability",
        "runs far beyond the longest of meta-training, with odd extras",
        (*_JUDGED, "horizon"),
    ),
    "throughput": Benchmark(
        "experiments.benchmarks.throughput",
        "env steps a second and seconds to a return, against Brax, evosax and Gymnasium",
        ("size", "weights", "only", "cache"),
    ),
}


def run(what: str, options: Options) -> dict[str, Any]:
    """Runs one benchmark.

    Args:
      what: a name in :data:`BENCHMARKS`.
      options: flags; those that the benchmark does not read must have their defaults.

    Returns:
      JSON-able results, with what made them.

    Raises:
      ValueError: for an unknown name, or a flag that means nothing here.
    """
    if what not in BENCHMARKS:
        raise ValueError(f"say what to measure: {', '.join(BENCHMARKS)}; got {what!r}.")
    benchmark = BENCHMARKS[what]
    for field in dataclasses.fields(Options):
        given = getattr(options, field.name) != field.default
        if given and field.name not in (*benchmark.flags, "json"):
            flag = field.name.replace("_", "-")
            raise ValueError(f"--{flag} means nothing to the benchmark {what!r}.")
    if not options.weights:
        for_policies = what in ("policies", "warm-start", "throughput") and options.algo == "ppo"
        weights = "mnemosyne-rl" if for_policies else "mnemosyne-base"
        options = dataclasses.replace(options, weights=weights)
    return importlib.import_module(benchmark.module).run(options)
