# SPDX-License-Identifier: Apache-2.0
"""Any model on any arrays: classification by cross-entropy, regression by squared error."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num

from mnemosyne.meta.task import Params
from mnemosyne.meta.tasks import losses


@runtime_checkable
class Model(Protocol):
    """A network: fresh parameters by a key, and a pure function of parameters and inputs."""

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters, a pytree of float32 arrays."""
        ...

    def apply(self, params: Params, inputs: Array) -> Array:
        """Outputs ``[batch, ...]`` for inputs ``[batch, ...]``."""
        ...


Batch = tuple[Num[Array, "batch *inputs"], Num[Array, "batch *targets"]]


def _draw(key: Key[Array, ""], count: int, inputs: Any, targets: Any) -> Batch:
    rows = jax.random.randint(key, (count,), 0, len(targets))
    return jnp.asarray(inputs)[rows], jnp.asarray(targets)[rows]


@dataclasses.dataclass(frozen=True, eq=False)
class ClassifyTask:
    """Softmax classification.

    Attributes:
      name: see :class:`mnemosyne.meta.task.Task`.
      inputs: training examples, float32, about unit scale.
      labels: classes, int32.
      model: its outputs are class scores ``[batch, classes]``.
      batch_size: examples a minibatch, drawn with replacement.
    """

    name: str
    inputs: Float[np.ndarray, "rows *inputs"]
    labels: Int[np.ndarray, " rows"]
    model: Model
    batch_size: int = 64

    @property
    def num_classes(self) -> int:
        """Number of classes in the labels."""
        return int(self.labels.max()) + 1

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters of the model."""
        return self.model.init(key)

    def sample(self, key: Key[Array, ""]) -> Batch:
        """A minibatch of examples and labels."""
        return _draw(key, self.batch_size, self.inputs, self.labels)

    def loss(self, params: Params, batch: Batch) -> Float[Array, ""]:
        """Mean cross-entropy, nats."""
        inputs, labels = batch
        return losses.cross_entropy(self.model.apply(params, inputs), labels)

    def accuracy(
        self,
        params: Params,
        inputs: Float[Array | np.ndarray, "batch *inputs"],
        labels: Int[Array | np.ndarray, " batch"],
    ) -> Float[Array, ""]:
        """Share of the examples whose label has the highest score, 0 to 1."""
        scores = self.model.apply(params, jnp.asarray(inputs))
        return jnp.mean(jnp.argmax(scores, axis=-1) == jnp.asarray(labels))

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """See :func:`mnemosyne.meta.tasks.losses.normalize`; chance is ``ln(classes)``."""
        return losses.normalize(loss, math.log(self.num_classes))


@dataclasses.dataclass(frozen=True, eq=False)
class RegressTask:
    """Mean squared error; an autoencoder where the targets are the inputs.

    Attributes:
      name: see :class:`mnemosyne.meta.task.Task`.
      inputs: training examples, float32, about unit scale.
      targets: what the model should give for them, float32, mean about 0.
      model: its outputs have the shape of the targets.
      batch_size: examples a minibatch, drawn with replacement.
    """

    name: str
    inputs: Float[np.ndarray, "rows *inputs"]
    targets: Float[np.ndarray, "rows *targets"]
    model: Model
    batch_size: int = 64

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters of the model."""
        return self.model.init(key)

    def sample(self, key: Key[Array, ""]) -> Batch:
        """A minibatch of examples and targets."""
        return _draw(key, self.batch_size, self.inputs, self.targets)

    def loss(self, params: Params, batch: Batch) -> Float[Array, ""]:
        """Squared error, averaged over examples and outputs."""
        inputs, targets = batch
        return jnp.mean((self.model.apply(params, inputs) - targets) ** 2)

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """See :func:`mnemosyne.meta.tasks.losses.normalize`; chance is to answer 0."""
        return losses.normalize(loss, float(np.mean(self.targets**2)))
