# SPDX-License-Identifier: Apache-2.0
"""Losses of tasks and the scale that is common to them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cross_entropies(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Negative log-probabilities of the labels, nats."""
    log_probs = jax.nn.log_softmax(logits)
    # A one-hot product: gathers of single entries are slow under vmap on the CPU.
    return -jnp.sum(log_probs * jax.nn.one_hot(labels, log_probs.shape[-1]), axis=-1)


def cross_entropy(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Float[Array, ""]:
    """Mean of :func:`cross_entropies`."""
    return jnp.mean(cross_entropies(logits, labels))


def normalize(loss: Float[Array, ""], chance: float) -> Float[Array, ""]:
    """Half the loss over chance, half its logarithm: early speed and late precision both count.

    Clipped at one and a half times chance, so that one diverged run cannot dominate a
    meta-gradient.

    Args:
      loss: of a minibatch, at least zero.
      chance: loss of a model that has learned nothing, above zero.
    """
    relative = jnp.clip(loss / chance, 0.0, 1.5)
    relative = jnp.where(jnp.isfinite(loss), relative, 1.5)
    return 0.5 * relative + 0.5 * 0.25 * jnp.log(relative + 0.01)
