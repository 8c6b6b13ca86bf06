# SPDX-License-Identifier: Apache-2.0
"""Compact associative memory: exponentially discounted linear attention over time, constant space.

Equations (4) and (5) of section 3.3 of Mnemosyne (Jain et al. 2023, arXiv 2302.01128):

    N   <- exp(-tau) N   + phi(k) v^T          Psi <- exp(-tau) Psi + phi(k)
    out  = N^T phi(q) / (phi(q) . Psi)

Several heads share keys and values and differ in their decay, so that one write is remembered on
several time scales. With all keys equal a head is exactly the bias-corrected moving average with
``beta = exp(-tau)``.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class MemoryState(NamedTuple):
    """What the memory holds.

    Attributes:
      matrix: ``N``, the discounted sum of ``phi(k) v^T``, float32.
      mass: ``Psi``, the discounted sum of ``phi(k)``, float32; non-negative.
    """

    matrix: Float[Array, "slots heads r d"]
    mass: Float[Array, "slots heads r"]


def init(num_slots: int, num_heads: int, num_features: int, dim: int) -> MemoryState:
    """An empty memory with ``num_heads * num_features * (dim + 1)`` floats a slot."""
    return MemoryState(
        matrix=jnp.zeros((num_slots, num_heads, num_features, dim)),
        mass=jnp.zeros((num_slots, num_heads, num_features)),
    )


def write(
    state: MemoryState,
    key_features: Float[Array, "slots r"],
    values: Float[Array, "slots d"],
    decay: Float[Array, " heads"],
) -> MemoryState:
    """Equation (4): forget by ``decay = exp(-tau)``, then add one pattern a slot.

    Args:
      state: the memory so far.
      key_features: ``phi(k)``, non-negative. All zero writes nothing (the memory still fades).
      values: ``v``.
      decay: ``exp(-tau)`` of each head, in (0, 1].

    Returns:
      The memory after the write.
    """
    outer = key_features[:, None, :, None] * values[:, None, None, :]
    return MemoryState(
        matrix=decay[:, None, None] * state.matrix + outer,
        mass=decay[:, None] * state.mass + key_features[:, None, :],
    )


def read(
    state: MemoryState, query_features: Float[Array, "slots r"]
) -> Float[Array, "slots heads d"]:
    """Equation (5): the mean of the stored values, weighted by ``exp(-tau age) K(q, k)``.

    An empty memory reads as zero.
    """
    numerator = jnp.einsum("nr,nhrd->nhd", query_features, state.matrix)
    denominator = jnp.einsum("nr,nhr->nh", query_features, state.mass)
    # The kernel is positive, so only an empty memory has denominator 0; the guard makes its
    # read-out 0 instead of nan.
    return numerator / jnp.maximum(denominator, 1e-9)[..., None]


def batch_read(
    query_features: Float[Array, " r"],
    key_features: Float[Array, "time r"],
    values: Float[Array, "time d"],
    tau: float,
) -> Float[Array, " d"]:
    """What :func:`read` returns after ``time`` writes, at once: the masked form, equation (3)."""
    age = jnp.arange(key_features.shape[0])[::-1]
    weights = jnp.exp(-tau * age) * (key_features @ query_features)
    return weights @ values / jnp.sum(weights)
