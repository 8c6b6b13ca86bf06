# SPDX-License-Identifier: Apache-2.0
"""Distributions of actions: tanh-normal where they are numbers, categorical where they are choices.

Tanh-normal: a = tanh(u), u ~ N(mean, std^2), entries independent. Densities are functions of the
pre-tanh ``u``: ``atanh(a)`` loses everything near the ends of the range.

:class:`TanhNormal` and :class:`Categorical` have the same methods. A *raw* action is what learning
keeps, a row of float32: ``u``, or the number of the choice.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

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


class TanhNormal(NamedTuple):
    """a = tanh(u), u ~ N(mean, std^2).

    Attributes:
      mean: mean of ``u``.
      std: standard deviation of ``u``, above 0.
    """

    mean: Float[Array, "*batch action"]
    std: Float[Array, "*#batch action"]

    def sample(self, noise: Float[Array, "*batch action"]) -> Float[Array, "*batch action"]:
        """The raw action for noise from :func:`draw_noise`."""
        return sample(self.mean, self.std, noise)

    def log_prob(self, raw: Float[Array, "*batch action"]) -> Float[Array, "*batch"]:
        """Log-density of a raw action."""
        return log_prob(self.mean, self.std, raw)

    def entropy(self) -> Float[Array, "*batch"]:
        """Differential entropy of the action."""
        return entropy(self.mean, self.std)

    def mode(self) -> Float[Array, "*batch action"]:
        """The raw action of the deterministic policy."""
        return self.mean

    def action(self, raw: Float[Array, "*batch action"]) -> Float[Array, "*batch action"]:
        """What the environment gets, in [-1, 1]."""
        return jnp.tanh(raw)


class Categorical(NamedTuple):
    """One of n choices.

    Attributes:
      logits: logarithms of the probabilities, up to a constant.
    """

    logits: Float[Array, "*batch action"]

    def sample(self, noise: Float[Array, "*batch action"]) -> Float[Array, "*batch 1"]:
        """The raw action for noise from :func:`draw_noise` (the Gumbel-max trick)."""
        return _as_raw(jnp.argmax(self.logits + noise, axis=-1))

    def log_prob(self, raw: Float[Array, "*batch 1"]) -> Float[Array, "*batch"]:
        """Log-probability of a raw action."""
        log_probs = jax.nn.log_softmax(self.logits)
        # A sum over a one-hot row: its gradient is a product, that of indexing a scatter.
        chosen = jax.nn.one_hot(self.action(raw), log_probs.shape[-1], dtype=log_probs.dtype)
        return jnp.sum(log_probs * chosen, axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Entropy in nats, at most log n."""
        log_probs = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    def mode(self) -> Float[Array, "*batch 1"]:
        """The raw action of the deterministic policy."""
        return _as_raw(jnp.argmax(self.logits, axis=-1))

    def action(self, raw: Float[Array, "*batch 1"]) -> Int[Array, "*batch"]:
        """What the environment gets, from 0 to n - 1."""
        return raw[..., 0].astype(jnp.int32)


Distribution = TanhNormal | Categorical


def draw_noise(
    key: Key[Array, ""], shape: tuple[int, ...], discrete: bool
) -> Float[Array, "*shape"]:
    """What ``sample`` needs besides the distribution: standard normal, or Gumbel for choices."""
    draw = jax.random.gumbel if discrete else jax.random.normal
    return draw(key, shape, jnp.float32)


def raw_size(action_size: int, discrete: bool) -> int:
    """Entries of a raw action."""
    return 1 if discrete else action_size


def _as_raw(choice: Int[Array, "*batch"]) -> Float[Array, "*batch 1"]:
    return choice[..., None].astype(jnp.float32)
