# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne benchmark stability``: far beyond the longest meta-training run, with odd extras.

A run blows up if its loss is not finite at any evaluation, if it has gained nothing at the length
of the longest run of meta-training, or if it later gives back more than a tenth of that gain.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

import mnemosyne
from experiments import cache, rivals
from experiments.benchmarks import provenance, records, runs, scores, selection
from experiments.benchmarks.options import Options
from experiments.benchmarks.report import markdown
from experiments.rivals import Line
from experiments.tasks import BenchmarkTask
from mnemosyne.features import EXTRAS
from mnemosyne.meta.tasks import Teacher, mlp_task

MODES = ("told", "absent", "constant", "wild")
"""What the host tells: loss and progress; nothing; always 1; nonsense of every size, or none."""
GIVEN_BACK = 0.1
"""Share of the gain that may be lost again."""
TIMES_LONGER = 50.0


def longest_run() -> int:
    """Updates of the longest inner problem of the base recipe."""
    from experiments import recipes

    return recipes.WHOLE_RUNS.longest


def tiny_tasks() -> list[BenchmarkTask]:
    """A curved valley, a noisy bowl, and a network of 99 parameters."""
    arrays = Teacher(8, 3).table(jax.random.key(7), 512)
    network = mlp_task("mlp-8-8-3-tanh/teacher7", *arrays, (8,), "tanh", 16)
    return [*selection.smoke_tasks(), BenchmarkTask(network, 1000, "mlp")]


def extras_of(
    mode: Int[Array, ""], index: Array, loss: Float[Array, ""], steps: int
) -> dict[str, Float[Array, ""]]:
    """What the optimizer is told at one update; nan means the same as absent.

    Args:
      mode: index into :data:`MODES`.
      index: updates made.
      loss: of the minibatch.
      steps: length of the run.
    """
    told = {"value": loss, "progress": index / steps}
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), index), len(EXTRAS))
    nothing = jnp.asarray(jnp.nan)

    def one(name: str, key: Array) -> Array:
        choices = [told.get(name, nothing), nothing, jnp.ones(()), _wild(key)]
        return jnp.select([mode == i for i in range(len(MODES))], choices)

    return {name: one(name, key) for name, key in zip(EXTRAS, keys, strict=True)}


def _wild(key: Array) -> Float[Array, ""]:
    """Of either sign and any size up to 1e30; one in eight is infinite or nan."""
    key_size, key_sign, key_odd = jax.random.split(key, 3)
    size = 10.0 ** jax.random.uniform(key_size, minval=-30.0, maxval=30.0)
    odd = jax.random.randint(key_odd, (), 0, 16)
    size = jnp.select([odd == 0, odd == 1], [jnp.inf, jnp.nan], size)
    return jnp.where(jax.random.bernoulli(key_sign), size, -size)


def curves(
    task: BenchmarkTask, line: Line, steps: int, num_seeds: int
) -> Float[np.ndarray, "modes seeds points"]:
    """Learning curves under every kind of extras, all at once."""

    def one(mode: Array, key: Array) -> Array:
        optimizer = line.make(line.theta, jnp.ones(()), steps)
        extras = functools.partial(extras_of, mode, steps=steps)
        return runs.learning_curve(task.task, optimizer, key, steps, extras=extras)

    every = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))
    return np.asarray(every(jnp.arange(len(MODES)), runs.seeds(num_seeds)))


def verdict(
    steps: scores.Steps, curve: Float[np.ndarray, " points"], longest: int
) -> dict[str, Any]:
    """Whether one run blew up, and the losses that say so.

    Args:
      steps: updates before each evaluation.
      curve: loss at each.
      longest: updates of the longest run of meta-training.
    """
    curve = scores.finite(curve)
    at = int(np.clip(np.searchsorted(steps, longest), 1, len(steps) - 1))
    start, trained, worst = curve[0], curve[at], curve[at:].max()
    gained = bool(trained < start)
    return {
        "initial": float(start),
        "at_longest": float(trained),
        "worst_after": float(worst),
        "final": float(curve[-1]),
        "blown_up": not gained or bool(worst > trained + GIVEN_BACK * (start - trained)),
    }


def on_task(
    task: BenchmarkTask, line: Line, longest: int, times: float, num_seeds: int, options: Options
) -> list[dict[str, Any]]:
    """One row a kind of extras and seed."""
    steps = max(1, round(times * longest))
    points = runs.evaluation_steps(steps)
    key = records.description(task, line, steps, num_seeds) | {"extras": list(MODES)}
    stored = cache.cached(
        f"stability-{task.name}",
        key,
        lambda: {"curves": scores.finite(curves(task, line, steps, num_seeds))},
        options.cache,
    )
    return [
        {"task": task.name, "extras": mode, "seed": seed, "steps": steps}
        | verdict(points, curve, longest)
        for mode, many in zip(MODES, scores.finite(stored["curves"]), strict=True)
        for seed, curve in enumerate(many)
    ]


def run(options: Options) -> dict[str, Any]:
    """Runs every task under every kind of extras; the exit code is 1 if any run blew up.

    Raises:
      ValueError: for flags that fit nothing.
    """
    times = TIMES_LONGER if options.horizon is None else options.horizon
    if times <= 0:
        raise ValueError(f"--horizon must be positive, got {times}.")
    num_seeds = 1 if options.seeds is None else selection.thoroughness(options).seeds
    artifact, longest = mnemosyne.load(options.weights), longest_run()
    line = rivals.ours("ours", artifact)
    rows = []
    for task in selection.tasks(options, tiny_tasks):
        found = on_task(task, line, longest, times, num_seeds, options)
        rows += found
        print(_table(found), end="\n\n", flush=True)
    blown = [f"{row['task']}, extras {row['extras']}" for row in rows if row["blown_up"]]
    print(f"blown up: {', '.join(blown) or 'none'} of {len(rows)} runs")
    return {
        "benchmark": "stability",
        "weights": options.weights,
        "tensor_sha256": artifact.tensor_sha256,
        "times_longest": times,
        "rows": cache.rounded(rows),
        **provenance.stamp(),
        "exit_code": int(bool(blown)),
    }


def _table(rows: list[dict[str, Any]]) -> str:
    numbers = ("initial", "at_longest", "worst_after", "final")
    header = [f"{rows[0]['task']}, {rows[0]['steps']:,} updates", *numbers, "verdict"]
    lines = [
        [f"extras {row['extras']}, seed {row['seed']}"]
        + [f"{row[name]:.3g}" for name in numbers]
        + ["blown up" if row["blown_up"] else "stable"]
        for row in rows
    ]
    return markdown(header, lines)
