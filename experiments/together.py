# SPDX-License-Identifier: Apache-2.0
"""Many joints at the price of a small task."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from envs.api import State


@dataclasses.dataclass(frozen=True)
class Together:
    """Several copies of an environment as one body with as many times the actions.

    They know nothing of each other; the reward is their mean, and the first that ends ends all. So
    the gradient of each action is as noisy as many joints make it, at the price of a small task.

    Args:
      env: the environment; its states have no metrics and no info.
      count: copies.

    Example:
      >>> import envs
      >>> Together(envs.make("control:pendulum"), 6).action_size
      6
    """

    env: Any
    count: int

    @property
    def name(self) -> str:
        """Of the environment, with the number of copies."""
        return f"{self.env.name}x{self.count}"

    @property
    def observation_size(self) -> int:
        """Of all copies."""
        return self.count * self.env.observation_size

    @property
    def action_size(self) -> int:
        """Of all copies."""
        return self.count * self.env.action_size

    @property
    def episode_length(self) -> int:
        """Of each."""
        return self.env.episode_length

    @property
    def dt(self) -> float:
        """Of each."""
        return self.env.dt

    def reset(self, key: Key[Array, ""]) -> State:
        """Every copy anew."""
        return self._joined(jax.vmap(self.env.reset)(jax.random.split(key, self.count)))

    def step(self, state: State, action: Float[Array, " action"]) -> State:
        """Every copy by its part of the action."""
        parts = state.replace(
            obs=state.obs.reshape(self.count, -1),
            reward=jnp.broadcast_to(state.reward, self.count),
            done=jnp.broadcast_to(state.done, self.count),
            info={},
        )
        moved = jax.vmap(self.env.step)(parts, action.reshape(self.count, -1))
        return self._joined(moved).replace(info=state.info)

    def _joined(self, states: State) -> State:
        return State(
            physics=states.physics,
            obs=states.obs.reshape(-1),
            reward=jnp.mean(states.reward),
            done=jnp.max(states.done),
            metrics={},
            info={},
        )
