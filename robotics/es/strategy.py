# SPDX-License-Identifier: Apache-2.0
"""Who proposes a population and moves its mean: an optimizer and an estimated gradient, or others.

A strategy is to :mod:`robotics.es.train` what ask and tell are to an evolutionary algorithm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, PyTree

from robotics import sharding
from robotics.algorithm import Metrics
from robotics.es.config import ESConfig
from robotics.es.perturb import estimate_gradient, perturb, sample_noise
from robotics.es.shaping import ars_weights, rank_weights


class Told(NamedTuple):
    """What a generation has taught: the moved mean, how it moved, and scalars about that."""

    params: PyTree
    state: PyTree
    updates: PyTree
    metrics: Metrics


class Strategy(NamedTuple):
    """Ask and tell as pure functions of one seed.

    Attributes:
      init: ``init(key, params)``, its state for a mean.
      ask: ``ask(key, params, state)`` gives a population ``[2, pairs, ...]`` and whatever ``tell``
        needs to know about it.
      tell: ``tell(params, state, proposal, fitness, extras)`` with the fitness ``[2, pairs]`` of
        that population, larger is better.
      metrics: names of the scalars that ``tell`` gives.
    """

    init: Callable[[Key[Array, ""], PyTree], PyTree]
    ask: Callable[[Key[Array, ""], PyTree, PyTree], tuple[PyTree, Any]]
    tell: Callable[[PyTree, PyTree, Any, Float[Array, "2 pairs"], Metrics], Told]
    metrics: tuple[str, ...]


def gradient_strategy(
    config: ESConfig, optimizer: optax.GradientTransformation, mesh: Mesh | None
) -> Strategy:
    """Antithetic perturbations whose gradient an optax transformation descends.

    Args:
      config: settings.
      optimizer: the transformation in the slot.
      mesh: devices that share the perturbations.
    """
    slot = optax.with_extra_args_support(optimizer)
    std, pairs = config.perturbation_std, config.population_size // 2

    def ask(key: Key[Array, ""], params: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        noise = sharding.divided(mesh, sample_noise(key, params, pairs, config.noise_rank))
        return perturb(params, noise, std), noise

    def tell(
        params: PyTree,
        state: PyTree,
        noise: PyTree,
        fitness: Float[Array, "2 pairs"],
        extras: Metrics,
    ) -> Told:
        if config.shaping == "ars":
            weights = ars_weights(fitness, config.num_top_directions)
        else:
            weights = rank_weights(fitness, std)
        grads = sharding.everywhere(mesh, estimate_gradient(noise, weights))
        updates, state = slot.update(grads, state, params, **extras)
        metrics = {"training/gradient_norm": optax.tree.norm(grads)}
        return Told(optax.apply_updates(params, updates), state, updates, metrics)

    return Strategy(lambda _, params: slot.init(params), ask, tell, ("training/gradient_norm",))
