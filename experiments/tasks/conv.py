# SPDX-License-Identifier: Apache-2.0
"""Hold-out convolution networks on color images, written without a convolution.

XLA's convolution is about 8 times slower inside ``scan`` on the CPU than nine shifted slices and
one matrix product; the two are equal (tested).
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from experiments import data
from experiments.tasks import layers
from experiments.tasks.base import BenchmarkTask, Builder
from mnemosyne.meta.tasks import ClassifyTask
from mnemosyne.meta.tasks.mlp import ACTIVATIONS

SIDE = 16
"""Pixels along an edge of the images."""


def patches(
    x: Float[Array, "batch height width channels"], stride: int
) -> Float[Array, "batch rows columns nine_channels"]:
    """All 3x3 neighbourhoods, zero outside the image.

    Args:
      x: images; height and width multiples of ``stride``.
      stride: pixels from one neighbourhood to the next.

    Returns:
      Neighbourhoods, channels innermost; a product with a kernel ``[3, 3, channels, out]`` reshaped
      to ``[9 * channels, out]`` is the convolution.
    """
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [
        padded[:, i : i + height : stride, j : j + width : stride]
        for i in range(3)
        for j in range(3)
    ]
    return jnp.concatenate(shifted, axis=-1)


@dataclasses.dataclass(frozen=True)
class ConvNet:
    """3x3 convolutions of stride 2, a mean over positions, a dense layer.

    Attributes:
      channels: of every convolution.
      activation: a name in :data:`mnemosyne.meta.tasks.mlp.ACTIVATIONS`.
      normalized: whether channels are layer-normalised before the activation.
      classes: width of the last layer.
    """

    channels: tuple[int, ...]
    activation: str = "relu"
    normalized: bool = False
    classes: int = 10

    def init(self, key: Key[Array, ""]) -> list[layers.Layer]:
        """Weights of variance ``2 / fan_in``, the last layer ``1 / fan_in``; biases zero."""
        keys = jax.random.split(key, len(self.channels) + 1)
        fans = zip(keys[:-1], (3, *self.channels[:-1]), self.channels, strict=True)
        made = [layers.dense(k, 9 * before, after, 2.0) for k, before, after in fans]
        if self.normalized:
            made = [
                layer | layers.norm(width) for layer, width in zip(made, self.channels, strict=True)
            ]
        return [*made, layers.dense(keys[-1], self.channels[-1], self.classes)]

    def apply(
        self, params: list[layers.Layer], inputs: Float[Array, "batch height width 3"]
    ) -> Float[Array, "batch classes"]:
        """Class scores."""
        x = inputs
        for layer in params[:-1]:
            x = layers.apply_dense(layer, patches(x, stride=2))
            if self.normalized:
                x = layers.apply_norm(layer, x)
            x = ACTIVATIONS[self.activation](x)
        return layers.apply_dense(params[-1], x.mean(axis=(1, 2)))


def _build(
    name: str, model: ConvNet, batch_size: int, steps: int, folder: Path | None
) -> BenchmarkTask:
    images = data.cifar10(folder, SIDE)
    return BenchmarkTask(ClassifyTask(name, *images[1:], model, batch_size), steps, "conv")


HOLD_OUT: dict[str, Builder] = {
    name: partial(_build, name, model, batch_size, 1000)
    for name, model, batch_size in (
        ("conv/cifar10-16", ConvNet((16, 32, 32)), 32),
        ("conv-layernorm/cifar10-16", ConvNet((16, 16, 32), "gelu", True), 32),
    )
}
