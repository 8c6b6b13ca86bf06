# SPDX-License-Identifier: Apache-2.0
"""The inner problem: a task trained by a learned optimizer.

A :class:`Trial` is one draw of everything that is not the optimizer: initial weights, data order,
units of the weights, horizon and which extras the host passes. Both members of an antithetic pair
see the same trial. :func:`make_system` hands the problem to the estimators, a truncation at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from mnemosyne.learned import LearnedOptimizer, Theta
from mnemosyne.meta.estimators import System
from mnemosyne.meta.task import Family, Task, draw_task

BLOCK = 25
"""Updates between two states that a backward pass keeps where it cannot keep all."""
KEPT = 2**25
"""Numbers of one inner problem that a backward pass may keep: 128 MiB."""
_DRAW = 2**31
"""Keys of initial weights and of updates are numbered from 0; this one draws the task."""


class Horizon(NamedTuple):
    """Distribution of inner horizons: log-uniform multiples of the truncation, ends included."""

    shortest: int = 100
    longest: int = 2000
    truncation: int = 50

    def draw(self, uniform: Float[Array, ""]) -> Int[Array, ""]:
        """Truncations of a problem, from a number in [0, 1)."""
        low, high = (math.log(x / self.truncation) for x in (self.shortest, self.longest))
        return jnp.round(jnp.exp(low + (high - low) * uniform)).astype(jnp.int32)


class Augmentation(NamedTuple):
    """What is varied from trial to trial, besides weights and data.

    Attributes:
      max_log_scale: half of the problems have their weights reparametrised, all by one factor
        ``exp(s)`` with ``|s|`` up to this (VeLO, arXiv 2211.09760; the main lever of
        generalisation from tiny tasks).
      tensor_log_scale: the same, tensor by tensor: standard deviation of further logarithms.
      fixed_batch: probability of the same minibatch at every step, a problem without noise.
      tells_progress: probability that ``progress`` is passed.
      tells_value: probability that ``value`` is.
    """

    max_log_scale: float = 3.4
    tensor_log_scale: float = 0.5
    fixed_batch: float = 0.15
    tells_progress: float = 0.7
    tells_value: float = 0.8


class Trial(NamedTuple):
    """One inner problem.

    Attributes:
      key: drives initial weights and minibatches, and which task of a family it is.
      log_scales: the task's weights are ``exp(log_scales[i])`` times the optimized tensor ``i``.
      horizon: length of the problem in updates.
      fixed_batch: whether all updates see the same minibatch.
      tells_progress: whether ``progress`` is passed to the optimizer.
      tells_value: whether ``value`` is.
    """

    key: Key[Array, ""]
    log_scales: Float[Array, " tensors"]
    horizon: Int[Array, ""]
    fixed_batch: Bool[Array, ""]
    tells_progress: Bool[Array, ""]
    tells_value: Bool[Array, ""]


class Inner(NamedTuple):
    """Where one inner problem stands under one optimizer.

    Attributes:
      params: the weights, in the optimizer's units.
      average: their running average over the last sixth of the run, at most fifty updates; where
        nobody asks for its loss, the weights at the start.
      opt_state: of the learned optimizer.
    """

    params: Any
    average: Any
    opt_state: Any


def draw_trial(
    key: Key[Array, ""], task: Task | Family, horizon: Horizon, augmentation: Augmentation
) -> Trial:
    """Draws an inner problem. Few draws, because each takes a second to compile."""
    key_run, key_uniform, key_normal = jax.random.split(key, 3)
    uniform = jax.random.uniform(key_uniform, (6,))
    count = len(jax.tree.leaves(jax.eval_shape(lambda k: draw_task(task, k).init(k), key)))
    scale = jnp.where(uniform[0] < 0.5, augmentation.max_log_scale * (2 * uniform[1] - 1), 0.0)
    spread = jnp.where(uniform[0] < 0.25, augmentation.tensor_log_scale, 0.0)
    return Trial(
        key=key_run,
        log_scales=scale + spread * jax.random.normal(key_normal, (count,)),
        horizon=horizon.draw(uniform[2]) * horizon.truncation,
        fixed_batch=uniform[3] < augmentation.fixed_batch,
        tells_progress=uniform[4] < augmentation.tells_progress,
        tells_value=uniform[5] < augmentation.tells_value,
    )


def _rescaled(params: Any, log_scales: Float[Array, " tensors"]) -> Any:
    leaves, treedef = jax.tree.flatten(params)
    factors = jnp.exp(log_scales)
    return treedef.unflatten([leaf * factors[i] for i, leaf in enumerate(leaves)])


def _task_of(trial: Trial, task: Task | Family) -> Task:
    return draw_task(task, jax.random.fold_in(trial.key, _DRAW))


def start(task: Task | Family, trial: Trial, rule: LearnedOptimizer, theta: Theta) -> Inner:
    """The inner problem before its first update."""
    fresh = _task_of(trial, task).init(jax.random.fold_in(trial.key, 0))
    params = _rescaled(fresh, -trial.log_scales)
    return Inner(params, params, rule.transform(theta).init(params))


def shortened(trial: Trial, fraction: Array | float, truncation: int) -> Trial:
    """The same problem, cut to a fraction of its length; whole truncations, at least one."""
    pieces = jnp.ceil(fraction * trial.horizon / truncation)
    return trial._replace(horizon=(pieces * truncation).astype(jnp.int32))


def first_loss(task: Task | Family, inner: Inner, trial: Trial) -> Float[Array, ""]:
    """The minibatch loss before the first update."""
    drawn = _task_of(trial, task)
    batch = drawn.sample(jax.random.fold_in(trial.key, 1))
    return drawn.loss(_rescaled(inner.params, trial.log_scales), batch)


def _raw_share(progress: Array, trial: Trial) -> Array:
    """Share of the weights' own loss in what counts; the rest is the loss of their average.

    A window of a long run rewards small steps: they reduce noise at once, and what they cost is
    paid later (short-horizon bias, Wu et al. 2018, arXiv 1803.02021). The average has little noise
    whatever the step, so its loss says what the run would be worth if it were annealed now. Near
    the end, and where the end is not known, the weights count as they are.
    """
    return jnp.where(trial.tells_progress, jnp.clip(10.0 * progress - 8.0, 0.0, 1.0), 1.0)


def unroll(
    task: Task | Family,
    rule: LearnedOptimizer,
    theta: Theta,
    inner: Inner,
    trial: Trial,
    first_step: Int[Array, ""],
    num_steps: int,
    *,
    averaged: bool = True,
) -> tuple[Inner, Float[Array, " steps"]]:
    """Trains for ``num_steps`` updates.

    Args:
      task: what is trained; of a family, the one that the trial draws.
      rule: the learned optimizer.
      theta: its meta-parameters.
      inner: where the problem stands.
      trial: the draw it belongs to.
      first_step: updates made so far.
      num_steps: updates to make.
      averaged: whether the loss of the running average counts, and is computed, at all.

    Returns:
      The state afterwards, and the minibatch loss before every update: of the weights, of their
      average, or between (see :func:`_raw_share`).
    """
    optimizer, drawn = rule.transform(theta), _task_of(trial, task)

    def loss_fn(params: Any, batch: Any) -> Float[Array, ""]:
        return drawn.loss(_rescaled(params, trial.log_scales), batch)

    def step(inner: Inner, index: Array) -> tuple[Inner, Array]:
        batch_index = jnp.where(trial.fixed_batch, 1, index + 1)
        batch = drawn.sample(jax.random.fold_in(trial.key, batch_index))
        loss, grads = jax.value_and_grad(loss_fn)(inner.params, batch)
        progress = index / trial.horizon
        updates, opt_state = optimizer.update(
            grads,
            inner.opt_state,
            inner.params,
            value=jnp.where(trial.tells_value, loss, jnp.nan),
            progress=jnp.where(trial.tells_progress, progress, jnp.nan),
        )
        params = optax.apply_updates(inner.params, updates)
        if not averaged:
            return Inner(params, inner.average, opt_state), loss
        raw = _raw_share(progress, trial)
        counted = raw * loss + (1.0 - raw) * loss_fn(inner.average, batch)
        share = jnp.maximum(1.0 / (1.0 + index / 6.0), 0.02)
        average = jax.tree.map(lambda a, p: a + share * (p - a), inner.average, params)
        return Inner(params, average, opt_state), counted

    return _scan(step, inner, first_step + jnp.arange(num_steps))


def _scan(
    step: Callable[[Inner, Array], tuple[Inner, Array]], inner: Inner, indices: Int[Array, " steps"]
) -> tuple[Inner, Float[Array, " steps"]]:
    """``jax.lax.scan`` whose backward pass keeps states and repeats what is inside of an update.

    It keeps the state before every update; if that is too much, every :data:`BLOCK` updates, and
    those of a block again while it is in it, for a third forward pass. Windows that are no multiple
    of a block are short enough to be kept whole.
    """
    once, count = jax.checkpoint(step), len(indices)
    if count * sum(leaf.size for leaf in jax.tree.leaves(inner)) <= KEPT or count % BLOCK:
        return jax.lax.scan(once, inner, indices)
    block = jax.checkpoint(lambda inner, part: jax.lax.scan(once, inner, part))
    inner, losses = jax.lax.scan(block, inner, indices.reshape(-1, BLOCK))
    return inner, losses.reshape(-1)


def _late_mean(losses: Float[Array, " steps"]) -> Float[Array, ""]:
    """Mean of a window's losses with the cube of their place as weight: half is the last sixth.

    An even mean would reward the large first steps that bring the loss down at once. On deep
    networks their damage stays.
    """
    weights = (jnp.arange(losses.size) + 1.0) ** 3
    return jnp.sum(losses * weights) / jnp.sum(weights)


class Running(NamedTuple):
    """One inner problem on its way; the state of :class:`estimators.System`."""

    inner: Inner
    trial: Trial
    step: Int[Array, ""]


def make_system(
    task: Task | Family, rule: LearnedOptimizer, horizon: Horizon, augmentation: Augmentation
) -> System:
    """A task under a learned optimizer, one truncation at a time.

    Args:
      task: what is trained.
      rule: the learned optimizer.
      horizon: lengths of the inner problems, and of a truncation.
      augmentation: what else varies.
    """

    def reset(theta: Theta, key: Key[Array, ""], fraction: Array | float) -> Running:
        trial = draw_trial(key, task, horizon, augmentation)
        trial = shortened(trial, fraction, horizon.truncation)
        return Running(start(task, trial, rule, theta), trial, jnp.zeros((), jnp.int32))

    def advance(theta: Theta, state: Running) -> tuple[Running, Float[Array, ""]]:
        inner, losses = unroll(
            task, rule, theta, state.inner, state.trial, state.step, horizon.truncation
        )
        moved = Running(inner, state.trial, state.step + horizon.truncation)
        loss = _late_mean(jax.vmap(_task_of(state.trial, task).normalize)(losses))
        # Late differences are small, yet the end of a run is what its user keeps.
        middle = (state.step + 0.5 * horizon.truncation) / state.trial.horizon
        return moved, (0.5 + middle) * loss

    def finished(state: Running) -> Array:
        return state.step >= state.trial.horizon

    return System(reset, advance, finished)
