# SPDX-License-Identifier: Apache-2.0
"""Antithetic perturbations of parameter trees and the gradient they estimate.

Salimans et al. 2017, "Evolution strategies as a scalable alternative to reinforcement learning",
arXiv 1703.03864, section 2 and the rank shaping of section 2.1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree


def sample_noise(key: Key[Array, ""], params: PyTree, num_pairs: int) -> PyTree:
    """Standard normal noise: the structure of ``params``, leaves with a leading axis of pairs."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noise = [
        jax.random.normal(key, (num_pairs, *leaf.shape), leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, noise)


def perturb(params: PyTree, noise: PyTree, std: float) -> PyTree:
    """The population [2 * pairs, ...]: all of ``params + std * noise``, then all with minus."""
    return jax.tree.map(
        lambda leaf, eps: jnp.concatenate([leaf + std * eps, leaf - std * eps]), params, noise
    )


def centered_ranks(fitness: Float[Array, " members"]) -> Float[Array, " members"]:
    """Ranks, spread evenly over [-0.5, 0.5]; ties share their mean rank, non-finite is worst.

    Without shared ranks, members of equal fitness would pull the mean in an arbitrary direction.
    """
    fitness = jnp.where(jnp.isfinite(fitness), fitness, -jnp.inf)
    below = jnp.sum(fitness[:, None] > fitness[None, :], axis=1)
    equal = jnp.sum(fitness[:, None] == fitness[None, :], axis=1)
    ranks = below + 0.5 * (equal - 1)
    return ranks / (fitness.shape[0] - 1) - 0.5


def estimate_gradient(noise: PyTree, shaped: Float[Array, " members"], std: float) -> PyTree:
    """Gradient of *minus* the mean shaped fitness, for optimizers that descend.

    -1 / (2 pairs std) * sum_i (shaped+_i - shaped-_i) noise_i

    Args:
      noise: of :func:`sample_noise`.
      shaped: shaped fitness of the members, in the order of :func:`perturb`.
      std: standard deviation of the perturbations.
    """
    plus, minus = jnp.split(shaped, 2)
    weights = (minus - plus) / (2.0 * plus.shape[0] * std)
    return jax.tree.map(lambda eps: jnp.tensordot(weights, eps, axes=1), noise)
