# SPDX-License-Identifier: Apache-2.0
"""How good a policy is: fresh episodes from start to end, deterministic actions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from envs.api import EpisodeWrapper, HostEnv, State
from robotics.algorithm import Action, Policy, PolicyParams
from robotics.host import make_host_evaluate
from robotics.rollout import reset

Episodes = dict[str, Float[Array, " episodes"]]
Evaluate = Callable[[PolicyParams, Key[Array, ""]], Episodes]

_POSITION = "x_position"


class Summary(NamedTuple):
    """Mean, sample standard deviation, and the normal 95 % confidence interval of the mean."""

    mean: float
    std: float
    ci95: tuple[float, float]


class _Playing(NamedTuple):
    """Episodes under way; sums cover the first episode of each environment only."""

    state: State
    alive: Float[Array, " episodes"]
    sums: Episodes
    key: Key[Array, ""]


def make_evaluate(
    env: EpisodeWrapper, policy: Policy, num_episodes: int = 64, deterministic: bool = True
) -> Evaluate:
    """A function that plays ``num_episodes`` fresh episodes.

    Args:
      env: the environment; its time limit ends what does not end by itself.
      policy: how to act.
      num_episodes: at least 1.
      deterministic: without action noise.

    Returns:
      ``evaluate(policy_params, key)``, jittable and vmappable, which gives float32 arrays
      [num_episodes]: ``episode_return``, ``episode_length`` (env steps) and, where the environment
      reports ``x_position``, ``distance`` (metres along x from the first to the last state).

    Raises:
      ValueError: if ``num_episodes`` is below 1.
    """
    if num_episodes < 1:
        raise ValueError(f"num_episodes is {num_episodes}, but at least 1 episode must be played.")

    def evaluate(params: PolicyParams, key: Key[Array, ""]) -> Episodes:
        key_reset, key_act = jax.random.split(key)
        start = reset(env, key_reset, num_episodes)

        def step(playing: _Playing) -> _Playing:
            key, key_step = jax.random.split(playing.key)
            action = policy.act(params, playing.state.obs, key_step, deterministic)
            # A finished environment starts over and is ignored; it must go on with something
            # finite.
            after = jax.vmap(env.step)(playing.state, action, start)
            sums = _add(playing.sums, after, playing.alive > 0)
            return _Playing(after, playing.alive * (1.0 - after.done), sums, key)

        def unfinished(playing: _Playing) -> Array:
            return jnp.any(playing.alive > 0)

        zeros = jnp.zeros(num_episodes, jnp.float32)
        sums = {"episode_return": zeros, "episode_length": zeros}
        if _POSITION in start.metrics:
            sums["distance"] = start.metrics[_POSITION]
        first = _Playing(start, jnp.ones_like(zeros), sums, key_act)
        sums = jax.lax.while_loop(unfinished, step, first).sums
        if _POSITION in start.metrics:
            sums = sums | {"distance": sums["distance"] - start.metrics[_POSITION]}
        return sums

    return evaluate


def _add(sums: Episodes, after: State, alive: Array) -> Episodes:
    """One step more of the episodes that are alive."""
    new = dict(sums)
    new["episode_return"] = sums["episode_return"] + jnp.where(alive, after.reward, 0.0)
    new["episode_length"] = sums["episode_length"] + alive
    if "distance" in sums:
        # ``metrics`` belong to the step, also where it ended the episode.
        new["distance"] = jnp.where(alive, after.metrics[_POSITION], sums["distance"])
    return new


def random_policy(action_size: int, discrete: bool = False) -> Policy:
    """Uniform actions in [-1, 1], or uniform choices; the same if ``deterministic``."""

    def act(
        params: PolicyParams,
        obs: Float[Array, "*batch obs"],
        key: Key[Array, ""],
        deterministic: bool,
    ) -> Action:
        if discrete:
            return jax.random.randint(key, obs.shape[:-1], 0, action_size)
        return jax.random.uniform(key, (*obs.shape[:-1], action_size), jnp.float32, -1.0, 1.0)

    return Policy(act, {"kind": "uniform", "action_size": action_size})


def make_player(
    env: EpisodeWrapper | HostEnv, policy: Policy, num_episodes: int = 64
) -> Callable[[PolicyParams, Key[Array, " policies"]], Any]:
    """Evaluation of several policies at once, wherever their environment runs.

    Args:
      env: JAX environment with its time limit, or host environment.
      policy: how to act.
      num_episodes: for each policy, at least 1.

    Returns:
      ``play(params, keys)``, both with a leading axis of policies, which gives arrays
      [policies, num_episodes] as :func:`make_evaluate` names them; jittable for a JAX environment.

    Raises:
      ValueError: if ``num_episodes`` is below 1.
    """
    if isinstance(env, HostEnv):
        return make_host_evaluate(env, policy, num_episodes)
    return jax.vmap(make_evaluate(env, policy, num_episodes))


def summary(values: Any) -> Summary:
    """Mean, spread and confidence interval of episode results.

    Args:
      values: array-like, at least one entry; axes are pooled.

    Raises:
      ValueError: if it is empty.

    Example:
      >>> summary([1.0, 3.0]).mean
      2.0
    """
    flat = np.asarray(values, np.float64).ravel()
    if not flat.size:
        raise ValueError("a summary needs at least one value, got none.")
    mean = float(flat.mean())
    std = float(flat.std(ddof=1)) if flat.size > 1 else 0.0
    half = 1.959964 * std / math.sqrt(flat.size)
    return Summary(mean, std, (mean - half, mean + half))
