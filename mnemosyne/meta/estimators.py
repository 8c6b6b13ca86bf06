# SPDX-License-Identifier: Apache-2.0
"""Persistent evolution strategies: unbiased meta-gradients from pieces of long inner problems.

Vicol et al. 2021, "Unbiased Gradient Estimation in Unrolled Computation Graphs with Persistent
Evolution Strategies", algorithm 2, with antithetic pairs that share data and resets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Theta = Any
State = Any


class System(NamedTuple):
    """A dynamical system with outer parameters, one particle at a time.

    Attributes:
      reset: ``reset(theta, key, fraction) -> state``; both members of a pair get the same key. The
        inner problem's horizon is cut to ``fraction`` of its length, below 1 only at the start of
        a run, so that problems do not end together.
      advance: ``advance(theta, state) -> (state, loss)``, one truncation; randomness lives in the
        state and must not depend on ``theta``.
      finished: ``finished(state) -> bool``, whether the inner problem has reached its horizon.
    """

    reset: Callable[[Theta, Key[Array, ""], Array | float], State]
    advance: Callable[[Theta, State], tuple[State, Float[Array, ""]]]
    finished: Callable[[State], Array]


class PESState(NamedTuple):
    """One antithetic pair.

    Attributes:
      plus, minus: states under ``theta + eps`` and ``theta - eps``.
      accumulated: the sum of the perturbations since the last reset; minus has its negative.
    """

    plus: State
    minus: State
    accumulated: Theta


def perturbation(key: Key[Array, ""], theta: Theta, mask: Theta, sigma: float) -> Theta:
    """Gaussian noise like ``theta`` with standard deviation ``sigma``, zero where ``mask`` is 0."""
    leaves, treedef = jax.tree.flatten(theta)
    keys = jax.tree.unflatten(treedef, list(jax.random.split(key, len(leaves))))
    return jax.tree.map(
        lambda k, x, m: sigma * m * jax.random.normal(k, x.shape), keys, theta, mask
    )


def pes_init(
    system: System, theta: Theta, key: Key[Array, ""], fraction: Array | float = 1.0
) -> PESState:
    """A pair at the start of an inner problem."""
    state = system.reset(theta, key, fraction)
    return PESState(state, state, jax.tree.map(jnp.zeros_like, theta))


def pes_advance(
    system: System,
    theta: Theta,
    mask: Theta,
    sigma: float,
    state: PESState,
    key: Key[Array, ""],
) -> tuple[PESState, Float[Array, " 2"]]:
    """Advances one pair by one truncation.

    Args:
      system: the inner problem.
      theta: outer parameters.
      mask: like ``theta``, 1 where it may be perturbed.
      sigma: standard deviation of the perturbations.
      state: the pair.
      key: for the perturbation and a possible reset.

    Returns:
      The pair, with the new perturbation accumulated, and the losses of both members.
    """
    key_reset, key_noise = jax.random.split(key)
    fresh = pes_init(system, theta, key_reset)
    # Both members share the horizon, so one of them decides for the pair.
    done = system.finished(state.plus)
    state = jax.tree.map(lambda f, s: jnp.where(done, f, s), fresh, state)
    eps = perturbation(key_noise, theta, mask, sigma)
    accumulated = jax.tree.map(jnp.add, state.accumulated, eps)
    pair = jax.tree.map(lambda t, e: jnp.stack([t + e, t - e]), theta, eps)
    both = jax.tree.map(lambda p, m: jnp.stack([p, m]), state.plus, state.minus)
    both, losses = jax.vmap(system.advance)(pair, both)
    plus, minus = (jax.tree.map(lambda x, i=i: x[i], both) for i in (0, 1))
    return PESState(plus, minus, accumulated), losses


def pes_gradient(
    accumulated: Theta, losses: Float[Array, "pairs 2"], sigma: float, clip: float = jnp.inf
) -> Theta:
    """The estimate ``mean_i xi_i (L_i+ - L_i-) / (2 sigma^2)``.

    Args:
      accumulated: perturbations ``xi``, leading axis ``pairs``.
      losses: of both members.
      sigma: standard deviation of the perturbations.
      clip: bound of a difference, in multiples of the median absolute difference. Long unrolls have
        heavy tails; a finite bound trades a little bias for much variance. A difference that is not
        finite counts as zero.

    Returns:
      A gradient like theta.
    """
    difference = losses[:, 0] - losses[:, 1]
    finite = jnp.isfinite(difference)
    difference = jnp.where(finite, difference, 0.0)
    if clip < jnp.inf:
        limit = clip * jnp.median(jnp.abs(difference))
        difference = jnp.clip(difference, -limit, limit)
    weights = difference / (2.0 * sigma**2 * difference.shape[0])
    return jax.tree.map(lambda x: jnp.tensordot(weights, x, axes=1), accumulated)
