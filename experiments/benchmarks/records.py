# SPDX-License-Identifier: Apache-2.0
"""Runs of one line on one task as they are stored: mean curves, and final losses by seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from experiments import cache
from experiments.benchmarks import runs, scores
from experiments.rivals import Line
from experiments.tasks import BenchmarkTask

PROTOCOL = 1
"""Raised when the meaning of a stored number changes."""


class Record(NamedTuple):
    """What is known of one line on one task.

    Attributes:
      rates: what was tried.
      steps: updates before each evaluation.
      curves: mean over seeds.
      finals: mean loss of the last 5 % of the run, a seed.
      initials: loss before training, a seed.
      seed_curves: a curve each seed, of lines with a single rate.
    """

    rates: Float[np.ndarray, " rates"]
    steps: scores.Steps
    curves: Float[np.ndarray, "rates points"]
    finals: Float[np.ndarray, "rates seeds"]
    initials: Float[np.ndarray, " seeds"]
    seed_curves: Float[np.ndarray, "seeds points"] | None

    @property
    def best(self) -> int:
        """Index of the rate with the lowest mean final loss."""
        return int(self.finals.mean(axis=1).argmin())


def from_stored(stored: dict[str, Any]) -> Record:
    """Reads the numbers of a cache entry."""
    seed_curves = stored.get("seed_curves")
    return Record(
        np.asarray(stored["rates"], np.float64),
        np.asarray(stored["steps"], np.int64),
        scores.finite(stored["curves"]),
        scores.finite(stored["finals"]),
        scores.finite(stored["initials"]),
        None if seed_curves is None else scores.finite(seed_curves),
    )


def description(task: BenchmarkTask, line: Line, steps: int, num_seeds: int) -> dict[str, Any]:
    """Everything that the numbers of a line on a task depend on."""
    shapes = jax.eval_shape(task.task.init, jax.random.key(0))
    return {
        "protocol": PROTOCOL,
        "line": line.description,
        "rates": list(line.rates),
        "task": cache.describe(task.task),
        "parameters": [list(leaf.shape) for leaf in jax.tree.leaves(shapes)],
        "steps": steps,
        "seeds": num_seeds,
    }


def measure(runner: runs.Runner, line: Line, steps: int, num_seeds: int) -> dict[str, Any]:
    """Trains every rate and seed; see :class:`Record`."""
    curves = scores.finite(runner(line, num_seeds))
    points = runs.evaluation_steps(steps)
    stored = {
        "rates": list(line.rates),
        "steps": points,
        "curves": curves.mean(axis=1),
        "finals": scores.final_loss(points, curves),
        "initials": curves[0, :, 0],
    }
    return stored if line.tuned else stored | {"seed_curves": curves[0]}


def record(
    task: BenchmarkTask, line: Line, runner: runs.Runner, steps: int, num_seeds: int, folder: Path
) -> Record:
    """The runs of a line on a task: stored ones, else computed and stored.

    Args:
      task: what to train.
      line: with what.
      runner: of this task and length.
      steps: updates of a run.
      num_seeds: runs a rate.
      folder: of results that are not committed.
    """
    key = description(task, line, steps, num_seeds)
    name = f"{task.name}-{line.name}"
    return from_stored(
        cache.cached(name, key, lambda: measure(runner, line, steps, num_seeds), folder)
    )


def check_same_task(name: str, records: dict[str, Record]) -> None:
    """Refuses results of another problem under the same name: equal seeds must start equally.

    Raises:
      ValueError: if two lines disagree on the loss before training.
    """
    lines = list(records)
    for line in lines[1:]:
        one, other = records[lines[0]].initials, records[line].initials
        count = min(len(one), len(other))
        if not np.allclose(one[:count], other[:count], rtol=0.02):
            raise ValueError(
                f"stored results of {lines[0]!r} or {line!r} on {name} are of another version of "
                "that task: delete their files from the cache."
            )
