# SPDX-License-Identifier: Apache-2.0
"""From which environment to which: of M and V only, the hold-out is not for experiments."""

from __future__ import annotations

from typing import NamedTuple

from experiments.benchmarks.options import Options
from experiments.benchmarks.policies import suites
from experiments.benchmarks.policies.cells import Cell


class Pair(NamedTuple):
    """Where runs come from, and where they go on."""

    source: Cell
    target: Cell


# Target by source: bodies of another number of joints, so that networks fit in part. At smoke one
# environment is both, because programs of another one would have to be compiled.
_PAIRS: dict[str, dict[str, str]] = {
    "smoke": {"control:pointmass": "control:pointmass"},
    "meta-train": {
        "brax:inverted_pendulum": "brax:inverted_double_pendulum",
        "control:cartpole": "control:cartpole-swingup",
    },
    "validation": {"brax:halfcheetah": "brax:hopper", "brax:hopper": "brax:halfcheetah"},
}


def pairs(options: Options) -> list[Pair]:
    """The pairs of a size and a split; by default those of M, whose searches are committed.

    Raises:
      ValueError: for the hold-out, another split at ``smoke``, or ``--envs`` that fits no target.
    """
    if options.split == "hold-out":
        raise ValueError("--split hold-out: warm starts are tried on meta-train and validation")
    where = options.split or "meta-train"
    if options.size == "smoke":
        where = "smoke" if options.split in (None, "meta-train") else ""
    if not where:
        raise ValueError("--size smoke only runs control tasks of meta-train: leave out --split.")
    known = _PAIRS[where]
    words = options.envs
    chosen = [s for s, t in known.items() if not words or any(word in t for word in words)]
    if not chosen:
        raise ValueError(
            f"--envs {' '.join(words)}: no target has such a name; there are "
            f"{', '.join(known.values())}."
        )
    return [
        Pair(suites.cell_of(options, source), suites.cell_of(options, known[source]))
        for source in chosen
    ]
