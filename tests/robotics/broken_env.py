# SPDX-License-Identifier: Apache-2.0
"""Environments that break where a test says so."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.api import HostStep, State
from tests.robotics.counting_env import CountingEnv


class Break(NamedTuple):
    """What becomes NaN when the episode that started at ``start`` makes step number ``step``."""

    term: str
    """``obs``, ``reward`` or ``physics``."""
    start: float
    step: int


@dataclasses.dataclass(frozen=True)
class BrokenEnv(CountingEnv):
    """The counting environment, with breaks; steps count from 1."""

    breaks: tuple[Break, ...] = ()
    episode_length: int = 1000

    def step(self, state: State, action: jax.Array) -> State:
        count = state.physics + jnp.array([0.0, 1.0])
        here = {"obs": count, "reward": count[1], "physics": count}
        for term, start, step in self.breaks:
            mine = (count[1] == step) & (count[0] == np.float32(start))
            here[term] = jnp.where(mine, jnp.nan, here[term])
        done = (count[1] == self.horizon).astype(jnp.float32)
        metrics = {"x_position": state.metrics["x_position"] + action[0]}
        return State(here["physics"], here["obs"], here["reward"], done, metrics, {})


@dataclasses.dataclass(frozen=True)
class BrokenHost:
    """Observes ``[seed / 2^31, steps]``; reward is minus the action squared."""

    breaks: list[Break] = dataclasses.field(default_factory=list)
    name: str = "test:broken-host"
    observation_size: int = 2
    action_size: int = 1
    discrete: bool = False
    episode_length: int = 1000
    dt: float = 1.0

    def start(self, num_envs: int) -> BrokenBatch:
        return BrokenBatch(self.breaks, num_envs)


class BrokenBatch:
    def __init__(self, breaks: list[Break], num_envs: int):
        self.breaks, self.num_envs, self.closed = breaks, num_envs, False

    def reset(self, seeds):
        self.seeds, self.steps = np.array(seeds), 0
        return self._step(np.zeros(self.num_envs))

    def step(self, actions):
        self.steps += 1
        return self._step(-np.square(np.asarray(actions, np.float64)[:, 0]))

    def close(self):
        self.closed = True

    def _step(self, reward):
        obs = np.stack([self.seeds / 2**31, np.full(self.num_envs, self.steps)], axis=1)
        for term, start, step in self.breaks:
            mine = (self.seeds == start) & (self.steps == step)
            reward = np.where(mine & (term == "reward"), np.nan, reward)
            obs = np.where((mine & (term == "obs"))[:, None], np.nan, obs)
        obs, zero = obs.astype(np.float32), np.zeros(self.num_envs, np.float32)
        nowhere = np.full(self.num_envs, np.nan, np.float32)
        return HostStep(obs, reward.astype(np.float32), zero, zero, obs, nowhere, nowhere)
