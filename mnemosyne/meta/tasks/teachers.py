# SPDX-License-Identifier: Apache-2.0
"""Synthetic data from random networks: task families that need no data set."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key


def _outputs(
    key: Key[Array, ""], rows: int, inputs: int, outputs: int, hidden: int
) -> tuple[Float[Array, "rows inputs"], Float[Array, "rows outputs"]]:
    key_x, key_first, key_second = jax.random.split(key, 3)
    x = jax.random.normal(key_x, (rows, inputs))
    first = jax.random.normal(key_first, (inputs, hidden)) * math.sqrt(2.0 / inputs)
    second = jax.random.normal(key_second, (hidden, outputs))
    return x, jnp.tanh(x @ first) @ second


def teacher_data(
    key: Key[Array, ""], rows: int = 4096, inputs: int = 32, classes: int = 10, hidden: int = 32
) -> tuple[Float[np.ndarray, "rows inputs"], Int[np.ndarray, " rows"]]:
    """Gaussian inputs labelled by a random two-layer network.

    Args:
      key: PRNG key.
      rows: examples.
      inputs: width of an example.
      classes: number of labels.
      hidden: width of the teacher.

    Returns:
      Inputs ``[rows, inputs]`` float32 and labels ``[rows]`` int32.
    """
    x, scores = _outputs(key, rows, inputs, classes, hidden)
    return np.asarray(x), np.asarray(jnp.argmax(scores, axis=-1), np.int32)


def teacher_targets(
    key: Key[Array, ""],
    rows: int = 4096,
    inputs: int = 16,
    outputs: int = 1,
    hidden: int = 16,
    noise: float = 0.1,
) -> tuple[Float[np.ndarray, "rows inputs"], Float[np.ndarray, "rows outputs"]]:
    """Gaussian inputs with noisy outputs of a random two-layer network, for regression.

    Args:
      key: PRNG key.
      rows: examples.
      inputs: width of an example.
      outputs: width of a target.
      hidden: width of the teacher.
      noise: standard deviation of what no student can learn, relative to the targets'.

    Returns:
      Inputs ``[rows, inputs]`` and targets ``[rows, outputs]`` of mean 0 and variance about 1,
      float32.
    """
    x, values = _outputs(key, rows, inputs, outputs, hidden)
    values = (values - values.mean(axis=0)) / values.std(axis=0)
    noisy = values + noise * jax.random.normal(jax.random.fold_in(key, 1), values.shape)
    return np.asarray(x), np.asarray(noisy)
