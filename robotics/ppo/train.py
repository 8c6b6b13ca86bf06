# SPDX-License-Identifier: Apache-2.0
"""PPO (Schulman et al. 2017, arXiv 1707.06347) as pure functions of one seed.

One chunk is a scan over rollouts; each rollout is a scan over env steps and then over minibatches
(:mod:`robotics.ppo.learn`).
"""

from __future__ import annotations

import jax
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Key, PyTree

from envs.api import EpisodeWrapper, State
from robotics import faults, networks, sharding
from robotics.algorithm import (
    Algorithm,
    Locator,
    Metrics,
    PolicyParams,
    Restarts,
    Telemetry,
    TrainState,
)
from robotics.faults import Fault
from robotics.ppo import learn
from robotics.ppo.config import PPOConfig
from robotics.ppo.learn import Setup
from robotics.rollout import Rollout, collect


def make_ppo(
    env: EpisodeWrapper,
    config: PPOConfig,
    optimizer: optax.GradientTransformation,
    telemetry: Telemetry | None = None,
    mesh: Mesh | None = None,
) -> Algorithm:
    """PPO for one seed; vmap ``init`` and ``epoch`` over keys for several.

    The optimizer's ``update`` is called with the parameters and, if it takes extra arguments, with
    the float32 scalars ``value`` (the loss), ``kl`` (k3 estimate on this minibatch before the
    update), ``clip_fraction``, ``entropy``, ``explained_variance`` (of this rollout, before its
    updates), ``epoch`` (share of this rollout's updates that are done, from 0 to below 1),
    ``progress`` (of the run, 0 to 1) and ``action_size`` (1 for choices), and with ``policy``,
    which says what actions depend on.

    Where the environment has a privileged observation, the value network reads it beside the
    observation; the policy never does (asymmetric actor-critic, Pinto et al. 2017, arXiv
    1710.06542).

    Args:
      env: environment with time limit.
      config: settings.
      optimizer: any optax transformation that gives steps to be added.
      telemetry: ``telemetry(opt_state, updates, params before them)``, called on the last update of
        a chunk; its scalars join the metrics.
      mesh: devices to divide environments and minibatches among, see :mod:`robotics.sharding`.

    Returns:
      An algorithm whose ``env_steps_per_epoch`` is exact. Its ``episode/...`` metrics hold their
      last value (0 at first) while no episode ends; ``episode/count`` tells.

    Raises:
      ValueError: if environments or minibatches cannot be divided among the devices.

    Example:
      >>> algorithm = make_ppo(EpisodeWrapper(env), PPOConfig(), optax.adam(3e-4))  # doctest: +SKIP
      >>> state = algorithm.init(jax.random.key(0))  # doctest: +SKIP
      >>> state, metrics = jax.jit(algorithm.epoch)(state)  # doctest: +SKIP
    """
    sizes = env.env.observation_size, env.env.action_size
    slot = optax.with_extra_args_support(optimizer)
    privileged = env.privileged_observation_size
    setup = Setup(sizes, False, config, slot, telemetry, mesh, privileged_size=privileged)
    _check_divides(config, mesh)
    fresh = _restarts(env, config)

    def init(key: Key[Array, ""], start: State | None = None) -> TrainState:
        start = fresh.draw(fresh.start_keys(key)) if start is None else start
        return learn.init(setup, key, sharding.divided(mesh, start))

    def epoch(
        state: TrainState,
        step_scale: Float[Array, ""] | float = 1.0,
        restarts: State | None = None,
    ) -> tuple[TrainState, Metrics]:
        return _epoch(setup.scaled(step_scale), env, state, restarts)

    return Algorithm(
        init=init,
        epoch=epoch,
        inference_params=learn.inference_params,
        policy=networks.make_policy(*sizes, config.network),
        env_steps_per_epoch=config.env_steps_per_epoch,
        num_epochs=config.num_epochs,
        mesh=mesh,
        locator=_locator(setup, env),
        restarts=fresh,
    )


def _locator(setup: Setup, env: EpisodeWrapper) -> Locator:
    """How the first fault of a chunk is found."""

    def find(state: TrainState, step_scale: Float[Array, ""]) -> Fault:
        located = setup.scaled(step_scale)._replace(locating=True)
        return faults.first_row(_iterations(located, env, state)[1]["fault"], 1)

    def names() -> dict[str, list[str]]:
        env_state = jax.eval_shape(env.reset, jax.eval_shape(jax.random.key, 0))
        return learn.fault_names(setup, faults.training_part(env_state))

    return Locator(find, names, "rollout")


