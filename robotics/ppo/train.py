# SPDX-License-Identifier: Apache-2.0
"""PPO (Schulman et al. 2017, arXiv 1707.06347) as pure functions of one seed.

One chunk is a scan over rollouts; each rollout is a scan over env steps and then over minibatches.
Samples lie in one matrix, so that shuffling a pass is a single gather of rows and a minibatch a
slice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from envs.api import EpisodeWrapper
from robotics import distributions, networks, normalize
from robotics.algorithm import (
    Algorithm,
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
from robotics.rollout import Rollout, collect, reset

_Stacked = dict[str, Array]  # metrics with leading axes of a scan

_EPISODE_METRICS = ("episode/sum_reward", "episode/length")


class _Setup(NamedTuple):
    """What is fixed for a whole run."""

    env: EpisodeWrapper
    config: PPOConfig
    optimizer: optax.GradientTransformationExtraArgs
    telemetry: Telemetry | None

    @property
    def sizes(self) -> tuple[int, int]:
        return self.env.env.observation_size, self.env.env.action_size


class _Learner(NamedTuple):
    """What an update changes; ``last`` is (updates, parameters before) if telemetry wants it."""

    params: PyTree
    opt_state: PyTree
    updates: Array
    last: PyTree


def make_ppo(
    env: EpisodeWrapper,
    config: PPOConfig,
    optimizer: optax.GradientTransformation,
    telemetry: Telemetry | None = None,
) -> Algorithm:
    """PPO for one seed; vmap ``init`` and ``epoch`` over keys for several.

    The optimizer's ``update`` is called with the parameters and, if it takes extra arguments, with
    the float32 scalars ``value`` (the loss), ``kl`` (k3 estimate on this minibatch before the
    update), ``clip_fraction``, ``entropy``, ``explained_variance`` (of this rollout, before its
    updates), ``epoch`` (position among the passes over this rollout, 0 to 1) and ``progress`` (of
    the run, 0 to 1).

    Args:
      env: environment with time limit.
      config: settings.
      optimizer: any optax transformation that gives steps to be added.
      telemetry: ``telemetry(opt_state, updates, params before them)``, called on the last update of
        a chunk; its scalars join the metrics.

    Returns:
      An algorithm whose ``env_steps_per_epoch`` is exact. Its ``episode/...`` metrics hold their
      last value (0 at first) while no episode ends; ``episode/count`` tells.

    Example:
      >>> algorithm = make_ppo(EpisodeWrapper(env), PPOConfig(), optax.adam(3e-4))  # doctest: +SKIP
      >>> state, metrics = jax.jit(algorithm.epoch)(
      ...     algorithm.init(jax.random.key(0))
      ... )  # doctest: +SKIP
    """
    setup = _Setup(env, config, optax.with_extra_args_support(optimizer), telemetry)

    def init(key: Key[Array, ""]) -> TrainState:
        return _init(setup, key)

    def epoch(state: TrainState) -> tuple[TrainState, Metrics]:
        return _epoch(setup, state)

    def inference_params(state: TrainState) -> PolicyParams:
        return networks.policy_params(state.params["policy"], state.normalizer["observation"])

    return Algorithm(
        init=init,
        epoch=epoch,
        inference_params=inference_params,
        policy=networks.make_policy(*setup.sizes, config.network),
        env_steps_per_epoch=config.env_steps_per_epoch,
        num_epochs=config.num_epochs,
    )


def _init(setup: _Setup, key: Key[Array, ""]) -> TrainState:
    key_policy, key_value, key_env, key_state = jax.random.split(key, 4)
    observation_size, action_size = setup.sizes
    config = setup.config
    params = {
        "policy": networks.init_policy(key_policy, observation_size, action_size, config.network),
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
        env_state=reset(setup.env, key_env, config.num_envs),
        key=key_state,
        env_steps=zero_env_steps(),
        updates=zero,
        epoch=zero,
        carried={name: jnp.zeros((), jnp.float32) for name in _EPISODE_METRICS},
    )


def _epoch(setup: _Setup, state: TrainState) -> tuple[TrainState, Metrics]:
    """One chunk."""
    last = None
    if setup.telemetry is not None:
        last = (jax.tree.map(jnp.zeros_like, state.params), state.params)

    def iteration(
        carry: tuple[TrainState, PyTree], _: None
    ) -> tuple[tuple[TrainState, PyTree], Metrics]:
        return _iteration(setup, *carry)

    (state, last), stacked = jax.lax.scan(
        iteration, (state, last), None, length=setup.config.rollouts_per_epoch
    )
    metrics, carried = _episode_metrics(stacked, state.carried)
    state = state._replace(epoch=state.epoch + 1, carried=carried)
    metrics["env_steps"] = jnp.asarray(setup.config.env_steps_per_epoch, jnp.int32)
    if setup.telemetry is not None and last is not None:
        metrics |= setup.telemetry(state.opt_state, *last)
    return state, metrics


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


def _iteration(
    setup: _Setup, state: TrainState, last: PyTree
) -> tuple[tuple[TrainState, PyTree], Metrics]:
    """One rollout and the updates made from it."""
    config = setup.config
    key, key_restart, key_noise, key_shuffle = jax.random.split(state.key, 4)
    restarts = reset(setup.env, key_restart, config.num_envs)
    noise = jax.random.normal(key_noise, (config.unroll_length, config.num_envs, setup.sizes[1]))
    env_state, rollout = collect(
        setup.env, _make_act(setup, state), state.env_state, restarts, noise
    )
    samples, normalizer, variance_explained = _prepare(setup, state, rollout)
    learner = _Learner(state.params, state.opt_state, state.updates, last)
    learner, scalars = _learn(setup, learner, samples, variance_explained, key_shuffle)
    state = state._replace(
        params=learner.params,
        opt_state=learner.opt_state,
        updates=learner.updates,
        env_state=env_state,
        key=key,
        env_steps=add_env_steps(state.env_steps, config.batch_size),
        normalizer=normalizer,
    )
    metrics = _training_metrics(scalars, variance_explained) | _finished_episodes(rollout)
    return (state, learner.last), metrics


def _make_act(setup: _Setup, state: TrainState) -> Any:
    """The stochastic policy, which also returns the action before tanh and its log-density."""

    def act(obs: Array, noise: Array) -> tuple[Array, tuple[Array, Array]]:
        obs = _normalize(setup, state.normalizer, obs)
        mean, std = networks.apply_policy(state.params["policy"], obs, setup.config.network)
        raw_action = distributions.sample(mean, std, noise)
        return jnp.tanh(raw_action), (raw_action, distributions.log_prob(mean, std, raw_action))

    return act


def _normalize(setup: _Setup, normalizer: PyTree, obs: Array) -> Array:
    statistics = normalizer["observation"]
    return networks.normalize_obs(obs, statistics.mean, normalize.standard_deviation(statistics))


def _prepare(
    setup: _Setup, state: TrainState, rollout: Rollout
) -> tuple[Float[Array, "samples columns"], PyTree, Float[Array, ""]]:
    """The sample matrix of a rollout, statistics for the next one, and the explained variance."""
    config = setup.config
    normalizer, scale = _reward_scale(config, state.normalizer, rollout)
    obs = _normalize(setup, state.normalizer, rollout.obs)
    final_obs = _normalize(setup, state.normalizer, rollout.final_obs)
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
    setup: _Setup, learner: _Learner, samples: Array, variance_explained: Array, key: Key[Array, ""]
) -> tuple[_Learner, _Stacked]:
    """All passes over a rollout; scalars [passes, minibatches] are from before each update."""
    config = setup.config
    passes = config.num_updates_per_batch

    def one_pass(learner: _Learner, inputs: tuple[Array, Array]) -> tuple[_Learner, _Stacked]:
        key, position = inputs
        shuffled = samples[jax.random.permutation(key, config.batch_size)]
        minibatches = shuffled.reshape(config.num_minibatches, -1, samples.shape[-1])
        known = {"epoch": position, "explained_variance": variance_explained}

        def update(learner: _Learner, rows: Array) -> tuple[_Learner, Metrics]:
            return _update(setup, learner, rows, known)

        return jax.lax.scan(update, learner, minibatches)

    positions = jnp.arange(passes, dtype=jnp.float32) / max(passes - 1, 1)
    return jax.lax.scan(one_pass, learner, (jax.random.split(key, passes), positions))


def _update(
    setup: _Setup, learner: _Learner, rows: Float[Array, "batch columns"], known: Metrics
) -> tuple[_Learner, Metrics]:
    """One optimizer update."""
    minibatch = _unpack(rows, *setup.sizes)
    gradient = jax.value_and_grad(compute_ppo_loss, has_aux=True)
    (loss, scalars), grads = gradient(learner.params, minibatch, setup.config)
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


def _unpack(
    rows: Float[Array, "batch columns"], observation_size: int, action_size: int
) -> Minibatch:
    """Names for the columns of the sample matrix."""
    ends = observation_size, observation_size + action_size
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
    metrics = {tag: jnp.mean(scalars[name]) for tag, name in names.items()}
    return metrics | {"training/explained_variance": variance_explained}


def _finished_episodes(rollout: Rollout) -> Metrics:
    """Sums over the episodes that ended in a rollout, and their number."""
    done = rollout.termination + rollout.truncation
    return {
        "episode/sum_reward": jnp.sum(done * rollout.episode_return),
        "episode/length": jnp.sum(done * rollout.episode_steps),
        "episode/count": jnp.sum(done),
    }
