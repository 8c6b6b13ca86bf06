# SPDX-License-Identifier: Apache-2.0
"""How much each pair of perturbations counts, from the fitness of its two members."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def centered_ranks(fitness: Float[Array, " members"]) -> Float[Array, " members"]:
    """Ranks, spread evenly over [-0.5, 0.5]; ties share their mean rank, non-finite is worst.

    Without shared ranks, members of equal fitness would pull the mean in an arbitrary direction.
    """
    fitness = jnp.where(jnp.isfinite(fitness), fitness, -jnp.inf)
    below = jnp.sum(fitness[:, None] > fitness[None, :], axis=1)
    equal = jnp.sum(fitness[:, None] == fitness[None, :], axis=1)
    # One division of whole numbers: equal members get exactly zero, on every machine.
    return (2 * below + equal - len(fitness)) / (2 * (len(fitness) - 1))


def gradient_weights(shaped: Float[Array, "2 pairs"], std: float) -> Float[Array, " pairs"]:
    """``(shaped+_i - shaped-_i) / (2 pairs std)``: the gradient of the mean shaped fitness.

    Args:
      shaped: fitness of the members with plus and of those with minus.
      std: standard deviation of the perturbations.
    """
    return (shaped[0] - shaped[1]) / (2.0 * shaped.shape[1] * std)


def rank_weights(fitness: Float[Array, "2 pairs"], std: float) -> Float[Array, " pairs"]:
    """:func:`gradient_weights` of centered ranks (Salimans et al. 2017, section 2.1)."""
    return gradient_weights(centered_ranks(fitness.ravel()).reshape(fitness.shape), std)


def ars_weights(fitness: Float[Array, "2 pairs"], top: int) -> Float[Array, " pairs"]:
    """Step of augmented random search (Mania, Guy, Recht 2018, arXiv 1803.07055, algorithm 2).

    ``(r+_i - r-_i) / (top sigma_R)`` for the ``top`` pairs with the largest ``max(r+_i, r-_i)``, 0
    for all others; sigma_R is the standard deviation of the ``2 top`` returns used. A pair with a
    return that is not finite is never used.

    Args:
      fitness: returns r+ and r-.
      top: pairs used, from 1 to all.
    """
    finite = jnp.all(jnp.isfinite(fitness), axis=0)
    best = jnp.where(finite, jnp.max(fitness, axis=0), -jnp.inf)
    chosen = jax.lax.top_k(best, top)[1]
    used = finite[chosen].astype(fitness.dtype)
    returns = jnp.where(used > 0, fitness[:, chosen], 0.0)
    count = jnp.maximum(jnp.sum(used), 1.0)
    mean = jnp.sum(returns) / (2.0 * count)
    sigma = jnp.sqrt(jnp.sum(used * jnp.square(returns - mean)) / (2.0 * count))
    # Equal returns say nothing: their differences are 0, whatever they are divided by.
    steps = (returns[0] - returns[1]) / (count * jnp.where(sigma > 0, sigma, 1.0))
    return jnp.zeros(fitness.shape[1], fitness.dtype).at[chosen].set(steps)
