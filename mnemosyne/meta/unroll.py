# SPDX-License-Identifier: Apache-2.0
"""The inner problem: a task trained by the learned optimizer, a few steps at a time.

A :class:`Trial` is one draw of everything that is not the optimizer: initial weights, data order,
weight scale, horizon and which extras the host passes. Both members of an antithetic pair see the
same trial.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from mnemosyne.meta import estimators
from mnemosyne.meta.task import Task
from mnemosyne.optimizer import MetaParams, MnemosyneConfig, scale_by_mnemosyne


class Trial(NamedTuple):
    """One inner problem.

    Attributes:
      key: drives initial weights and minibatches.
      log_scale: logarithm of the global weight reparametrisation: the task's weights are
        ``exp(log_scale)`` times the optimized ones (VeLO's augmentation; the main lever of
        generalisation from tiny tasks).
      horizon: length of the problem in updates.
      tells_progress: whether ``progress`` is passed to the optimizer.
      tells_value: whether ``value`` is.
    """

    key: Key[Array, ""]
    log_scale: Float[Array, ""]
    horizon: Int[Array, ""]
    tells_progress: Bool[Array, ""]
    tells_value: Bool[Array, ""]


class Inner(NamedTuple):
    """Where one inner problem stands under one optimizer."""

    params: Any
    opt_state: Any


class Horizon(NamedTuple):
    """Distribution of inner horizons: log-uniform multiples of the truncation, ends included."""

    shortest: int = 100
    longest: int = 2000
    truncation: int = 50


def draw_trial(key: Key[Array, ""], horizon: Horizon, max_log_scale: float) -> Trial:
    """Draws an inner problem: half are reparametrised, half told the progress, most the loss."""
    names = ("run", "scale", "which", "horizon", "progress", "value")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    log_scale = jax.random.uniform(keys["scale"], (), minval=-max_log_scale, maxval=max_log_scale)
    low, high = (
        jnp.log(horizon.shortest / horizon.truncation),
        jnp.log(horizon.longest / horizon.truncation),
    )
    pieces = jnp.exp(jax.random.uniform(keys["horizon"], (), minval=low, maxval=high))
    return Trial(
        key=keys["run"],
        log_scale=jnp.where(jax.random.bernoulli(keys["which"]), log_scale, 0.0),
        horizon=(jnp.round(pieces) * horizon.truncation).astype(jnp.int32),
        tells_progress=jax.random.bernoulli(keys["progress"]),
        tells_value=jax.random.bernoulli(keys["value"], 0.8),
    )


def start(task: Task, trial: Trial, config: MnemosyneConfig, theta: MetaParams) -> Inner:
    """The inner problem before its first update; independent of the values in ``theta``."""
    params = task.init(jax.random.fold_in(trial.key, 0))
    params = jax.tree.map(lambda x: x * jnp.exp(-trial.log_scale), params)
    return Inner(params, scale_by_mnemosyne(theta, config).init(params))


def unroll(
    task: Task,
    config: MnemosyneConfig,
    theta: MetaParams,
    inner: Inner,
    trial: Trial,
    first_step: Int[Array, ""],
    num_steps: int,
) -> tuple[Inner, Float[Array, " steps"]]:
    """Trains for ``num_steps`` updates.

    Args:
      task: the family.
      config: of the optimizer network.
      theta: its meta-parameters.
      inner: where the problem stands.
      trial: the draw it belongs to.
      first_step: updates made so far.
      num_steps: updates to make.

    Returns:
      The state afterwards, and the minibatch loss before every update.
    """
    optimizer = scale_by_mnemosyne(theta, config)
    scale = jnp.exp(trial.log_scale)

    def loss_fn(params: Any, batch: Any) -> Float[Array, ""]:
        return task.loss(jax.tree.map(lambda x: x * scale, params), batch)

    def step(inner: Inner, index: Array) -> tuple[Inner, Array]:
        batch = task.sample(jax.random.fold_in(trial.key, index + 1))
        loss, grads = jax.value_and_grad(loss_fn)(inner.params, batch)
        updates, opt_state = optimizer.update(
            grads,
            inner.opt_state,
            inner.params,
            value=jnp.where(trial.tells_value, loss, jnp.nan),
            progress=jnp.where(trial.tells_progress, index / trial.horizon, jnp.nan),
        )
        return Inner(optax.apply_updates(inner.params, updates), opt_state), loss

    return jax.lax.scan(step, inner, first_step + jnp.arange(num_steps))


class Running(NamedTuple):
    """One inner problem on its way; the state of :class:`estimators.System`."""

    inner: Inner
    trial: Trial
    step: Int[Array, ""]


def make_system(
    task: Task, config: MnemosyneConfig, horizon: Horizon, max_log_scale: float
) -> estimators.System:
    """A task under the learned optimizer, as the estimators see it.

    Args:
      task: the family.
      config: of the optimizer network.
      horizon: lengths of the inner problems, and of a truncation.
      max_log_scale: see :func:`draw_trial`.
    """

    def reset(theta: MetaParams, key: Key[Array, ""], fraction: Array | float) -> Running:
        trial = draw_trial(key, horizon, max_log_scale)
        pieces = jnp.ceil(fraction * trial.horizon / horizon.truncation)
        trial = trial._replace(horizon=(pieces * horizon.truncation).astype(jnp.int32))
        return Running(start(task, trial, config, theta), trial, jnp.zeros((), jnp.int32))

    def advance(theta: MetaParams, state: Running) -> tuple[Running, Float[Array, ""]]:
        inner, losses = unroll(
            task, config, theta, state.inner, state.trial, state.step, horizon.truncation
        )
        moved = Running(inner, state.trial, state.step + horizon.truncation)
        return moved, jnp.mean(jax.vmap(task.normalize)(losses))

    def finished(state: Running) -> Array:
        return state.step >= state.trial.horizon

    return estimators.System(reset, advance, finished)
