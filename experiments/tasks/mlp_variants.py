# SPDX-License-Identifier: Apache-2.0
"""Hold-out perceptrons on color images: wide, deep, normalised, small batches, squared error."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from experiments import data
from experiments.tasks import layers
from experiments.tasks.base import BenchmarkTask, Builder
from mnemosyne.meta.tasks import ClassifyTask, RegressTask
from mnemosyne.meta.tasks.mlp import ACTIVATIONS

SIDE = 8
"""Pixels along an edge of the images."""
INPUTS = SIDE * SIDE * 3


@dataclasses.dataclass(frozen=True)
class MLPVariant:
    """Dense layers, with or without layer normalisation before each activation.

    Attributes:
      hidden: widths of the hidden layers.
      activation: a name in :data:`mnemosyne.meta.tasks.mlp.ACTIVATIONS`.
      normalized: whether there is layer normalisation.
      outputs: width of the last layer.
    """

    hidden: tuple[int, ...]
    activation: str = "relu"
    normalized: bool = False
    outputs: int = 10

    def init(self, key: Key[Array, ""]) -> list[layers.Layer]:
        """Weights of variance ``1 / fan_in`` (2 / fan_in under relu), biases zero."""
        widths = (INPUTS, *self.hidden, self.outputs)
        gain = 2.0 if self.activation == "relu" else 1.0
        keys = jax.random.split(key, len(widths) - 1)
        made = [
            layers.dense(k, fan_in, fan_out, gain)
            for k, fan_in, fan_out in zip(keys, widths[:-1], widths[1:], strict=True)
        ]
        if self.normalized:
            made[:-1] = [
                layer | layers.norm(width)
                for layer, width in zip(made[:-1], self.hidden, strict=True)
            ]
        return made

    def apply(
        self, params: list[layers.Layer], inputs: Float[Array, "batch *inputs"]
    ) -> Float[Array, "batch outputs"]:
        """Outputs of the last layer."""
        x = inputs.reshape(inputs.shape[0], -1)
        for layer in params[:-1]:
            x = layers.apply_dense(layer, x)
            if self.normalized:
                x = layers.apply_norm(layer, x)
            x = ACTIVATIONS[self.activation](x)
        return layers.apply_dense(params[-1], x)


def classify(
    name: str, model: MLPVariant, batch_size: int, steps: int, folder: Path | None
) -> BenchmarkTask:
    """A perceptron as a classifier of the hold-out images."""
    images = data.cifar10(folder, SIDE)
    return BenchmarkTask(ClassifyTask(name, *images[1:], model, batch_size), steps, "mlp")


def _regress(
    name: str, model: MLPVariant, batch_size: int, steps: int, folder: Path | None
) -> BenchmarkTask:
    """Classes as targets of squared error: one-hot rows less their mean."""
    images = data.cifar10(folder, SIDE)
    hot = np.eye(model.outputs, dtype=np.float32)[images.labels]
    task = RegressTask(name, images.inputs, hot - hot.mean(axis=0), model, batch_size)
    return BenchmarkTask(task, steps, "mlp")


HOLD_OUT: dict[str, Builder] = {
    name: partial(build, name, model, batch_size, steps)
    for name, build, model, batch_size, steps in (
        ("mlp-wide/cifar10-8", classify, MLPVariant((512,)), 64, 1000),
        ("mlp-deep/cifar10-8", classify, MLPVariant((64,) * 6), 64, 1000),
        ("mlp-layernorm/cifar10-8", classify, MLPVariant((128, 128), "relu", True), 64, 1000),
        ("mlp-tanh-b16/cifar10-8", classify, MLPVariant((128, 128), "tanh"), 16, 2000),
        ("mlp-mse/cifar10-8", _regress, MLPVariant((128,), "gelu"), 64, 1000),
    )
}
