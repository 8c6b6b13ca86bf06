# SPDX-License-Identifier: Apache-2.0
"""Scale-free inputs of the optimizer network, under a versioned contract.

Nothing here changes when the loss is multiplied by a constant. Everything is bounded, so that the
network never sees a number far outside of what it was meta-trained on. A change of meaning, order
or number of the features is a new :data:`CONTRACT`, and artifacts of another contract are refused.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mnemosyne.layout import Shape

CONTRACT = "1"

NUM_TOKEN_FEATURES = 17
NUM_GLOBAL_FEATURES = 8
NUM_COORDINATE_FEATURES = 3
EXTRAS = ("value", "kl", "clip_fraction", "entropy", "explained_variance", "epoch", "progress")
"""Names of the optional scalars that a host may pass to ``update``."""
NUM_EXTRA_FEATURES = 3

_TINY = 1e-30


class LossState(NamedTuple):
    """Running statistics that standardise the loss, whatever its scale and offset.

    Attributes:
      fast: moving average with decay 0.9, biased towards 0.
      slow: moving average with decay 0.99.
      deviation: moving average of ``|value - slow|``, decay 0.99.
      fast_mass, slow_mass: bias corrections of the above.
    """

    fast: Float[Array, ""]
    slow: Float[Array, ""]
    deviation: Float[Array, ""]
    fast_mass: Float[Array, ""]
    slow_mass: Float[Array, ""]


def init_loss() -> LossState:
    """Statistics before any loss was seen."""
    return LossState(*(jnp.zeros(()) for _ in LossState._fields))


def update_loss(state: LossState, value: Float[Array, ""]) -> LossState:
    """Adds one loss; a non-finite ``value`` changes nothing."""
    seen = jnp.isfinite(value)
    value = jnp.where(seen, value, 0.0)
    slow = 0.99 * state.slow + 0.01 * value
    slow_mass = 0.99 * state.slow_mass + 0.01
    error = jnp.abs(value - slow / slow_mass)
    new = LossState(
        fast=0.9 * state.fast + 0.1 * value,
        slow=slow,
        deviation=0.99 * state.deviation + 0.01 * error,
        fast_mass=0.9 * state.fast_mass + 0.1,
        slow_mass=slow_mass,
    )
    return LossState(*(jnp.where(seen, n, o) for n, o in zip(new, state, strict=True)))


def _bounded(x: Array, limit: float) -> Array:
    """``x`` clipped to ``+-limit`` and scaled to ``[-1, 1]``."""
    return jnp.clip(x, -limit, limit) / limit


def _log_ratio(a: Array, b: Array, limit: float = 4.0) -> Array:
    """``log(a / b)``, bounded; 0 where either is 0, which means "no history yet"."""
    known = (a > 0) & (b > 0)
    ratio = jnp.log(jnp.where(known, a, 1.0)) - jnp.log(jnp.where(known, b, 1.0))
    return _bounded(jnp.where(known, ratio, 0.0), limit)


def _encode_value(value: Array, loss: LossState) -> list[Array]:
    """How this loss, and the recent trend, stand against the slow mean; in deviations.

    Zero while the loss is constant up to the rounding of its running mean.
    """
    slow = loss.slow / jnp.maximum(loss.slow_mass, _TINY)
    fast = loss.fast / jnp.maximum(loss.fast_mass, _TINY)
    deviation = loss.deviation / jnp.maximum(loss.slow_mass, _TINY)
    # Half a unit in the last place each step adds up to 50 of them, 6e-6, at a decay of 0.99.
    known = deviation > 1e-5 * jnp.abs(slow)
    inverse = jnp.where(known, 1.0 / jnp.where(known, deviation, 1.0), 0.0)
    return [_bounded((value - slow) * inverse, 5.0), _bounded((fast - slow) * inverse, 5.0)]


def _encode_kl(kl: Array) -> list[Array]:
    logarithm = _bounded(jnp.log(jnp.maximum(kl, _TINY) / 0.01), 5.0)
    return [logarithm, jnp.abs(logarithm)]


def _encode_progress(progress: Array) -> list[Array]:
    clipped = jnp.clip(progress, 0.0, 1.0)
    return [clipped, jnp.log(1.01 - clipped) / 4.7]


def _encode_unit(x: Array) -> list[Array]:
    clipped = jnp.clip(x, -1.0, 1.0)
    return [clipped, jnp.square(clipped)]


def encode_extra(name: str, value: Any, loss: LossState) -> Float[Array, " 3"]:
    """One optional scalar as ``[1, a, b]``, or zeros if it is absent or not finite.

    Args:
      name: one of :data:`EXTRAS`.
      value: a scalar, or ``None``.
      loss: running loss statistics, used for ``value``.

    Returns:
      float32 features, each in [-1, 1].
    """
    if value is None:
        return jnp.zeros(NUM_EXTRA_FEATURES)
    value = jnp.asarray(value, jnp.float32)
    present = jnp.isfinite(value)
    value = jnp.where(present, value, 0.0)
    if name == "value":
        encoded = _encode_value(value, loss)
    elif name == "kl":
        encoded = _encode_kl(value)
    elif name == "progress":
        encoded = _encode_progress(value)
    else:
        encoded = _encode_unit(value / 10.0 if name == "entropy" else value)
    features = jnp.stack([jnp.ones(()), *encoded])
    return jnp.where(present, features, 0.0)


class Sample(NamedTuple):
    """Coordinates drawn from every token, in common units.

    Attributes:
      g: gradient.
      m: bias-corrected first moment *before* this gradient; zero without history.
      v: bias-corrected second moment before this gradient.
      p: parameter; zero if the host passes none.
    """

    g: Float[Array, "tokens sample"]
    m: Float[Array, "tokens sample"]
    v: Float[Array, "tokens sample"]
    p: Float[Array, "tokens sample"]


def _rms(x: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=-1))


def _cosine(a: Array, b: Array) -> Array:
    dot = jnp.mean(a * b, axis=-1)
    return dot / jnp.maximum(_rms(a) * _rms(b), _TINY)


def shape_features(shape: Shape, tokens: int) -> np.ndarray:
    """What is known of a tensor before training: size, fan-in, rank; repeated for its tokens.

    Returns:
      float32 ``[tokens, 5]``.
    """
    size, rank = math.prod(shape), len(shape)
    fan_in = math.prod(shape[:-1]) if rank > 1 else 1
    row = [math.log10(size) / 4 - 0.5, math.log10(fan_in) / 3, rank < 2, rank == 2, rank > 2]
    return np.tile(np.asarray(row, np.float32), (tokens, 1))


def token_features(
    sample: Sample, counts: Float[Array, " tokens"], static: Float[Array, "tokens 5"]
) -> tuple[Float[Array, "tokens f"], Float[Array, " 4"]]:
    """Statistics of each token, and of the network as a whole.

    Args:
      sample: coordinates of every token.
      counts: coordinates each token stands for, so that network means weigh tokens by size.
      static: from :func:`shape_features`.

    Returns:
      ``NUM_TOKEN_FEATURES`` features a token and four global ones, all bounded.
    """
    weights = counts / jnp.sum(counts)

    def overall(per_token: Array) -> Array:
        return jnp.sqrt(jnp.sum(weights * jnp.square(per_token)))

    normalized = sample.m * _inverse_sqrt(sample.v)
    rms_g, rms_m, rms_p = _rms(sample.g), _rms(sample.m), _rms(sample.p)
    rms_v = jnp.sqrt(jnp.mean(sample.v, axis=-1))
    rms_u, mean_u = _rms(normalized), jnp.mean(jnp.abs(normalized), axis=-1)
    mean_g = jnp.mean(jnp.abs(sample.g), axis=-1)
    cosine = _cosine(sample.g, sample.m)
    rows = [
        _log_ratio(rms_g, rms_v),
        _log_ratio(rms_m, rms_v),
        cosine,
        _log_ratio(rms_u, jnp.ones(())),
        _log_ratio(rms_u, mean_u, 2.0),
        _log_ratio(rms_g, mean_g, 2.0),
        _cosine(sample.p, sample.m),
        _cosine(sample.p, sample.g),
        _log_ratio(rms_p, jnp.full((), math.exp(-3.0)), 8.0),
        _log_ratio(rms_p, overall(rms_p)),
        _log_ratio(rms_g, overall(rms_g)),
        (rms_p > 0).astype(jnp.float32),
    ]
    network = [
        _log_ratio(overall(rms_p), jnp.full((), math.exp(-3.0)), 8.0),
        _log_ratio(overall(rms_m), overall(rms_v)),
        jnp.sum(weights * cosine),
        _log_ratio(overall(rms_u), jnp.ones(())),
    ]
    return jnp.concatenate([jnp.stack(rows, axis=-1), static], axis=-1), jnp.stack(network)


def time_features(count: Array) -> Float[Array, " 4"]:
    """``t / (t + k)`` for k = 3, 30, 300, 3000.

    Bounded, so that long runs look like the end of shorter ones.
    """
    t = count.astype(jnp.float32)
    return t / (t + jnp.asarray([3.0, 30.0, 300.0, 3000.0]))


def _inverse_sqrt(v: Array) -> Array:
    return jnp.where(v > 0, 1.0 / jnp.sqrt(jnp.where(v > 0, v, 1.0)), 0.0)


def coordinate_features(sample: Sample) -> Float[Array, "tokens sample 3"]:
    """What the encoder reads: gradient and momentum over ``sqrt(v)``, and relative parameters."""
    inverse = _inverse_sqrt(sample.v)
    # Before there is a history, the gradient is compared with its own token instead.
    own = sample.g / jnp.maximum(_rms(sample.g)[:, None], _TINY)
    gradient = jnp.where(sample.v > 0, sample.g * inverse, own)
    parameter = sample.p / jnp.maximum(_rms(sample.p)[:, None], _TINY)
    stacked = jnp.stack([gradient, sample.m * inverse, parameter], axis=-1)
    return jnp.sign(stacked) * jnp.log1p(jnp.minimum(jnp.abs(stacked), 100.0))


def log_and_sign(g: Float[Array, "*n"], p: float = 10.0) -> Float[Array, "*n 2"]:
    """Gradient pre-processing of Andrychowicz et al. (2016), appendix A; input of the paper modes.

    ``(log|g| / p, sign g)`` where ``|g| >= exp(-p)``, else ``(-1, exp(p) g)``.
    """
    large = jnp.abs(g) >= math.exp(-p)
    log = jnp.where(large, jnp.log(jnp.where(large, jnp.abs(g), 1.0)) / p, -1.0)
    sign = jnp.where(large, jnp.sign(g), math.exp(p) * g)
    return jnp.stack([log, sign], axis=-1)
