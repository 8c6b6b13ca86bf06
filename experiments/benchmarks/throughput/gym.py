# SPDX-License-Identifier: Apache-2.0
"""Our host path against the loop that one writes by hand around a Gymnasium vector environment."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import envs
from envs.api import HostEnv
from envs.gymnasium_worker import quiet
from experiments.benchmarks.throughput.race import Turn, UnavailableError
from experiments.reference_ppo import plain
from robotics.ppo import PPOConfig, make_host_ppo


class Where(NamedTuple):
    """A Gymnasium id with bounded actions, and the settings of PPO there."""

    gym_id: str
    config: PPOConfig
    learning_rate: float


class OursOnHost:
    """``make_host_ppo`` as ``mnemosyne train`` runs it; see :class:`race.Contestant`."""

    def __init__(self, where: Where, seed: int):
        env = envs.make(f"gym:{where.gym_id}")
        assert isinstance(env, HostEnv)
        algorithm = make_host_ppo(env, where.config, optax.adam(where.learning_rate))
        key = jax.vmap(jax.random.key)(jnp.asarray([seed], jnp.uint32))
        self._state = jax.jit(jax.vmap(algorithm.init))(key)
        self._epoch, seconds = algorithm.open(self._state)
        self.compile_s: float | None = seconds

    def turn(self) -> Turn:
        """One chunk."""
        before = int(self._state.updates.sum())
        began = time.perf_counter()
        self._state, metrics = self._epoch(self._state, lambda: None)
        jax.block_until_ready(self._state)
        seconds = time.perf_counter() - began
        updates = int(self._state.updates.sum()) - before
        return Turn(int(metrics["env_steps"].sum()), updates, seconds)

    def close(self) -> None:
        """The environments end with this object, which owns them."""


class PlainLoop:
    """``SyncVectorEnv``, a compiled policy and the compiled updates of the plain PPO.

    Raises:
      UnavailableError: without Gymnasium.
    """

    compile_s: float | None = None

    def __init__(self, where: Where, seed: int):
        self._config = where.config
        self._envs = _vector(where)
        space = self._envs.single_action_space
        self._middle, self._half = (space.high + space.low) / 2, (space.high - space.low) / 2
        sizes = int(np.prod(self._envs.single_observation_space.shape)), space.shape[0]
        adam = optax.adam(where.learning_rate)
        self._key = jax.random.key(seed)
        self._learner = plain.init(where.config, sizes, adam, self._key)
        self._act = jax.jit(lambda learner, obs, key: plain.act(where.config, learner, obs, key))
        self._improve = jax.jit(lambda *parts: plain.improve(where.config, adam, *parts))
        self._obs = self._envs.reset(seed=seed)[0].astype(np.float32)

    def turn(self) -> Turn:
        """As many rollouts as a chunk of ours."""
        config = self._config
        began = time.perf_counter()
        for _ in range(config.rollouts_per_epoch):
            self._key, key_act, key_improve = jax.random.split(self._key, 3)
            keys = jax.random.split(key_act, config.unroll_length)
            rows = [self._step(key) for key in keys]
            columns: Any = (np.stack(column) for column in zip(*rows, strict=True))
            batch = plain.Batch(*columns)
            self._learner = self._improve(self._learner, batch, key_improve)
        jax.block_until_ready(self._learner)
        seconds = time.perf_counter() - began
        updates = config.rollouts_per_epoch * config.updates_per_rollout
        return Turn(config.env_steps_per_epoch, updates, seconds)

    def _step(self, key: Any) -> tuple[np.ndarray, ...]:
        """One step of all, as a row of a batch."""
        obs = self._obs
        action, raw, density = jax.device_get(self._act(self._learner, obs, key))
        after, reward, ended, cut, info = self._envs.step(self._middle + self._half * action)
        after = after.astype(np.float32)
        led_to = _led_to(after, info)
        self._obs = after
        flags = ended.astype(np.float32), (cut & ~ended).astype(np.float32)
        return obs, raw, density, reward.astype(np.float32), *flags, led_to

    def close(self) -> None:
        """Ends the environments."""
        self._envs.close()


class SteppingAlone:
    """Uniform random actions in the same vector environment: no policy and no learning."""

    compile_s: float | None = 0.0

    def __init__(self, where: Where, seed: int):
        self._config, self._envs = where.config, _vector(where)
        self._envs.reset(seed=seed)
        self._envs.action_space.seed(seed)

    def turn(self) -> Turn:
        """As many env steps as a chunk of ours."""
        config = self._config
        actions = [self._envs.action_space.sample() for _ in range(config.unroll_length)]
        began = time.perf_counter()
        for _ in range(config.rollouts_per_epoch):
            for action in actions:
                self._envs.step(action)
        seconds = time.perf_counter() - began
        return Turn(config.env_steps_per_epoch, 1, seconds)

    def close(self) -> None:
        """Ends the environments."""
        self._envs.close()


def _vector(where: Where) -> Any:
    """Gymnasium's vector environment, restarting in the step that ends an episode."""
    try:
        import gymnasium
        from gymnasium.vector import AutoresetMode
    except ModuleNotFoundError as error:
        raise UnavailableError(f"the package {error.name!r} is not installed") from error
    with quiet(where.gym_id):
        return gymnasium.make_vec(
            where.gym_id,
            num_envs=where.config.num_envs,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        )


def _led_to(after: np.ndarray, info: dict[str, Any]) -> np.ndarray:
    """Observations that the step led to, before restarts."""
    if "final_obs" not in info:
        return after
    found = after.copy()
    for index in np.flatnonzero(info["_final_obs"]):
        found[index] = info["final_obs"][index]
    return found
