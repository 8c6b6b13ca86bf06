# SPDX-License-Identifier: Apache-2.0
"""The episodes of a generation: every member plays its own, on the device that holds it."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Key, PyTree

from envs.api import EpisodeWrapper, State
from robotics import networks, normalize, sharding
from robotics.es.config import ESConfig
from robotics.es.perturb import member_axes
from robotics.normalize import RunningStatistics


class Played(NamedTuple):
    """What came out of a generation.

    Attributes:
      fitness: sum of rewards.
      length: env steps.
      shifted_sum: sum of the observations met, minus the present mean.
      shifted_square: sum of the squares of the same.
    """

    fitness: Float[Array, "2 pairs episodes"]
    length: Float[Array, "2 pairs episodes"]
    shifted_sum: Float[Array, " obs"]
    shifted_square: Float[Array, " obs"]


class _Episodes(NamedTuple):
    """Episodes under way; ``alive`` is 1.0 until one ends."""

    state: State
    alive: Float[Array, "members episodes"]
    fitness: Float[Array, "members episodes"]
    length: Float[Array, "members episodes"]
    shifted_sum: Float[Array, " obs"]
    shifted_square: Float[Array, " obs"]


def play(
    env: EpisodeWrapper,
    config: ESConfig,
    mesh: Mesh | None,
    statistics: RunningStatistics,
    population: PyTree,
    key: Key[Array, ""],
) -> Played:
    """All episodes of a generation; the two members of a pair start alike.

    Args:
      env: environment with its time limit.
      config: settings.
      mesh: devices to divide the pairs among.
      statistics: of the observations so far.
      population: of :func:`robotics.es.perturb.perturb`.
      key: of the starts.
    """
    pairs, episodes = config.population_size // 2, config.episodes_per_member

    def part(
        statistics: RunningStatistics, population: PyTree, keys: Key[Array, "pairs episodes"]
    ) -> Played:
        played = _play(env, config, statistics, population, keys)
        sums = sharding.total(mesh, (played.shifted_sum, played.shifted_square))
        return played._replace(shifted_sum=sums[0], shifted_square=sums[1])

    axis = P(None, sharding.AXIS)
    inputs = P(), member_axes(population, axis, P()), P(sharding.AXIS)
    outputs: Any = Played(*cast(Any, (axis, axis, P(), P())))
    part = sharding.over_devices(mesh, part, inputs, outputs)
    return part(statistics, population, jax.random.split(key, (pairs, episodes)))


def _play(
    env: EpisodeWrapper,
    config: ESConfig,
    statistics: RunningStatistics,
    population: PyTree,
    keys: Key[Array, "pairs episodes"],
) -> Played:
    """The episodes of some pairs."""
    axes = member_axes(population, 0, None)
    members = jax.tree.map(
        lambda axis, leaf: leaf if axis is None else leaf.reshape(-1, *leaf.shape[2:]),
        axes,
        population,
        is_leaf=lambda axis: axis is None,
    )
    starts = jax.vmap(jax.vmap(env.reset))(keys)
    starts = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), starts)
    std = normalize.standard_deviation(statistics)

    def act(params: PyTree, obs: Float[Array, "episodes obs"]) -> Float[Array, "episodes action"]:
        obs = networks.normalize_obs(obs, statistics.mean, std)
        return jnp.tanh(networks.apply_policy(params, obs, config.network)[0])

    def step(episodes: _Episodes) -> _Episodes:
        alive = episodes.alive > 0
        seen = jnp.where(alive[..., None], episodes.state.obs - statistics.mean, 0.0)
        action = jax.vmap(act, in_axes=(axes, 0))(members, episodes.state.obs)
        # A finished environment starts over and is ignored; it must go on with something finite.
        after = jax.vmap(jax.vmap(env.step))(episodes.state, action, starts)
        return _Episodes(
            state=after,
            alive=jnp.where(after.done > 0, 0.0, episodes.alive),
            fitness=episodes.fitness + jnp.where(alive, after.reward, 0.0),
            length=episodes.length + episodes.alive,
            shifted_sum=episodes.shifted_sum + jnp.sum(seen, axis=(0, 1)),
            shifted_square=episodes.shifted_square + jnp.sum(jnp.square(seen), axis=(0, 1)),
        )

    zeros, none = jnp.zeros_like(starts.reward), jnp.zeros_like(statistics.mean)
    first = _Episodes(starts, jnp.ones_like(zeros), zeros, zeros, none, none)
    last = jax.lax.while_loop(lambda episodes: jnp.any(episodes.alive > 0), step, first)
    shape = 2, *keys.shape
    return Played(
        last.fitness.reshape(shape),
        last.length.reshape(shape),
        last.shifted_sum,
        last.shifted_square,
    )


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
