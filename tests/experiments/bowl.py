# SPDX-License-Identifier: Apache-2.0
"""A noisy parabola, the task of the benchmarks' own tests."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks import BenchmarkTask
from mnemosyne.meta.task import Task


@dataclasses.dataclass(frozen=True, eq=False)
class Bowl:
    """Half the squared distance to targets that are drawn anew every time."""

    name: str = "bowl"
    center: np.ndarray = dataclasses.field(default_factory=lambda: np.ones(3, np.float32))
    noise: float = 0.5

    def init(self, key: Any) -> Any:
        return {"x": 3.0 + jax.random.normal(key, self.center.shape)}

    def sample(self, key: Any) -> Any:
        return self.center + self.noise * jax.random.normal(key, self.center.shape)

    def loss(self, params: Any, batch: Any) -> Any:
        return 0.5 * jnp.sum((params["x"] - batch) ** 2)

    def normalize(self, loss: Any) -> Any:
        return loss


def bench(task: Task | None = None, floor: float = 0.0) -> BenchmarkTask:
    return BenchmarkTask(task or Bowl(), 8, "bowl", floor)
