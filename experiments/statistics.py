# SPDX-License-Identifier: Apache-2.0
"""The few statistics that every claim here is made of.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Statistic = Callable[[Float[np.ndarray, "..."]], float]


def iqm(values: Float[np.ndarray, "..."]) -> float:
    """Interquartile mean: the mean without the lowest and the highest quarter.

    Quarters that are not whole numbers of values are weighted, so that every value of a small
    sample moves the result continuously.

    Example:
      >>> iqm(np.asarray([0.0, 1.0, 2.0, 100.0]))
      1.5
    """
    ordered = np.sort(np.asarray(values, np.float64).ravel())
    edges = np.linspace(0.0, 1.0, ordered.size + 1)
    weights = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    kept = weights > 0
    return float(np.sum(ordered[kept] * weights[kept]) / np.sum(weights))


def bootstrap(
    values: Float[np.ndarray, " n"], statistic: Statistic, draws: int = 5000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of ``statistic`` over runs.

    Args:
      values: one entry a run.
      statistic: such as :func:`iqm`.
      draws: resamples.
      seed: of the resampling.

    Returns:
      Lower and upper bound.
    """
    rng = np.random.default_rng(seed)
    values = np.asarray(values, np.float64)
    resampled = values[rng.integers(0, values.size, (draws, values.size))]
    low, high = np.percentile([statistic(row) for row in resampled], [2.5, 97.5])
    return float(low), float(high)
