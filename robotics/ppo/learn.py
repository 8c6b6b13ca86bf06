# SPDX-License-Identifier: Apache-2.0
"""What PPO makes of a rollout, wherever it was collected: updates and a new state; one seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Key, PyTree

from robotics import distributions, faults, networks, normalize, sharding
from robotics.algorithm import (
    Action,
    Metrics,
    PolicyParams,
    Telemetry,
    TrainState,
    add_env_steps,
    zero_env_steps,
)
from robotics.ppo.config import PPOConfig
from robotics.ppo.losses import compute_ppo_loss
from robotics.ppo.metrics import (
    EPISODE_METRICS,
    Stacked,
    episode_metrics,
    finished_episodes,
    training_metrics,
)
from robotics.ppo.samples import prepare_samples, shuffle, unpack_samples
from robotics.rollout import Rollout

Act = Callable[[Float[Array, "envs obs"], Array], tuple[Action, tuple[Array, Array]]]


class Setup(NamedTuple):
    """What is fixed for a whole run.

    Attributes:
      sizes: number of observation entries, and of action entries or choices.
      discrete: whether actions are choices.
      config: settings.
      optimizer: the transformation in the slot.
      telemetry: see :func:`robotics.ppo.make_ppo`.
      mesh: devices that share the work.
      locating: whether to look for the first fault, which then stands under ``"fault"`` among the
        metrics of a rollout.
      privileged_size: number of entries that only the value network sees.
    """

    sizes: tuple[int, int]
    discrete: bool
    config: PPOConfig
    optimizer: optax.GradientTransformationExtraArgs
    telemetry: Telemetry | None
    mesh: Mesh | None = None
    locating: bool = False
    privileged_size: int = 0

    def scaled(self, step_scale: Float[Array, ""] | float) -> Setup:
        """The same with smaller steps."""
        return self._replace(optimizer=faults.scaled(self.optimizer, step_scale))


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
        "value": networks.init_value(
            key_value, observation_size, config.network, setup.privileged_size
        ),
    }
    normalizer: dict[str, Any] = {"observation": normalize.init_statistics((observation_size,))}
    if setup.privileged_size:
        normalizer["privileged"] = normalize.init_statistics((setup.privileged_size,))
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
        carried={name: jnp.zeros((), jnp.float32) for name in EPISODE_METRICS},
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


def improve(
    setup: Setup, state: TrainState, last: PyTree, rollout: Rollout, key: Key[Array, ""]
) -> tuple[TrainState, PyTree, Stacked]:
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
    samples, normalizer, variance_explained = prepare_samples(setup.config, state, rollout)
    learner = _Learner(state.params, state.opt_state, state.updates, last)
    learner, scalars = _learn(setup, learner, samples, variance_explained, key)
    state = state._replace(
        params=learner.params,
        opt_state=learner.opt_state,
        updates=learner.updates,
        env_steps=add_env_steps(state.env_steps, setup.config.batch_size),
        normalizer=normalizer,
    )
    # Clipping and terminations hide what is not finite; it has to show in a metric all the same.
    shown = jnp.where(_all_finite(rollout), variance_explained, jnp.nan)
    metrics = training_metrics(scalars, shown) | finished_episodes(rollout)
    if setup.locating:
        metrics["fault"] = faults.first_row(scalars["fault"].reshape(-1, 5), 2)
    return state, learner.last, metrics


def _all_finite(rollout: Rollout) -> Bool[Array, ""]:
    """Whether everything that the environments gave is finite."""
    given = [rollout.obs, rollout.final_obs, rollout.reward]
    given += [rollout.privileged_obs, rollout.final_privileged_obs]
    found = [jnp.all(jnp.isfinite(leaf)) for leaf in given if leaf is not None]
    return jnp.all(jnp.stack(found))


def fault_names(setup: Setup, env_state: PyTree) -> dict[str, list[str]]:
    """What the leaves of a fault are called; ``env_state`` may consist of shapes."""
    key = jax.eval_shape(jax.random.key, 0)
    params = jax.eval_shape(lambda key: init(setup, key, None), key).params
    scalars = ("policy_loss", "v_loss", "entropy_loss", "entropy", "kl", "clip_fraction", "loss")
    names = faults.leaf_names(params)
    return {
        "environment": faults.leaf_names(env_state),
        "loss": sorted(scalars if setup.discrete else (*scalars, "std")),
        "gradient": names,
        "parameters": names,
    }


def finish(
    setup: Setup, state: TrainState, last: PyTree, stacked: Stacked
) -> tuple[TrainState, Metrics]:
    """The end of a chunk: its number, and its metrics from those of its rollouts."""
    metrics, carried = episode_metrics(stacked, state.carried)
    state = state._replace(epoch=state.epoch + 1, carried=carried)
    metrics["env_steps"] = jnp.asarray(setup.config.env_steps_per_epoch, jnp.int32)
    if setup.telemetry is not None and last is not None:
        metrics |= setup.telemetry(state.opt_state, *last)
    return state, metrics


def _learn(
    setup: Setup, learner: _Learner, samples: Array, variance_explained: Array, key: Key[Array, ""]
) -> tuple[_Learner, Stacked]:
    """All passes over a rollout; scalars [passes, minibatches] are from before each update."""
    config = setup.config
    passes, minibatches = config.num_updates_per_batch, config.num_minibatches
    # Every device shuffles all rows and takes its part of each minibatch: a rollout is exchanged
    # once, whatever the number of passes.
    samples = sharding.everywhere(setup.mesh, samples)

    def one_pass(learner: _Learner, inputs: tuple[Array, Array]) -> tuple[_Learner, Stacked]:
        key, positions = inputs
        shuffled = samples[shuffle(key, config.batch_size)]
        rows = shuffled.reshape(minibatches, -1, samples.shape[-1])
        rows = sharding.divided(setup.mesh, rows, axis=1)

        def update(learner: _Learner, inputs: tuple[Array, Array]) -> tuple[_Learner, Stacked]:
            minibatch, position = inputs
            known = {"epoch": position, "explained_variance": variance_explained}
            return _update(setup, learner, minibatch, known)

        return jax.lax.scan(update, learner, (rows, positions))

    # Shares of the rollout's updates that are done.
    count = passes * minibatches
    positions = jnp.arange(count, dtype=jnp.float32).reshape(passes, minibatches) / count
    return jax.lax.scan(one_pass, learner, (jax.random.split(key, passes), positions))


def _update(
    setup: Setup, learner: _Learner, rows: Float[Array, "batch columns"], known: Metrics
) -> tuple[_Learner, Stacked]:
    """One optimizer update."""
    observation_size, action_size = setup.sizes
    raw_size = distributions.raw_size(action_size, setup.discrete)
    minibatch = unpack_samples(rows, observation_size, raw_size, setup.privileged_size)
    gradient = jax.value_and_grad(compute_ppo_loss, has_aux=True)
    (loss, scalars), grads = gradient(learner.params, minibatch, setup.config, setup.discrete)
    grads = sharding.everywhere(setup.mesh, grads)
    extras = known | {
        "value": loss,
        "kl": scalars["kl"],
        "clip_fraction": scalars["clip_fraction"],
        "entropy": scalars["entropy"],
        "action_size": jnp.asarray(1.0 if setup.discrete else float(action_size)),
        "policy": {"policy": True, "value": False},
        "progress": learner.updates.astype(jnp.float32) / setup.config.num_updates,
    }
    updates, opt_state = setup.optimizer.update(grads, learner.opt_state, learner.params, **extras)
    params = optax.apply_updates(learner.params, updates)
    last = None if learner.last is None else (updates, learner.params)
    scalars = scalars | {"loss": loss}
    if setup.locating:
        scalars["fault"] = faults.in_update(scalars, grads, params)
    return _Learner(params, opt_state, learner.updates + 1, last), scalars
