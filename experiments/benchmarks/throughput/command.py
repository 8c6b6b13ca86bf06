# SPDX-License-Identifier: Apache-2.0
"""The benchmark from its flags to its tables. A part that was measured is stored, and found again.

A stored part dies with the sources of trainers and of this benchmark, with the versions of packages
and with the machine's name; another ``--cache`` measures everything anew.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

import mnemosyne
import robotics
from experiments import cache
from experiments.benchmarks import provenance
from experiments.benchmarks.options import Options
from experiments.benchmarks.throughput import bars, settings
from experiments.benchmarks.throughput.parts import PARTS

Row = dict[str, Any]


def run(options: Options) -> dict[str, Any]:
    """Measures the parts that the cache lacks, prints every table as it comes, then the bars.

    Raises:
      ValueError: for names of parts that there are not, or unknown weights.
    """
    chosen = _chosen(options)
    artifact = mnemosyne.load(options.weights)
    plan = settings.plan(options.size)
    rows: list[Row] = []
    for name in chosen:
        for group in _part(name, plan, options, artifact.tensor_sha256):
            print(f"\n{_table(group)}", flush=True)
            rows += group
    found = bars.bars(rows)
    if found:
        print(f"\n{bars.bars_table(found)}", flush=True)
    return cache.rounded(
        {
            "benchmark": "throughput",
            "size": options.size,
            "weights": options.weights,
            "tensor_sha256": artifact.tensor_sha256,
            "plan": cache.describe(plan),
            "rows": rows,
            "bars": [bar.row() for bar in found],
            **provenance.stamp(),
        }
    )


def _chosen(options: Options) -> list[str]:
    """The parts asked for."""
    for name in options.only:
        if name not in PARTS:
            raise ValueError(f"--only takes names of {', '.join(PARTS)}; got {name!r}.")
    return [name for name in PARTS if not options.only or name in options.only]


def _part(name: str, plan: settings.Plan, options: Options, sha256: str) -> Iterator[list[Row]]:
    """Groups of rows of a part, stored or measured."""
    here, trainers = Path(__file__).parent, Path(robotics.__file__).parent
    roots = (
        trainers.parent / folder for folder in ("mnemosyne", "envs", "experiments/reference_ppo")
    )
    description = {
        "part": name,
        "plan": cache.describe(plan),
        "weights": sha256,
        "machine": provenance.machine(),
        "sources": cache.sources_hash(here, trainers, trainers / "ppo", trainers / "es", *roots),
        "versions": {k: v for k, v in provenance.stamp()["versions"].items() if k != "commit"},
    }
    stored = cache.find(f"throughput-{name}", description, options.cache)
    if stored is not None:
        print(f"\n{name}: stored in {options.cache}")
        yield from stored["groups"]
        return
    groups = []
    with _fresh_programs():
        for group in PARTS[name](plan, options.weights):
            groups.append(group)
            yield group
    cache.cached(f"throughput-{name}", description, lambda: {"groups": groups}, options.cache)


@contextlib.contextmanager
def _fresh_programs() -> Iterator[None]:
    """Compile times are of compilation; later seeds of the same program read what is kept of it."""
    from jax.experimental.compilation_cache import compilation_cache

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for name, value in zip(names, (folder, 1.0), strict=True):
            jax.config.update(name, value)
        # JAX looks at the folder once a process, unless it is told to look again.
        compilation_cache.reset_cache()
        try:
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()


def _table(group: list[Row]) -> str:
    """The table of a group of rows."""
    tables = {"shares": bars.shares_table, "seeds": bars.seeds_table}
    return tables.get(group[0]["part"], bars.race_table)(group)
