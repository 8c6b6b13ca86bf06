# SPDX-License-Identifier: Apache-2.0
"""Hold-out recurrent language models on characters: gated (Cho et al. 2014) and plain."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from experiments.tasks import language, layers
from experiments.tasks.base import BenchmarkTask, Builder

State = Float[Array, "batch width"]


def gru_cell(recurrent: layers.Layer, state: State, drive: Float[Array, "batch wide"]) -> State:
    """One update of a gated recurrent unit; ``drive`` is ``[batch, 3 * width]``."""
    reset_x, keep_x, new_x = jnp.split(drive, 3, axis=-1)
    reset_h, keep_h, new_h = jnp.split(layers.apply_dense(recurrent, state), 3, axis=-1)
    keep = jax.nn.sigmoid(keep_x + keep_h)
    new = jnp.tanh(new_x + jax.nn.sigmoid(reset_x + reset_h) * new_h)
    return keep * state + (1.0 - keep) * new


def plain_cell(recurrent: layers.Layer, state: State, drive: State) -> State:
    """One update of a tanh network."""
    return jnp.tanh(drive + layers.apply_dense(recurrent, state))


@dataclasses.dataclass(frozen=True)
class RNN:
    """Embedding, one recurrent layer from a zero state, a dense layer.

    Attributes:
      width: of the recurrent state.
      gated: GRU if true, else a tanh network.
      embedding: width of a character.
    """

    width: int
    gated: bool
    embedding: int = 16

    def init(self, key: Key[Array, ""]) -> layers.Layer:
        """Weights of variance ``1 / fan_in``, biases zero."""
        names = ("embedding", "input", "recurrent", "head")
        keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
        wide = 3 * self.width if self.gated else self.width
        return {
            "embedding": layers.embedding(keys["embedding"], language.VOCABULARY, self.embedding),
            "input": layers.dense(keys["input"], self.embedding, wide),
            "recurrent": layers.dense(keys["recurrent"], self.width, wide),
            "head": layers.dense(keys["head"], self.width, language.VOCABULARY),
        }

    def apply(
        self, params: layers.Layer, inputs: Int[Array, "batch time"]
    ) -> Float[Array, "batch time vocabulary"]:
        """Scores of the next character after each one."""
        cell = gru_cell if self.gated else plain_cell
        x = layers.apply_embedding(params["embedding"], inputs)
        drive = layers.apply_dense(params["input"], x).swapaxes(0, 1)

        def step(state: State, now: Array) -> tuple[State, State]:
            state = cell(params["recurrent"], state, now)
            return state, state

        zero = jnp.zeros((inputs.shape[0], self.width))
        _, states = jax.lax.scan(step, zero, drive)
        return layers.apply_dense(params["head"], states.swapaxes(0, 1))


def _build(
    name: str, model: RNN, batch_size: int, steps: int, folder: Path | None
) -> BenchmarkTask:
    task = language.make_task(name, model, batch_size, folder)
    return BenchmarkTask(task, steps, "rnn")


HOLD_OUT: dict[str, Builder] = {
    name: partial(_build, name, model, 16, 1000)
    for name, model in (
        ("gru-lm/shakespeare", RNN(32, gated=True)),
        ("rnn-lm/shakespeare", RNN(64, gated=False)),
    )
}
