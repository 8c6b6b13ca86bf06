# SPDX-License-Identifier: Apache-2.0
"""Collecting T steps of B environments, in one scan."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from envs.api import PRIVILEGED, EpisodeWrapper, State

Watch = Callable[[State, State], Array]
Act = Callable[[Float[Array, "envs obs"], PyTree], tuple[Float[Array, "envs action"], PyTree]]


class Rollout(NamedTuple):
    """T steps of B environments, time-major.

    Attributes:
      obs: observation acted on.
      extras: what ``act`` returned besides the action.
      reward: reward of the step.
      termination: 1.0 where the environment ended the episode.
      truncation: 1.0 where only the time limit did.
      final_obs: observation that the step led to, before a restart.
      episode_return: sum of rewards of the episode up to this step.
      episode_steps: length of the episode up to this step.
      privileged_obs: what only the critic sees beside ``obs``; ``None`` where there is nothing.
      final_privileged_obs: the same beside ``final_obs``.
    """

    obs: Float[Array, "T envs obs"]
    extras: PyTree
    reward: Float[Array, "T envs"]
    termination: Float[Array, "T envs"]
    truncation: Float[Array, "T envs"]
    final_obs: Float[Array, "T envs obs"]
    episode_return: Float[Array, "T envs"]
    episode_steps: Float[Array, "T envs"]
    privileged_obs: Float[Array, "T envs privileged"] | None = None
    final_privileged_obs: Float[Array, "T envs privileged"] | None = None


def reset(env: EpisodeWrapper, key: Key[Array, ""], num_envs: int) -> State:
    """``num_envs`` fresh episodes."""
    return jax.vmap(env.reset)(jax.random.split(key, num_envs))


def collect(
    env: EpisodeWrapper,
    act: Act,
    state: State,
    restarts: State,
    inputs: PyTree,
    first: Array | int = 0,
    watch: Watch | None = None,
) -> tuple[State, Rollout]:
    """Acts T times in B environments.

    An episode that ends in environment b at step t restarts from ``restarts[(first + b + t) mod
    R]``: no two environments share a restart at one time, none uses the same one twice within R
    steps, and a rotation is a plain copy where a random choice would be a gather of whole simulator
    states in every step.

    Args:
      env: the environment.
      act: ``act(obs, input)`` gives actions in [-1, 1] and anything that is to be kept.
      state: B running environments.
      restarts: R >= B fresh ones, from :func:`reset`, drawn anew for each rollout.
      inputs: pytree with leading axis T, one entry a step for ``act``, such as noise drawn
        beforehand.
      first: number of the first environment, where these are a part of all R.
      watch: ``watch(after, fresh)`` looks at the environments after each step, with as many fresh
        ones beside them; what it returns is kept beside the extras, as a pair with them.

    Returns:
      The environments after T steps, and the steps.
    """
    num_envs, num_restarts = state.reward.shape[0], restarts.reward.shape[0]
    twice = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), restarts)
    privileged = env.privileged_observation_size > 0
    beside = jax.tree.map(lambda leaf: leaf[:num_envs], restarts)

    def step(state: State, inputs: tuple[Array, PyTree]) -> tuple[State, Rollout]:
        t, input_t = inputs
        action, extras = act(state.obs, input_t)
        start = (first + t) % num_restarts
        fresh = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, num_envs), twice
        )
        after = jax.vmap(env.step)(state, action, fresh)
        info = after.info
        kept = Rollout(
            obs=state.obs,
            extras=extras if watch is None else (extras, watch(after, beside)),
            reward=after.reward,
            termination=info["termination"],
            truncation=info["truncation"],
            final_obs=info["final_obs"],
            episode_return=info["episode_return"],
            episode_steps=info["episode_steps"],
            privileged_obs=state.info[PRIVILEGED] if privileged else None,
            final_privileged_obs=info["final_privileged_obs"] if privileged else None,
        )
        return after, kept

    length = jax.tree.leaves(inputs)[0].shape[0]
    return jax.lax.scan(step, state, (jnp.arange(length), inputs))
