# SPDX-License-Identifier: Apache-2.0
"""Hold-out autoencoders of color images: a narrow code, squared error over the pixels."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import jax
from jaxtyping import Array, Float, Key

from experiments import data
from experiments.tasks import layers
from experiments.tasks.base import BenchmarkTask, Builder
from mnemosyne.meta.tasks import RegressTask
from mnemosyne.meta.tasks.mlp import ACTIVATIONS

SIDE = 8
"""Pixels along an edge of the images."""


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """A perceptron from the pixels to a code, and its mirror image back.

    Attributes:
      widths: of the encoder's layers; the last is the code's.
      activation: a name in :data:`mnemosyne.meta.tasks.mlp.ACTIVATIONS`.
    """

    widths: tuple[int, ...]
    activation: str = "relu"

    def init(self, key: Key[Array, ""]) -> list[layers.Layer]:
        """Weights of variance ``1 / fan_in`` (2 / fan_in under relu), biases zero."""
        half = (3 * SIDE**2, *self.widths)
        widths = (*half, *half[-2::-1])
        gain = 2.0 if self.activation == "relu" else 1.0
        keys = jax.random.split(key, len(widths) - 1)
        gains = [gain] * (len(keys) - 1) + [1.0]
        return [
            layers.dense(*arguments)
            for arguments in zip(keys, widths[:-1], widths[1:], gains, strict=True)
        ]

    def apply(
        self, params: list[layers.Layer], inputs: Float[Array, "batch *image"]
    ) -> Float[Array, "batch *image"]:
        """Reconstructed images."""
        x = inputs.reshape(inputs.shape[0], -1)
        for layer in params[:-1]:
            x = ACTIVATIONS[self.activation](layers.apply_dense(layer, x))
        return layers.apply_dense(params[-1], x).reshape(inputs.shape)


def _build(
    name: str, model: Autoencoder, batch_size: int, steps: int, folder: Path | None
) -> BenchmarkTask:
    inputs = data.cifar10(folder, SIDE).inputs
    task = RegressTask(name, inputs, inputs, model, batch_size)
    return BenchmarkTask(task, steps, "autoencoder")


HOLD_OUT: dict[str, Builder] = {
    name: partial(_build, name, model, batch_size, 1000)
    for name, model, batch_size in (
        ("autoencoder/cifar10-8", Autoencoder((128, 32)), 64),
        ("autoencoder-deep/cifar10-8", Autoencoder((64, 32, 16), "tanh"), 64),
    )
}
