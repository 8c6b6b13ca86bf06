# SPDX-License-Identifier: Apache-2.0
"""What PPO makes of a rollout, wherever it was collected: samples, updates, metrics; one seed.

Samples lie in one matrix, so that shuffling a pass is a single gather of rows and a minibatch a
slice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, PyTree

from robotics import distributions, networks, normalize, sharding
from robotics.algorithm import (
    Action,
    Metrics,
    PolicyParams,
    Telemetry,
    TrainState,
    add_env_steps,
    zero_env_steps,
)
from robotics.gae import compute_gae
from robotics.ppo.config import PPOConfig
from robotics.ppo.losses import Minibatch, compute_ppo_loss, explained_variance
from robotics.rollout import Rollout

Act = Callable[[Float[Array, "envs obs"], Array], tuple[Action, tuple[Array, Array]]]
_Stacked = dict[str, Array]  # metrics with leading axes of a scan

_EPISODE_METRICS = ("episode/sum_reward", "episode/length")


class Setup(NamedTuple):
    """What is fixed for a whole run.

    Attributes:
      sizes: number of observation entries, and of action entries or choices.
      discrete: whether actions are choices.
      config: settings.
      optimizer: the transformation in the slot.
      telemetry: see :func:`robotics.ppo.make_ppo`.
      mesh: devices that share the work.
    """

    sizes: tuple[int, int]
    discrete: bool
    config: PPOConfig
    optimizer: optax.GradientTransformationExtraArgs
    telemetry: Telemetry | None
    mesh: Mesh | None = None


class _Learner(NamedTuple):
    """What an update changes; ``last`` is (updates, parameters before) if telemetry wants it."""

    params: PyTree
    opt_state: PyTree
    updates: Array
    last: PyTree


def init(setup: Setup, key: Key[Array, ""], env_state: PyTree) -> TrainState:
    """The first state; ``key`` gives the networks and everything that is drawn later."""
    key_policy, key_value, _, key_state = split_start(key)
    observation_size, action_size = setup.sizes
    config = setup.config
    params = {
        "policy": networks.init_policy(
            key_policy, observation_size, action_size, config.network, setup.discrete
        ),
        "value": networks.init_value(key_value, observation_size, config.network),
    }
    normalizer: dict[str, Any] = {"observation": normalize.init_statistics((observation_size,))}
    if config.normalize_rewards:
        normalizer["return"] = normalize.init_statistics(())
        normalizer["running_return"] = jnp.zeros(config.num_envs, jnp.float32)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        params=params,
        opt_state=setup.optimizer.init(params),
        normalizer=normalizer,
        env_state=env_state,
        key=key_state,
        env_steps=zero_env_steps(),
        updates=zero,
        epoch=zero,
        carried={name: jnp.zeros((), jnp.float32) for name in _EPISODE_METRICS},
    )


def split_start(key: Key[Array, ""]) -> Key[Array, "4"]:
    """Keys of a run's policy, value network, first episodes, and all the rest."""
    return jax.random.split(key, 4)


def inference_params(state: TrainState) -> PolicyParams:
    """What acting needs."""
    return networks.policy_params(state.params["policy"], state.normalizer["observation"])


def no_update_yet(setup: Setup, state: TrainState) -> PyTree:
    """Where the last update and the parameters before it are kept, if telemetry wants them."""
    if setup.telemetry is None:
        return None
    return jax.tree.map(jnp.zeros_like, state.params), state.params


def draw_noise(setup: Setup, key: Key[Array, ""]) -> Float[Array, "T envs action"]:
    """The randomness of a rollout's actions, all at once."""
    config = setup.config
    shape = (config.unroll_length, config.num_envs, setup.sizes[1])
    return distributions.draw_noise(key, shape, setup.discrete)


