# SPDX-License-Identifier: Apache-2.0
"""The tanh-normal distribution of actions: a = tanh(u), u ~ N(mean, std^2), entries independent.

Densities are functions of the pre-tanh ``u``: ``atanh(a)`` loses everything near the ends of the
range.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def log_det_tanh(u: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(1 - tanh(u)^2), elementwise and finite for every finite ``u``.

    The identity 2 (log 2 - u - softplus(-2u)) does not cancel where tanh(u) rounds to 1.
    """
    return 2.0 * (math.log(2.0) - u - jax.nn.softplus(-2.0 * u))


def sample(
    mean: Float[Array, "*batch action"],
    std: Float[Array, "*#batch action"],
    noise: Float[Array, "*batch action"],
) -> Float[Array, "*batch action"]:
    """The pre-tanh action ``u`` for standard normal ``noise``."""
    return mean + std * noise


def log_prob(
    mean: Float[Array, "*batch action"],
    std: Float[Array, "*#batch action"],
    u: Float[Array, "*batch action"],
) -> Float[Array, "*batch"]:
    """Log-density of the action tanh(u), summed over action entries.

    Args:
      mean: mean of ``u``.
      std: standard deviation of ``u``, above 0.
      u: pre-tanh action.
    """
    normal = -0.5 * jnp.square((u - mean) / std) - jnp.log(std) - _HALF_LOG_2PI
    return jnp.sum(normal - log_det_tanh(u), axis=-1)


def entropy(
    mean: Float[Array, "*batch action"], std: Float[Array, "*#batch action"]
) -> Float[Array, "*batch"]:
    """Differential entropy of the action, summed over entries; at most ``actions * log 2``.

    H = 1/2 log(2 pi e) + log std + E[log(1 - tanh(u)^2)]; the expectation by Gauss-Hermite
    quadrature with 7 nodes, which needs no random numbers. Error below 0.01 per entry for std <= 1
    and below 0.1 for std <= 2.
    """
    nodes = jnp.asarray(_NODES, mean.dtype).reshape((-1,) + (1,) * mean.ndim)
    weights = jnp.asarray(_WEIGHTS, mean.dtype)
    squash = jnp.tensordot(weights, log_det_tanh(mean + std * nodes), axes=1)
    return jnp.sum(0.5 + _HALF_LOG_2PI + jnp.log(std) + squash, axis=-1)
