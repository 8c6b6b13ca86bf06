# SPDX-License-Identifier: Apache-2.0
"""PPO on environments that JAX cannot trace: rollouts on the host, everything else compiled.

Networks, losses, advantages and updates are those of :mod:`robotics.ppo.learn`; all seeds act and
learn side by side in one program, and their environments are stepped in one batch. Running episodes
are no part of the training state: a run that goes on from a checkpoint begins new ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Key, PyTree

from envs.api import HostEnv
from robotics import distributions, faults, networks, programs
from robotics.algorithm import HostAlgorithm, HostEpoch, Telemetry, TrainState
from robotics.faults import Fault
from robotics.ppo import learn
from robotics.ppo.config import PPOConfig
from robotics.ppo.learn import Setup
from robotics.ppo.runner import Fleet
from robotics.rollout import Rollout


class _Programs(NamedTuple):
    """Compiled functions of all seeds.

    Attributes:
      begin: key to (next key, noise of a rollout, key of its minibatches).
      inference_params: state to what acting needs.
      act: (what acting needs, observations, noise of a step) to (actions, what is kept with them).
      improve: (state, last, rollout, key, step scale) to (state, last, metrics, health).
      locate: the same arguments to what went wrong; compiled when it is needed.
      finish: (state, last, stacked metrics) to (state, metrics).
    """

    begin: Callable[..., Any]
    inference_params: Callable[..., Any]
    act: Callable[..., Any]
    improve: Callable[..., Any]
    locate: Callable[..., Any]
    finish: Callable[..., Any]


def make_host_ppo(
    env: HostEnv,
    config: PPOConfig,
    optimizer: optax.GradientTransformation,
    telemetry: Telemetry | None = None,
) -> HostAlgorithm:
    """PPO for a host environment; arguments as for :func:`robotics.ppo.make_ppo`.

    Actions are choices where the environment says so; the policy is categorical then.
    """
    sizes = env.observation_size, env.action_size
    slot = optax.with_extra_args_support(optimizer)
    setup = Setup(sizes, env.discrete, config, slot, telemetry)

    def init(key: Key[Array, ""]) -> TrainState:
        return learn.init(setup, key, None)

    def open_envs(state: TrainState) -> tuple[HostEpoch, float]:
        return _open(setup, env, state)

    def fault_names() -> dict[str, list[str]]:
        # The order of what _locate looks at.
        seen = {"environment": ["obs", "info/final_obs", "reward"]}
        return learn.fault_names(setup, None) | seen

    return HostAlgorithm(
        init=init,
        open=open_envs,
        inference_params=learn.inference_params,
        policy=networks.make_policy(*sizes, config.network, env.discrete),
        env_steps_per_epoch=config.env_steps_per_epoch,
        num_epochs=config.num_epochs,
        fault_names=fault_names,
    )


def _open(setup: Setup, env: HostEnv, state: TrainState) -> tuple[HostEpoch, float]:
    """Starts the environments of all seeds and compiles their programs."""
    num_seeds, config = state.updates.shape[0], setup.config
    compiled, seconds = _compile(setup, state)
    fleet = Fleet(env, state.key, config.num_envs)

    def epoch(
        state: TrainState,
        tick: Callable[[], None],
        step_scale: Float[np.ndarray, " seeds"] | None = None,
        again: Bool[np.ndarray, " seeds"] | None = None,
    ) -> tuple[TrainState, dict[str, Array]]:
        scale = jnp.asarray(np.ones(num_seeds) if step_scale is None else step_scale, jnp.float32)
        if again is not None:
            fleet.renew(again, state.key)
        last = jax.vmap(lambda one: learn.no_update_yet(setup, one))(state)
        rows, found = [], np.full((num_seeds, 5), -1, np.int32)
        for number in range(config.rollouts_per_epoch):
            key, noise, key_shuffle = compiled.begin(state.key)
            params = compiled.inference_params(state)
            rollout = fleet.collect(lambda obs, x, p=params: compiled.act(p, obs, x), noise, again)
            given = (state, last, rollout, key_shuffle, scale)
            state, last, metrics, code = compiled.improve(*given)
            bad = (np.asarray(code) >= 0) & (found[:, 0] < 0)
            if bad.any():
                found[bad] = np.asarray(compiled.locate(*given))[bad]
                found[bad, 1] = number
            state = state._replace(key=key)
            rows.append(metrics)
            tick()
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *rows)
        state, metrics = compiled.finish(state, last, stacked)
        return state, metrics | {"fault": jnp.asarray(found)}

    return epoch, seconds


def _locate(setup: Setup, *parts: Any) -> Fault:
    """What went wrong in a rollout of one seed or in the updates made from it."""
    rollout = parts[2]
    seen = (rollout.obs, rollout.final_obs, rollout.reward)
    here = faults.earliest(faults.ENVIRONMENT, faults.bad_leaf(seen, axes=2))
    metrics = learn.improve(setup._replace(locating=True), *parts)[2]
    return faults.first_of(here, metrics["fault"])


def _compile(setup: Setup, state: TrainState) -> tuple[_Programs, float]:
    """Programs of all seeds for the shapes of this state, and the seconds that took."""
    num_seeds, config = state.updates.shape[0], setup.config

    def begin(key: Key[Array, ""]) -> tuple[Any, Array, Any]:
        key, key_noise, key_shuffle = jax.random.split(key, 3)
        return key, learn.draw_noise(setup, key_noise), key_shuffle

    def improve(*parts: Any) -> tuple[TrainState, PyTree, dict[str, Array], Array]:
        state, last, metrics = learn.improve(setup.scaled(parts[-1]), *parts[:-1])
        return state, last, metrics, faults.health(state, parts[0], metrics)

    def locate(*parts: Any) -> Fault:
        return _locate(setup.scaled(parts[-1]), *parts[:-1])

    def rows(*shape: int) -> Any:
        return jax.ShapeDtypeStruct((num_seeds, *shape), jnp.float32)

    length, envs, (obs_size, action_size) = config.unroll_length, config.num_envs, setup.sizes
    raw_size = distributions.raw_size(action_size, setup.discrete)
    numbers, obs = rows(length, envs), rows(length, envs, obs_size)
    rollout = Rollout(
        obs=obs,
        extras=(rows(length, envs, raw_size), numbers),
        reward=numbers,
        termination=numbers,
        truncation=numbers,
        final_obs=obs,
        episode_return=numbers,
        episode_steps=numbers,
    )
    params = jax.eval_shape(jax.vmap(learn.inference_params), state)
    last = jax.eval_shape(jax.vmap(lambda one: learn.no_update_yet(setup, one)), state)
    times = []

    def program(function: Callable[..., Any], *args: Any) -> Callable[..., Any]:
        compiled, seconds = programs.compile_timed(jax.vmap(function), *args)
        times.append(seconds)
        return compiled

    def act(params: PyTree, obs: Array, noise: Array) -> Any:
        return learn.make_act(setup, params)(obs, noise)

    compiled = _Programs(
        begin=program(begin, state.key),
        inference_params=program(learn.inference_params, state),
        act=program(act, params, rows(envs, obs_size), rows(envs, action_size)),
        improve=program(improve, state, last, rollout, state.key, rows()),
        locate=jax.jit(jax.vmap(locate)),
        finish=jax.jit(jax.vmap(lambda *parts: learn.finish(setup, *parts))),
    )
    return compiled, sum(times)
