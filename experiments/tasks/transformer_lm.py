# SPDX-License-Identifier: Apache-2.0
"""Hold-out transformer language models on characters: pre-norm, decoder only."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import jax
from jaxtyping import Array, Float, Int, Key

from experiments.tasks import language, layers
from experiments.tasks.base import BenchmarkTask, Builder


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Embedding, learned positions, causal blocks, a dense layer.

    Attributes:
      width: of a token.
      depth: blocks.
      heads: of the attention; divides ``width``.
    """

    width: int = 32
    depth: int = 2
    heads: int = 2

    def init(self, key: Key[Array, ""]) -> layers.Layer:
        """Weights of variance ``1 / fan_in``, positions 0.02, biases zero."""
        names = ("embedding", "positions", "head", "blocks")
        keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
        return {
            "embedding": layers.embedding(keys["embedding"], language.VOCABULARY, self.width),
            "positions": layers.embedding(keys["positions"], language.CONTEXT, self.width, 0.02),
            "blocks": [
                layers.block(k, self.width, 2 * self.width)
                for k in jax.random.split(keys["blocks"], self.depth)
            ],
            "norm": layers.norm(self.width),
            "head": layers.dense(keys["head"], self.width, language.VOCABULARY),
        }

    def apply(
        self, params: layers.Layer, inputs: Int[Array, "batch time"]
    ) -> Float[Array, "batch time vocabulary"]:
        """Scores of the next character after each one."""
        x = layers.apply_embedding(params["embedding"], inputs) + params["positions"]
        for block in params["blocks"]:
            x = layers.apply_block(block, x, self.heads, causal=True)
        return layers.apply_dense(params["head"], layers.apply_norm(params["norm"], x))


def _build(
    name: str, model: Decoder, batch_size: int, steps: int, folder: Path | None
) -> BenchmarkTask:
    task = language.make_task(name, model, batch_size, folder)
    return BenchmarkTask(task, steps, "transformer")


HOLD_OUT: dict[str, Builder] = {
    name: partial(_build, name, model, batch_size, 1000)
    for name, model, batch_size in (
        ("transformer-lm/shakespeare", Decoder(32, 2, 2), 8),
        ("transformer-lm-narrow/shakespeare", Decoder(16, 4, 2), 8),
    )
}
