# SPDX-License-Identifier: Apache-2.0
"""Noisy quadratics: least squares on an endless stream of Gaussian rows.

With rows of covariance ``H`` and targets of noise ``s``, the expected loss is
``0.5 (x - x*)' H (x - x*) + 0.5 s^2`` and the gradient noise at the minimiser has covariance
``s^2 H / batch``: the noisy quadratic model of Zhang et al. 2019 (arXiv:1907.04164, section 3),
without its assumption that the axes of ``H`` are those of the parameters.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from experiments.tasks.base import BenchmarkTask, Builder
from mnemosyne.meta.tasks.losses import normalize

Rows = tuple[Float[Array, "batch dim"], Float[Array, " batch"]]


@dataclasses.dataclass(frozen=True, eq=False)
class QuadraticTask:
    """A quadratic that is seen through random rows.

    Attributes:
      name: see :class:`mnemosyne.meta.task.Task`.
      root: a square root of ``H``, float32 ``[dim, dim]``.
      minimiser: ``x*``, float32 ``[dim]``.
      noise: standard deviation ``s`` of the targets.
      batch_size: rows a minibatch.
    """

    name: str
    root: Float[np.ndarray, "dim dim"]
    minimiser: Float[np.ndarray, " dim"]
    noise: float
    batch_size: int

    def init(self, key: Key[Array, ""]) -> Float[Array, " dim"]:
        """A standard normal start."""
        return jax.random.normal(key, self.minimiser.shape)

    def sample(self, key: Key[Array, ""]) -> Rows:
        """Rows of covariance ``H`` and their noisy targets."""
        key_rows, key_noise = jax.random.split(key)
        white = jax.random.normal(key_rows, (self.batch_size, self.minimiser.shape[0]))
        rows = white @ self.root
        noise = self.noise * jax.random.normal(key_noise, (self.batch_size,))
        return rows, rows @ self.minimiser + noise

    def loss(self, params: Float[Array, " dim"], batch: Rows) -> Float[Array, ""]:
        """Half the mean squared residual."""
        rows, targets = batch
        return 0.5 * jnp.mean((rows @ params - targets) ** 2)

    def expected_loss(self, params: Float[Array, " dim"]) -> Float[Array, ""]:
        """The loss of endlessly many rows, the noise of the targets included."""
        return 0.5 * jnp.sum((self.root @ (params - self.minimiser)) ** 2) + 0.5 * self.noise**2

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """See :func:`mnemosyne.meta.tasks.losses.normalize`; chance is the expected start."""
        return normalize(loss, float(len(self.minimiser)))


def make_task(
    dim: int, condition: float, noise: float = 0.1, batch_size: int = 16
) -> QuadraticTask:
    """A quadratic in random axes, its eigenvalues log-uniform with mean 1.

    Args:
      dim: parameters; it also seeds the draw.
      condition: greatest over smallest eigenvalue, about.
      noise: standard deviation of the targets.
      batch_size: rows a minibatch.
    """
    rng = np.random.default_rng(dim)
    eigenvalues = condition ** rng.uniform(-1.0, 0.0, dim)
    eigenvalues /= eigenvalues.mean()
    axes, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
    # H = root' root: rows white @ root have covariance H.
    root = np.sqrt(eigenvalues)[:, None] * axes.T
    minimiser = rng.normal(size=dim)
    name = f"quadratic-{dim}"
    arrays = root.astype(np.float32), minimiser.astype(np.float32)
    return QuadraticTask(name, *arrays, noise, batch_size)


def _build(dim: int, condition: float, steps: int, folder: Path | None) -> BenchmarkTask:
    del folder
    task = make_task(dim, condition)
    return BenchmarkTask(task, steps, "quadratic", 0.5 * task.noise**2)


HOLD_OUT: dict[str, Builder] = {
    "quadratic-10": partial(_build, 10, 1e2, 1000),
    "quadratic-100": partial(_build, 100, 1e3, 2000),
}