def _restarts(env: EpisodeWrapper, config: PPOConfig) -> Restarts:
    """How the episodes of a run are drawn."""

    def chunk_keys(key: Key[Array, ""]) -> Key[Array, "rollouts envs"]:
        def rollout(key: Key[Array, ""], _: None) -> tuple[Key[Array, ""], Key[Array, " envs"]]:
            keys = _split_iteration(key)
            return keys[0], jax.random.split(keys[1], config.num_envs)

        return jax.lax.scan(rollout, key, None, length=config.rollouts_per_epoch)[1]

    return Restarts(
        start_keys=lambda key: jax.random.split(learn.split_start(key)[2], config.num_envs),
        chunk_keys=chunk_keys,
        draw=jax.vmap(env.reset),
    )


def _split_iteration(key: Key[Array, ""]) -> Key[Array, "4"]:
    """Keys of the next rollout, and of this one's restarts, action noise and minibatches."""
    return jax.random.split(key, 4)


def _check_divides(config: PPOConfig, mesh: Mesh | None) -> None:
    """Refuses sizes that cannot be divided among the devices."""
    sharding.check_divides(mesh, "environments", config.num_envs)
    rows = config.batch_size // config.num_minibatches
    sharding.check_divides(mesh, "env steps in a minibatch", rows)


def _epoch(
    setup: Setup, env: EpisodeWrapper, state: TrainState, restarts: State | None
) -> tuple[TrainState, Metrics]:
    """One chunk."""
    (state, last), stacked = _iterations(setup, env, state, restarts)
    return learn.finish(setup, state, last, stacked)


def _iterations(
    setup: Setup, env: EpisodeWrapper, state: TrainState, restarts: State | None = None
) -> tuple[tuple[TrainState, PyTree], dict[str, Array]]:
    """All rollouts of a chunk; metrics have a leading axis of them."""

    def iteration(
        carry: tuple[TrainState, PyTree], restarts: State | None
    ) -> tuple[tuple[TrainState, PyTree], dict[str, Array]]:
        return _iteration(setup, env, *carry, restarts)

    return jax.lax.scan(
        iteration,
        (state, learn.no_update_yet(setup, state)),
        restarts,
        length=setup.config.rollouts_per_epoch,
    )


def _iteration(
    setup: Setup, env: EpisodeWrapper, state: TrainState, last: PyTree, restarts: State | None
) -> tuple[tuple[TrainState, PyTree], dict[str, Array]]:
    """One rollout and the updates made from it."""
    key, key_restart, key_noise, key_shuffle = _split_iteration(state.key)
    noise = learn.draw_noise(setup, key_noise)
    keys = jax.random.split(key_restart, setup.config.num_envs)
    env_state, rollout = _collect(setup, env, state, keys if restarts is None else restarts, noise)
    codes = None
    if setup.locating:
        extras, codes = rollout.extras
        rollout = rollout._replace(extras=extras)
    state, last, metrics = learn.improve(setup, state, last, rollout, key_shuffle)
    if codes is not None:
        seen = faults.earliest(faults.ENVIRONMENT, codes)
        metrics["fault"] = faults.first_of(seen, metrics["fault"])
    return (state._replace(env_state=env_state, key=key), last), metrics


def _collect(
    setup: Setup,
    env: EpisodeWrapper,
    state: TrainState,
    restarts: State | Key[Array, " envs"],
    noise: Float[Array, "T envs action"],
) -> tuple[State, Rollout]:
    """A rollout; every device steps its own environments and knows the restarts of all.

    ``restarts`` are fresh episodes, or the keys to draw them from.
    """
    mesh, watch = setup.mesh, _first_bad if setup.locating else None
    drawn = isinstance(restarts, State)

    def play(
        params: PolicyParams, env_state: State, restarts: State | Array, noise: Array
    ) -> tuple[State, Rollout]:
        first = sharding.position(mesh) * noise.shape[1]
        act = learn.make_act(setup, params)
        if isinstance(restarts, State):
            return collect(env, act, env_state, restarts, noise, first, watch)
        fresh = sharding.gathered(mesh, jax.vmap(env.reset)(restarts))
        return collect(env, act, env_state, fresh, noise, first, watch)

    envs, steps = P(sharding.AXIS), P(None, sharding.AXIS)
    inputs = (P(), envs, P() if drawn else envs, steps)
    play = sharding.over_devices(mesh, play, inputs, (envs, steps))
    return play(learn.inference_params(state), state.env_state, restarts, noise)


def _first_bad(after: State, fresh: State) -> Int[Array, " envs"]:
    """What is wrong with each environment; fresh episodes show what is meant to be infinite."""
    parts = faults.training_part(after), faults.training_part(fresh)
    return faults.bad_leaf(*parts, axes=1)
