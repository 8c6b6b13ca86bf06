# SPDX-License-Identifier: Apache-2.0
"""Antithetic perturbations of parameter trees and the gradient they estimate.

Salimans et al. 2017, "Evolution strategies as a scalable alternative to reinforcement learning",
arXiv 1703.03864, section 2; Sarkar et al. 2025, "Evolution strategies at the hyperscale" (EGGROLL),
arXiv 2511.16652, for matrices perturbed by a product of two thin ones. Such a product has the
covariance of full noise, so that the gradient of a quadratic stays unbiased, but it is never
formed: a member stores, draws and multiplies by two thin factors, and the mean's matrix is shared.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree


class LowRankNoise(NamedTuple):
    """Noise ``left @ right.T`` of a matrix; the factor ``1 / sqrt(rank)`` is in ``left``."""

    left: Float[Array, "pairs rows rank"]
    right: Float[Array, "pairs columns rank"]


class LowRankKernel(NamedTuple):
    """The matrix ``center + left @ right.T``, to be multiplied by from the left."""

    center: Float[Array, "rows columns"]
    left: Float[Array, "*batch rows rank"]
    right: Float[Array, "*batch columns rank"]

    def __rmatmul__(self, x: Float[Array, "*batch rows"]) -> Float[Array, "*batch columns"]:
        return x @ self.center + (x @ self.left) @ jnp.swapaxes(self.right, -1, -2)


def sample_noise(
    key: Key[Array, ""], params: PyTree, num_pairs: int, rank: int | None = None
) -> PyTree:
    """Noise of mean 0 and covariance 1, with a leading axis of pairs.

    Args:
      key: typed PRNG key.
      params: what is perturbed.
      num_pairs: of perturbations.
      rank: of the perturbation of a matrix, at least 1; ``None`` means that all of its entries are
        drawn. Leaves that are no matrices are always drawn in full.

    Returns:
      The structure of ``params`` with normal leaves ``[pairs, ...]``, or a :class:`LowRankNoise`
      where a matrix was.
    """
    leaves, structure = jax.tree.flatten(params)
    sizes = [_num_draws(leaf, rank) for leaf in leaves]
    # One draw for all leaves: the compiler takes a second for each, and more for each after it.
    drawn = jax.random.normal(key, (num_pairs, sum(sizes)), jnp.float32)
    parts = jnp.split(drawn, list(itertools.accumulate(sizes))[:-1], axis=1)
    noise = [_shaped(part, leaf, rank) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, noise)


def _num_draws(leaf: Array, rank: int | None) -> int:
    """Normal numbers that perturb a leaf."""
    return leaf.size if rank is None or leaf.ndim != 2 else rank * sum(leaf.shape)


def _shaped(part: Float[Array, "pairs draws"], leaf: Array, rank: int | None) -> Any:
    """The draws of a leaf as its noise."""
    part = part.astype(leaf.dtype)
    if rank is None or leaf.ndim != 2:
        return part.reshape(-1, *leaf.shape)
    rows, columns = leaf.shape
    left, right = jnp.split(part, [rows * rank], axis=1)
    left = left.reshape(-1, rows, rank) / math.sqrt(rank)
    return LowRankNoise(left, right.reshape(-1, columns, rank))


def perturb(params: PyTree, noise: PyTree, std: float) -> PyTree:
    """The population [2, pairs, ...]: all of ``params + std * noise``, and all with minus.

    A matrix with low-rank noise becomes a :class:`LowRankKernel` whose center has no such axes.
    """

    def one(leaf: Array, eps: Any) -> Any:
        if isinstance(eps, LowRankNoise):
            left = std * eps.left
            return LowRankKernel(leaf, jnp.stack([left, -left]), jnp.stack([eps.right, eps.right]))
        return jnp.stack([leaf + std * eps, leaf - std * eps])

    return jax.tree.map(one, params, noise)


def member_axes(population: PyTree, axis: Any, shared: Any) -> PyTree:
    """``axis`` for the leaves of a population that members have of their own, ``shared`` for rest.

    Example:
      >>> member_axes({"bias": jnp.zeros((2, 4, 3))}, 0, None)
      {'bias': 0}
    """

    def one(leaf: Any) -> Any:
        return LowRankKernel(shared, axis, axis) if isinstance(leaf, LowRankKernel) else axis

    return jax.tree.map(one, population, is_leaf=lambda leaf: isinstance(leaf, LowRankKernel))


def estimate_gradient(noise: PyTree, weights: Float[Array, " pairs"]) -> PyTree:
    """``-sum_i weights_i noise_i``: what an optimizer has to descend.

    Args:
      noise: of :func:`sample_noise`.
      weights: of :mod:`robotics.es.shaping`, large for directions along which fitness rises.
    """

    def one(eps: Any) -> Array:
        if isinstance(eps, LowRankNoise):
            return -jnp.einsum("p,pmr,pnr->mn", weights, eps.left, eps.right)
        return -jnp.tensordot(weights, eps, axes=1)

    return jax.tree.map(one, noise, is_leaf=lambda leaf: isinstance(leaf, LowRankNoise))
