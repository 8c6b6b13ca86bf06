# SPDX-License-Identifier: Apache-2.0
"""A hold-out vision transformer on color images (Dosovitskiy et al. 2021), very small."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from experiments import data
from experiments.tasks import layers
from experiments.tasks.base import BenchmarkTask, Builder
from mnemosyne.meta.tasks import ClassifyTask

SIDE = 16
"""Pixels along an edge of the images."""


@dataclasses.dataclass(frozen=True)
class ViT:
    """Patches, learned positions, pre-norm blocks, a mean over tokens, a dense layer.

    Attributes:
      patch: pixels along an edge of a patch; divides :data:`SIDE`.
      width: of a token.
      depth: blocks.
      heads: of the attention; divides ``width``.
      classes: width of the last layer.
    """

    patch: int = 4
    width: int = 32
    depth: int = 2
    heads: int = 2
    classes: int = 10

    def init(self, key: Key[Array, ""]) -> layers.Layer:
        """Weights of variance ``1 / fan_in``, positions 0.02, biases zero."""
        names = ("patches", "positions", "head", "blocks")
        keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
        tokens = (SIDE // self.patch) ** 2
        return {
            "patches": layers.dense(keys["patches"], 3 * self.patch**2, self.width),
            "positions": layers.embedding(keys["positions"], tokens, self.width, 0.02),
            "blocks": [
                layers.block(k, self.width, 2 * self.width)
                for k in jax.random.split(keys["blocks"], self.depth)
            ],
            "norm": layers.norm(self.width),
            "head": layers.dense(keys["head"], self.width, self.classes),
        }

    def apply(
        self, params: layers.Layer, inputs: Float[Array, "batch side side 3"]
    ) -> Float[Array, "batch classes"]:
        """Class scores."""
        x = layers.apply_dense(params["patches"], self._cut(inputs)) + params["positions"]
        for block in params["blocks"]:
            x = layers.apply_block(block, x, self.heads, causal=False)
        x = layers.apply_norm(params["norm"], x)
        return layers.apply_dense(params["head"], jnp.mean(x, axis=1))

    def _cut(self, images: Array) -> Float[Array, "batch tokens pixels"]:
        """Patches as rows of pixels."""
        batch, count = images.shape[0], SIDE // self.patch
        grid = images.reshape(batch, count, self.patch, count, self.patch, 3)
        return grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, count**2, -1)


def make_task(folder: Path | None) -> ClassifyTask:
    """The task; its ``accuracy`` on :func:`held_out_images` is one of the bars."""
    images = data.cifar10(folder, SIDE)
    return ClassifyTask("vit/cifar10-16", *images[1:], ViT(), 16)


def held_out_images(folder: Path | None) -> data.Images:
    """2,000 images that no training sees, standardised as the training images are."""
    return data.cifar10(folder, SIDE, "test")


def _build(folder: Path | None) -> BenchmarkTask:
    return BenchmarkTask(make_task(folder), 1500, "vit")


HOLD_OUT: dict[str, Builder] = {"vit/cifar10-16": _build}
