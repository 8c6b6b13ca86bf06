# SPDX-License-Identifier: Apache-2.0
"""An environment whose whole history can be read from its observations."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from envs.api import State


@dataclasses.dataclass(frozen=True)
class CountingEnv:
    """Observes ``[start, steps]``; ends after ``horizon`` steps (0: never); moves by ``action``.

    ``start`` is drawn at reset and tells episodes apart. The reward is the number of steps.
    """

    horizon: int = 0
    episode_length: int = 5
    name: str = "test:counting"
    observation_size: int = 2
    action_size: int = 1
    dt: float = 1.0

    def reset(self, key: jax.Array) -> State:
        zero = jnp.zeros((), jnp.float32)
        obs = jnp.stack([jax.random.uniform(key), zero])
        return State(obs, obs, zero, zero, {"x_position": obs[0]}, {})

    def step(self, state: State, action: jax.Array) -> State:
        obs = state.physics + jnp.array([0.0, 1.0])
        done = (obs[1] == self.horizon).astype(jnp.float32)
        metrics = {"x_position": state.metrics["x_position"] + action[0]}
        return State(obs, obs, obs[1], done, metrics, {})


@dataclasses.dataclass(frozen=True)
class HiddenCountingEnv(CountingEnv):
    """The same, but ``[start, steps]`` is shown to the critic alone; the policy sees a zero.

    With ``privileged_observation_size`` 0 nobody sees it.
    """

    observation_size: int = 1
    privileged_observation_size: int = 2

    def reset(self, key: jax.Array) -> State:
        return self._hide(super().reset(key))

    def step(self, state: State, action: jax.Array) -> State:
        return self._hide(super().step(state, action))

    def _hide(self, state: State) -> State:
        info = {"privileged_obs": state.obs} if self.privileged_observation_size else {}
        return state.replace(obs=jnp.zeros(1), info=info)
