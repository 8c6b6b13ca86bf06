# SPDX-License-Identifier: Apache-2.0
"""Causal language modelling on characters, for any model of sequences."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from experiments import data
from mnemosyne.meta.task import Params
from mnemosyne.meta.tasks import Model, losses

CONTEXT = 32
"""Characters that are predicted in one sequence."""
VOCABULARY = 65
"""Distinct characters of the text."""

Windows = Int[Array, "batch context_and_one"]


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageTask:
    """Predict every character of a window from those before it.

    Attributes:
      name: see :class:`mnemosyne.meta.task.Task`.
      tokens: the text, uint8.
      model: from tokens ``[batch, CONTEXT]`` to scores ``[batch, CONTEXT, VOCABULARY]``.
      batch_size: windows a minibatch, anywhere in the text.
    """

    name: str
    tokens: UInt8[np.ndarray, " length"]
    model: Model
    batch_size: int = 16

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters of the model."""
        return self.model.init(key)

    def sample(self, key: Key[Array, ""]) -> Windows:
        """Windows of one character more than the context."""
        last = len(self.tokens) - CONTEXT
        starts = jax.random.randint(key, (self.batch_size, 1), 0, last)
        return jnp.asarray(self.tokens)[starts + jnp.arange(CONTEXT + 1)].astype(jnp.int32)

    def loss(self, params: Params, batch: Windows) -> Float[Array, ""]:
        """Mean cross-entropy a character, nats."""
        return losses.cross_entropy(self.model.apply(params, batch[:, :-1]), batch[:, 1:])

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """See :func:`mnemosyne.meta.tasks.losses.normalize`; chance is ``ln(VOCABULARY)``."""
        return losses.normalize(loss, math.log(VOCABULARY))


def make_task(name: str, model: Model, batch_size: int, folder: Path | None) -> LanguageTask:
    """A language model on the hold-out text.

    Raises:
      ValueError: if the text is missing or has another alphabet.
    """
    text = data.shakespeare(folder)
    if len(text.alphabet) != VOCABULARY:
        raise ValueError(
            f"{text.name}.txt must have {VOCABULARY} distinct characters, "
            f"it has {len(text.alphabet)}."
        )
    return LanguageTask(name, text.tokens, model, batch_size)
