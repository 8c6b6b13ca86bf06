# SPDX-License-Identifier: Apache-2.0
"""Evolution strategies as pure functions of one seed.

OpenAI-ES (Salimans et al. 2017, arXiv 1703.03864): deterministic policies, antithetic pairs that
share their starts, centered ranks, observation statistics, and any optax transformation in place of
the paper's Adam. With other settings the same loop is EGGROLL or augmented random search.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from envs.api import EpisodeWrapper
from robotics import faults, networks, normalize, sharding
from robotics.algorithm import (
    Algorithm,
    Locator,
    Metrics,
    PolicyParams,
    Telemetry,
    TrainState,
    add_env_steps,
    split_env_steps,
    zero_env_steps,
)
from robotics.es.config import ESConfig
from robotics.es.play import Played, first_fault, observe, play
from robotics.es.strategy import Strategy, Told, gradient_strategy
from robotics.faults import Fault

_METRICS = (
    "training/fitness_mean",
    "training/fitness_max",
    "training/fitness_std",
    "episode/sum_reward",
    "episode/length",
)


class _Setup(NamedTuple):
    """What is fixed for a whole run."""

    env: EpisodeWrapper
    config: ESConfig
    strategy: Strategy
    telemetry: Telemetry | None
    mesh: Mesh | None
    locating: bool = False

    def scaled(self, step_scale: Float[Array, ""] | float) -> _Setup:
        """The same with smaller steps, where the strategy has any."""
        return self._replace(strategy=self.strategy.scaled(step_scale))

    @property
    def sizes(self) -> tuple[int, int]:
        return self.env.env.observation_size, self.env.env.action_size

    @property
    def step_limit(self) -> int:
        return self.config.step_limit(self.env.time_limit)

    @property
    def num_epochs(self) -> int:
        return self.config.num_epochs(self.env.time_limit)


class _Chunk(NamedTuple):
    """A chunk under way; ``last`` is (updates, parameters before them) where telemetry wants it."""

    state: TrainState
    env_steps: Int[Array, ""]
    generations: Int[Array, ""]
    sums: Metrics
    last: PyTree
    fault: Fault | None


def make_es(
    env: EpisodeWrapper,
    config: ESConfig,
    optimizer: optax.GradientTransformation,
    telemetry: Telemetry | None = None,
    mesh: Mesh | None = None,
) -> Algorithm:
    """ES for one seed; vmap ``init`` and ``epoch`` over keys for several.

    The optimizer's ``update`` is called with the parameters and, if it takes extra arguments, with
    ``value`` (minus the mean fitness) and ``progress`` (share of the budget, 0 to 1).

    Args:
      env: environment with time limit.
      config: settings.
      optimizer: any optax transformation that gives steps to be added.
      telemetry: ``telemetry(opt_state, updates, params before them)``, called on the last update
        of a chunk; its scalars join the metrics.
      mesh: devices to divide the population among, see :mod:`robotics.sharding`.

    Returns:
      An algorithm whose ``env_steps`` metric counts the steps of running episodes only. The last
      chunk ends when the budget might not cover another generation.

    Raises:
      ValueError: if the budget does not cover one generation, or the pairs of perturbations cannot
        be divided among the devices.
    """
    strategy = gradient_strategy(config, optimizer, mesh)
    return make_evolution(env, config, strategy, telemetry, mesh)


def make_evolution(
    env: EpisodeWrapper,
    config: ESConfig,
    strategy: Strategy,
    telemetry: Telemetry | None = None,
    mesh: Mesh | None = None,
) -> Algorithm:
    """Generations under any strategy; arguments and errors as for :func:`make_es`."""
    setup = _Setup(env, config, strategy, telemetry, mesh)
    sharding.check_divides(mesh, "pairs of perturbations", config.population_size // 2)
    num_epochs = setup.num_epochs

    def init(key: Key[Array, ""], start: None = None) -> TrainState:
        return _init(setup, key)

    def epoch(
        state: TrainState, step_scale: Float[Array, ""] | float = 1.0, restarts: None = None
    ) -> tuple[TrainState, Metrics]:
        return _epoch(setup.scaled(step_scale), state)

    def locate(state: TrainState, step_scale: Float[Array, ""]) -> Fault:
        fault = _generations(setup.scaled(step_scale)._replace(locating=True), state).fault
        return faults.none() if fault is None else fault

    def inference_params(state: TrainState) -> PolicyParams:
        return networks.policy_params(state.params, state.normalizer["observation"])

    return Algorithm(
        init=init,
        epoch=epoch,
        inference_params=inference_params,
        policy=networks.make_policy(*setup.sizes, config.network),
        env_steps_per_epoch=config.num_timesteps // num_epochs,
        num_epochs=num_epochs,
        mesh=mesh,
        locator=Locator(locate, lambda: _fault_names(setup), "generation"),
        scales_steps=strategy.scale is not None,
    )


def _fault_names(setup: _Setup) -> dict[str, list[str]]:
    """What the leaves of a fault are called; environments count episode by episode."""
    key = jax.eval_shape(jax.random.key, 0)
    params = faults.leaf_names(jax.eval_shape(lambda key: _init(setup, key), key).params)
    env_state = jax.eval_shape(setup.env.reset, key)
    return {
        "environment": faults.leaf_names(faults.training_part(env_state)),
        "loss": ["loss"],
        "gradient": params,
        "parameters": params,
    }


def _init(setup: _Setup, key: Key[Array, ""]) -> TrainState:
    key_policy, key_state = jax.random.split(key)
    key_strategy = jax.random.fold_in(key, 1)
    params = networks.init_policy(key_policy, *setup.sizes, setup.config.network)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        params=params,
        opt_state=setup.strategy.init(key_strategy, params),
        normalizer={"observation": normalize.init_statistics((setup.sizes[0],))},
        env_state=None,
        key=key_state,
        env_steps=zero_env_steps(),
        updates=zero,
        epoch=zero,
        carried={},
    )


def _epoch(setup: _Setup, state: TrainState) -> tuple[TrainState, Metrics]:
    """One chunk."""
    chunk = _generations(setup, state)
    count = chunk.generations.astype(jnp.float32)
    metrics = {name: value / count for name, value in chunk.sums.items()}
    metrics |= {"env_steps": chunk.env_steps, "training/generations": count}
    state = chunk.state._replace(epoch=state.epoch + 1)
    if setup.telemetry is not None:
        metrics |= setup.telemetry(state.opt_state, *chunk.last)
    return state, metrics


def _generations(setup: _Setup, state: TrainState) -> _Chunk:
    """Generations until a chunk's share of the budget is used, and at least one."""
    targets = [
        split_env_steps(-(-setup.step_limit * (i + 1) // setup.num_epochs))
        for i in range(setup.num_epochs)
    ]
    target = jnp.asarray(targets, jnp.int32)[jnp.minimum(state.epoch, setup.num_epochs - 1)]
    zero = jnp.zeros((), jnp.int32)
    last = None
    if setup.telemetry is not None:
        last = (jax.tree.map(jnp.zeros_like, state.params), state.params)
    names = (*_METRICS, *setup.strategy.metrics)
    sums = {name: jnp.zeros((), jnp.float32) for name in names}

    def unfinished(chunk: _Chunk) -> Bool[Array, ""]:
        return (chunk.generations == 0) | _less(chunk.state.env_steps, target)

    chunk = _Chunk(state, zero, zero, sums, last, faults.none() if setup.locating else None)
    return jax.lax.while_loop(unfinished, lambda chunk: _generation(setup, chunk), chunk)


def _less(env_steps: Int[Array, " 2"], target: Int[Array, " 2"]) -> Bool[Array, ""]:
    """Whether a counter is below a target."""
    return (env_steps[0] < target[0]) | ((env_steps[0] == target[0]) & (env_steps[1] < target[1]))


def _generation(setup: _Setup, chunk: _Chunk) -> _Chunk:
    """One population, one update."""
    state, config = chunk.state, setup.config
    key, key_ask, key_env = jax.random.split(state.key, 3)
    population, proposal = setup.strategy.ask(key_ask, state.params, state.opt_state)
    statistics = state.normalizer["observation"]
    played = play(setup.env, config, setup.mesh, statistics, population, key_env, setup.locating)
    fitness = sharding.everywhere(setup.mesh, jnp.mean(played.fitness, axis=-1))
    extras = {"value": -jnp.mean(fitness), "progress": _progress(setup, state)}
    told = setup.strategy.tell(state.params, state.opt_state, proposal, fitness, extras)
    env_steps = jnp.sum(played.length).astype(jnp.int32)
    metrics = _metrics(played, fitness) | told.metrics
    return _Chunk(
        state=state._replace(
            params=told.params,
            opt_state=told.state,
            normalizer=observe(config, state.normalizer, played),
            key=key,
            env_steps=add_env_steps(state.env_steps, env_steps),
            updates=state.updates + 1,
        ),
        env_steps=chunk.env_steps + env_steps,
        generations=chunk.generations + 1,
        sums={name: value + metrics[name] for name, value in chunk.sums.items()},
        last=None if chunk.last is None else (told.updates, state.params),
        fault=_fault(chunk, played, told, extras["value"]),
    )


def _progress(setup: _Setup, state: TrainState) -> Float[Array, ""]:
    """Share of the budget that is used; rounding of the counter to float32 does not matter here."""
    high, low = state.env_steps.astype(jnp.float32)
    return jnp.minimum((high * 2.0**20 + low) / setup.step_limit, 1.0)


def _fault(chunk: _Chunk, played: Played, told: Told, loss: Float[Array, ""]) -> Fault | None:
    """The first fault up to the end of a generation, if it is looked for."""
    if chunk.fault is None or played.faults is None:
        return None
    update = faults.in_update({"loss": loss}, told.gradient, told.params)
    here = faults.first_of(first_fault(played.faults), update)
    return faults.first_of(
        chunk.fault, jnp.where(here[0] >= 0, here.at[1].set(chunk.generations), -1)
    )


def _metrics(played: Played, fitness: Float[Array, "2 pairs"]) -> Metrics:
    """Scalars of one generation."""
    return {
        "training/fitness_mean": jnp.mean(fitness),
        "training/fitness_max": jnp.max(fitness),
        "training/fitness_std": jnp.std(fitness),
        "episode/sum_reward": jnp.mean(played.fitness),
        "episode/length": jnp.mean(played.length),
    }
