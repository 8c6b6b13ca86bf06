# SPDX-License-Identifier: Apache-2.0
"""Small multi-layer perceptrons that classify: the whole of supervised meta-training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}

MLPParams = list[dict[str, Array]]
MLPBatch = tuple[Float[Array, "batch inputs"], Int[Array, " batch"]]


@dataclasses.dataclass(frozen=True, eq=False)
class MLPTask:
    """Softmax classification with an MLP.

    Attributes:
      name: see :class:`mnemosyne.meta.task.Task`.
      inputs: training images as rows, float32, about unit scale.
      labels: classes, int32.
      hidden: widths of the hidden layers.
      activation: a name in :data:`ACTIVATIONS`.
      batch_size: rows a minibatch, drawn with replacement.
    """

    name: str
    inputs: Float[np.ndarray, "rows inputs"]
    labels: Int[np.ndarray, " rows"]
    hidden: tuple[int, ...] = (32,)
    activation: str = "relu"
    batch_size: int = 64

    @property
    def num_classes(self) -> int:
        """Number of classes in the labels."""
        return int(self.labels.max()) + 1

    def init(self, key: Key[Array, ""]) -> MLPParams:
        """Weights of variance ``1 / fan_in`` (2 / fan_in under relu), biases zero."""
        widths = (self.inputs.shape[1], *self.hidden, self.num_classes)
        gain = 2.0 if self.activation == "relu" else 1.0
        layers = []
        for key_layer, fan_in, fan_out in zip(
            jax.random.split(key, len(widths) - 1), widths[:-1], widths[1:], strict=True
        ):
            kernel = jax.random.normal(key_layer, (fan_in, fan_out)) * math.sqrt(gain / fan_in)
            layers.append({"kernel": kernel, "bias": jnp.zeros(fan_out)})
        return layers

    def sample(self, key: Key[Array, ""]) -> MLPBatch:
        """A minibatch of rows and labels."""
        rows = jax.random.randint(key, (self.batch_size,), 0, len(self.labels))
        return jnp.asarray(self.inputs)[rows], jnp.asarray(self.labels)[rows]

    def logits(self, params: MLPParams, inputs: Float[Array, "batch inputs"]) -> Array:
        """Class scores."""
        x = inputs
        for layer in params[:-1]:
            x = ACTIVATIONS[self.activation](x @ layer["kernel"] + layer["bias"])
        return x @ params[-1]["kernel"] + params[-1]["bias"]

    def loss(self, params: MLPParams, batch: MLPBatch) -> Float[Array, ""]:
        """Mean cross-entropy in nats."""
        inputs, labels = batch
        log_probs = jax.nn.log_softmax(self.logits(params, inputs))
        # A one-hot product: gathers of single entries are slow under vmap on the CPU.
        hot = jax.nn.one_hot(labels, log_probs.shape[-1])
        return -jnp.mean(jnp.sum(log_probs * hot, axis=-1))

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """Half the loss over chance, half its logarithm: early speed and late precision both count.

        Clipped at one and a half times chance, so that one diverged run cannot dominate a
        meta-gradient.
        """
        relative = jnp.clip(loss / math.log(self.num_classes), 0.0, 1.5)
        relative = jnp.where(jnp.isfinite(loss), relative, 1.5)
        return 0.5 * relative + 0.5 * 0.25 * jnp.log(relative + 0.01)


def teacher_data(
    key: Key[Array, ""], rows: int = 4096, inputs: int = 32, classes: int = 10, hidden: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian inputs labelled by a random two-layer network; a task family that needs no data set.

    Args:
      key: PRNG key.
      rows: examples.
      inputs: width of an example.
      classes: number of labels.
      hidden: width of the teacher.

    Returns:
      Inputs ``[rows, inputs]`` float32 and labels ``[rows]`` int32.
    """
    key_x, key_first, key_second = jax.random.split(key, 3)
    x = jax.random.normal(key_x, (rows, inputs))
    first = jax.random.normal(key_first, (inputs, hidden)) * math.sqrt(2.0 / inputs)
    second = jax.random.normal(key_second, (hidden, classes))
    labels = jnp.argmax(jnp.tanh(x @ first) @ second, axis=-1)
    return np.asarray(x), np.asarray(labels, np.int32)
