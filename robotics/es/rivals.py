# SPDX-License-Identifier: Apache-2.0
"""Strategies of evosax (CMA-ES, SNES, ...) in the loop of our own: same episodes, same budget.

They see the parameters as one flat vector and move it by rules of their own, so there is no slot
for an optimizer; what they minimize is minus the fitness.
"""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, PyTree

from envs.api import EpisodeWrapper
from robotics import networks, sharding
from robotics.algorithm import Algorithm, Metrics, Telemetry, nearest
from robotics.es.config import ESConfig
from robotics.es.strategy import Strategy, Told
from robotics.es.train import make_evolution

_OURS = {"population_size", "solution"}


def list_rivals() -> list[str]:
    """Strategies of evosax that need no more than a population size and a solution.

    Raises:
      ModuleNotFoundError: if evosax is not installed.
    """
    return sorted(_rivals())


def _rivals() -> dict[str, Any]:
    from evosax.algorithms import distribution_based_algorithms

    return {
        name: made
        for name, made in distribution_based_algorithms.items()
        if {p.name for p in _parameters(made).values() if p.default is p.empty} <= _OURS
    }


def _parameters(made: Any) -> dict[str, inspect.Parameter]:
    """Arguments of a strategy's constructor by name."""
    return dict(inspect.signature(made).parameters)


def make_rival(
    env: EpisodeWrapper,
    config: ESConfig,
    name: str,
    learning_rate: float | None = None,
    telemetry: Telemetry | None = None,
    mesh: Mesh | None = None,
) -> Algorithm:
    """A strategy of evosax as an algorithm.

    Args:
      env: environment with time limit.
      config: settings; ``perturbation_std`` is where the strategy starts.
      name: one of :func:`list_rivals`, such as ``"CMA_ES"``.
      learning_rate: has strategies that follow a gradient do so by Adam of that rate; ``None``
        keeps their own rule.
      telemetry: see :func:`robotics.es.make_es`.
      mesh: devices to divide the population among.

    Raises:
      ModuleNotFoundError: if evosax is not installed.
      ValueError: unknown name, settings that are not the strategy's, or those of
        :func:`robotics.es.make_es`.
    """
    known = _rivals()
    if name not in known:
        raise ValueError(
            f"evosax has no strategy {name!r} to use here; the nearest one is "
            f"{nearest(name, sorted(known))!r}."
        )
    if config.perturbation != "full" or config.shaping != "ranks":
        raise ValueError(
            f"{name} of evosax perturbs and weighs in its own way: leave out --es.perturbation "
            "and --es.shaping."
        )
    options = _options(name, known[name], config.perturbation_std, learning_rate)
    # Its constructor only measures the solution, whose values do not matter.
    key = jax.random.key(0)
    sizes = env.env.observation_size, env.env.action_size
    shapes = jax.eval_shape(lambda: networks.init_policy(key, *sizes, config.network))
    solution = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    rival = known[name](config.population_size, solution, **options)
    strategy = _strategy(rival, config.perturbation_std, mesh)
    return make_evolution(env, config, strategy, telemetry, mesh)


def _options(name: str, made: Any, std: float, learning_rate: float | None) -> dict[str, Any]:
    """What the constructor of a strategy is told besides its sizes."""
    takes, options = _parameters(made), {}
    if "std_schedule" in takes:
        options["std_schedule"] = optax.constant_schedule(std)
    if learning_rate is not None:
        if "optimizer" not in takes:
            raise ValueError(f"{name} of evosax has no learning rate: leave out --learning-rate.")
        options["optimizer"] = optax.adam(learning_rate)
    return options


def _strategy(rival: Any, std: float, mesh: Mesh | None) -> Strategy:
    """Ask and tell of evosax as ours."""
    settings = rival.default_params
    if hasattr(settings, "std_init"):
        settings = settings.replace(std_init=jnp.full_like(settings.std_init, std))

    def init(key: Key[Array, ""], params: PyTree) -> PyTree:
        return _strong(rival.init(key, params, settings))

    def ask(key: Key[Array, ""], params: PyTree, state: PyTree) -> tuple[PyTree, Any]:
        key_ask, key_tell = jax.random.split(key)
        flat, state = rival.ask(key_ask, state, settings)
        population = jax.tree.map(lambda leaf: leaf.reshape(2, -1, *leaf.shape[1:]), flat)
        return sharding.divided(mesh, population, axis=1), (flat, state, key_tell)

    def tell(
        params: PyTree,
        state: PyTree,
        proposal: Any,
        fitness: Float[Array, "2 pairs"],
        extras: Metrics,
    ) -> Told:
        flat, state, key = proposal
        state, _ = rival.tell(key, flat, _costs(fitness), state, settings)
        mean = rival.get_mean(state)
        updates = jax.tree.map(jnp.subtract, mean, params)
        return Told(mean, _strong(state), updates, {})

    return Strategy(init, ask, tell, ())


def _costs(fitness: Float[Array, "2 pairs"]) -> Float[Array, " members"]:
    """What is to be minimized; members whose return is not finite are as bad as the worst other."""
    costs = -fitness.ravel()
    finite = jnp.isfinite(costs)
    return jnp.where(finite, costs, jnp.max(jnp.where(finite, costs, -jnp.inf)))


def _strong(tree: PyTree) -> PyTree:
    """Leaves of a type of their own, which a loop carries and a checkpoint brings back as it is."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.asarray(leaf).dtype), tree)
