# SPDX-License-Identifier: Apache-2.0
"""Families whose every draw is another problem of the same shapes.

An optimizer that meets few problems learns those problems. All that can differ without a change of
shapes differs here from draw to draw: activation, size of the initial weights, conditioning and
offset of the inputs, noise of the targets, effective size of a minibatch, and, for synthetic data,
the data. One compiled program serves all draws.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num

from mnemosyne.meta.tasks import losses
from mnemosyne.meta.tasks.mlp import ACTIVATIONS, MLPParams, apply_layers, init_layers

SHARES = (0.35, 0.35, 0.2)
"""Of the first activations in the draws of :class:`VariedMLP`; the last one has the rest."""
Examples = tuple[Float[Array, "batch inputs"], Num[Array, "batch *outputs"]]
"""Inputs, and classes (int32) or values (float32)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a data set; the same in every draw.

    Attributes:
      inputs: examples, about unit scale.
      labels: their classes.
    """

    inputs: Float[np.ndarray, "rows inputs"]
    labels: Int[np.ndarray, " rows"]

    def draw(self, key: Key[Array, ""]) -> tuple[()]:
        """Nothing to draw."""
        del key
        return ()

    def sample(self, drawn: tuple[()], key: Key[Array, ""], count: int) -> Examples:
        """``count`` rows, with replacement."""
        del drawn
        rows = jax.random.randint(key, (count,), 0, len(self.labels))
        return jnp.asarray(self.inputs)[rows], jnp.asarray(self.labels)[rows]


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """Gaussian inputs, answered by a random two-layer network that is new in every draw.

    Attributes:
      inputs: width of an example.
      outputs: classes, or values of a target.
      hidden: width of the teacher.
      classify: whether the largest output is the class, or the outputs are the target.
    """

    inputs: int
    outputs: int
    hidden: int = 8
    classify: bool = True

    def draw(self, key: Key[Array, ""]) -> tuple[Array, Array]:
        """Weights of the teacher."""
        key_first, key_second = jax.random.split(key)
        first = jax.random.normal(key_first, (self.inputs, self.hidden))
        second = jax.random.normal(key_second, (self.hidden, self.outputs))
        return first * math.sqrt(2.0 / self.inputs), second * math.sqrt(2.0 / self.hidden)

    def sample(self, drawn: tuple[Array, Array], key: Key[Array, ""], count: int) -> Examples:
        """``count`` fresh examples."""
        inputs = jax.random.normal(key, (count, self.inputs))
        outputs = jnp.tanh(inputs @ drawn[0]) @ drawn[1]
        return inputs, jnp.argmax(outputs, axis=-1) if self.classify else outputs

    def table(self, key: Key[Array, ""], rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Fixed examples of one teacher, as arrays for a task that is no family."""
        inputs, targets = self.sample(self.draw(key), jax.random.fold_in(key, 1), rows)
        return np.asarray(inputs), np.asarray(targets)


