# SPDX-License-Identifier: Apache-2.0
"""Learning curves of any optax optimizer on a task, and the tuned Adam to hold them against."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from mnemosyne.learned import LearnedOptimizer, Theta
from mnemosyne.meta.task import Task

ADAM_RATES = tuple(float(rate) for rate in np.logspace(-4, 0, 9))
"""Nine fixed rates, half a decade apart; the best one is never at an end on the tasks we ship
for."""


class Curves(NamedTuple):
    """Training losses of several seeds.

    Attributes:
      loss: minibatch loss before every update; infinite where it was not finite, 0 after the end.
      final: mean loss of the last weights on 16 fresh minibatches.
      mean: loss averaged over the run; a diverged run counts as infinite.
    """

    loss: Float[Array, "*batch steps"]
    final: Float[Array, "*batch"]
    mean: Float[Array, "*batch"]


def train_curve(
    task: Task,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    num_steps: int,
    tell_progress: bool = False,
    length: Int[Array, ""] | None = None,
) -> Curves:
    """Trains one seed; the loss is passed as ``value`` to optimizers that want it.

    Args:
      task: what to train.
      optimizer: any optax transformation.
      key: initial weights and minibatches, the same for every optimizer.
      num_steps: updates.
      tell_progress: pass ``progress`` as well.
      length: updates to make, if fewer; traced, so that one program serves runs of all lengths.
    """
    total = num_steps if length is None else length
    transform = optax.with_extra_args_support(optimizer)
    key_init, key_data, key_final = jax.random.split(key, 3)
    params = task.init(key_init)

    def step(index: Array, carry: tuple[Any, Any, Array]) -> tuple[Any, Any, Array]:
        params, state, losses = carry
        batch = task.sample(jax.random.fold_in(key_data, index))
        loss, grads = jax.value_and_grad(task.loss)(params, batch)
        progress = {"progress": index / total} if tell_progress else {}
        updates, state = transform.update(grads, state, params, value=loss, **progress)
        losses = losses.at[index].set(jnp.where(jnp.isfinite(loss), loss, jnp.inf))
        return optax.apply_updates(params, updates), state, losses

    carry = (params, transform.init(params), jnp.zeros(num_steps))
    params, _, losses = jax.lax.fori_loop(0, total, step, carry)
    final = jax.vmap(lambda k: task.loss(params, task.sample(k)))(jax.random.split(key_final, 16))
    return Curves(losses, jnp.mean(final), jnp.sum(losses) / total)


def seeds(seed: int, count: int) -> Key[Array, " seeds"]:
    """Keys of the validation runs; meta-training never draws them."""
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), 0x5EED), count)


def curves(
    task: Task, make: Callable[[], optax.GradientTransformation], keys: Array, num_steps: int
) -> Curves:
    """:func:`train_curve` for every key, vmapped and jitted."""
    run = jax.jit(jax.vmap(lambda key: train_curve(task, make(), key, num_steps)))
    return run(keys)


def adam_grid(
    task: Task, keys: Array, num_steps: int, rates: Sequence[float] = ADAM_RATES
) -> Curves:
    """Fixed-rate Adam at every rate and seed; leading axes ``[rates, seeds]``."""

    def one(rate: Array, key: Array) -> Curves:
        # A traced learning rate: one compilation serves the whole grid.
        return train_curve(task, optax.adam(lambda _: rate), key, num_steps)

    grid = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))
    return grid(jnp.asarray(rates), keys)


class Envelope(NamedTuple):
    """The best fixed rate of a grid, judged by two measures apart.

    Attributes:
      mean_loss: lowest run-averaged loss over the rates.
      mean_rate: the rate that reached it.
      final_loss: lowest final loss over the rates.
      final_rate: the rate that reached it.
    """

    mean_loss: float
    mean_rate: float
    final_loss: float
    final_rate: float


def envelope(grid: Curves, rates: Sequence[float] = ADAM_RATES) -> Envelope:
    """Reduces a grid ``[rates, seeds]`` by the mean over seeds."""
    mean = np.nan_to_num(np.asarray(grid.mean).mean(axis=1), nan=np.inf)
    final = np.nan_to_num(np.asarray(grid.final).mean(axis=1), nan=np.inf)
    best_mean, best_final = int(mean.argmin()), int(final.argmin())
    return Envelope(
        float(mean[best_mean]), rates[best_mean], float(final[best_final]), rates[best_final]
    )


VALIDATION_STEPS = (200, 1000)
"""Horizons of the validation runs, updates."""
VALIDATION_SEEDS = 4


def make_envelopes(
    tasks: Sequence[Task],
    cache: Callable[[str, Task, Callable[[], dict[str, Any]]], dict[str, Any]],
) -> dict[str, dict[int, Envelope]]:
    """The best of nine Adam rates on every validation task.

    Args:
      tasks: to compute envelopes for.
      cache: ``cache(name, task, compute)`` returns the numbers that are stored for a name and
        task, or stores what ``compute`` gives.

    Returns:
      Envelopes by task name and horizon.
    """
    keys = seeds(0, VALIDATION_SEEDS)
    envelopes: dict[str, dict[int, Envelope]] = {}
    for task in tasks:
        for steps in VALIDATION_STEPS:

            def compute(task: Task = task, steps: int = steps) -> dict[str, Any]:
                return envelope(adam_grid(task, keys, steps))._asdict()

            name = f"{task.name}/adam9/{steps}x{VALIDATION_SEEDS}"
            envelopes.setdefault(task.name, {})[steps] = Envelope(**cache(name, task, compute))
    return envelopes


def make_check(
    tasks: Sequence[Task],
    rule: LearnedOptimizer,
    envelopes: Mapping[str, Mapping[int, Envelope]],
) -> Callable[[Theta], list[dict[str, Any]]]:
    """Validation against the envelopes: no tuning; loss and progress are the only extras.

    Args:
      tasks: what to validate on.
      rule: the learned optimizer.
      envelopes: from :func:`make_envelopes`.

    Returns:
      A function from theta to one row a task and horizon; ``score`` is the mean of two logarithms:
      of the loss averaged over the run and of the final loss, each relative to the envelope's.
      Below 0 is better than tuned Adam.
    """
    keys = seeds(0, VALIDATION_SEEDS)

    def run(theta: Theta, steps: Array, task: Task) -> tuple[Array, Array]:
        optimizer, most = rule.transform(theta), max(VALIDATION_STEPS)
        many = jax.vmap(lambda key: train_curve(task, optimizer, key, most, True, steps))(keys)
        return jnp.mean(many.mean), jnp.mean(many.final)

    compiled = {task.name: jax.jit(functools.partial(run, task=task)) for task in tasks}

    def check(theta: Theta) -> list[dict[str, Any]]:
        rows = []
        for name, function in compiled.items():
            for steps in VALIDATION_STEPS:
                mean, final = (float(x) for x in function(theta, steps=steps))
                rows.append(_row(name, steps, mean, final, envelopes[name][steps]))
        return rows

    return check


_WORST = math.log(1e3)
"""Score of a run that diverged, whether to infinity or only very far."""


def _log_ratio(ours: float, adam: float) -> float:
    # On tiny data both losses may reach zero, where ratios mean nothing.
    return min(math.log((ours + 1e-3) / (adam + 1e-3)), _WORST) if math.isfinite(ours) else _WORST


def _row(name: str, steps: int, mean: float, final: float, adam: Envelope) -> dict[str, Any]:
    score = 0.5 * (_log_ratio(mean, adam.mean_loss) + _log_ratio(final, adam.final_loss))
    return {
        "task": f"{name}/{steps}",
        "score": score,
        "mean_loss": mean,
        "adam_mean_loss": adam.mean_loss,
        "adam_rate": adam.mean_rate,
        "final_loss": final,
        "adam_final_loss": adam.final_loss,
    }
