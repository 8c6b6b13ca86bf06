# SPDX-License-Identifier: Apache-2.0
"""Generalized advantage estimation (Schulman et al. 2016, arXiv 1506.02438, eq. 16)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def compute_gae(
    rewards: Float[Array, "T *batch"],
    values: Float[Array, "T *batch"],
    next_values: Float[Array, "T *batch"],
    termination: Float[Array, "T *batch"],
    truncation: Float[Array, "T *batch"],
    discount: float | Float[Array, ""],
    gae_lambda: float | Float[Array, ""],
) -> tuple[Float[Array, "T *batch"], Float[Array, "T *batch"]]:
    """Advantages and value targets.

    delta_t = r_t + discount (1 - termination_t) V(s'_t) - V(s_t)
    A_t = delta_t + discount gae_lambda (1 - termination_t) (1 - truncation_t) A_{t+1}

    A termination cuts value and sum. A truncation cuts the sum only: what would have come is
    bootstrapped from the value of the observation that the step really led to, not from that of the
    next episode's start.

    Args:
      rewards: r_t.
      values: V(s_t).
      next_values: V(s'_t) of the observation *before* a restart.
      termination: 1 where the environment ended the episode.
      truncation: 1 where only the time limit did.
      discount: in [0, 1].
      gae_lambda: in [0, 1].

    Returns:
      Advantages, and targets ``advantages + values``.
    """
    deltas = rewards + discount * (1.0 - termination) * next_values - values
    decays = discount * gae_lambda * (1.0 - termination) * (1.0 - truncation)

    def step(advantage: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, decay = inputs
        advantage = delta + decay * advantage
        return advantage, advantage

    zero = jnp.zeros_like(deltas[0])
    _, advantages = jax.lax.scan(step, zero, (deltas, decays), reverse=True, unroll=8)
    return advantages, advantages + values
