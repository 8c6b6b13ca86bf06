# SPDX-License-Identifier: Apache-2.0
"""Any model on any arrays: classification by cross-entropy, regression by squared error."""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol, runtime_checkable

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


@dataclasses.dataclass(frozen=True, eq=False)
class _ArrayTask:
    """A model on examples in arrays.

    Attributes:
      name: see :class:`mnemosyne.meta.task.Task`.
      inputs: training examples, float32, about unit scale.
      targets: what belongs to each example.
      model: the network.
      batch_size: examples a minibatch, drawn with replacement.
    """

    name: str
    inputs: Float[np.ndarray, "rows *inputs"]
    targets: Num[np.ndarray, "rows *targets"]
    model: Model
    batch_size: int = 64

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters of the model."""
        return self.model.init(key)

    def sample(self, key: Key[Array, ""]) -> Batch:
        """A minibatch of examples and targets."""
        rows = jax.random.randint(key, (self.batch_size,), 0, len(self.targets))
        return jnp.asarray(self.inputs)[rows], jnp.asarray(self.targets)[rows]


@dataclasses.dataclass(frozen=True, eq=False)
class ClassifyTask(_ArrayTask):
    """Softmax classification: targets are classes, int32, and outputs their scores."""

    @property
    def num_classes(self) -> int:
        """Number of classes in the targets."""
        return int(self.targets.max()) + 1

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
class RegressTask(_ArrayTask):
    """Mean squared error: targets and outputs are float32, about 0 in the mean.

    An autoencoder where the targets are the inputs.
    """

    def loss(self, params: Params, batch: Batch) -> Float[Array, ""]:
        """Squared error, averaged over examples and outputs."""
        inputs, targets = batch
        return jnp.mean((self.model.apply(params, inputs) - targets) ** 2)

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """See :func:`mnemosyne.meta.tasks.losses.normalize`; chance is to answer 0."""
        return losses.normalize(loss, float(np.mean(self.targets**2)))
