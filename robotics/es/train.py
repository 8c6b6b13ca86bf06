# SPDX-License-Identifier: Apache-2.0
"""OpenAI-ES (Salimans et al. 2017, arXiv 1703.03864) as pure functions of one seed.

Deterministic policies, antithetic pairs that share their starts, centered ranks, observation
statistics, and any optax transformation in place of the paper's Adam.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from envs.api import EpisodeWrapper, State
from robotics import faults, networks, normalize
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
from robotics.es.perturb import centered_ranks, estimate_gradient, perturb, sample_noise
from robotics.faults import Fault
from robotics.normalize import RunningStatistics
from robotics.rollout import reset

_METRICS = (
    "training/fitness_mean",
    "training/fitness_max",
    "training/fitness_std",
    "training/gradient_norm",
    "episode/sum_reward",
    "episode/length",
)


class _Setup(NamedTuple):
    """What is fixed for a whole run."""

    env: EpisodeWrapper
    config: ESConfig
    optimizer: optax.GradientTransformationExtraArgs
    telemetry: Telemetry | None
    locating: bool = False

    def scaled(self, step_scale: Float[Array, ""] | float) -> _Setup:
        """The same with smaller steps."""
        return self._replace(optimizer=faults.scaled(self.optimizer, step_scale))

    @property
    def sizes(self) -> tuple[int, int]:
        return self.env.env.observation_size, self.env.env.action_size

    @property
    def step_limit(self) -> int:
        return self.config.step_limit(self.env.time_limit)

    @property
    def num_epochs(self) -> int:
        return self.config.num_epochs(self.env.time_limit)


class _Episodes(NamedTuple):
    """The episodes of a generation, members by episodes, under way.

    Attributes:
      state: environments.
      alive: 1.0 until the episode ends.
      fitness: sum of rewards.
      length: env steps.
      shifted_sum: sum of the observations met, minus the present mean.
      shifted_square: sum of the squares of the same.
      fault: the first one so far, if it is looked for.
    """

    state: State
    alive: Float[Array, "members episodes"]
    fitness: Float[Array, "members episodes"]
    length: Float[Array, "members episodes"]
    shifted_sum: Float[Array, " obs"]
    shifted_square: Float[Array, " obs"]
    fault: Fault | None


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

    Returns:
      An algorithm whose ``env_steps`` metric counts the steps of running episodes only. The last
      chunk ends when the budget might not cover another generation.

    Raises:
      ValueError: if the budget does not cover one generation.
    """
    setup = _Setup(env, config, optax.with_extra_args_support(optimizer), telemetry)
    num_epochs = setup.num_epochs

    def init(key: Key[Array, ""]) -> TrainState:
        return _init(setup, key)

    def epoch(
        state: TrainState, step_scale: Float[Array, ""] | float = 1.0
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
        locator=Locator(locate, lambda: _fault_names(setup), "generation"),
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
    params = networks.init_policy(key_policy, *setup.sizes, setup.config.network)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        params=params,
        opt_state=setup.optimizer.init(params),
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
    sums = {name: jnp.zeros((), jnp.float32) for name in _METRICS}

    def unfinished(chunk: _Chunk) -> Bool[Array, ""]:
        return (chunk.generations == 0) | _less(chunk.state.env_steps, target)

    chunk = _Chunk(state, zero, zero, sums, last, faults.none() if setup.locating else None)
    return jax.lax.while_loop(unfinished, lambda chunk: _generation(setup, chunk), chunk)


def _less(env_steps: Int[Array, " 2"], target: Int[Array, " 2"]) -> Bool[Array, ""]:
    """Whether a counter is below a target."""
    return (env_steps[0] < target[0]) | ((env_steps[0] == target[0]) & (env_steps[1] < target[1]))


def _generation(setup: _Setup, chunk: _Chunk) -> _Chunk:
    """One population, one update."""
    state, std = chunk.state, setup.config.perturbation_std
    key, key_noise, key_env = jax.random.split(state.key, 3)
    noise = sample_noise(key_noise, state.params, setup.config.population_size // 2)
    played = _play(setup, state, perturb(state.params, noise, std), key_env)
    fitness = jnp.mean(played.fitness, axis=1)
    grads = estimate_gradient(noise, centered_ranks(fitness), std)
    extras = {"value": -jnp.mean(fitness), "progress": _progress(setup, state)}
    updates, opt_state = setup.optimizer.update(grads, state.opt_state, state.params, **extras)
    params = optax.apply_updates(state.params, updates)
    env_steps = jnp.sum(played.length).astype(jnp.int32)
    metrics = _metrics(played, fitness, grads)
    fault = None
    if chunk.fault is not None and played.fault is not None:
        here = faults.in_update({"loss": extras["value"]}, grads, params)
        here = faults.first_of(played.fault, here).at[1].set(chunk.generations)
        fault = faults.first_of(chunk.fault, jnp.where(here[0] >= 0, here, -1))
    return _Chunk(
        state=state._replace(
            params=params,
            opt_state=opt_state,
            normalizer=_observe(setup, state.normalizer, played),
            key=key,
            env_steps=add_env_steps(state.env_steps, env_steps),
            updates=state.updates + 1,
        ),
        env_steps=chunk.env_steps + env_steps,
        generations=chunk.generations + 1,
        sums={name: chunk.sums[name] + metrics[name] for name in _METRICS},
        last=None if chunk.last is None else (updates, state.params),
        fault=fault,
    )


def _progress(setup: _Setup, state: TrainState) -> Float[Array, ""]:
    """Share of the budget that is used; rounding of the counter to float32 does not matter here."""
    high, low = state.env_steps.astype(jnp.float32)
    return jnp.minimum((high * 2.0**20 + low) / setup.step_limit, 1.0)


def _play(setup: _Setup, state: TrainState, population: PyTree, key: Key[Array, ""]) -> _Episodes:
    """All episodes of a generation; the two members of a pair start alike."""
    config, statistics = setup.config, state.normalizer["observation"]
    start = _starts(setup, key)
    std = normalize.standard_deviation(statistics)

    def act(params: PyTree, obs: Float[Array, "episodes obs"]) -> Float[Array, "episodes action"]:
        obs = networks.normalize_obs(obs, statistics.mean, std)
        return jnp.tanh(networks.apply_policy(params, obs, config.network)[0])

    def step(episodes: _Episodes) -> _Episodes:
        alive = episodes.alive > 0
        seen = jnp.where(alive[..., None], episodes.state.obs - statistics.mean, 0.0)
        action = jax.vmap(act)(population, episodes.state.obs)
        # A finished environment starts over and is ignored; it must go on with something finite.
        after = jax.vmap(jax.vmap(setup.env.step))(episodes.state, action, start)
        fault = None
        if episodes.fault is not None:
            fault = faults.first_of(episodes.fault, _fault(episodes, after, start))
        return _Episodes(
            state=after,
            # Also an environment that no longer knows whether it is done has ended.
            alive=jnp.where(after.done == 0, episodes.alive, 0.0),
            fitness=episodes.fitness + jnp.where(alive, after.reward, 0.0),
            length=episodes.length + episodes.alive,
            shifted_sum=episodes.shifted_sum + jnp.sum(seen, axis=(0, 1)),
            shifted_square=episodes.shifted_square + jnp.sum(jnp.square(seen), axis=(0, 1)),
            fault=fault,
        )

    zeros = jnp.zeros((config.population_size, config.episodes_per_member), jnp.float32)
    none = jnp.zeros_like(statistics.mean)
    well = faults.none() if setup.locating else None
    episodes = _Episodes(start, jnp.ones_like(zeros), zeros, zeros, none, none, well)
    return jax.lax.while_loop(lambda episodes: jnp.any(episodes.alive > 0), step, episodes)


def _fault(episodes: _Episodes, after: State, start: State) -> Fault:
    """What is wrong after a step of the episodes that were alive; a start shows what is meant."""
    parts = faults.training_part(after), faults.training_part(start)
    codes = jnp.where(episodes.alive > 0, faults.bad_leaf(*parts, axes=2), -1)
    fault = faults.earliest(faults.ENVIRONMENT, codes.reshape(1, -1))
    step = jnp.max(episodes.length).astype(jnp.int32)
    return jnp.where(fault[0] >= 0, fault.at[2].set(step), fault)


def _starts(setup: _Setup, key: Key[Array, ""]) -> State:
    """Fresh episodes [members, episodes], the same for both members of a pair."""
    config = setup.config
    half = reset(setup.env, key, config.num_episodes // 2)
    shape = config.population_size, config.episodes_per_member
    return jax.tree.map(
        lambda leaf: jnp.concatenate([leaf, leaf]).reshape(shape + leaf.shape[1:]), half
    )


def _observe(setup: _Setup, normalizer: PyTree, played: _Episodes) -> PyTree:
    """Takes the observations of a generation into the statistics."""
    if not setup.config.normalize_observations:
        return normalizer
    statistics = normalizer["observation"]
    count = jnp.sum(played.length)
    shift = played.shifted_sum / count
    # The sums are taken around the present mean: those of raw values would cancel where the mean
    # is large compared with the spread.
    variance = jnp.maximum(played.shifted_square / count - jnp.square(shift), 0.0)
    generation = RunningStatistics(count, statistics.mean + shift, variance)
    return normalizer | {"observation": normalize.merge(statistics, generation)}


def _metrics(played: _Episodes, fitness: Float[Array, " members"], grads: PyTree) -> Metrics:
    """Scalars of one generation."""
    return {
        "training/fitness_mean": jnp.mean(fitness),
        "training/fitness_max": jnp.max(fitness),
        "training/fitness_std": jnp.std(fitness),
        "training/gradient_norm": optax.tree.norm(grads),
        "episode/sum_reward": jnp.mean(played.fitness),
        "episode/length": jnp.mean(played.length),
    }
