# SPDX-License-Identifier: Apache-2.0
"""Inner problems that are judged at their end, by what a user of the optimizer would look at.

Windows of a run are short-sighted (Wu et al. 2018, arXiv 1803.02021): shrinking a step at once
lowers the loss of this window, and what it costs comes later. A gradient through a whole run would
see that, but explodes. Evolution strategies over whole runs are neither short-sighted nor explode,
and need few meta-parameters or many runs.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mnemosyne.learned import LearnedOptimizer, Theta
from mnemosyne.meta import unroll
from mnemosyne.meta.estimators import System
from mnemosyne.meta.task import Family, Task
from mnemosyne.meta.unroll import Augmentation, Horizon, Inner, Trial

_LEAST = 1e-3
"""Losses are told apart down to this share of the first one."""


class Running(NamedTuple):
    """One inner problem on its way.

    Attributes:
      inner: where it stands.
      trial: the draw it belongs to.
      step: updates made.
      first: loss before the first update.
      total: sum of the losses so far.
    """

    inner: Inner
    trial: Trial
    step: Int[Array, ""]
    first: Float[Array, ""]
    total: Float[Array, ""]


def score(
    mean: Float[Array, ""], last: Float[Array, ""], first: Float[Array, ""]
) -> Float[Array, ""]:
    """Mean logarithm of two losses relative to the first one; a diverged run counts as tenfold.

    Args:
      mean: loss averaged over the run.
      last: loss of its last window.
      first: loss before the first update.

    Example:
      >>> round(float(score(jnp.asarray(1.0), jnp.asarray(0.25), jnp.asarray(2.0))), 2)
      -1.38
    """
    shares = jnp.stack([mean, last]) / jnp.maximum(jnp.abs(first), 1e-12)
    shares = jnp.where(jnp.isfinite(shares), jnp.clip(shares, 0.0, 10.0), 10.0)
    return jnp.mean(jnp.log(shares + _LEAST))


def make_system(
    task: Task | Family, rule: LearnedOptimizer, horizon: Horizon, augmentation: Augmentation
) -> System:
    """A task under a learned optimizer, whose loss is its :func:`score`, told at the end.

    The windows before cost nothing. Under ``full-es``, which averages over windows, the loss of a
    problem is its score; no other estimator has a use for it, because they look at windows, in
    nearly all of which the two runs of a pair do not differ.

    Args:
      task: what is trained.
      rule: the learned optimizer.
      horizon: lengths of the inner problems, and of a window.
      augmentation: what else varies.
    """

    def reset(theta: Theta, key: Key[Array, ""], fraction: Array | float) -> Running:
        trial = unroll.draw_trial(key, task, horizon, augmentation)
        trial = unroll.shortened(trial, fraction, horizon.truncation)
        inner = unroll.start(task, trial, rule, theta)
        zero = jnp.zeros(())
        first = unroll.first_loss(task, inner, trial)
        return Running(inner, trial, jnp.zeros((), jnp.int32), first, zero)

    def advance(theta: Theta, state: Running) -> tuple[Running, Float[Array, ""]]:
        inner, losses = unroll.unroll(
            task,
            rule,
            theta,
            state.inner,
            state.trial,
            state.step,
            horizon.truncation,
            averaged=False,
        )
        moved = state._replace(
            inner=inner,
            step=state.step + horizon.truncation,
            total=state.total + jnp.sum(losses),
        )
        found = score(moved.total / moved.step, jnp.mean(losses), state.first)
        windows = moved.step / horizon.truncation
        return moved, jnp.where(finished(moved), windows * found, 0.0)

    def finished(state: Running) -> Array:
        return state.step >= state.trial.horizon

    return System(reset, advance, finished)