def make_act(setup: Setup, params: PolicyParams) -> Act:
    """The stochastic policy, which also returns the raw action and its log-density.

    Args:
      setup: of the run.
      params: of :func:`inference_params`.
    """

    def act(obs: Array, noise: Array) -> tuple[Action, tuple[Array, Array]]:
        known = params["normalizer"]
        obs = networks.normalize_obs(obs, known["mean"], known["std"])
        policy = networks.apply_distribution(
            params["policy"], obs, setup.config.network, setup.discrete
        )
        raw_action = policy.sample(noise)
        return policy.action(raw_action), (raw_action, policy.log_prob(raw_action))

    return act


def _normalize(normalizer: PyTree, obs: Array) -> Array:
    statistics = normalizer["observation"]
    return networks.normalize_obs(obs, statistics.mean, normalize.standard_deviation(statistics))


def improve(
    setup: Setup, state: TrainState, last: PyTree, rollout: Rollout, key: Key[Array, ""]
) -> tuple[TrainState, PyTree, Metrics]:
    """All updates made from a rollout.

    Args:
      setup: of the run.
      state: as it was when the rollout was collected, but for environments and key.
      last: of :func:`no_update_yet`, or of the rollout before.
      rollout: whose extras are those of :func:`make_act`.
      key: decides the minibatches.

    Returns:
      The state after the updates, the last of them if telemetry wants it, and metrics.
    """
    samples, normalizer, variance_explained = _prepare(setup, state, rollout)
    learner = _Learner(state.params, state.opt_state, state.updates, last)
    learner, scalars = _learn(setup, learner, samples, variance_explained, key)
    state = state._replace(
        params=learner.params,
        opt_state=learner.opt_state,
        updates=learner.updates,
        env_steps=add_env_steps(state.env_steps, setup.config.batch_size),
        normalizer=normalizer,
    )
    metrics = _training_metrics(scalars, variance_explained) | _finished_episodes(rollout)
    return state, learner.last, metrics


def finish(
    setup: Setup, state: TrainState, last: PyTree, stacked: _Stacked
) -> tuple[TrainState, Metrics]:
    """The end of a chunk: its number, and its metrics from those of its rollouts."""
    metrics, carried = _episode_metrics(stacked, state.carried)
    state = state._replace(epoch=state.epoch + 1, carried=carried)
    metrics["env_steps"] = jnp.asarray(setup.config.env_steps_per_epoch, jnp.int32)
    if setup.telemetry is not None and last is not None:
        metrics |= setup.telemetry(state.opt_state, *last)
    return state, metrics


def _prepare(
    setup: Setup, state: TrainState, rollout: Rollout
) -> tuple[Float[Array, "samples columns"], PyTree, Float[Array, ""]]:
    """The sample matrix of a rollout, statistics for the next one, and the explained variance."""
    config = setup.config
    normalizer, scale = _reward_scale(config, state.normalizer, rollout)
    obs = _normalize(state.normalizer, rollout.obs)
    final_obs = _normalize(state.normalizer, rollout.final_obs)
    values = networks.apply_value(state.params["value"], obs, config.network)
    next_values = networks.apply_value(state.params["value"], final_obs, config.network)
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
    columns = Minibatch(
        obs, raw_action, log_prob[..., None], advantages[..., None], targets[..., None]
    )
    samples = jnp.concatenate(columns, axis=-1).reshape(config.batch_size, -1)
    if config.normalize_observations:
        # Only now: the updates must see the observations as the policy saw them, or the first ratio
        # is not 1.
        observed = normalize.update(normalizer["observation"], rollout.obs)
        normalizer = normalizer | {"observation": observed}
    return samples, normalizer, variance_explained


