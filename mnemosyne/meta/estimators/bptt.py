# SPDX-License-Identifier: Apache-2.0
"""Truncated backpropagation through time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
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


def make(clip: float) -> Estimator:
    """BPTT; see :func:`gradient` for what ``clip`` bounds."""
    return Estimator("bptt", init_state, advance, lambda c: gradient(c, clip))


def advance(
    system: System,
    theta: Theta,
    mask: Theta,
    state: State,
    key: Key[Array, ""],
    fraction: Array | float = 1.0,
) -> tuple[State, Contribution]:
    """Truncated BPTT; the state at the start of a truncation counts as a constant."""
    state = restart(system.finished(state), system.reset(theta, key, fraction), state)

    def loss_of(theta: Theta) -> tuple[Float[Array, ""], State]:
        moved, loss = system.advance(theta, state)
        return loss, moved

    (loss, moved), gradient = jax.value_and_grad(loss_of, has_aux=True)(theta)
    return moved, Contribution(jax.tree.map(jnp.multiply, gradient, mask), loss[None])


def gradient(contributions: Contribution, clip: float) -> Theta:
    """The mean over workers; one whose gradient is not finite counts as zero.

    Args:
      contributions: of all workers.
      clip: bound of a worker's gradient norm in multiples of the median one, which then is the unit
        of the mean: problems whose loss falls by orders of magnitude must not outvote the others.
        Infinite for neither bound nor unit.
    """
    leaves = jax.tree.leaves(contributions.direction)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim))) for x in leaves))
    finite = jnp.isfinite(norm)
    norm = jnp.where(finite, norm, 0.0)
    weights = finite / norm.shape[0]
    if clip < float("inf"):
        unit = jnp.maximum(jnp.median(norm), 1e-30)
        weights *= jnp.minimum(1.0 / unit, clip / jnp.maximum(norm, 1e-30))

    def mean(x: Array) -> Array:
        # Zero times nan would be nan.
        return jnp.tensordot(weights, jnp.where(jnp.isfinite(x), x, 0.0), axes=1)

    return jax.tree.map(mean, contributions.direction)
