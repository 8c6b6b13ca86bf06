# SPDX-License-Identifier: Apache-2.0
"""Whether the loss does what its gradients say: a function that is seen as it is, or through noise.

Between two points that are a short step apart, a smooth loss changes by the step times the mean of
the gradients at its ends (the trapezoid rule). A loss that is measured on a minibatch does not: its
changes are mostly those of the sample. So the error of that prediction tells the two apart within a
few updates, whatever the scale or offset of the loss.

In few dimensions this decides what to follow. The turn of the path (:mod:`mnemosyne.path`) is noise
there; the trend of the loss is as good as it is clean: while a foreseen loss keeps falling, larger
steps are worth trying, and where it is noise, they are not.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

DECAY = 0.9
"""Of the mean error, an update."""
FORESEEN, UNFORESEEN = 0.2, 0.6
"""Mean relative errors up to which the loss is followed fully, and from which not at all."""


class ForesightState(NamedTuple):
    """The last step, and how well losses were foreseen; in the host's units.

    Attributes:
      step: the last update of all coordinates; none of them if it is not kept.
      slope: of the loss along it, where it began.
      value: the loss there.
      error: mean relative error of the predicted change, in [0, 1]; 1 before any.
    """

    step: Float[Array, " coordinates"]
    slope: Float[Array, ""]
    value: Float[Array, ""]
    error: Float[Array, ""]


def init(num_coordinates: int) -> ForesightState:
    """Before the first update.

    Args:
      num_coordinates: of the network; 0 keeps nothing.
    """
    return ForesightState(jnp.zeros(num_coordinates), jnp.zeros(()), jnp.zeros(()), jnp.ones(()))


def compare(
    state: ForesightState, g: Float[Array, " coordinates"], value: Float[Array, ""]
) -> ForesightState:
    """Takes in the loss and the gradient after the last step.

    Args:
      state: as it was when the step was made.
      g: gradient of all coordinates.
      value: loss at the same place.

    Example:
      >>> import jax.numpy as jnp
      >>> half = init(1)._replace(step=jnp.ones(1), slope=jnp.array(-2.0), value=jnp.array(2.0))
      >>> float(compare(half, jnp.array([-1.0]), jnp.array(0.5)).error)  # x^2 / 2, from -2 to -1
      0.8999999761581421
    """
    expected = 0.5 * (state.slope + jnp.dot(g, state.step))
    actual = value - state.value
    size = jnp.abs(expected) + jnp.abs(actual)
    known = jnp.isfinite(size) & (size > 0)
    error = jnp.where(known, jnp.abs(actual - expected) / jnp.where(known, size, 1.0), 1.0)
    return state._replace(error=DECAY * state.error + (1.0 - DECAY) * error)


def remember(
    state: ForesightState,
    g: Float[Array, " coordinates"],
    step: Float[Array, " coordinates"],
    value: Float[Array, ""],
) -> ForesightState:
    """Keeps a step for the next comparison.

    Args:
      state: with the error so far.
      g: gradient where the step begins.
      step: the update.
      value: the loss there.
    """
    return ForesightState(step, jnp.dot(g, step), value, state.error)


def trust(state: ForesightState) -> Float[Array, ""]:
    """How far the loss may be followed, in [0, 1]; nothing flows back through it.

    It is a finding about the problem. Meta-gradients through it would teach the optimizer to take
    steps whose effect is easy to foresee.
    """
    share = (UNFORESEEN - state.error) / (UNFORESEEN - FORESEEN)
    return jax.lax.stop_gradient(jnp.clip(share, 0.0, 1.0))
