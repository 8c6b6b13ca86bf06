# SPDX-License-Identifier: Apache-2.0
"""PPO (Schulman et al. 2017, arXiv 1707.06347) as pure functions of one seed.

One chunk is a scan over rollouts; each rollout is a scan over env steps and then over minibatches
(:mod:`robotics.ppo.learn`).
"""

from __future__ import annotations

import jax
import optax
from jaxtyping import Array, Key, PyTree

from envs.api import EpisodeWrapper
from robotics import networks
from robotics.algorithm import Algorithm, Metrics, Telemetry, TrainState
from robotics.ppo import learn
from robotics.ppo.config import PPOConfig
from robotics.ppo.learn import Setup
from robotics.rollout import collect, reset


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
    sizes = env.env.observation_size, env.env.action_size
    slot = optax.with_extra_args_support(optimizer)
    setup = Setup(sizes, False, config, slot, telemetry)

    def init(key: Key[Array, ""]) -> TrainState:
        return learn.init(setup, key, reset(env, learn.split_start(key)[2], config.num_envs))

    def epoch(state: TrainState) -> tuple[TrainState, Metrics]:
        return _epoch(setup, env, state)

    return Algorithm(
        init=init,
        epoch=epoch,
        inference_params=learn.inference_params,
        policy=networks.make_policy(*sizes, config.network),
        env_steps_per_epoch=config.env_steps_per_epoch,
        num_epochs=config.num_epochs,
    )


def _epoch(setup: Setup, env: EpisodeWrapper, state: TrainState) -> tuple[TrainState, Metrics]:
    """One chunk."""

    def iteration(
        carry: tuple[TrainState, PyTree], _: None
    ) -> tuple[tuple[TrainState, PyTree], Metrics]:
        return _iteration(setup, env, *carry)

    (state, last), stacked = jax.lax.scan(
        iteration,
        (state, learn.no_update_yet(setup, state)),
        None,
        length=setup.config.rollouts_per_epoch,
    )
    return learn.finish(setup, state, last, stacked)


def _iteration(
    setup: Setup, env: EpisodeWrapper, state: TrainState, last: PyTree
) -> tuple[tuple[TrainState, PyTree], Metrics]:
    """One rollout and the updates made from it."""
    key, key_restart, key_noise, key_shuffle = jax.random.split(state.key, 4)
    restarts = reset(env, key_restart, setup.config.num_envs)
    act = learn.make_act(setup, learn.inference_params(state))
    noise = learn.draw_noise(setup, key_noise)
    env_state, rollout = collect(env, act, state.env_state, restarts, noise)
    state, last, metrics = learn.improve(setup, state, last, rollout, key_shuffle)
    return (state._replace(env_state=env_state, key=key), last), metrics
