# SPDX-License-Identifier: Apache-2.0
"""The few statistics that every claim here is made of.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

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
    weights = _quartile_weights(ordered.size)
    # An infinite value outside of the quartiles has no say, not even nan.
    kept = weights > 0
    return float(ordered[kept] @ weights[kept])


@functools.cache
def _quartile_weights(size: int) -> Float[np.ndarray, " size"]:
    """Share of each ordered value that lies between the quartiles; they sum to 1."""
    edges = np.linspace(0.0, 1.0, size + 1)
    weights = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    return weights / weights.sum()


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


def stratified_bootstrap(
    strata: Sequence[Float[np.ndarray, "runs ..."]],
    statistic: Callable[[list[np.ndarray]], float],
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval where runs are resampled within their stratum, never across.

    Args:
      strata: one array a stratum, such as a task; runs along the first axis.
      statistic: of the resampled strata, all together.
      draws: resamples.
      seed: of the resampling.

    Returns:
      Lower and upper bound.
    """
    rng = np.random.default_rng(seed)
    found = [
        statistic([values[rng.integers(0, len(values), len(values))] for values in strata])
        for _ in range(draws)
    ]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def probability_of_improvement(
    ours: Sequence[Float[np.ndarray, " runs"]], rivals: Sequence[Float[np.ndarray, " runs"]]
) -> float:
    """Chance that a run of ours scores higher than one of the rival's, averaged over strata.

    Ties count half: the Mann-Whitney statistic.

    Example:
      >>> probability_of_improvement([np.asarray([2.0, 1.0])], [np.asarray([1.0, 0.0])])
      0.875
    """
    wins = [
        np.mean((x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None]))
        for x, y in zip(ours, rivals, strict=True)
    ]
    return float(np.mean(wins))


class Comparison(NamedTuple):
    """Ours against one rival on the same tasks.

    Attributes:
      difference: IQM of the paired differences of scores, ours minus the rival's.
      difference_ci95: its interval over runs.
      improvement: :func:`probability_of_improvement`.
      improvement_ci95: its interval over runs.
      wins: strata on which our mean score is higher.
      verdict: ``"beats"``, ``"matches"`` or ``"not better"``, by the claim rule.
    """

    difference: float
    difference_ci95: tuple[float, float]
    improvement: float
    improvement_ci95: tuple[float, float]
    wins: int
    verdict: str


def compare(
    ours: Sequence[Float[np.ndarray, " runs"]], rivals: Sequence[Float[np.ndarray, " runs"]]
) -> Comparison:
    """Applies the claim rule.

    'beats': the lower bounds of the paired difference and of the probability of improvement are
    above 0 and 0.5; 'matches': the IQMs are within 5 % and their intervals overlap.

    Args:
      ours: scores a stratum, higher is better.
      rivals: of the same seeds in the same order; surplus runs of either side are left out.
    """
    counts = [min(len(x), len(y)) for x, y in zip(ours, rivals, strict=True)]
    ours = [np.asarray(x[:n]) for x, n in zip(ours, counts, strict=True)]
    rivals = [np.asarray(y[:n]) for y, n in zip(rivals, counts, strict=True)]
    pairs = [np.stack([x, y], axis=1) for x, y in zip(ours, rivals, strict=True)]

    def difference(strata: Sequence[np.ndarray]) -> float:
        return iqm(np.concatenate([pair[:, 0] - pair[:, 1] for pair in strata]))

    def improvement(strata: Sequence[np.ndarray]) -> float:
        # Unpaired, as the quantity itself is: both sides are resampled apart.
        return probability_of_improvement(strata[: len(pairs)], strata[len(pairs) :])

    found = Comparison(
        difference(pairs),
        stratified_bootstrap(pairs, difference),
        improvement([*ours, *rivals]),
        stratified_bootstrap([*ours, *rivals], improvement),
        sum(bool(x.mean() > y.mean()) for x, y in zip(ours, rivals, strict=True)),
        "not better",
    )
    if found.difference_ci95[0] > 0.0 and found.improvement_ci95[0] > 0.5:
        return found._replace(verdict="beats")
    return found._replace(verdict="matches") if _match(ours, rivals) else found


def _match(ours: Sequence[np.ndarray], rivals: Sequence[np.ndarray]) -> bool:
    """Whether IQMs are within 5 % of each other and their intervals overlap."""

    def level(strata: Sequence[np.ndarray]) -> float:
        return iqm(np.concatenate(strata))

    (low, high), (rival_low, rival_high) = (stratified_bootstrap(s, level) for s in (ours, rivals))
    near = abs(level(ours) - level(rivals)) <= 0.05 * abs(level(rivals))
    return near and low <= rival_high and rival_low <= high
