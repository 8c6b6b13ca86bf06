# SPDX-License-Identifier: Apache-2.0
"""Scale-free inputs of the optimizer network, under a versioned contract.

Nothing here changes when the loss is multiplied by a constant. Everything is bounded, so that the
network never sees a number far outside of what it was meta-trained on. A change of meaning, order
or number of the features is a new :data:`CONTRACT`, and artifacts of another contract are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mnemosyne.layout import Shape
from mnemosyne.rule import NEGLIGIBLE, inverse_sqrt, safe_sqrt

CONTRACT = "5"

NUM_TOKEN_FEATURES = 20
"""Statistics of a token, and three of its path (:mod:`mnemosyne.path`)."""
NUM_GLOBAL_FEATURES = 10
"""Four statistics of the whole network, two of its path, and the time features."""
NUM_TIME_FEATURES = 4
NUM_PATH_FEATURES = 2
NUM_COORDINATE_FEATURES = 3
EXTRAS = (
    "value",
    "kl",
    "clip_fraction",
    "entropy",
    "explained_variance",
    "epoch",
    "progress",
    "action_size",
)
"""Names of the optional scalars that a host may pass to ``update``."""
OF_ACTIONS = ("kl", "clip_fraction", "entropy", "action_size")
"""Those that say nothing about a tensor on which no action depends; see :func:`tell`."""
NUM_EXTRA_FEATURES = 3
NUM_INPUTS = NUM_TOKEN_FEATURES + NUM_GLOBAL_FEATURES + len(EXTRAS) * NUM_EXTRA_FEATURES
"""Everything that the token network reads of a token, besides its sampled coordinates."""

_TINY = 1e-30
_SHORT = 1e-18
"""Products of lengths below this have no angle; the square of one has to be a normal number."""


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


def _bounded(x: Array, limit: Array | np.ndarray | float) -> Array:
    """``x`` clipped to ``+-limit`` and scaled to ``[-1, 1]``."""
    return jnp.clip(x, -limit, limit) / limit


def _log_ratio(a: Array, b: Array, limit: Array | np.ndarray | float) -> Array:
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


_UNITS = ("clip_fraction", "entropy", "explained_variance", "epoch")
_UNIT_SCALES = np.asarray([1.0, 0.1, 1.0, 1.0], np.float32)


def encode_extras(extras: Mapping[str, Any], loss: LossState) -> Float[Array, " extras"]:
    """The optional scalars, three features each in the order of :data:`EXTRAS`.

    The first feature of a scalar is 1 if it is there; all are 0 if it is absent or not finite.

    Args:
      extras: scalars by name; unknown names are ignored.
      loss: running loss statistics, used for ``value``.

    Returns:
      float32 features, each in [-1, 1].
    """
    # Absent scalars are no nan on the way: users debug with jax_debug_nans.
    given = [extras.get(name) for name in EXTRAS]
    raw = jnp.stack([jnp.asarray(0.0 if x is None else x, jnp.float32) for x in given])
    present = jnp.isfinite(raw) & np.asarray([x is not None for x in given])
    value = dict(zip(EXTRAS, jnp.where(present, raw, 0.0), strict=True))
    logarithm = _bounded(jnp.log(jnp.maximum(value["kl"], _TINY) / 0.01), 5.0)
    progress = jnp.clip(value["progress"], 0.0, 1.0)
    actions = _bounded(jnp.log(jnp.maximum(value["action_size"], 1.0)), 5.0)
    units = jnp.clip(jnp.stack([value[name] for name in _UNITS]) * _UNIT_SCALES, -1.0, 1.0)
    pairs = jnp.stack(
        [
            jnp.stack(_encode_value(value["value"], loss)),
            jnp.stack([logarithm, jnp.abs(logarithm)]),
            *jnp.stack([units, jnp.square(units)], axis=1),
            jnp.stack([progress, jnp.log(1.01 - progress) / 4.7]),
            jnp.stack([actions, jnp.square(actions)]),
        ]
    )
    features = jnp.concatenate([jnp.ones((len(EXTRAS), 1)), pairs], axis=1)
    return jnp.where(present[:, None], features, 0.0).reshape(-1)


def loss_fall(encoded: Float[Array, " extras"]) -> Float[Array, ""]:
    """How fast the loss falls, in [-1, 1], from :func:`encode_extras`; 0 if it is not passed."""
    return -encoded[NUM_EXTRA_FEATURES * EXTRAS.index("value") + 2]


def tell(
    encoded: Float[Array, " extras"], acting: Float[Array, " tokens"]
) -> Float[Array, "tokens extras"]:
    """What each token is told: of :data:`OF_ACTIONS` only that they are known if it does not act.

    So one set of meta-parameters can hold a policy back by its KL divergence, leave the value
    network alone, and tell either from a network of which nothing is known.

    Args:
      encoded: from :func:`encode_extras`.
      acting: 1 where actions depend on a token, else 0.
    """
    of_actions = np.repeat([name in OF_ACTIONS for name in EXTRAS], NUM_EXTRA_FEATURES)
    known = np.arange(len(of_actions)) % NUM_EXTRA_FEATURES == 0
    otherwise = np.where(of_actions, np.where(known, -1.0, 0.0), 1.0)
    return encoded * jnp.where(acting[:, None] > 0, 1.0, otherwise)


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


def rms(x: Float[Array, "*n k"]) -> Float[Array, "*n"]:
    """Root of the mean square along the last axis."""
    return safe_sqrt(jnp.mean(jnp.square(x), axis=-1))


def shape_features(shape: Shape, tokens: int) -> np.ndarray:
    """What is known of a tensor before training: size, fan-in, rank; repeated for its tokens.

    Returns:
      float32 ``[tokens, 5]``.
    """
    size, rank = math.prod(shape), len(shape)
    fan_in = math.prod(shape[:-1]) if rank > 1 else 1
    row = [math.log10(size) / 4 - 0.5, math.log10(fan_in) / 3, rank < 2, rank == 2, rank > 2]
    return np.tile(np.asarray(row, np.float32), (tokens, 1))


# Rows of the table of sizes that the ratios below compare.
_G, _M, _P, _U, _V, _MEAN_G, _MEAN_U, _ONE, _USUAL_P, _ALL_P, _ALL_G = range(11)
_NUMERATORS = np.asarray([_G, _M, _U, _U, _G, _P, _P, _G])
_DENOMINATORS = np.asarray([_V, _V, _ONE, _MEAN_U, _MEAN_G, _USUAL_P, _ALL_P, _ALL_G])
_LIMITS = np.asarray([4.0, 4.0, 4.0, 2.0, 2.0, 8.0, 4.0, 4.0], np.float32)
USUAL_RMS = math.exp(-3.0)
"""Root mean square of a parameter that counts as neither small nor large."""


def token_features(
    sample: Sample,
    counts: Float[Array, " tokens"],
    static: Float[Array, "tokens 5"],
    acting: Float[Array, " tokens"] | None = None,
) -> tuple[Float[Array, "tokens f"], Float[Array, "tokens 4"]]:
    """Statistics of each token, and of the network it belongs to.

    Args:
      sample: coordinates of every token.
      counts: coordinates each token stands for, so that network means weigh tokens by size.
      static: from :func:`shape_features`.
      acting: 1 where actions depend on a token, else 0. Policy and value network are then two
        networks: noise in the gradients of one says nothing about the other.

    Returns:
      17 features a token and four of its network, all bounded.
    """
    # Few operations on stacked rows: one by one, the statistics would cost more than the network.
    member = jnp.ones((1, counts.size)) if acting is None else jnp.stack([acting, 1.0 - acting])
    weights = counts * member / jnp.maximum(jnp.sum(counts * member, axis=1), 1.0)[:, None]
    sizes = _sizes(sample)
    overall = safe_sqrt(jnp.square(sizes[: _V + 1]) @ weights.T) @ member
    cosines = _cosines(sample, sizes)
    one = jnp.ones(counts.size)
    constants = jnp.stack([one, USUAL_RMS * one, overall[_P], overall[_G]])
    table = jnp.concatenate([sizes, constants])
    ratios = _log_ratio(table[_NUMERATORS], table[_DENOMINATORS], _LIMITS[:, None])
    known = (sizes[_P] > 0).astype(jnp.float32)
    per_token = jnp.concatenate([ratios, cosines, known[None], static.T]).T
    network = _log_ratio(
        overall[np.asarray([_P, _M, _U])],
        jnp.stack([constants[1], overall[_V], one]),
        np.asarray([[8.0], [4.0], [4.0]], np.float32),
    )
    turn = (weights @ cosines[0]) @ member
    return per_token, jnp.concatenate([network, turn[None]]).T


def _sizes(sample: Sample) -> Float[Array, "7 tokens"]:
    """Sizes of gradient, momentum, parameter, normalised momentum and second moment; two means."""
    normalized = sample.m * inverse_sqrt(sample.v)
    roots = rms(jnp.stack([sample.g, sample.m, sample.p, normalized, safe_sqrt(sample.v)]))
    means = jnp.mean(jnp.abs(jnp.stack([sample.g, normalized])), axis=-1)
    return jnp.concatenate([roots, means])


def _cosines(sample: Sample, sizes: Float[Array, "7 tokens"]) -> Float[Array, "3 tokens"]:
    """Of gradient and momentum, parameter and momentum, parameter and gradient."""
    left, right = np.asarray([_G, _P, _P]), np.asarray([_M, _M, _G])
    vectors = jnp.stack([sample.g, sample.m, sample.p])
    dots = jnp.mean(vectors[left] * vectors[right], axis=-1)
    lengths = sizes[left] * sizes[right]
    known = lengths > _SHORT
    return jnp.where(known, dots / jnp.where(known, lengths, 1.0), 0.0)


def input_row(name: str, index: int) -> int:
    """Row of the token network's inputs that holds a feature.

    Args:
      name: ``"gain"``, ``"network"``, ``"path"``, ``"time"``, or one of :data:`EXTRAS`.
      index: which of its features.
    """
    network = NUM_TOKEN_FEATURES + NUM_GLOBAL_FEATURES
    if name in ("gain", "network"):
        return NUM_TOKEN_FEATURES + (index if name == "network" else -1)
    if name == "time":
        return network - NUM_TIME_FEATURES + index
    if name == "path":
        return network - NUM_TIME_FEATURES - NUM_PATH_FEATURES + index
    return network + EXTRAS.index(name) * NUM_EXTRA_FEATURES + index


def time_features(count: Array) -> Float[Array, " 4"]:
    """``t / (t + k)`` for k = 3, 30, 300, 3000.

    Bounded, so that long runs look like the end of shorter ones.
    """
    t = count.astype(jnp.float32)
    return t / (t + jnp.asarray([3.0, 30.0, 300.0, 3000.0]))


def coordinate_features(sample: Sample) -> Float[Array, "tokens sample 3"]:
    """What the encoder reads: gradient and momentum over ``sqrt(v)``, and relative parameters."""
    inverse = inverse_sqrt(sample.v)
    # Before there is a history, the gradient is compared with its own token instead.
    own = sample.g / jnp.maximum(rms(sample.g)[:, None], _TINY)
    gradient = jnp.where(sample.v > NEGLIGIBLE, sample.g * inverse, own)
    parameter = sample.p / jnp.maximum(rms(sample.p)[:, None], _TINY)
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
