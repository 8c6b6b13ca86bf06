# SPDX-License-Identifier: Apache-2.0
"""Evolution strategies: antithetic pairs, from whole problems to one truncation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from mnemosyne.meta.estimators.interface import (
    Contribution,
    Estimator,
    State,
    System,
    Theta,
    init_state,
    restart,
)


class PESState(NamedTuple):
    """One antithetic pair.

    Attributes:
      plus, minus: states under ``theta + eps`` and ``theta - eps``.
      accumulated: PES: the sum of the perturbations since the last reset (minus has its negative);
        ES-Single: the perturbation of this inner problem in units of ``sigma``.
    """

    plus: State
    minus: State
    accumulated: Theta


def make(name: str, sigma: float, clip: float, sign_scale: float | None) -> Estimator:
    """One of the four by name; the arguments are those of :func:`pes_gradient`."""
    init, advance = _PAIRS[name]
    return Estimator(
        name,
        init,
        functools.partial(advance, sigma),
        lambda c: pes_gradient(c.direction, c.losses, sigma, clip, sign_scale),
    )


def unit_noise(key: Key[Array, ""], theta: Theta) -> Theta:
    """Standard normal noise like ``theta``.

    Drawn as one vector and cut into leaves: a draw a leaf would multiply the time of compilation.
    """
    leaves, treedef = jax.tree.flatten(theta)
    ends = np.cumsum([leaf.size for leaf in leaves])
    pieces = jnp.split(jax.random.normal(key, (int(ends[-1]),)), ends[:-1])
    return treedef.unflatten([p.reshape(x.shape) for p, x in zip(pieces, leaves, strict=True)])


def perturbation(key: Key[Array, ""], theta: Theta, mask: Theta, sigma: float) -> Theta:
    """Gaussian noise like ``theta`` with standard deviation ``sigma * mask``."""
    return _scaled(unit_noise(key, theta), mask, sigma)


def _scaled(noise: Theta, mask: Theta, sigma: float) -> Theta:
    return jax.tree.map(lambda n, m: sigma * m * n, noise, mask)


def _around(theta: Theta, eps: Theta) -> Theta:
    """``theta + eps`` and ``theta - eps``, stacked."""
    return jax.tree.map(lambda t, e: jnp.stack([t + e, t - e]), theta, eps)


def _advance_pair(
    system: System, theta: Theta, eps: Theta, state: PESState
) -> tuple[State, State, Float[Array, " 2"]]:
    """Both members by one truncation, in one batch."""
    both = jax.tree.map(lambda p, m: jnp.stack([p, m]), state.plus, state.minus)
    both, losses = jax.vmap(system.advance)(_around(theta, eps), both)
    plus, minus = (jax.tree.map(lambda x, i=i: x[i], both) for i in (0, 1))
    return plus, minus, losses


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
    fraction: Array | float = 1.0,
) -> tuple[PESState, Float[Array, " 2"]]:
    """Advances one pair by one truncation.

    Args:
      system: the inner problem.
      theta: outer parameters.
      mask: like ``theta``, the unit in which each entry is perturbed; 0 where it stays.
      sigma: standard deviation of the perturbations.
      state: the pair.
      key: for the perturbation and a possible reset.
      fraction: of its length that an inner problem is cut to if it starts now.

    Returns:
      The pair, with the new perturbation accumulated, and the losses of both members.
    """
    key_reset, key_noise = jax.random.split(key)
    # Both members share the horizon, so one of them decides for the pair.
    fresh = pes_init(system, theta, key_reset, fraction)
    state = restart(system.finished(state.plus), fresh, state)
    eps = perturbation(key_noise, theta, mask, sigma)
    plus, minus, losses = _advance_pair(system, theta, eps, state)
    return PESState(plus, minus, jax.tree.map(jnp.add, state.accumulated, eps)), losses


def pes_gradient(
    accumulated: Theta,
    losses: Float[Array, "pairs 2"],
    sigma: float,
    clip: float = float("inf"),
    sign_scale: float | None = None,
) -> Theta:
    """The estimate ``mean_i xi_i (L_i+ - L_i-) / (2 sigma^2)``.

    Args:
      accumulated: perturbations ``xi``, leading axis ``pairs``.
      losses: of both members.
      sigma: standard deviation of the perturbations.
      clip: bound of a difference, in multiples of the median absolute difference, which then is
        the unit: long unrolls have heavy tails, and a family of sensitive problems must not outvote
        the others. Infinite for neither. A difference that is not finite counts as zero.
      sign_scale: replaces a difference by its sign times this number.

    Returns:
      A gradient like theta.
    """
    difference = losses[:, 0] - losses[:, 1]
    difference = jnp.where(jnp.isfinite(difference), difference, 0.0)
    if sign_scale is not None:
        difference = sign_scale * jnp.sign(difference)
    elif clip < float("inf"):
        unit = jnp.median(jnp.abs(difference))
        difference = jnp.clip(difference, -clip * unit, clip * unit) / jnp.maximum(unit, 1e-12)
    weights = difference / (2.0 * sigma**2 * difference.shape[0])
    return jax.tree.map(lambda x: jnp.tensordot(weights, x, axes=1), accumulated)


def _pes_contribution(
    sigma: float,
    system: System,
    theta: Theta,
    mask: Theta,
    state: PESState,
    key: Key[Array, ""],
    fraction: Array | float = 1.0,
) -> tuple[PESState, Contribution]:
    state, losses = pes_advance(system, theta, mask, sigma, state, key, fraction)
    return state, Contribution(state.accumulated, losses)


def _single_init(
    system: System, theta: Theta, key: Key[Array, ""], fraction: Array | float = 1.0
) -> PESState:
    """A pair with the noise of its inner problem, still without scale and mask."""
    key_reset, key_noise = jax.random.split(key)
    state = system.reset(theta, key_reset, fraction)
    return PESState(state, state, unit_noise(key_noise, theta))


def _single_advance(
    sigma: float,
    system: System,
    theta: Theta,
    mask: Theta,
    state: PESState,
    key: Key[Array, ""],
    fraction: Array | float = 1.0,
) -> tuple[PESState, Contribution]:
    """ES-Single: the same perturbation until the inner problem ends."""
    fresh = _single_init(system, theta, key, fraction)
    state = restart(system.finished(state.plus), fresh, state)
    eps = _scaled(state.accumulated, mask, sigma)
    plus, minus, losses = _advance_pair(system, theta, eps, state)
    return PESState(plus, minus, state.accumulated), Contribution(eps, losses)


def _truncated_advance(
    sigma: float,
    system: System,
    theta: Theta,
    mask: Theta,
    state: State,
    key: Key[Array, ""],
    fraction: Array | float = 1.0,
) -> tuple[State, Contribution]:
    """Truncated ES; the state is carried on under theta itself, the perturbed ones are dropped."""
    key_reset, key_noise = jax.random.split(key)
    state = restart(system.finished(state), system.reset(theta, key_reset, fraction), state)
    eps = perturbation(key_noise, theta, mask, sigma)
    points = jax.tree.map(lambda t, e: jnp.stack([t + e, t - e, t]), theta, eps)
    moved, losses = jax.vmap(system.advance, in_axes=(0, None))(points, state)
    return jax.tree.map(lambda x: x[2], moved), Contribution(eps, losses[:2])


def _nothing_init(
    system: System, theta: Theta, key: Key[Array, ""], fraction: Array | float = 1.0
) -> tuple[()]:
    """Full ES starts anew every time, so there is no phase to scatter."""
    del system, theta, key, fraction
    return ()


def _full_advance(
    sigma: float,
    system: System,
    theta: Theta,
    mask: Theta,
    state: tuple[()],
    key: Key[Array, ""],
    fraction: Array | float = 1.0,
) -> tuple[tuple[()], Contribution]:
    """A whole inner problem; in a batch the longest decides the time. Losses are means over it."""
    key_reset, key_noise = jax.random.split(key)
    eps = perturbation(key_noise, theta, mask, sigma)
    pair = pes_init(system, theta, key_reset, fraction)

    def piece(carry: tuple[PESState, Array, Array]) -> tuple[PESState, Array, Array]:
        pair, total, count = carry
        plus, minus, losses = _advance_pair(system, theta, eps, pair)
        return PESState(plus, minus, pair.accumulated), total + losses, count + 1

    start = (pair, jnp.zeros(2), jnp.zeros((), jnp.int32))
    _, total, count = jax.lax.while_loop(
        lambda carry: jnp.logical_not(system.finished(carry[0].plus)), piece, start
    )
    return state, Contribution(eps, total / count)


_PAIRS: dict[str, tuple[Callable[..., State], Callable[..., tuple[State, Contribution]]]] = {
    "full-es": (_nothing_init, _full_advance),
    "truncated-es": (init_state, _truncated_advance),
    "pes": (pes_init, _pes_contribution),
    "es-single": (_single_init, _single_advance),
}