@dataclasses.dataclass(frozen=True, eq=False)
class Symbols:
    """Pairs of symbols as indicators; the class is drawn from logits that depend on both.

    Frequencies fall like those of words, so that most weights of the first layer seldom see a
    gradient.

    Attributes:
      inputs: width of an example, twice the number of symbols.
      outputs: classes.
    """

    inputs: int
    outputs: int

    def draw(self, key: Key[Array, ""]) -> tuple[Array, Array]:
        """Logits of frequencies, and of classes given either symbol."""
        key_order, key_classes = jax.random.split(key)
        count = self.inputs // 2
        ranks = jax.random.permutation(key_order, count) + 1.0
        classes = 2.0 * jax.random.normal(key_classes, (2, count, self.outputs))
        return -jnp.log(ranks), classes

    def sample(self, drawn: tuple[Array, Array], key: Key[Array, ""], count: int) -> Examples:
        """``count`` fresh pairs."""
        frequencies, classes = drawn
        key_pair, key_class = jax.random.split(key)
        pair = jax.random.categorical(key_pair, frequencies, shape=(2, count))
        indicators = jax.nn.one_hot(pair, self.inputs // 2)
        logits = jnp.einsum("pbs,psc->bc", indicators, classes)
        inputs = jnp.concatenate([indicators[0], indicators[1]], axis=-1)
        # Two indicators an example: scaled to a mean square of one.
        return inputs * math.sqrt(self.inputs / 2), jax.random.categorical(key_class, logits)


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """One of several sources of equal shapes, chosen by the draw.

    Attributes:
      sources: to choose from.
    """

    sources: tuple[Rows | Teacher | Symbols, ...]

    def draw(self, key: Key[Array, ""]) -> tuple[Array, tuple[Any, ...]]:
        """Which source, and what each of them draws."""
        which = jax.random.randint(jax.random.fold_in(key, 0), (), 0, len(self.sources))
        return which, tuple(source.draw(jax.random.fold_in(key, 1)) for source in self.sources)

    def sample(self, drawn: tuple[Array, tuple[Any, ...]], key: Key[Array, ""], count: int) -> Any:
        """``count`` examples of the chosen source."""
        which, each = drawn
        # Under vmap a switch would compute all sources as well.
        examples = [
            source.sample(own, key, count) for source, own in zip(self.sources, each, strict=True)
        ]
        return jax.tree.map(lambda *options: jnp.stack(options)[which], *examples)


class Variation(NamedTuple):
    """One draw of what differs.

    Attributes:
      activation: weights of :data:`mnemosyne.meta.tasks.mlp.ACTIVATIONS`, one of them 1.
      gain: variance of the initial weights times their fan-in, log-uniform from 0.7 to 2.
      multiplier: of the outputs, log-uniform from 1 to 16; the last layer starts smaller by its
        root. Nothing that an optimizer sees at the start tells the step that it asks for.
      scales: factor of each input, log-uniform over up to two decades; all ones in half of the
        draws.
      offset: common to all inputs, from 0 to 1; 0 in half of the draws.
      noise: share of random classes, up to 0.3, or standard deviation of the noise of values;
        0 in half of the draws.
      batch: examples of a minibatch that count, log-uniform from a quarter of them to all.
      data: of the source.
    """

    activation: Float[Array, " activations"]
    gain: Float[Array, ""]
    multiplier: Float[Array, ""]
    scales: Float[Array, " inputs"]
    offset: Float[Array, ""]
    noise: Float[Array, ""]
    batch: Float[Array, ""]
    data: Any


Source = Rows | Teacher | Symbols | Mixture
Batch = tuple[Float[Array, "batch inputs"], Num[Array, "batch *outputs"], Float[Array, " batch"]]
"""Inputs, targets, and weights of the examples."""


@dataclasses.dataclass(frozen=True, eq=False)
class VariedMLP:
    """Multi-layer perceptrons on one source of data; see the module docstring.

    Attributes:
      name: see :class:`mnemosyne.meta.task.Task`.
      source: of examples.
      widths: of inputs, hidden layers and outputs.
      batch_size: examples of the largest minibatch.
      kind: what the targets are.
    """

    name: str
    source: Source
    widths: tuple[int, ...]
    batch_size: int = 64
    kind: Literal["classes", "values"] = "classes"

    def draw(self, key: Key[Array, ""]) -> DrawnMLP:
        """One problem of the family."""
        keys = jax.random.split(key, 4)
        uniform = jax.random.uniform(keys[0], (8,))
        scales = jnp.exp(math.log(0.01) * uniform[0] * jax.random.uniform(keys[1], self.widths[:1]))
        scales = scales / jnp.sqrt(jnp.mean(jnp.square(scales)))
        kinds = jnp.searchsorted(jnp.cumsum(jnp.asarray(SHARES)), uniform[2])
        variation = Variation(
            activation=jax.nn.one_hot(kinds, len(ACTIVATIONS)),
            gain=0.7 * jnp.exp(math.log(3.0) * uniform[3]),
            multiplier=jnp.exp(math.log(16.0) * uniform[7]),
            scales=jnp.where(uniform[1] < 0.5, scales, 1.0),
            offset=jnp.maximum(2.0 * uniform[4] - 1.0, 0.0),
            noise=0.6 * jnp.maximum(uniform[5] - 0.5, 0.0),
            batch=jnp.round(self.batch_size * jnp.exp(math.log(0.25) * uniform[6])),
            data=self.source.draw(keys[2]),
        )
        return DrawnMLP(self, variation)


@dataclasses.dataclass(frozen=True, eq=False)
class DrawnMLP:
    """One problem of a family, as a :class:`mnemosyne.meta.task.Task`.

    Attributes:
      family: it belongs to.
      variation: what is its own; may be traced.
    """

    family: VariedMLP
    variation: Variation

    @property
    def name(self) -> str:
        """Name of the family."""
        return self.family.name

    def init(self, key: Key[Array, ""]) -> MLPParams:
        """Weights of variance ``gain / fan_in``, smaller in the last layer, and biases zero."""
        *layers, last = init_layers(key, self.family.widths, self.variation.gain)
        return [*layers, last | {"kernel": last["kernel"] / jnp.sqrt(self.variation.multiplier)}]

    def sample(self, key: Key[Array, ""]) -> Batch:
        """A minibatch, with the weights of its examples."""
        family, variation = self.family, self.variation
        key_rows, key_noise, key_random = jax.random.split(key, 3)
        inputs, targets = family.source.sample(variation.data, key_rows, family.batch_size)
        inputs = inputs * variation.scales + variation.offset
        if family.kind == "classes":
            wrong = jax.random.uniform(key_noise, targets.shape) < variation.noise
            anything = jax.random.randint(key_random, targets.shape, 0, family.widths[-1])
            targets = jnp.where(wrong, anything, targets)
        else:
            targets = targets + variation.noise * jax.random.normal(key_noise, targets.shape)
        counted = jnp.arange(family.batch_size) < variation.batch
        return inputs, targets, counted / variation.batch

    def loss(self, params: MLPParams, batch: Batch) -> Float[Array, ""]:
        """Weighted mean of cross-entropies, or of squared errors."""
        inputs, targets, weights = batch
        outputs = self.variation.multiplier * apply_layers(params, inputs, self._activate)
        if self.family.kind == "classes":
            return jnp.sum(weights * losses.cross_entropies(outputs, targets))
        return jnp.sum(weights * jnp.mean(jnp.square(outputs - targets), axis=-1))

    def _activate(self, x: Array) -> Array:
        # Under vmap a switch would compute all branches as well.
        functions = ACTIVATIONS.values()
        return sum(
            (w * f(x) for w, f in zip(self.variation.activation, functions, strict=True)),
            start=jnp.zeros(()),
        )

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """See :func:`mnemosyne.meta.tasks.losses.normalize`."""
        classes = self.family.kind == "classes"
        return losses.normalize(loss, math.log(self.family.widths[-1]) if classes else 1.0)
