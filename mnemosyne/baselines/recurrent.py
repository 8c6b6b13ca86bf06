# SPDX-License-Identifier: Apache-2.0
"""The LSTM cell of the recurrent baselines; coordinates lie along the last, contiguous axis."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Weights = dict[str, Array]


def truncated_linear(
    key: Key[Array, ""], fan_in: int, fan_out: int
) -> Float[Array, "fan_in fan_out"]:
    """A normal matrix of scale ``1 / sqrt(fan_in)``, cut at two standard deviations."""
    unit = jax.random.truncated_normal(key, -2.0, 2.0, (fan_in, fan_out), jnp.float32)
    return unit / math.sqrt(fan_in)


def init_cell(key: Key[Array, ""], inputs: int, units: int) -> Weights:
    """Weights ``w [inputs + units, 4 units]`` and biases ``b [4 units]`` of one cell."""
    return {
        "w": truncated_linear(key, inputs + units, 4 * units),
        "b": jnp.zeros(4 * units, jnp.float32),
    }


def cell(
    weights: Weights,
    x: Float[Array, "inputs n"],
    hidden: Float[Array, "units n"],
    memory: Float[Array, "units n"],
) -> tuple[Float[Array, "units n"], Float[Array, "units n"]]:
    """One step of an LSTM with forget bias 1 (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    Args:
      weights: from :func:`init_cell`; gates in the order input, candidate, forget, output.
      x: inputs.
      hidden: previous output.
      memory: previous cell state.

    Returns:
      The new output and cell state.
    """
    inputs = x.shape[0]
    gates = weights["w"][:inputs].T @ x + weights["w"][inputs:].T @ hidden + weights["b"][:, None]
    write, candidate, forget, read = jnp.split(gates, 4)
    memory = jax.nn.sigmoid(forget + 1.0) * memory + jax.nn.sigmoid(write) * jnp.tanh(candidate)
    return jax.nn.sigmoid(read) * jnp.tanh(memory), memory
