# SPDX-License-Identifier: Apache-2.0
"""Runs as they are stored: one file a cell, rule and set of seeds.

Filling the cache is a job that may be killed at any time: it loses the runs that are under way and
nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from experiments import cache
from experiments.benchmarks import provenance
from experiments.benchmarks.policies import runs
from experiments.benchmarks.policies.cells import Cell
from experiments.benchmarks.policies.rules import Rule

PROTOCOL = 1
"""Raised when the meaning of a stored number changes."""


class Record(NamedTuple):
    """What is known of one rule in one cell; see :class:`runs.Runs`, one entry a seed.

    Attributes:
      seeds: of the runs.
      env_steps: before each evaluation.
      returns: deterministic evaluations; what is no number counts as minus infinity.
      finals: mean of the last 5 % of the evaluations.
      finite: whether everything that was measured is a number.
      training_returns: with exploration, a chunk.
      kl: mean over the updates of a chunk, ``None`` under ES.
      distance: metres, in the last evaluation; ``None`` where nobody measures it.
      updates: of the optimizer.
      train_s: seconds of training, compilation apart, on a machine that may have been busy.
      trainer: see :func:`runs.fingerprint`.
      machine: by name.
    """

    seeds: tuple[int, ...]
    env_steps: Float[np.ndarray, " points"]
    returns: Float[np.ndarray, "seeds points"]
    finals: Float[np.ndarray, " seeds"]
    finite: np.ndarray
    training_returns: Float[np.ndarray, "seeds chunks"]
    kl: Float[np.ndarray, "seeds chunks"] | None
    distance: Float[np.ndarray, " seeds"] | None
    updates: int
    train_s: float
    trainer: tuple[float, ...]
    machine: str


class TimeRatio(NamedTuple):
    """Seconds of training, measured in alternation with Adam.

    Attributes:
      ratio: relative to Adam's.
      seconds_per_env_step: of Adam, for one env step of any of the runs side by side.
    """

    ratio: float
    seconds_per_env_step: float


def _numbers(values: Any) -> np.ndarray:
    """An array in which whatever is not a number is minus infinity: the worst return there is."""
    array = np.asarray(values, np.float64)
    return np.where(np.isfinite(array), array, -np.inf)


def from_stored(stored: dict[str, Any]) -> Record:
    """Reads a cache entry."""

    def optional(name: str) -> np.ndarray | None:
        return None if stored.get(name) is None else np.asarray(stored[name], np.float64)

    steps, returns = np.asarray(stored["env_steps"], np.float64), _numbers(stored["returns"])
    return Record(
        seeds=tuple(stored["seeds"]),
        env_steps=steps,
        returns=returns,
        finals=runs.final_return(steps, returns),
        finite=np.asarray(stored["finite"], bool),
        training_returns=_numbers(stored["training_returns"]),
        kl=optional("kl"),
        distance=optional("distance"),
        updates=int(stored["updates"]),
        train_s=float(stored["train_s"]),
        trainer=tuple(stored["trainer"]),
        machine=str(stored["machine"]),
    )


def _to_store(found: runs.Runs, seeds: Sequence[int]) -> dict[str, Any]:
    return {
        "seeds": list(seeds),
        "env_steps": found.env_steps,
        "returns": found.returns,
        "finite": [bool(value) for value in found.finite],
        "training_returns": found.training_returns,
        "kl": found.kl,
        "lengths": found.lengths[:, -1],
        "distance": None if found.distance is None else found.distance[:, -1],
        "updates": found.updates,
        "train_s": found.train_s,
        "trainer": list(runs.fingerprint()),
        "machine": provenance.machine(),
    }


def description(cell: Cell, rule: Rule, seeds: Sequence[int]) -> dict[str, Any]:
    """Everything that the numbers of a rule in a cell depend on."""
    return {
        "protocol": PROTOCOL,
        "benchmark": "policies",
        "cell": cell.description(),
        "rule": rule.description,
        "seeds": list(seeds),
    }


def _name(cell: Cell, rule: Rule) -> str:
    """Start of a file's name: by kind of rule, so that equal settings are run once."""
    return f"{cell.algo}-{cell.env_name}-{rule.description['rule']}"


class Store:
    """Stored records, and the runner of what is missing.

    Args:
      folder: of results that are not committed.
      lanes: runs of a search that train side by side.
    """

    def __init__(self, folder: Path, lanes: int):
        self.folder, self.lanes = folder, lanes
        self._runner: runs.Runner | None = None

    def key(self, cell: Cell, rule: Rule, seeds: Sequence[int]) -> dict[str, Any]:
        """By what the runs of a rule in a cell are found again."""
        return description(cell, rule, seeds)

    def find(self, cell: Cell, rule: Rule, seeds: Sequence[int]) -> Record | None:
        """The stored runs, if there are any.

        Committed and fresh results are told apart by nothing but their folder.
        """
        key = self.key(cell, rule, seeds)
        found = cache.find(_name(cell, rule), key, self.folder)
        return None if found is None else from_stored(found)

    def record(self, cell: Cell, rule: Rule, seeds: Sequence[int]) -> Record:
        """The runs of a rule in a cell: stored ones, else computed and stored."""
        return self.records(cell, [rule], seeds)[0]

    def records(self, cell: Cell, rules: Sequence[Rule], seeds: Sequence[int]) -> list[Record]:
        """The same for rules of one kind; of several, those that fit the lanes train together."""
        missing = [rule for rule in rules if self.find(cell, rule, seeds) is None]
        together = max(1, self.lanes // len(seeds)) if len(rules) > 1 else 1
        for start in range(0, len(missing), together):
            batch = missing[start : start + together]
            print(f" {' '.join(rule.name for rule in batch)} ", end="", flush=True)
            found = self.runner(cell)(batch, seeds, together * len(seeds))
            for rule, one in zip(batch, found, strict=True):
                self._keep(cell, rule, seeds, one)
        found = [self.find(cell, rule, seeds) for rule in rules]
        return [record for record in found if record is not None]

    def random(self, cell: Cell) -> float:
        """Mean return of uniform random actions in a cell's environment, stored too."""
        env = {
            name: value
            for name, value in cell.description().items()
            if name in ("env", "backend", "episode_length")
        }
        key = {"protocol": PROTOCOL, "benchmark": "policies", "random": env}
        stored = cache.cached(
            f"{cell.env_name}-random",
            key,
            lambda: {"returns": self.runner(cell).random()},
            self.folder,
        )
        return float(np.mean(stored["returns"]))

    def time_ratio(self, cell: Cell, rule: Rule, adam: Rule, seeds: Sequence[int]) -> TimeRatio:
        """How long a rule trains relative to Adam, stored for each machine."""
        key = self.key(cell, rule, seeds) | {"time of a chunk on": provenance.machine()}

        def compute() -> dict[str, Any]:
            print(f" time of {rule.name}", end="", flush=True)
            ours, theirs = self.runner(cell).time([rule, adam], seeds)
            return {"ratio": ours / theirs, "seconds_per_env_step": theirs}

        return TimeRatio(**cache.cached(f"{_name(cell, rule)}-time", key, compute, self.folder))

    def runner(self, cell: Cell) -> runs.Runner:
        """Trains in this cell; the programs of the cell before are dropped."""
        if self._runner is None or self._runner.cell != cell:
            self._runner = runs.Runner(cell)
        return self._runner

    def _keep(self, cell: Cell, rule: Rule, seeds: Sequence[int], found: runs.Runs) -> None:
        key = self.key(cell, rule, seeds)
        cache.cached(_name(cell, rule), key, lambda: _to_store(found, seeds), self.folder)
