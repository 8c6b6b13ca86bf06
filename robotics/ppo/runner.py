# SPDX-License-Identifier: Apache-2.0
"""Environments of a PPO run that JAX cannot trace: those of all seeds, stepped in one batch.

A seed that does a chunk once more gets a batch of its own, so that the other seeds' environments
stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from envs.api import HostBatch, HostEnv
from robotics.host import env_seeds
from robotics.rollout import Rollout

HostAct = Callable[..., Any]
"""``act(obs, noise)`` of all seeds at once, see :func:`robotics.ppo.learn.make_act`."""


class Runner:
    """Environments of some seeds under way, with what the running episodes have gathered so far.

    Args:
      batch: the environments, those of the first seed first.
      seeds: of their first episodes, [seeds, envs].
    """

    def __init__(self, batch: HostBatch, seeds: Int[np.ndarray, "seeds envs"]):
        self._batch, self._shape = batch, seeds.shape
        self._obs = batch.reset(seeds.ravel().tolist()).obs
        self._returns, self._lengths = np.zeros((2, seeds.size), np.float32)

    def collect(self, act: HostAct, noise: Float[Array, "seeds T envs action"]) -> Rollout:
        """T steps; arrays [seeds, T, envs, ...].

        Args:
          act: of these seeds.
          noise: what it needs for each step.
        """
        drawn = np.moveaxis(np.asarray(noise), 1, 0)
        rows = [self._step(act, noise_t) for noise_t in drawn]
        return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *rows)

    def _step(self, act: HostAct, noise: Float[np.ndarray, "seeds envs action"]) -> Any:
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
        # An episode that ends leaves nothing behind, also where its return is not finite.
        running = after.termination + after.truncation == 0
        self._returns = np.where(running, self._returns, np.float32(0.0))
        self._lengths = np.where(running, self._lengths, np.float32(0.0))
        return kept

    def close(self) -> None:
        """Ends the environments."""
        self._batch.close()

    def _apart(self, values: np.ndarray) -> Any:
        """[seeds * envs, ...] as [seeds, envs, ...]."""
        return values.reshape(*self._shape, *values.shape[1:])


class Fleet:
    """The environments of all seeds.

    Args:
      env: what to run.
      keys: of the seeds; they decide the first episodes.
      num_envs: environments a seed.
    """

    def __init__(self, env: HostEnv, keys: Key[Array, " seeds"], num_envs: int):
        self._env, self._num_envs = env, num_envs
        self._runners: dict[int, tuple[Runner, np.ndarray]] = {}  # with the seeds they began with
        self._owner = np.full(keys.shape[0], -1)  # whose runner counts for a seed
        self.renew(np.ones(keys.shape[0], bool), keys)

    def renew(self, seeds: Bool[np.ndarray, " seeds"], keys: Key[Array, " seeds"]) -> None:
        """New environments for some seeds."""
        index, number = np.flatnonzero(seeds), max(self._runners, default=-1) + 1
        batch = self._env.start(len(index) * self._num_envs)
        first = env_seeds(keys[index], self._num_envs)
        self._runners[number] = Runner(batch, first), index
        self._owner[index] = number
        for old in set(self._runners) - set(self._owner.tolist()):
            self._runners.pop(old)[0].close()

    def collect(
        self,
        act: HostAct,
        noise: Float[Array, "seeds T envs action"],
        only: Bool[np.ndarray, " seeds"] | None = None,
    ) -> Rollout:
        """T steps of all seeds, or of some; the others' rows are zero then.

        Args:
          act: of all seeds.
          noise: what it needs for each step.
          only: seeds to step; their environments are those of the last :meth:`renew`.
        """
        numbers = set(self._owner.tolist()) if only is None else set(self._owner[only].tolist())
        whole: Any = None
        for number in sorted(numbers):
            runner, index = self._runners[number]
            part = runner.collect(_of_seeds(act, index, noise), noise[index])
            mine = self._owner[index] == number
            if whole is None:
                whole = jax.tree.map(self._nothing, part)
            for target, leaf in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
                target[index[mine]] = leaf[mine]
        return whole

    def _nothing(self, leaf: np.ndarray) -> np.ndarray:
        """Rows of all seeds for those of some."""
        return np.zeros(self._owner.shape + leaf.shape[1:], leaf.dtype)


def _of_seeds(act: HostAct, index: np.ndarray, noise: Array) -> HostAct:
    """``act`` for some of the seeds, in the program that is compiled for all of them."""
    if len(index) == noise.shape[0]:
        return act

    def act_some(obs: np.ndarray, noise_t: np.ndarray) -> Any:
        everyone = [
            np.zeros((noise.shape[0], *rows.shape[1:]), rows.dtype) for rows in (obs, noise_t)
        ]
        for whole, rows in zip(everyone, (obs, noise_t), strict=True):
            whole[index] = rows
        return jax.tree.map(lambda leaf: np.asarray(leaf)[index], act(*everyone))

    return act_some
