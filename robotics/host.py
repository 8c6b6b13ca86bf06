# SPDX-License-Identifier: Apache-2.0
"""Playing policies in environments that JAX cannot trace: evaluation, and episodes to look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from envs.api import HostBatch, HostEnv, HostStep
from robotics.algorithm import Policy, PolicyParams

HostEvaluate = Callable[[PolicyParams, Key[Array, " policies"]], dict[str, np.ndarray]]

_MAX_LANES = 16  # environments a policy; more would wait longer for the last episodes to end
_NUM_SEEDS = 2**31


def env_seeds(keys: Key[Array, " seeds"], num_envs: int) -> Int[np.ndarray, "seeds envs"]:
    """Seeds (0 to 2^31 - 1) of ``num_envs`` host environments for each key."""
    stream = jax.vmap(lambda key: jax.random.bits(jax.random.fold_in(key, 1), (num_envs,)))
    return np.asarray(stream(keys)).astype(np.int64) % _NUM_SEEDS


def make_host_evaluate(
    env: HostEnv, policy: Policy, num_episodes: int = 64, deterministic: bool = True
) -> HostEvaluate:
    """:func:`robotics.evaluate.make_evaluate` for a host environment, for several policies at once.

    Each environment plays a fixed number of episodes one after the other, so that short episodes
    are not counted more often than long ones.

    Args:
      env: the environment.
      policy: how to act.
      num_episodes: for each policy, at least 1.
      deterministic: without action noise.

    Returns:
      ``evaluate(params, keys)``, both with a leading axis of policies; arrays
      [policies, num_episodes] as those of ``make_evaluate``. The environments are started by the
      first call and kept for the next ones.

    Raises:
      ValueError: if ``num_episodes`` is below 1.
    """
    if num_episodes < 1:
        raise ValueError(f"num_episodes is {num_episodes}, but at least 1 episode must be played.")
    lanes = min(num_episodes, _MAX_LANES)
    quota = np.array([len(part) for part in np.array_split(np.arange(num_episodes), lanes)])
    started: list[HostBatch] = []

    @jax.jit
    @jax.vmap
    def act(params: PolicyParams, obs: Array, key: Key[Array, ""], t: Array) -> Any:
        return policy.act(params, obs, jax.random.fold_in(key, t), deterministic)

    def evaluate(params: PolicyParams, keys: Key[Array, " policies"]) -> dict[str, np.ndarray]:
        count = keys.shape[0]
        if not started:
            started.append(env.start(count * lanes))
        first = started[0].reset(env_seeds(keys, lanes).ravel().tolist())
        log = _EpisodeLog(first, np.tile(quota, count))
        step = first
        t = 0
        while not log.complete:
            obs = step.obs.reshape(count, lanes, -1)
            action = np.asarray(act(params, obs, keys, np.full(count, t, np.int32)))
            step = started[0].step(action.reshape(-1, *action.shape[2:]))
            log.add(step)
            t += 1
        return log.arrays(count)

    return evaluate


class _EpisodeLog:
    """The first episodes of each environment, as many as its quota says.

    Args:
      first: the environments after ``reset``.
      quota: episodes wanted of each.
    """

    def __init__(self, first: HostStep, quota: Int[np.ndarray, " envs"]):
        self._left = quota.copy()
        self._sums = np.zeros((2, quota.size))  # return and length of the running episode
        self._start = first.x_position.astype(np.float64)
        self._found: list[list[tuple[float, float, float]]] = [[] for _ in quota]

    @property
    def complete(self) -> bool:
        """Whether every quota is met."""
        return not self._left.any()

    def add(self, step: HostStep) -> None:
        """Takes in one step of all environments."""
        self._sums += np.stack([step.reward.astype(np.float64), np.ones(step.reward.size)])
        done = np.flatnonzero(step.termination + step.truncation)
        for i in done:
            if self._left[i]:
                moved = step.final_x_position[i] - self._start[i]
                self._found[i].append((self._sums[0, i], self._sums[1, i], moved))
                self._left[i] -= 1
        self._sums[:, done] = 0.0
        self._start[done] = step.x_position[done]

    def arrays(self, count: int) -> dict[str, np.ndarray]:
        """Results [policies, episodes], float32."""
        rows = np.array([episode for lane in self._found for episode in lane], np.float32)
        returns, lengths, moved = (column.reshape(count, -1) for column in rows.T)
        found = {"episode_return": returns, "episode_length": lengths}
        return found | ({"distance": moved} if np.isfinite(moved).all() else {})


def play_one(
    env: HostEnv,
    act: Callable[[Array, Array], Array],
    key: Key[Array, ""],
    num_steps: int,
    skip: int,
) -> tuple[np.ndarray, Float[np.ndarray, "frames obs"]]:
    """What there is to be seen of a policy in one environment.

    Args:
      env: a host environment; its batches may have ``qpos()``, generalized positions [envs, nq].
      act: ``act(obs, key)`` gives an action; jittable.
      key: decides the episodes.
      num_steps: env steps.
      skip: env steps a frame.

    Returns:
      Positions [frames, nq] (nq is 0 where there are none) and observations, every ``skip`` steps.
    """
    batch: Any = env.start(1)
    choose = jax.jit(lambda obs, t: act(obs, jax.random.fold_in(key, t)))
    step = batch.reset(env_seeds(key[None], 1).ravel().tolist())
    positions, observations = [], []
    for t in range(-(-num_steps // skip) * skip):
        if t % skip == 0:
            positions.append(batch.qpos()[0] if hasattr(batch, "qpos") else np.zeros(0))
            observations.append(step.obs[0])
        step = batch.step(np.asarray(choose(step.obs[0], t))[None])
    batch.close()
    return np.stack(positions), np.stack(observations)
