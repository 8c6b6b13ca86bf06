# SPDX-License-Identifier: Apache-2.0
"""The same task made harder: other units of its weights, gradients estimated instead of computed.

For stress in evaluation (VeLO, arXiv:2211.09760, appendix on augmentation; ES-wrapped tasks as in
Metz et al. 2020, arXiv:2009.11243). Meta-training varies its problems by
:class:`mnemosyne.meta.unroll.Augmentation`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mnemosyne.meta.task import Batch, Params, Task


@dataclasses.dataclass(frozen=True, eq=False)
class Reparametrized:
    """A task whose model reads ``scale`` times the trained weights.

    The initial function is that of the wrapped task. Adam's step of a given rate moves the model's
    weights ``scale`` times as far; an optimizer that knows the size of the weights notices nothing.

    Attributes:
      name: see :class:`mnemosyne.meta.task.Task`.
      task: what is wrapped.
      scale: above 0.
    """

    name: str
    task: Task
    scale: float

    def init(self, key: Key[Array, ""]) -> Params:
        """Initial weights of the wrapped task, divided by ``scale``."""
        return jax.tree.map(lambda x: x / self.scale, self.task.init(key))

    def sample(self, key: Key[Array, ""]) -> Batch:
        """A minibatch of the wrapped task."""
        return self.task.sample(key)

    def loss(self, params: Params, batch: Batch) -> Float[Array, ""]:
        """Loss of the wrapped task at ``scale * params``."""
        return self.task.loss(jax.tree.map(lambda x: x * self.scale, params), batch)

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """As the wrapped task does."""
        return self.task.normalize(loss)


@dataclasses.dataclass(frozen=True, eq=False)
class EvolutionGradient:
    """A task whose gradient is an antithetic evolution-strategies estimate.

    ``jax.value_and_grad(task.loss)`` gives the mean loss of the perturbed weights and
    ``mean_i e_i (L(w + s e_i) - L(w - s e_i)) / 2s``: unbiased for the gradient of the loss
    smoothed by ``s``, and as noisy as policies' gradients are. All members see the same minibatch.

    Attributes:
      name: see :class:`mnemosyne.meta.task.Task`.
      task: what is wrapped.
      num_pairs: antithetic pairs an estimate.
      sigma: standard deviation of the perturbations, in units of the weights.
    """

    name: str
    task: Task
    num_pairs: int = 8
    sigma: float = 0.01

    def init(self, key: Key[Array, ""]) -> Params:
        """Initial weights of the wrapped task."""
        return self.task.init(key)

    def sample(self, key: Key[Array, ""]) -> tuple[Batch, Key[Array, ""]]:
        """A minibatch of the wrapped task and the key of the perturbations."""
        key_batch, key_noise = jax.random.split(key)
        return self.task.sample(key_batch), key_noise

    def loss(self, params: Params, batch: tuple[Batch, Key[Array, ""]]) -> Float[Array, ""]:
        """Mean over the pairs; differentiates to the estimate."""
        inner, key = batch
        value, gradient = self._estimate(jax.lax.stop_gradient(params), inner, key)
        return with_gradient(params, value, gradient)

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """As the wrapped task does."""
        return self.task.normalize(loss)

    def _estimate(
        self, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], Params]:
        def pair(key: Key[Array, ""]) -> tuple[Array, Params]:
            noise = _normal_like(key, params)
            above = self.task.loss(_shifted(params, noise, self.sigma), batch)
            below = self.task.loss(_shifted(params, noise, -self.sigma), batch)
            slope = (above - below) / (2.0 * self.sigma)
            return (above + below) / 2.0, jax.tree.map(lambda e: slope * e, noise)

        pairs = jax.vmap(pair)(jax.random.split(key, self.num_pairs))
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), pairs)


def _normal_like(key: Key[Array, ""], tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten(
        [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    )


def _shifted(params: Params, noise: Params, step: float) -> Params:
    return jax.tree.map(lambda x, e: x + step * e, params, noise)


@jax.custom_vjp
def with_gradient(params: Params, value: Float[Array, ""], gradient: Params) -> Float[Array, ""]:
    """``value``, with ``gradient`` as its derivative by ``params`` and no other derivative.

    Args:
      params: a pytree.
      value: what the call returns.
      gradient: a pytree like ``params``.
    """
    del params, gradient
    return value


def _forward(params: Params, value: Array, gradient: Params) -> tuple[Array, Params]:
    del params
    return value, gradient


def _backward(gradient: Params, cotangent: Array) -> tuple[Params, Array, Params]:
    scaled = jax.tree.map(lambda g: cotangent * g, gradient)
    return scaled, jnp.zeros_like(cotangent), jax.tree.map(jnp.zeros_like, gradient)


with_gradient.defvjp(_forward, _backward)
