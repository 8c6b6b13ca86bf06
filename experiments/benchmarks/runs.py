# SPDX-License-Identifier: Apache-2.0
"""Learning curves on fixed evaluation batches, many rates and seeds at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from experiments.rivals import Line, Read, last_weights
from mnemosyne.meta.task import Task

EVALUATIONS = 100
"""Evaluations a run, after the one of the initial weights."""
EVALUATION_SEED, RUN_SEED = 0xE7A1, 0xBE7C
"""Of the evaluation batch, the same for everybody, and of the judged runs; meta-training draws
neither."""
SMALL_TASK = 1000
"""Below this many parameters evaluation is cheap, so the batch is larger."""
LANES_BUDGET = {"cpu": 2**16, "accelerator": 2**24}
"""Parameters of all runs that train side by side. On a processor only tiny networks gain by it: at
14,000 parameters a step of one run costs the same alone and among eight."""

Extras = Callable[[Array, Array], dict[str, Array]]
"""``extras(index, loss)``: what the host tells the optimizer at an update."""


def evaluation_steps(steps: int) -> Int[np.ndarray, " points"]:
    """Updates made before every evaluation: 0, then every hundredth of the run.

    Example:
      >>> evaluation_steps(4).tolist()
      [0, 1, 2, 3, 4]
    """
    return np.unique(np.round(np.linspace(0, steps, min(EVALUATIONS, steps) + 1)).astype(int))


def num_params(task: Task) -> int:
    """Parameters of a task, counted without making them."""
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


def evaluation_loss(task: Task) -> Callable[[Any], Float[Array, ""]]:
    """The loss on the task's fixed evaluation batch: several minibatches of fixed keys together.

    A task that knows its expected loss, by a method ``expected_loss(params)``, is asked for that.
    """
    exact = getattr(task, "expected_loss", None)
    if exact is not None:
        return exact
    count = 32 if num_params(task) < SMALL_TASK else 8
    batches = jax.vmap(task.sample)(jax.random.split(jax.random.key(EVALUATION_SEED), count))
    # One batch after the other: side by side they would need the memory of all, for every run.
    return lambda params: jnp.mean(jax.lax.map(lambda batch: task.loss(params, batch), batches))


def seeds(count: int) -> Key[Array, " seeds"]:
    """Keys of the judged runs; the first of many are the same as few."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(RUN_SEED), jnp.arange(count))


def learning_curve(
    task: Task,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    steps: int,
    read: Read = last_weights,
    extras: Extras | None = None,
) -> Float[Array, " points"]:
    """Trains one seed; evaluates at :func:`evaluation_steps`.

    Args:
      task: what to train.
      optimizer: any optax transformation.
      key: initial weights and minibatches, the same for every optimizer.
      steps: updates.
      read: which weights to evaluate.
      extras: what the optimizer is told; by default the minibatch loss as ``value`` and the
        fraction of the run as ``progress``.
    """
    transform = optax.with_extra_args_support(optimizer)
    key_init, key_data = jax.random.split(key)
    evaluate = evaluation_loss(task)
    tell = extras or (lambda index, loss: {"value": loss, "progress": index / steps})

    def step(index: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        params, state = carry
        batch = task.sample(jax.random.fold_in(key_data, index))
        loss, grads = jax.value_and_grad(task.loss)(params, batch)
        updates, state = transform.update(grads, state, params, **tell(index, loss))
        return optax.apply_updates(params, updates), state

    def advance(carry: tuple[Any, Any], edges: Array) -> tuple[tuple[Any, Any], Array]:
        carry = jax.lax.fori_loop(edges[0], edges[1], step, carry)
        return carry, evaluate(read(carry[1], carry[0]))

    params = task.init(key_init)
    edges = jnp.asarray(evaluation_steps(steps))
    _, later = jax.lax.scan(
        advance, (params, transform.init(params)), jnp.stack([edges[:-1], edges[1:]], axis=1)
    )
    return jnp.concatenate([evaluate(params)[None], later])


class Runner:
    """Runs lines on one task; programs of lines of one kind are compiled once.

    Args:
      task: what to train.
      steps: updates of a run.
    """

    def __init__(self, task: Task, steps: int):
        self._task, self._steps = task, steps
        self._programs: dict[Any, Callable[[Any, Array, Array], Array]] = {}

    def __call__(self, line: Line, num_seeds: int) -> Float[np.ndarray, "rates seeds points"]:
        """Curves of every rate and seed of a line."""
        count = len(line.rates) * num_seeds
        rates = np.repeat(np.asarray(line.rates, np.float32), num_seeds)
        which = np.tile(np.arange(num_seeds), len(line.rates))
        keys = seeds(num_seeds)[which]
        width = lanes(num_params(self._task), count)
        program = self._program(line, width > 1)
        found = [
            np.asarray(program(line.theta, jnp.asarray(rates[rows]), keys[rows]))
            for rows in _portions(count, width)
        ]
        curves = np.concatenate([np.atleast_2d(part) for part in found])[:count]
        return curves.reshape(len(line.rates), num_seeds, -1)

    def _program(self, line: Line, together: bool) -> Callable[[Any, Array, Array], Array]:
        """The compiled run of a line: one at a time, or several side by side."""

        def one(theta: Any, rate: Array, key: Array) -> Array:
            optimizer = line.make(theta, rate, self._steps)
            return learning_curve(self._task, optimizer, key, self._steps, line.read)

        kind = (line.make, line.read, together)
        if kind not in self._programs:
            self._programs[kind] = jax.jit(jax.vmap(one, (None, 0, 0)) if together else one)
        return self._programs[kind]


def lanes(params: int, runs: int) -> int:
    """Runs that train side by side: as many as keep the processor's caches useful, at least one.

    Large networks fill the machine alone and only cost memory and compilation side by side; small
    ones would leave it idle between operations.
    """
    kind = "cpu" if jax.default_backend() == "cpu" else "accelerator"
    most = max(1, min(runs, LANES_BUDGET[kind] // max(params, 1)))
    # Equal portions, so that the last one is not mostly padding.
    return -(-runs // -(-runs // most))


def _portions(count: int, width: int) -> Iterator[Any]:
    """Row indices of each call: plain integers, or equal slices padded by their first row."""
    starts: Iterable[int] = range(0, count, width)
    for start in starts:
        rows = np.arange(start, start + width)
        yield start if width == 1 else np.where(rows < count, rows, start)
