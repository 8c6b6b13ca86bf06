# SPDX-License-Identifier: Apache-2.0
"""Units of the gradient: a running power-of-two scale, and a guard against impossible gradients.

Moments are kept in units of the scale, so that neither their squares nor the features over- or
underflow for any finite gradient. The scale is a power of two: changing units is exact, and a loss
multiplied by a power of two leaves every later number bitwise the same.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

JUMP = 1e6
"""A gradient this many times larger than its running size is treated like a non-finite one."""
MAX_SKIPS = 10
"""After this many skipped gradients in a row the moments start anew."""

DECAY = 0.9996
"""Decay of the running size of the gradient, an update."""


class UnitState(NamedTuple):
    """What is remembered of the gradients' size.

    Attributes:
      peak: decaying maximum of the absolute entries; 0 until there was one.
      scale: ``peak`` rounded up to a power of two; 0 until there was one.
      skipped: gradients skipped so far, int32.
      skipped_in_row: of these, the run that is going on, int32.
    """

    peak: Float[Array, ""]
    scale: Float[Array, ""]
    skipped: Int[Array, ""]
    skipped_in_row: Int[Array, ""]


class Verdict(NamedTuple):
    """What to do with one gradient.

    Attributes:
      ok: use it; otherwise the update is zero.
      restart: forget the moments, because gradients have been unusable for long.
      inverse: factor from gradient to units, ``1 / scale``; 0 while all gradients were 0.
      ratio: factor from the previous units to the new ones.
    """

    ok: Bool[Array, ""]
    restart: Bool[Array, ""]
    inverse: Float[Array, ""]
    ratio: Float[Array, ""]


def init() -> UnitState:
    """Before any gradient."""
    # Separate arrays: one buffer in two places cannot be donated.
    counters = (jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
    return UnitState(jnp.zeros(()), jnp.zeros(()), *counters)


def from_peak(peak: Float[Array, ""]) -> UnitState:
    """The state after gradients whose running size is ``peak``, such as another optimizer's."""
    return init()._replace(peak=peak, scale=_power_of_two(peak))


def _power_of_two(peak: Float[Array, ""]) -> Float[Array, ""]:
    _, exponent = jnp.frexp(jnp.where(peak > 0, peak, 1.0))
    # Both the power and its inverse have to be normal float32 numbers.
    power = jnp.ldexp(jnp.ones(()), jnp.clip(exponent, -126, 126))
    return jnp.where(peak > 0, power, 0.0)


def judge(state: UnitState, gradients: list[Array]) -> tuple[Verdict, UnitState]:
    """Looks once at every entry of the gradient.

    Args:
      state: sizes so far.
      gradients: the non-empty tensors of one gradient.

    Returns:
      The verdict and the state that goes with it.
    """
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(g)).astype(jnp.float32) for g in gradients]))
    known = state.peak > 0
    ok = jnp.isfinite(largest) & (~known | (largest / JUMP <= state.peak))
    # Decays no faster than the second moment's root can, 0.999 ** 0.5, so that moments in units
    # stay below 1 for ever.
    moved = jnp.maximum(largest, DECAY * state.peak)
    restart = ~ok & (state.skipped_in_row + 1 >= MAX_SKIPS)
    peak = jnp.where(ok, moved, jnp.where(restart, 0.0, state.peak))
    scale = _power_of_two(peak)
    inverse = jnp.where(scale > 0, 1.0 / jnp.where(scale > 0, scale, 1.0), 0.0)
    verdict = Verdict(ok, restart, inverse, jnp.where(ok, state.scale * inverse, 1.0))
    return verdict, UnitState(
        peak,
        scale,
        skipped=state.skipped + jnp.where(ok, 0, 1),
        skipped_in_row=jnp.where(ok | restart, 0, state.skipped_in_row + 1),
    )
