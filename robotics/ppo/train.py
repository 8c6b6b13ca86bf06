# SPDX-License-Identifier: Apache-2.0
"""PPO (Schulman et al. 2017, arXiv 1707.06347) as pure functions of one seed.

One chunk is a scan over rollouts; each rollout is a scan over env steps and then over minibatches
(:mod:`robotics.ppo.learn`).
"""

from __future__ import annotations

import jax
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from envs.api import EpisodeWrapper, State
from robotics import faults, networks
from robotics.algorithm import Algorithm, Locator, Metrics, Telemetry, TrainState
from robotics.faults import Fault
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

    def epoch(
        state: TrainState, step_scale: Float[Array, ""] | float = 1.0
    ) -> tuple[TrainState, Metrics]:
        return _epoch(setup.scaled(step_scale), env, state)

    def locate(state: TrainState, step_scale: Float[Array, ""]) -> Fault:
        return _locate(setup.scaled(step_scale)._replace(locating=True), env, state)

    def fault_names() -> dict[str, list[str]]:
        env_state = jax.eval_shape(env.reset, jax.eval_shape(jax.random.key, 0))
        return learn.fault_names(setup, faults.training_part(env_state))

    return Algorithm(
        init=init,
        epoch=epoch,
        inference_params=learn.inference_params,
        policy=networks.make_policy(*sizes, config.network),
        env_steps_per_epoch=config.env_steps_per_epoch,
        num_epochs=config.num_epochs,
        locator=Locator(locate, fault_names, "rollout"),
    )


def _epoch(setup: Setup, env: EpisodeWrapper, state: TrainState) -> tuple[TrainState, Metrics]:
    """One chunk."""
    (state, last), stacked = _iterations(setup, env, state)
    return learn.finish(setup, state, last, stacked)


def _locate(setup: Setup, env: EpisodeWrapper, state: TrainState) -> Fault:
    """The first fault of a chunk."""
    return faults.first_row(_iterations(setup, env, state)[1]["fault"], 1)


def _iterations(
    setup: Setup, env: EpisodeWrapper, state: TrainState
) -> tuple[tuple[TrainState, PyTree], dict[str, Array]]:
    """All rollouts of a chunk; metrics have a leading axis of them."""

    def iteration(
        carry: tuple[TrainState, PyTree], _: None
    ) -> tuple[tuple[TrainState, PyTree], dict[str, Array]]:
        return _iteration(setup, env, *carry)

    return jax.lax.scan(
        iteration,
        (state, learn.no_update_yet(setup, state)),
        None,
        length=setup.config.rollouts_per_epoch,
    )


def _iteration(
    setup: Setup, env: EpisodeWrapper, state: TrainState, last: PyTree
) -> tuple[tuple[TrainState, PyTree], dict[str, Array]]:
    """One rollout and the updates made from it."""
    key, key_restart, key_noise, key_shuffle = jax.random.split(state.key, 4)
    restarts = reset(env, key_restart, setup.config.num_envs)
    act = learn.make_act(setup, learn.inference_params(state))
    noise = learn.draw_noise(setup, key_noise)
    watch = _first_bad if setup.locating else None
    env_state, rollout = collect(env, act, state.env_state, restarts, noise, watch)
    codes = None
    if setup.locating:
        extras, codes = rollout.extras
        rollout = rollout._replace(extras=extras)
    state, last, metrics = learn.improve(setup, state, last, rollout, key_shuffle)
    if codes is not None:
        seen = faults.earliest(faults.ENVIRONMENT, codes)
        metrics["fault"] = faults.first_of(seen, metrics["fault"])
    return (state._replace(env_state=env_state, key=key), last), metrics


def _first_bad(after: State, restarts: State) -> Int[Array, " envs"]:
    """What is wrong with each environment; fresh episodes show what is meant to be infinite."""
    parts = faults.training_part(after), faults.training_part(restarts)
    return faults.bad_leaf(*parts, axes=1)
