# SPDX-License-Identifier: Apache-2.0
"""The environment protocols: inside JAX one environment at a time, on the host a batch at a time.

:class:`Env` is Brax's ``reset(key)`` and ``step(state, action)``, pure functions. :class:`HostEnv`
is for simulators that JAX cannot trace: a batch of them is stepped with NumPy arrays. Everything
above this file (rollouts, evaluation, training) sees environments only through the two. Adapters
turn other libraries into one of them; ``robotics`` imports nothing else from ``envs``.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

Bounds = tuple[Float[np.ndarray, " action"], Float[np.ndarray, " action"]]
"""Lowest and highest value of each entry of an action."""
PRIVILEGED = "privileged_obs"
"""Name in ``info`` of what only a critic may see."""


@jax.tree_util.register_dataclass
@typing.no_type_check  # JAX also puts shapes, flags and the like in the leaves
@dataclasses.dataclass(frozen=True)
class State:
    """What one environment is after ``reset`` or ``step``; a pytree of fixed structure.

    Attributes:
      physics: the simulator's own state, any pytree.
      obs: observation, float32.
      reward: reward of the step that led here, float32 (0 after ``reset``).
      done: 1.0 where the environment itself ended the episode (a *termination*), else 0.0,
        float32. Time limits are the business of :class:`EpisodeWrapper`, never of the environment.
      metrics: named float32 scalars for monitoring, of the step just made like ``reward``.
        Locomotion bodies put their forward position under ``"x_position"`` (metres), also after
        ``reset``, so that distance can be measured inside an episode; never across a restart.
      info: anything else that has to travel with the state.
    """

    physics: Any
    obs: Float[Array, "*batch obs"]
    reward: Float[Array, "*batch"]
    done: Float[Array, "*batch"]
    metrics: dict[str, Float[Array, "*batch"]]
    info: dict[str, Any]

    def replace(self, **changes: Any) -> State:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


@runtime_checkable
class Env(Protocol):
    """One environment. Pure, jittable, vmappable; actions in [-1, 1]; keys are typed PRNG keys.

    An environment may also have an attribute ``privileged_observation_size``, an int above 0. Then
    ``info["privileged_obs"]`` of every state holds as many float32 numbers that the policy does not
    see and the value network does.

    Attributes:
      name: the registry name, such as ``"brax:hopper"``.
      observation_size: number of observation entries.
      action_size: number of action entries.
      episode_length: default time limit, in environment steps.
      dt: seconds of simulated time an environment step takes.
    """

    name: str
    observation_size: int
    action_size: int
    episode_length: int
    dt: float

    def reset(self, key: Key[Array, ""]) -> State:
        """The first state of a fresh episode."""
        ...

    def step(self, state: State, action: Float[Array, " action"]) -> State:
        """The state after one action; ``reward`` and ``done`` belong to this step alone."""
        ...


class HostStep(NamedTuple):
    """What a batch of host environments is after ``reset`` or ``step``; NumPy, float32.

    An environment whose episode ended has already begun the next one: ``obs`` is what the next
    action answers, ``final_obs`` what the step really led to.

    Attributes:
      obs: observation to act on.
      reward: reward of the step, 0 after ``reset``.
      termination: 1.0 where the environment itself ended the episode.
      truncation: 1.0 where only a time limit did, never together with ``termination``.
      final_obs: observation before a restart.
      x_position: forward position (metres) now; NaN where there is none.
      final_x_position: the same before a restart.
    """

    obs: Float[np.ndarray, "envs obs"]
    reward: Float[np.ndarray, " envs"]
    termination: Float[np.ndarray, " envs"]
    truncation: Float[np.ndarray, " envs"]
    final_obs: Float[np.ndarray, "envs obs"]
    x_position: Float[np.ndarray, " envs"]
    final_x_position: Float[np.ndarray, " envs"]


@runtime_checkable
class HostBatch(Protocol):
    """Running environments outside of JAX. They keep their state themselves."""

    def reset(self, seeds: Sequence[int]) -> HostStep:
        """Fresh episodes, one seed (0 to 2^31 - 1) an environment; they decide all that follows."""
        ...

    def step(self, actions: Any) -> HostStep:
        """One step of each.

        Args:
          actions: [envs, action] float32 in [-1, 1], or [envs] whole numbers from 0 on where
            actions are discrete.
        """
        ...

    def close(self) -> None:
        """Ends them; a second call does nothing."""
        ...


@runtime_checkable
class HostEnv(Protocol):
    """An environment that JAX cannot trace; time limits and restarts are its own business.

    Attributes:
      name: the registry name, such as ``"gym:HalfCheetah-v5"``.
      observation_size: number of observation entries.
      action_size: number of action entries or, if ``discrete``, of actions to choose from.
      discrete: whether an action is a choice.
      episode_length: its time limit, in environment steps.
      dt: seconds of simulated time an environment step takes.
    """

    name: str
    observation_size: int
    action_size: int
    discrete: bool
    episode_length: int
    dt: float

    def start(self, num_envs: int) -> HostBatch:
        """A batch of ``num_envs`` environments, to be reset before its first step."""
        ...


def action_bounds(env: Env | HostEnv) -> Bounds:
    """What -1 and 1 of each entry of an action become in the units of the environment's actuators.

    Adapters that scale actions say so in an attribute ``action_bounds``; it is no part of the
    protocols, because most environments take [-1, 1] as it is.

    Args:
      env: any environment whose actions are no choices, without :class:`EpisodeWrapper`.

    Returns:
      Lowest and highest values, float64 [action].
    """
    given = getattr(env, "action_bounds", None) or (-1.0, 1.0)
    low, high = (np.broadcast_to(np.float64(bound), (env.action_size,)) for bound in given)
    return low, high


@dataclasses.dataclass(frozen=True)
class EpisodeWrapper:
    """Adds a time limit, keeps termination apart from truncation, restarts from a pool.

    After ``step``, ``state.info`` holds, as float32 unless said otherwise:

    - ``termination``: 1.0 where the environment itself ended;
    - ``truncation``: 1.0 where only the time limit ended the episode (never together with
      termination);
    - ``final_obs``: the observation *before* a restart, which is what a truncated value must be
      bootstrapped from;
    - ``final_privileged_obs``: the same of ``privileged_obs``, where the environment has one;
    - ``episode_return`` and ``episode_steps``: sums over the episode that this step belongs to,
      still unreset;
    - ``steps``: steps in the running episode after a possible restart, int32.

    ``state.done`` is ``termination + truncation``. Restarts copy a state that the caller drew with
    ``reset`` once per rollout: resetting inside ``step`` would, under ``vmap``, pay for a full
    reset on every step.

    Args:
      env: the environment to wrap.
      episode_length: time limit in environment steps; ``None`` takes the environment's own.
    """

    env: Env
    episode_length: int | None = None

    @property
    def time_limit(self) -> int:
        """The time limit in force, in environment steps."""
        return self.env.episode_length if self.episode_length is None else self.episode_length

    @property
    def privileged_observation_size(self) -> int:
        """Number of entries that only a critic sees, 0 where there are none."""
        return getattr(self.env, "privileged_observation_size", 0)

    def reset(self, key: Key[Array, ""]) -> State:
        """A fresh episode with the bookkeeping of the class docstring at zero."""
        state = self.env.reset(key)
        zero = jnp.zeros((), jnp.float32)
        info = state.info | {
            "termination": zero,
            "truncation": zero,
            "episode_return": zero,
            "episode_steps": zero,
            "steps": jnp.zeros((), jnp.int32),
            **self._final(state),
        }
        return state.replace(info=info)

    def step(self, state: State, action: Float[Array, " action"], restart: State) -> State:
        """One step; where it ends the episode, ``restart`` with this step's reward and flags.

        Args:
          state: the running state.
          action: entries in [-1, 1].
          restart: a state from :meth:`reset`, used only if this step ends the episode.

        Returns:
          The next state, as the class docstring describes.
        """
        # After a restart the running sums begin anew; ``info["steps"] == 0`` marks the first step
        # of an episode.
        fresh = state.info["steps"] == 0
        # The flag of the last step may not leak into this one: some environments pass it on.
        stepped = self.env.step(state.replace(done=jnp.zeros_like(state.done)), action)
        steps = state.info["steps"] + 1
        termination = stepped.done
        truncation = jnp.where(steps >= self.time_limit, 1.0 - termination, 0.0)
        done = termination + truncation
        bookkeeping = {
            "termination": termination,
            "truncation": truncation,
            "episode_return": jnp.where(fresh, 0.0, state.info["episode_return"]) + stepped.reward,
            "episode_steps": steps.astype(jnp.float32),
            "steps": jnp.where(done > 0, 0, steps),
            **self._final(stepped),
        }
        carried = {name: value for name, value in stepped.info.items() if name not in bookkeeping}
        kept = (stepped.physics, stepped.obs, carried)
        again = (restart.physics, restart.obs, {name: restart.info[name] for name in carried})
        physics, obs, carried = jax.tree.map(
            lambda new, old: jnp.where(done > 0, new, old), again, kept
        )
        return stepped.replace(physics=physics, obs=obs, done=done, info=carried | bookkeeping)

    def _final(self, state: State) -> dict[str, Float[Array, "..."]]:
        """What the value of a state is computed from, kept where a restart hides it."""
        final = {"final_obs": state.obs}
        if self.privileged_observation_size:
            final["final_privileged_obs"] = state.info[PRIVILEGED]
        return final
