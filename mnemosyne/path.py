# SPDX-License-Identifier: Apache-2.0
"""The recent path of the weights, from which too small and too large a step can be told.

The discounted sum of the last few hundred updates, at a sample of coordinates, answers two
questions that no single gradient does:

    turn         = cos(-g, sum)            does the gradient still point along the path?
    straightness = |sum| / sum of lengths  or has the path gone to and fro?

``turn`` is the derivative of the loss by the size of the recent steps, up to a positive factor (the
hypergradient of Baydin et al. 2018, arXiv 1703.04782, over a long window): positive where they
should have been larger. Whatever the task, it is near zero at the best step size, clearly positive
at a third of it, and slightly negative above it; ``docs/decisions.md`` has the numbers. So a step
size can be *found*, by adding up what the network concludes from it: ``log_gain``.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from mnemosyne.rule import safe_sqrt

DECAY = 0.998
"""Of the sum, an update: a window of 500. With 50 or less, the best step size has no common turn:
late in a run the gradient points back along the last steps even at the best one."""
WIDTH = 40
"""Coordinates of a token whose path is kept."""
TOLD_APART = 256
"""Coordinates of a network below which its turn counts less."""
_SHORT = 1e-18
"""Products of lengths below this have no angle; the square of one has to be a normal number."""


class PathState(NamedTuple):
    """What is remembered of the path; units are those of the parameters.

    Attributes:
      drift: discounted sum of the updates at sampled coordinates; no tokens if it is not kept.
      length: discounted sum of the updates' lengths, of each token's sample.
      network_length: the same for all tokens together.
      log_gain: what the step sizes have been multiplied by so far, as a logarithm.
    """

    drift: Float[Array, "tokens width"]
    length: Float[Array, " tokens"]
    network_length: Float[Array, ""]
    log_gain: Float[Array, " tokens"]


def init(num_tokens: int, kept: bool = True) -> PathState:
    """Before the first update.

    Args:
      num_tokens: of the network.
      kept: without, only the gain is remembered.
    """
    drift = jnp.zeros((num_tokens if kept else 0, WIDTH))
    return PathState(drift, jnp.zeros(len(drift)), jnp.zeros(()), jnp.zeros(num_tokens))


def _squares(x: Float[Array, "tokens width"]) -> Float[Array, " tokens"]:
    return jnp.mean(jnp.square(x), axis=-1)


def advance(
    state: PathState,
    updates: Float[Array, "tokens width"],
    log_gain: Float[Array, " tokens"],
    counts: Float[Array, " tokens"],
) -> PathState:
    """Adds one update.

    Args:
      state: the path so far.
      updates: at the sampled coordinates.
      log_gain: the new one.
      counts: coordinates that each token stands for.
    """
    squares = _squares(updates)
    return PathState(
        drift=DECAY * state.drift + updates,
        length=DECAY * state.length + safe_sqrt(squares),
        network_length=DECAY * state.network_length + safe_sqrt(jnp.sum(counts * squares)),
        log_gain=log_gain,
    )


def _ratio(a: Array, b: Array) -> Array:
    """``a / b`` where ``b`` is known, else 0."""
    known = b > _SHORT
    return jnp.where(known, a / jnp.where(known, b, 1.0), 0.0)


def straightness(state: PathState) -> Float[Array, " tokens"]:
    """Of each token's path: 1 for a straight line, near 0 for one that goes to and fro."""
    return _ratio(safe_sqrt(_squares(state.drift)), state.length)


def gain(state: PathState) -> Float[Array, " tokens"]:
    """What each token's steps have been multiplied by, as the network reads it, in [-1, 1]."""
    return jnp.clip(state.log_gain / 7.0, -1.0, 1.0)


def features(
    state: PathState,
    g: Float[Array, "tokens width"],
    counts: Float[Array, " tokens"],
    fall: Float[Array, ""] | float = 0.0,
    trust: Float[Array, ""] | float = 0.0,
) -> tuple[Float[Array, "tokens 3"], Float[Array, " 2"]]:
    """Ten times the turn, the straightness, and the gain, of tokens; the first two of the network.

    Args:
      state: the path so far.
      g: gradient at the sampled coordinates, in any unit that keeps it near 1.
      counts: coordinates that each token stands for.
      fall: how fast the loss falls, in [-1, 1].
      trust: how far it may be followed instead of the turn, in [0, 1], see
        :mod:`mnemosyne.foresight`.

    Returns:
      Features within [-1, 1]; 0 where there is no path yet. The turn of a network of fewer than
      :data:`TOLD_APART` coordinates is scaled down by the square of their share.
    """
    dots = -jnp.mean(g * state.drift, axis=-1)
    squares = jnp.stack([_squares(g), _squares(state.drift)])
    sizes, network = safe_sqrt(squares), safe_sqrt(squares @ counts)
    # Near the best step size a turn is some hundredths.
    turns = jnp.clip(10.0 * _ratio(dots, sizes[0] * sizes[1]), -1.0, 1.0)
    turn = jnp.clip(10.0 * _ratio(dots @ counts, network[0] * network[1]), -1.0, 1.0)
    # The cosine of n coordinates is off by 1 / sqrt(n): of a handful, it says nothing, and steps
    # that follow it shrink too early.
    turn *= jnp.square(jnp.minimum(jnp.sum(counts) / TOLD_APART, 1.0))
    turn = (1.0 - trust) * turn + trust * fall
    tokens = jnp.stack([turns, straightness(state), gain(state)], axis=-1)
    return tokens, jnp.stack([turn, _ratio(network[1], state.network_length)])
