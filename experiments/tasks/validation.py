# SPDX-License-Identifier: Apache-2.0
"""Validation networks that meta-training does not have: residual layers and an MLP-mixer."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from experiments.tasks import layers

SIDE = 8
"""Pixels along an edge of the images."""


@dataclasses.dataclass(frozen=True)
class ResidualMLP:
    """A stem, residual blocks ``x + down(gelu(up(norm(x))))`` and a head.

    Attributes:
      width: of the residual stream.
      depth: blocks.
      classes: width of the last layer.
    """

    width: int = 48
    depth: int = 3
    classes: int = 10

    def init(self, key: Key[Array, ""]) -> layers.Layer:
        """Weights of variance ``1 / fan_in``, biases zero."""
        key_stem, key_head, key_blocks = jax.random.split(key, 3)
        return {
            "stem": layers.dense(key_stem, SIDE**2, self.width),
            "blocks": [
                _branch(k, self.width, self.width) for k in jax.random.split(key_blocks, self.depth)
            ],
            "norm": layers.norm(self.width),
            "head": layers.dense(key_head, self.width, self.classes),
        }

    def apply(
        self, params: layers.Layer, inputs: Float[Array, "batch pixels"]
    ) -> Float[Array, "batch classes"]:
        """Class scores."""
        x = layers.apply_dense(params["stem"], inputs)
        for block in params["blocks"]:
            x = x + _apply_branch(block, layers.apply_norm(block["norm"], x))
        return layers.apply_dense(params["head"], layers.apply_norm(params["norm"], x))


@dataclasses.dataclass(frozen=True)
class Mixer:
    """MLP-mixer (Tolstikhin et al. 2021): perceptrons over tokens and over channels in turn.

    Attributes:
      patch: pixels along an edge of a patch; divides :data:`SIDE`.
      width: of a token.
      depth: blocks.
      classes: width of the last layer.
    """

    patch: int = 2
    width: int = 24
    depth: int = 2
    classes: int = 10

    @property
    def tokens(self) -> int:
        """Patches of an image."""
        return (SIDE // self.patch) ** 2

    def init(self, key: Key[Array, ""]) -> layers.Layer:
        """Weights of variance ``1 / fan_in``, biases zero."""
        key_patches, key_head, key_tokens, key_channels = jax.random.split(key, 4)
        return {
            "patches": layers.dense(key_patches, self.patch**2, self.width),
            "tokens": [
                _branch(k, self.tokens, 2 * self.tokens, self.width)
                for k in jax.random.split(key_tokens, self.depth)
            ],
            "channels": [
                _branch(k, self.width, 2 * self.width)
                for k in jax.random.split(key_channels, self.depth)
            ],
            "norm": layers.norm(self.width),
            "head": layers.dense(key_head, self.width, self.classes),
        }

    def apply(
        self, params: layers.Layer, inputs: Float[Array, "batch pixels"]
    ) -> Float[Array, "batch classes"]:
        """Class scores."""
        x = layers.apply_dense(params["patches"], self._cut(inputs))
        for tokens, channels in zip(params["tokens"], params["channels"], strict=True):
            turned = layers.apply_norm(tokens["norm"], x).swapaxes(1, 2)
            x = x + _apply_branch(tokens, turned).swapaxes(1, 2)
            x = x + _apply_branch(channels, layers.apply_norm(channels["norm"], x))
        x = layers.apply_norm(params["norm"], x)
        return layers.apply_dense(params["head"], jnp.mean(x, axis=1))

    def _cut(self, images: Array) -> Float[Array, "batch tokens pixels"]:
        """Patches as rows of pixels."""
        batch, count = images.shape[0], SIDE // self.patch
        grid = images.reshape(batch, count, self.patch, count, self.patch)
        return grid.transpose(0, 1, 3, 2, 4).reshape(batch, self.tokens, -1)


def _branch(
    key: Key[Array, ""], width: int, hidden: int, normalized: int | None = None
) -> layers.Layer:
    """A normalisation (of another axis for token mixing) and two dense layers."""
    key_up, key_down = jax.random.split(key)
    return {
        "norm": layers.norm(normalized or width),
        "up": layers.dense(key_up, width, hidden),
        "down": layers.dense(key_down, hidden, width),
    }


def _apply_branch(branch: layers.Layer, x: Array) -> Array:
    return layers.apply_dense(branch["down"], jax.nn.gelu(layers.apply_dense(branch["up"], x)))
