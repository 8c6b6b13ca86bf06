# SPDX-License-Identifier: Apache-2.0
"""Running mean and variance, merged batch by batch (Welford 1962; Chan, Golub, LeVeque 1979)."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

_MIN_STD = 1e-4  # an entry that never moves would otherwise amplify rounding errors


class RunningStatistics(NamedTuple):
    """Statistics of all samples so far.

    Attributes:
      count: number of samples, float32 (a batch of n is not lost before about 2^24 n samples).
      mean: mean.
      variance: mean squared deviation (divided by n, not n - 1); 1 before the first sample.
    """

    count: Float[Array, ""]
    mean: Float[Array, "*shape"]
    variance: Float[Array, "*shape"]


def init_statistics(shape: tuple[int, ...]) -> RunningStatistics:
    """No samples yet: normalization leaves its input as it is."""
    return RunningStatistics(
        jnp.zeros((), jnp.float32), jnp.zeros(shape, jnp.float32), jnp.ones(shape, jnp.float32)
    )


def merge(a: RunningStatistics, b: RunningStatistics) -> RunningStatistics:
    """Statistics of the union of two disjoint sets of samples; exact up to rounding."""
    count = a.count + b.count
    weight = b.count / jnp.maximum(count, 1.0)
    delta = b.mean - a.mean
    # The mean squares are mixed, instead of sums of squares, so that nothing grows with the number
    # of samples.
    variance = (
        a.variance
        + weight * (b.variance - a.variance)
        + weight * (1.0 - weight) * jnp.square(delta)
    )
    return RunningStatistics(count, a.mean + weight * delta, variance)


def update(statistics: RunningStatistics, batch: Float[Array, "..."]) -> RunningStatistics:
    """Takes in a batch.

    Args:
      statistics: so far.
      batch: any number of leading axes before the axes of ``statistics.mean``.

    Example:
      >>> update(init_statistics(()), jnp.array([1.0, 3.0])).variance
      Array(1., dtype=float32)
    """
    axes = tuple(range(batch.ndim - statistics.mean.ndim))
    count = 1
    for axis in axes:
        count *= batch.shape[axis]
    mean = jnp.mean(batch, axes)
    variance = jnp.mean(jnp.square(batch - mean), axes)
    return merge(statistics, RunningStatistics(jnp.asarray(count, jnp.float32), mean, variance))


def standard_deviation(statistics: RunningStatistics) -> Float[Array, "*shape"]:
    """Square root of the variance, at least 1e-4."""
    return jnp.sqrt(jnp.maximum(statistics.variance, _MIN_STD**2))
