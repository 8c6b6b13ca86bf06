# SPDX-License-Identifier: Apache-2.0
"""The samples of PPO: what the updates on a rollout look at; one seed.

They lie in one matrix, so that shuffling a pass is a single gather of rows and a minibatch a slice.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from robotics import networks, normalize
from robotics.algorithm import TrainState
from robotics.gae import compute_gae
from robotics.ppo.config import PPOConfig
from robotics.ppo.losses import Minibatch, explained_variance
from robotics.rollout import Rollout

_MOST_ROW_BITS = 16


def prepare_samples(
    config: PPOConfig, state: TrainState, rollout: Rollout
) -> tuple[Float[Array, "samples columns"], PyTree, Float[Array, ""]]:
    """The sample matrix of a rollout, statistics for the next one, and the explained variance."""
    normalizer, scale = reward_scale(config, state.normalizer, rollout)
    obs, privileged = _normalize(state.normalizer, rollout.obs, rollout.privileged_obs)
    final = _normalize(state.normalizer, rollout.final_obs, rollout.final_privileged_obs)
    value = state.params["value"]
    values = networks.apply_value(value, obs, config.network, privileged)
    next_values = networks.apply_value(value, final[0], config.network, final[1])
    advantages, targets = compute_gae(
        rollout.reward * scale,
        values,
        next_values,
        rollout.termination,
        rollout.truncation,
        config.discount,
        config.gae_lambda,
    )
    variance_explained = explained_variance(values, targets)
    if config.normalize_advantages:
        advantages = (advantages - jnp.mean(advantages)) / (jnp.std(advantages) + 1e-8)
    raw_action, log_prob = rollout.extras
    scalars = log_prob[..., None], advantages[..., None], targets[..., None]
    columns = Minibatch(obs, raw_action, *scalars, privileged)
    samples = jnp.concatenate([column for column in columns if column is not None], axis=-1)
    if config.normalize_observations:
        # Only now: the updates must see the observations as the policy saw them, or the first ratio
        # is not 1.
        normalizer = normalizer | _observed(normalizer, rollout)
    return samples.reshape(config.batch_size, -1), normalizer, variance_explained


def reward_scale(
    config: PPOConfig, normalizer: PyTree, rollout: Rollout
) -> tuple[PyTree, Array | float]:
    """The factor on rewards; returns count up to the end of this rollout."""
    if not config.normalize_rewards:
        return normalizer, config.reward_scaling

    def step(running: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, done = inputs
        running = config.discount * running + reward
        return running * (1.0 - done), running

    done = rollout.termination + rollout.truncation
    running, returns = jax.lax.scan(
        step, normalizer["running_return"], (rollout.reward, done), unroll=8
    )
    statistics = normalize.update(normalizer["return"], returns)
    normalizer = normalizer | {"return": statistics, "running_return": running}
    return normalizer, config.reward_scaling / normalize.standard_deviation(statistics)


def shuffle(key: Key[Array, ""], size: int) -> Int[Array, " size"]:
    """The numbers below ``size`` in a random order.

    Random bits and a row's number below them make one word, and the words are sorted: on a CPU a
    tenth of the time of :func:`jax.random.permutation`, which sorts keys with values, twice. Rows
    of equal bits keep their order; which rows these are is as random as the rest, and it matters
    to no minibatch in what order it is summed.

    Args:
      key: decides the order.
      size: beyond 65,536, where less than 16 random bits would be left, JAX shuffles.

    Example:
      >>> sorted(shuffle(jax.random.key(0), 5).tolist())
      [0, 1, 2, 3, 4]
    """
    bits = (size - 1).bit_length()
    if bits > _MOST_ROW_BITS:
        return jax.random.permutation(key, size)
    drawn = jax.random.bits(key, (size,), jnp.uint32)
    words = (drawn >> bits << bits) | jnp.arange(size, dtype=jnp.uint32)
    return (jnp.sort(words) & (2**bits - 1)).astype(jnp.int32)


def unpack_samples(
    rows: Float[Array, "batch columns"],
    observation_size: int,
    raw_size: int,
    privileged_size: int = 0,
) -> Minibatch:
    """Names for the columns of the sample matrix."""
    ends = observation_size, observation_size + raw_size
    obs, raw_action, rest = jnp.split(rows, ends, axis=-1)
    privileged = rest[:, 3:] if privileged_size else None
    return Minibatch(obs, raw_action, rest[:, 0], rest[:, 1], rest[:, 2], privileged)


def _normalize(
    normalizer: PyTree, obs: Array, privileged: Array | None
) -> tuple[Array, Array | None]:
    """Observation and privileged observation, each by its own statistics."""

    def normalized(values: Array, statistics: normalize.RunningStatistics) -> Array:
        std = normalize.standard_deviation(statistics)
        return networks.normalize_obs(values, statistics.mean, std)

    obs = normalized(obs, normalizer["observation"])
    if privileged is None:
        return obs, None
    return obs, normalized(privileged, normalizer["privileged"])


def _observed(normalizer: PyTree, rollout: Rollout) -> dict[str, normalize.RunningStatistics]:
    """Statistics that have taken in what a rollout saw."""
    seen = {"observation": rollout.obs}
    if rollout.privileged_obs is not None:
        seen["privileged"] = rollout.privileged_obs
    return {name: normalize.update(normalizer[name], values) for name, values in seen.items()}
