# SPDX-License-Identifier: Apache-2.0
"""Test functions of classical optimization, from a random start; no data, no noise.

Each is a mean over coordinates (Surjanovic and Bingham's library has sums), so that its values do
not grow with the dimension, and is 0 at its minimiser. The coordinates are shifted: an optimizer
that is drawn to zero or to one gains nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from experiments.tasks.base import BenchmarkTask, Builder
from mnemosyne.meta.tasks.losses import normalize

Point = Float[Array, " dim"]


def rosenbrock(x: Point) -> Float[Array, ""]:
    """A curved valley, 100 times steeper across than along; minimiser 1."""
    return jnp.mean(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


def ackley(x: Point) -> Float[Array, ""]:
    """A funnel that is flat outside, rippled, and pointed at its minimiser 0."""
    # sqrt has no derivative at 0, the one point where every optimizer wants to be.
    radius = jnp.sqrt(jnp.mean(x**2) + 1e-12)
    ripple = jnp.exp(jnp.mean(jnp.cos(2.0 * math.pi * x)))
    return 20.0 * (1.0 - jnp.exp(-0.2 * radius)) + math.e - ripple


def levy(x: Point) -> Float[Array, ""]:
    """A bowl with ripples that grow with the distance from the minimiser 1."""
    w = 1.0 + (x - 1.0) / 4.0
    first = jnp.sin(math.pi * w[0]) ** 2
    inner = (w[:-1] - 1.0) ** 2 * (1.0 + 10.0 * jnp.sin(math.pi * w[:-1] + 1.0) ** 2)
    last = (w[-1] - 1.0) ** 2 * (1.0 + jnp.sin(2.0 * math.pi * w[-1]) ** 2)
    return (first + jnp.sum(inner) + last) / x.shape[0]


Function = Callable[[Point], Float[Array, ""]]

MINIMISER: dict[Function, float] = {rosenbrock: 1.0, ackley: 0.0, levy: 1.0}
"""Every coordinate of the point where the function is 0."""
RADIUS: dict[Function, float] = {rosenbrock: 2.0, ackley: 1.0, levy: 10.0}
"""Starts are uniform in the cube of this half-width around 0."""
TYPICAL: dict[Function, float] = {rosenbrock: 455.0, ackley: 4.0, levy: 12.5}
"""About the mean value at a start."""
RESOLUTION = 1e-5
"""Values below this share of a typical start count as solved; the floor is that much below 0.

Without it one seed at 1e-10 against another at 1e-7 would weigh as much as a run that failed.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class FunctionTask:
    """A test function.

    Attributes:
      name: see :class:`mnemosyne.meta.task.Task`.
      function: one of this module.
      shift: added to the minimiser, float32.
    """

    name: str
    function: Function
    shift: Float[np.ndarray, " dim"]

    def init(self, key: Key[Array, ""]) -> Point:
        """A start, uniform in the cube of the function."""
        radius = RADIUS[self.function]
        start = jax.random.uniform(key, self.shift.shape, minval=-radius, maxval=radius)
        return start + self.shift

    def sample(self, key: Key[Array, ""]) -> Float[Array, ""]:
        """Nothing: the function has no data."""
        del key
        return jnp.zeros(())

    def loss(self, params: Point, batch: Float[Array, ""]) -> Float[Array, ""]:
        """Value of the function."""
        del batch
        return self.function(params - self.shift)

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """See :func:`mnemosyne.meta.tasks.losses.normalize`; chance is a typical start."""
        return normalize(loss, TYPICAL[self.function])


def _build(function: Function, dim: int, steps: int, folder: Path | None) -> BenchmarkTask:
    del folder
    shift = np.random.default_rng(dim).uniform(-1.0, 1.0, dim).astype(np.float32)
    name = f"{function.__name__}-{dim}"
    floor = -RESOLUTION * TYPICAL[function]
    return BenchmarkTask(FunctionTask(name, function, shift), steps, "function", floor)


HOLD_OUT: dict[str, Builder] = {
    "rosenbrock-2": partial(_build, rosenbrock, 2, 1000),
    "rosenbrock-100": partial(_build, rosenbrock, 100, 2000),
    "ackley-10": partial(_build, ackley, 10, 1000),
    # In ten dimensions the basin that a start falls into decides; in a hundred luck averages out.
    "levy-100": partial(_build, levy, 100, 1000),
}
