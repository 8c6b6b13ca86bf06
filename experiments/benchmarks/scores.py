# SPDX-License-Identifier: Apache-2.0
"""The numbers by which optimizers are compared, as fixed before any tuning.

All losses are those of a fixed evaluation batch. A loss that is not finite counts as infinite.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

LOWEST, HIGHEST = 0.25, 4.0
"""Bounds of the final-loss ratio."""
TAIL = 0.95
"""The final loss is the mean after this fraction of a run."""

Curve = Float[np.ndarray, " points"]
Steps = Int[np.ndarray, " points"]


def finite(values: Any) -> Float[np.ndarray, "..."]:
    """An array in which whatever is not a finite number is infinite.

    Example:
      >>> finite([1.0, None]).tolist()
      [1.0, inf]
    """
    array = np.asarray(values, np.float64)
    return np.where(np.isfinite(array), array, np.inf)


def final_loss(steps: Steps, curves: Float[np.ndarray, "*batch points"]) -> Any:
    """Mean over the evaluations of the last 5 % of the run, ``[*batch]``."""
    return finite(curves)[..., steps > TAIL * steps[-1]].mean(axis=-1)


class Reference(NamedTuple):
    """What tuned Adam reaches on one task.

    Attributes:
      steps: updates before each evaluation.
      curve: lowest mean loss over the rates, at every evaluation apart.
      final: lowest final loss over the rates.
      rate: the rate that reached it.
      at_edge: whether that is the lowest or highest rate tried, so that a better one may exist.
      floor: ``L*``, about the lowest loss that the task allows.
    """

    steps: Steps
    curve: Curve
    final: float
    rate: float
    at_edge: bool
    floor: float


def reference(
    rates: Float[np.ndarray, " rates"],
    steps: Steps,
    curves: Float[np.ndarray, "rates points"],
    finals: Float[np.ndarray, "rates seeds"],
    floor: float,
) -> Reference:
    """Reduces Adam's grid to its envelope.

    Args:
      rates: what was tried.
      steps: updates before each evaluation.
      curves: mean over seeds.
      finals: final loss a seed.
      floor: see :class:`Reference`.
    """
    means = finite(finals).mean(axis=1)
    best = int(means.argmin())
    at_edge = len(rates) > 1 and best in (0, len(rates) - 1)
    lowest = finite(curves).min(axis=0)
    return Reference(steps, lowest, float(means[best]), float(rates[best]), at_edge, floor)


def final_ratio(rival: float, ours: float, floor: float, initial: float) -> float:
    """``(L_env - L*) / (L_ours - L*)``, clipped to [0.25, 4]; above 1 is better than the rival.

    Args:
      rival: final loss of the tuned rival.
      ours: final loss of the candidate.
      floor: ``L*``.
      initial: loss before training; what is closer to ``L*`` than 1e-12 of it is there.

    Example:
      >>> final_ratio(rival=0.3, ours=0.2, floor=0.1, initial=2.0)
      2.0
    """
    if not math.isfinite(ours):
        return LOWEST
    least = 1e-12 * abs(initial - floor) + 1e-30
    ratio = max(rival - floor, least) / max(ours - floor, least)
    return float(round(np.clip(ratio, LOWEST, HIGHEST), 12))


def first_step(steps: Steps, curve: Curve, level: float) -> float | None:
    """The update at which a curve first reaches ``level``, interpolated between evaluations.

    Never less than one update: weights that need no training are reached by one.

    Returns:
      Updates, or ``None`` if it never does.

    Example:
      >>> first_step(np.asarray([0, 10, 20]), np.asarray([4.0, 2.0, 1.0]), 3.0)
      5.0
    """
    curve = finite(curve)
    below = np.flatnonzero(curve <= level)
    if not below.size:
        return None
    i = int(below[0])
    if i == 0:
        return 1.0
    drop = curve[i - 1] - curve[i]
    share = (curve[i - 1] - level) / drop if math.isfinite(drop) and drop > 0 else 1.0
    return max(1.0, float(steps[i - 1] + share * (steps[i] - steps[i - 1])))


def speed_up(curve: Curve, final: float, rival: Reference) -> float:
    """How many times fewer updates than tuned Adam; below 1 where Adam is faster.

    ``T`` over the first update at which ours reaches the envelope's final loss or, if it never
    does, the update at which the envelope reaches our final loss over ``T``.

    Args:
      curve: ours, evaluated as often as the rival's.
      final: our final loss.
      rival: the envelope.
    """
    total = float(rival.steps[-1])
    reached = first_step(rival.steps, curve, rival.final)
    if reached is not None:
        return total / reached
    overtaken = first_step(rival.steps, rival.curve, final)
    return (total if overtaken is None else overtaken) / total


def failed(initial: Any, final: Any) -> np.ndarray:
    """Whether runs ended no lower than they began, or not at a finite loss."""
    final = finite(final)
    return ~np.isfinite(final) | (final >= finite(initial))
