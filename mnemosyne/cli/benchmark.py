# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne benchmark``: measures the optimizer against rivals, by fixed rules."""

from __future__ import annotations

import dataclasses
from typing import Any

import tyro

from experiments import benchmarks


@dataclasses.dataclass(frozen=True)
class Benchmark(benchmarks.Options):
    """Measure: optimizers (curves), policies, warm-start, cost, stability or throughput."""

    what: tyro.conf.Positional[str] = ""
    """optimizers, policies, warm-start, cost, stability or throughput."""


def run(config: Benchmark) -> dict[str, Any]:
    """Runs one benchmark; returns its rows for ``--json``.

    Raises:
      ValueError: for an unknown benchmark, or flags that mean nothing to it.
    """
    names = list(benchmarks.BENCHMARKS)
    if config.what not in names:
        from mnemosyne.cli.parse import nearest

        hint = f"did you mean {nearest(config.what, names)!r}?" if config.what else ""
        raise ValueError(f"say what to measure: {', '.join(names)}; {hint}".rstrip("; "))
    return benchmarks.run(config.what, config)
