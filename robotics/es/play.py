# SPDX-License-Identifier: Apache-2.0
"""The episodes of a generation: every member plays its own, on the device that holds it."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Key, PyTree

from envs.api import EpisodeWrapper, State
from robotics import faults, networks, normalize, sharding
from robotics.es.config import ESConfig
from robotics.es.perturb import member_axes
from robotics.faults import Fault
from robotics.normalize import RunningStatistics


class Played(NamedTuple):
    """What came out of a generation.

    Attributes:
      fitness: sum of rewards.
      length: env steps.
      shifted_sum: sum of the observations met, minus the present mean.
      shifted_square: sum of the squares of the same.
      faults: env step and leaf of the first fault of each episode, -1 where there is none; ``None``
        if they are not looked for.
    """

    fitness: Float[Array, "2 pairs episodes"]
    length: Float[Array, "2 pairs episodes"]
    shifted_sum: Float[Array, " obs"]
    shifted_square: Float[Array, " obs"]
    faults: Int[Array, "2 pairs episodes 2"] | None


class _Episodes(NamedTuple):
    """Episodes under way, member by member; ``alive`` is 1.0 until one ends."""

    state: State
    alive: Float[Array, " all"]
    fitness: Float[Array, " all"]
    length: Float[Array, " all"]
    shifted_sum: Float[Array, " obs"]
    shifted_square: Float[Array, " obs"]
    faults: Int[Array, "all 2"] | None


def play(
    env: EpisodeWrapper,
    config: ESConfig,
    mesh: Mesh | None,
    statistics: RunningStatistics,
    population: PyTree,
    key: Key[Array, ""],
    locating: bool = False,
) -> Played:
    """All episodes of a generation; the two members of a pair start alike.

    Args:
      env: environment with its time limit.
      config: settings.
      mesh: devices to divide the pairs among.
      statistics: of the observations so far.
      population: of :func:`robotics.es.perturb.perturb`.
      key: of the starts.
      locating: whether to look for what is not finite in each step.
    """
    pairs, episodes = config.population_size // 2, config.episodes_per_member

    def part(
        statistics: RunningStatistics, population: PyTree, keys: Key[Array, "pairs episodes"]
    ) -> Played:
        played = _play(env, config, statistics, population, keys, locating)
        sums = sharding.total(mesh, (played.shifted_sum, played.shifted_square))
        return played._replace(shifted_sum=sums[0], shifted_square=sums[1])

    axis = P(None, sharding.AXIS)
    inputs = P(), member_axes(population, axis, P()), P(sharding.AXIS)
    outputs: Any = Played(*cast(Any, (axis, axis, P(), P(), axis if locating else None)))
    part = sharding.over_devices(mesh, part, inputs, outputs)
    return part(statistics, population, jax.random.split(key, (pairs, episodes)))


def _play(
    env: EpisodeWrapper,
    config: ESConfig,
    statistics: RunningStatistics,
    population: PyTree,
    keys: Key[Array, "pairs episodes"],
    locating: bool,
) -> Played:
    """The episodes of some pairs."""
    axes = member_axes(population, 0, None)
    members = jax.tree.map(
        lambda axis, leaf: leaf if axis is None else leaf.reshape(-1, *leaf.shape[2:]),
        axes,
        population,
        is_leaf=lambda axis: axis is None,
    )
    # All episodes lie along one axis: a simulator that is vmapped twice is a seventh slower.
    starts = jax.vmap(env.reset)(keys.ravel())
    starts = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), starts)
    std = normalize.standard_deviation(statistics)
    each = (-1,) if keys.shape[1] == 1 else (-1, keys.shape[1])

    def act(params: PyTree, obs: Float[Array, "*episodes obs"]) -> Float[Array, "*episodes action"]:
        obs = networks.normalize_obs(obs, statistics.mean, std)
        return jnp.tanh(networks.apply_policy(params, obs, config.network)[0])

    def act_all(obs: Float[Array, "all obs"]) -> Float[Array, "all action"]:
        obs_by_member = obs.reshape(*each, obs.shape[-1])
        actions = jax.vmap(act, in_axes=(axes, 0))(members, obs_by_member)
        return actions.reshape(len(obs), -1)

    def step(episodes: _Episodes) -> _Episodes:
        alive = episodes.alive > 0
        seen = jnp.where(alive[..., None], episodes.state.obs - statistics.mean, 0.0)
        # A finished environment starts over and is ignored; it must go on with something finite.
        after = jax.vmap(env.step)(episodes.state, act_all(episodes.state.obs), starts)
        return _Episodes(
            state=after,
            # Also an environment that no longer knows whether it is done has ended.
            alive=jnp.where(after.done == 0, episodes.alive, 0.0),
            fitness=episodes.fitness + jnp.where(alive, after.reward, 0.0),
            length=episodes.length + episodes.alive,
            shifted_sum=episodes.shifted_sum + jnp.sum(seen, axis=0),
            shifted_square=episodes.shifted_square + jnp.sum(jnp.square(seen), axis=0),
            faults=_look(episodes, after, starts),
        )

    zeros, none = jnp.zeros_like(starts.reward), jnp.zeros_like(statistics.mean)
    well = jnp.full((*zeros.shape, 2), -1, jnp.int32) if locating else None
    first = _Episodes(starts, jnp.ones_like(zeros), zeros, zeros, none, none, well)
    last = jax.lax.while_loop(lambda episodes: jnp.any(episodes.alive > 0), step, first)
    shape = 2, *keys.shape
    return Played(
        last.fitness.reshape(shape),
        last.length.reshape(shape),
        last.shifted_sum,
        last.shifted_square,
        None if last.faults is None else last.faults.reshape(*shape, 2),
    )


def _look(episodes: _Episodes, after: State, starts: State) -> Int[Array, "all 2"] | None:
    """First faults after a step of the episodes that were alive; starts show what is meant."""
    if episodes.faults is None:
        return None
    parts = faults.training_part(after), faults.training_part(starts)
    leaf = faults.bad_leaf(*parts, axes=1)
    new = (episodes.alive > 0) & (leaf >= 0) & (episodes.faults[..., 1] < 0)
    here = jnp.stack([episodes.length.astype(jnp.int32), leaf], axis=-1)
    return jnp.where(new[..., None], here, episodes.faults)


def first_fault(seen: Int[Array, "2 pairs episodes 2"]) -> Fault:
    """The earliest of the faults of all episodes, which count as environments one after another."""
    step, leaf = seen[..., 0].ravel(), seen[..., 1].ravel()
    env = jnp.argmin(jnp.where(leaf >= 0, step, jnp.iinfo(jnp.int32).max))
    parts = (faults.ENVIRONMENT, 0, step[env], env, leaf[env])
    fault = jnp.stack([jnp.asarray(part, jnp.int32) for part in parts])
    return jnp.where(leaf[env] >= 0, fault, faults.none())


def observe(config: ESConfig, normalizer: PyTree, played: Played) -> PyTree:
    """Takes the observations of a generation into the statistics."""
    if not config.normalize_observations:
        return normalizer
    statistics = normalizer["observation"]
    count = jnp.sum(played.length)
    shift = played.shifted_sum / count
    # The sums are taken around the present mean: those of raw values would cancel where the mean
    # is large compared with the spread.
    variance = jnp.maximum(played.shifted_square / count - jnp.square(shift), 0.0)
    generation = RunningStatistics(count, statistics.mean + shift, variance)
    return normalizer | {"observation": normalize.merge(statistics, generation)}