def _reward_scale(
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


def _learn(
    setup: Setup, learner: _Learner, samples: Array, variance_explained: Array, key: Key[Array, ""]
) -> tuple[_Learner, _Stacked]:
    """All passes over a rollout; scalars [passes, minibatches] are from before each update."""
    config = setup.config
    passes = config.num_updates_per_batch
    # Every device shuffles all rows and takes its part of each minibatch: a rollout is exchanged
    # once, whatever the number of passes.
    samples = sharding.everywhere(setup.mesh, samples)

    def one_pass(learner: _Learner, inputs: tuple[Array, Array]) -> tuple[_Learner, _Stacked]:
        key, position = inputs
        shuffled = samples[jax.random.permutation(key, config.batch_size)]
        minibatches = shuffled.reshape(config.num_minibatches, -1, samples.shape[-1])
        minibatches = sharding.divided(setup.mesh, minibatches, axis=1)
        known = {"epoch": position, "explained_variance": variance_explained}

        def update(learner: _Learner, rows: Array) -> tuple[_Learner, Metrics]:
            return _update(setup, learner, rows, known)

        return jax.lax.scan(update, learner, minibatches)

    positions = jnp.arange(passes, dtype=jnp.float32) / max(passes - 1, 1)
    return jax.lax.scan(one_pass, learner, (jax.random.split(key, passes), positions))


def _update(
    setup: Setup, learner: _Learner, rows: Float[Array, "batch columns"], known: Metrics
) -> tuple[_Learner, Metrics]:
    """One optimizer update."""
    observation_size, action_size = setup.sizes
    raw_size = distributions.raw_size(action_size, setup.discrete)
    minibatch = _unpack(rows, observation_size, raw_size)
    gradient = jax.value_and_grad(compute_ppo_loss, has_aux=True)
    (loss, scalars), grads = gradient(learner.params, minibatch, setup.config, setup.discrete)
    grads = sharding.everywhere(setup.mesh, grads)
    extras = known | {
        "value": loss,
        "kl": scalars["kl"],
        "clip_fraction": scalars["clip_fraction"],
        "entropy": scalars["entropy"],
        "progress": learner.updates.astype(jnp.float32) / setup.config.num_updates,
    }
    updates, opt_state = setup.optimizer.update(grads, learner.opt_state, learner.params, **extras)
    params = optax.apply_updates(learner.params, updates)
    last = None if learner.last is None else (updates, learner.params)
    return _Learner(params, opt_state, learner.updates + 1, last), scalars | {"loss": loss}


def _unpack(rows: Float[Array, "batch columns"], observation_size: int, raw_size: int) -> Minibatch:
    """Names for the columns of the sample matrix."""
    ends = observation_size, observation_size + raw_size
    obs, raw_action, rest = jnp.split(rows, ends, axis=-1)
    return Minibatch(obs, raw_action, rest[:, 0], rest[:, 1], rest[:, 2])


def _training_metrics(scalars: _Stacked, variance_explained: Array) -> Metrics:
    """Means over the updates of a rollout, under Brax's names where it has them."""
    names = {
        "training/total_loss": "loss",
        "training/policy_loss": "policy_loss",
        "training/v_loss": "v_loss",
        "training/entropy_loss": "entropy_loss",
        "training/entropy": "entropy",
        "training/kl_mean": "kl",
        "training/clip_fraction": "clip_fraction",
        "training/policy_dist_mean_std": "std",
    }
    metrics = {tag: jnp.mean(scalars[name]) for tag, name in names.items() if name in scalars}
    return metrics | {"training/explained_variance": variance_explained}


def _episode_metrics(stacked: _Stacked, carried: Metrics) -> tuple[Metrics, Metrics]:
    """Means over a chunk; those of episodes weigh every finished episode alike."""
    counts = stacked["episode/count"]
    count = jnp.sum(counts)
    metrics = {name: jnp.mean(values) for name, values in stacked.items()}
    metrics["episode/count"] = count
    carried = {
        name: jnp.where(count > 0, jnp.sum(stacked[name]) / jnp.maximum(count, 1.0), carried[name])
        for name in _EPISODE_METRICS
    }
    return metrics | carried, carried


def _finished_episodes(rollout: Rollout) -> Metrics:
    """Sums over the episodes that ended in a rollout, and their number."""
    done = rollout.termination + rollout.truncation
    return {
        "episode/sum_reward": jnp.sum(done * rollout.episode_return),
        "episode/length": jnp.sum(done * rollout.episode_steps),
        "episode/count": jnp.sum(done),
    }
