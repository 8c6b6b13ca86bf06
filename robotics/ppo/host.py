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
from jaxtyping import Array, Float, Int, Key, PyTree

from envs.api import HostBatch, HostEnv
from robotics import distributions, networks, programs
from robotics.algorithm import HostAlgorithm, HostEpoch, Metrics, Telemetry, TrainState
from robotics.host import env_seeds
from robotics.ppo import learn
from robotics.ppo.config import PPOConfig
from robotics.ppo.learn import Setup
from robotics.rollout import Rollout


class _Programs(NamedTuple):
    """Compiled functions of all seeds.

    Attributes:
      begin: key to (next key, noise of a rollout, key of its minibatches).
      inference_params: state to what acting needs.
      act: (what acting needs, observations, noise of a step) to (actions, what is kept with them).
      improve: (state, last, rollout, key) to (state, last, metrics).
      finish: (state, last, stacked metrics) to (state, metrics).
    """

    begin: Callable[..., Any]
    inference_params: Callable[..., Any]
    act: Callable[..., Any]
    improve: Callable[..., Any]
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

    return HostAlgorithm(
        init=init,
        open=open_envs,
        inference_params=learn.inference_params,
        policy=networks.make_policy(*sizes, config.network, env.discrete),
        env_steps_per_epoch=config.env_steps_per_epoch,
        num_epochs=config.num_epochs,
    )


def _open(setup: Setup, env: HostEnv, state: TrainState) -> tuple[HostEpoch, float]:
    """Starts the environments of all seeds and compiles their programs."""
    num_seeds, num_envs = state.updates.shape[0], setup.config.num_envs
    compiled, seconds = _compile(setup, state)
    runner = _Runner(env.start(num_seeds * num_envs), env_seeds(state.key, num_envs))

    def epoch(state: TrainState, tick: Callable[[], None]) -> tuple[TrainState, dict[str, Array]]:
        last = jax.vmap(lambda one: learn.no_update_yet(setup, one))(state)
        rows = []
        for _ in range(setup.config.rollouts_per_epoch):
            key, noise, key_shuffle = compiled.begin(state.key)
            params = compiled.inference_params(state)
            rollout = runner.collect(lambda obs, x, p=params: compiled.act(p, obs, x), noise)
            state, last, metrics = compiled.improve(state, last, rollout, key_shuffle)
            state = state._replace(key=key)
            rows.append(metrics)
            tick()
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *rows)
        return compiled.finish(state, last, stacked)

    return epoch, seconds


class _Runner:
    """Environments of all seeds under way, with what the running episodes have gathered so far.

    Args:
      batch: the environments, those of the first seed first.
      seeds: of their first episodes, [seeds, envs].
    """

    def __init__(self, batch: HostBatch, seeds: Int[np.ndarray, "seeds envs"]):
        self._batch, self._shape = batch, seeds.shape
        self._obs = batch.reset(seeds.ravel().tolist()).obs
        self._returns, self._lengths = np.zeros((2, seeds.size), np.float32)

    def collect(
        self, act: Callable[..., Any], noise: Float[Array, "seeds T envs action"]
    ) -> Rollout:
        """T steps; arrays [seeds, T, envs, ...].

        Args:
          act: ``act(obs, noise)`` of all seeds at once, see :func:`robotics.ppo.learn.make_act`.
          noise: what it needs for each step.
        """
        drawn = np.moveaxis(np.asarray(noise), 1, 0)
        rows = [self._step(act, noise_t) for noise_t in drawn]
        return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *rows)

    def _step(self, act: Callable[..., Any], noise: Float[np.ndarray, "seeds envs action"]) -> Any:
        """One step of all; leaves [seeds, envs, ...]."""
        obs = self._apart(self._obs)
        action, extras = jax.device_get(act(obs, noise))
        after = self._batch.step(action.reshape(-1, *action.shape[2:]))
        self._obs = after.obs
        self._returns = self._returns + after.reward
        self._lengths = self._lengths + 1.0
        kept = Rollout(
            obs=obs,
            extras=extras,
            reward=self._apart(after.reward),
            termination=self._apart(after.termination),
            truncation=self._apart(after.truncation),
            final_obs=self._apart(after.final_obs),
            episode_return=self._apart(self._returns),
            episode_steps=self._apart(self._lengths),
        )
        running = 1.0 - after.termination - after.truncation
        self._returns, self._lengths = self._returns * running, self._lengths * running
        return kept

    def _apart(self, values: np.ndarray) -> Any:
        """[seeds * envs, ...] as [seeds, envs, ...]."""
        return values.reshape(*self._shape, *values.shape[1:])


def _compile(setup: Setup, state: TrainState) -> tuple[_Programs, float]:
    """Programs of all seeds for the shapes of this state, and the seconds that took."""
    num_seeds, config = state.updates.shape[0], setup.config

    def begin(key: Key[Array, ""]) -> tuple[Any, Array, Any]:
        key, key_noise, key_shuffle = jax.random.split(key, 3)
        return key, learn.draw_noise(setup, key_noise), key_shuffle

    def improve(*parts: Any) -> tuple[TrainState, PyTree, Metrics]:
        return learn.improve(setup, *parts)

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
        improve=program(improve, state, last, rollout, state.key),
        finish=jax.jit(jax.vmap(lambda *parts: learn.finish(setup, *parts))),
    )
    return compiled, sum(times)
