# SPDX-License-Identifier: Apache-2.0
"""The numbers by which optimizers are compared on policies, as fixed before any tuning.

Returns are those of deterministic evaluations with the environment's own rewards. A return that is
not a number is minus infinity.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

LOWEST = -1.0
"""Normalised scores are not counted lower, so that one diverged run does not decide an average."""
LEVELS = (0.5, 0.75, 0.9)
"""Shares of the oracle's gain over random actions, for the time to reach them."""
KEPT = 0.5
"""A run that ends with less than this share of its own best gain has collapsed."""

Curves = Float[np.ndarray, "runs points"]
Steps = Float[np.ndarray, " points"]


class Scale(NamedTuple):
    """Where 0 and 1 are in one cell.

    Attributes:
      random: mean return of uniform random actions.
      oracle: IQM of the final returns of the Adam that was tuned for the cell.
    """

    random: float
    oracle: float

    @property
    def usable(self) -> bool:
        """Whether the oracle learned anything."""
        return self.oracle > self.random

    def normalize(self, returns: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """``(R - R_random) / (R_oracle - R_random)``, at least :data:`LOWEST`.

        Raises:
          ValueError: if the oracle is no better than random actions.

        Example:
          >>> Scale(100.0, 500.0).normalize(np.asarray([100.0, 300.0, -np.inf])).tolist()
          [0.0, 0.5, -1.0]
        """
        if not self.usable:
            raise ValueError(
                f"the oracle's return {self.oracle:.4g} is not above that of random actions, "
                f"{self.random:.4g}: scores cannot be normalized by it."
            )
        return np.maximum((returns - self.random) / (self.oracle - self.random), LOWEST)

    def level(self, share: float) -> float:
        """The return at a share of the oracle's gain."""
        return self.random + share * (self.oracle - self.random)


def first_reached(steps: Steps, curve: Float[np.ndarray, " points"], level: float) -> float:
    """Env steps at which a curve first reaches a level, interpolated; infinite if it never does.

    Example:
      >>> first_reached(np.asarray([0.0, 10, 20]), np.asarray([0.0, 4, 8]), 6.0)
      15.0
    """
    above = np.flatnonzero(curve >= level)
    if not above.size:
        return float("inf")
    i = int(above[0])
    if i == 0:
        return float(steps[0])
    rise = curve[i] - curve[i - 1]
    share = (level - curve[i - 1]) / rise if np.isfinite(rise) else 1.0
    return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))


def times(steps: Steps, returns: Curves, level: float) -> Float[np.ndarray, " runs"]:
    """:func:`first_reached` of every run; a censored run is infinite."""
    return np.asarray([first_reached(steps, curve, level) for curve in returns])


def restricted(times: Float[np.ndarray, " runs"], end: float) -> Float[np.ndarray, " runs"]:
    """Times with censored runs counted as the whole run: their mean is the restricted mean.

    A lower bound for whoever is censored, so it flatters the slower side.
    """
    return np.minimum(times, end)


def failed(
    steps: Steps, returns: Curves, finite: Bool[np.ndarray, " runs"], random: float
) -> Bool[np.ndarray, " runs"]:
    """Runs that diverged, never beat random actions, or lost half of their best gain again.

    The best and the end are both means over as many evaluations as the last 5 % of a run has, so
    that a lucky evaluation is no peak.

    Args:
      steps: before each evaluation.
      returns: of the evaluations.
      finite: whether everything measured in a run is a number.
      random: mean return of random actions.
    """
    width = int((steps > 0.95 * steps[-1]).sum())
    windows = np.lib.stride_tricks.sliding_window_view(returns, width, axis=1).mean(axis=-1)
    gains = windows - random
    best = gains.max(axis=1)
    with np.errstate(invalid="ignore"):
        collapsed = ~(gains[:, -1] >= KEPT * best)
    return ~finite | (best <= 0.0) | collapsed


def profile(
    scores: Float[np.ndarray, " runs"], levels: Float[np.ndarray, " levels"]
) -> Float[np.ndarray, " levels"]:
    """Share of runs whose score is at least each level."""
    return (scores[:, None] >= levels[None]).mean(axis=0)
