# SPDX-License-Identifier: Apache-2.0
"""Small multi-layer perceptrons: the whole of supervised meta-training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mnemosyne.meta.tasks.supervised import ClassifyTask

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}

MLPParams = list[dict[str, Array]]


def init_layers(key: Key[Array, ""], widths: Sequence[int], gain: Array | float) -> MLPParams:
    """Dense layers with weights of variance ``gain / fan_in`` and biases zero."""
    keys = jax.random.split(key, len(widths) - 1)
    return [
        {
            "kernel": jax.random.normal(key_layer, (fan_in, fan_out)) * (gain / fan_in) ** 0.5,
            "bias": jnp.zeros(fan_out),
        }
        for key_layer, fan_in, fan_out in zip(keys, widths[:-1], widths[1:], strict=True)
    ]


def apply_layers(
    params: MLPParams,
    inputs: Float[Array, "batch inputs"],
    activation: Callable[[Array], Array],
) -> Float[Array, "batch outputs"]:
    """Outputs of the last layer; the activation stands between layers only."""
    x = inputs
    for layer in params[:-1]:
        x = activation(x @ layer["kernel"] + layer["bias"])
    return x @ params[-1]["kernel"] + params[-1]["bias"]


@dataclasses.dataclass(frozen=True)
class MLP:
    """Dense layers with an activation between them.

    Attributes:
      widths: of inputs, hidden layers and outputs.
      activation: a name in :data:`ACTIVATIONS`.
    """

    widths: tuple[int, ...]
    activation: str = "relu"

    def init(self, key: Key[Array, ""]) -> MLPParams:
        """Weights of variance ``1 / fan_in`` (2 / fan_in under relu), biases zero."""
        return init_layers(key, self.widths, 2.0 if self.activation == "relu" else 1.0)

    def apply(
        self, params: MLPParams, inputs: Float[Array, "batch inputs"]
    ) -> Float[Array, "batch outputs"]:
        """Outputs of the last layer, without activation."""
        return apply_layers(params, inputs, ACTIVATIONS[self.activation])


def mlp_task(
    name: str,
    inputs: Float[np.ndarray, "rows inputs"],
    labels: Int[np.ndarray, " rows"],
    hidden: tuple[int, ...] = (32,),
    activation: str = "relu",
    batch_size: int = 64,
) -> ClassifyTask:
    """Softmax classification with an MLP whose input and output widths are those of the data.

    Args:
      name: see :class:`mnemosyne.meta.task.Task`.
      inputs: training images as rows, float32, about unit scale.
      labels: classes, int32.
      hidden: widths of the hidden layers.
      activation: a name in :data:`ACTIVATIONS`.
      batch_size: rows a minibatch, drawn with replacement.
    """
    model = MLP((inputs.shape[1], *hidden, int(labels.max()) + 1), activation)
    return ClassifyTask(name, inputs, labels, model, batch_size)
