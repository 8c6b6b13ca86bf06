# SPDX-License-Identifier: Apache-2.0
"""The checker accepts sound host environments and names what is wrong with each broken one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from envs.api import HostStep
from envs.checker import check
from envs.registry import make


@dataclasses.dataclass(frozen=True)
class SoundHost:
    """A host environment of random walks; the broken ones below change one thing."""

    name: str = "test:host"
    observation_size: int = 2
    action_size: int = 1
    discrete: bool = False
    episode_length: int = 4
    dt: float = 0.1

    def start(self, num_envs):
        return HostWalks(self, num_envs)

    def change(self, step: HostStep, batch: HostWalks) -> HostStep:
        return step


class HostWalks:
    def __init__(self, env, num_envs):
        self.env, self.num_envs = env, num_envs

    def reset(self, seeds):
        self.rng = [np.random.default_rng(seed) for seed in seeds]
        self.steps, self.calls = np.zeros((2, self.num_envs))
        self.obs = self._draw()
        return self._made(np.zeros(self.num_envs), self.obs)

    def step(self, actions):
        if np.shape(actions) != (self.num_envs, 1):
            raise IndexError(f"actions of shape {np.shape(actions)}")
        self.steps, self.calls = self.steps + 1, self.calls + 1
        final = (self.obs + np.asarray(actions)).astype(np.float32)
        done = self.steps >= 4
        self.steps = np.where(done, 0, self.steps)
        self.obs = np.where(done[:, None], self._draw(), final)
        return self._made(done, final)

    def close(self):
        pass

    def _draw(self):
        return np.array([rng.normal(size=2) for rng in self.rng], np.float32)

    def _made(self, done, final):
        zero, done = np.zeros(self.num_envs, np.float32), np.asarray(done, np.float32)
        step = HostStep(self.obs, zero, zero, done, final, zero, zero)
        return self.env.change(step, self)


class HostWideObservation(SoundHost):
    def change(self, step, batch):
        return step._replace(obs=np.zeros((3, 5), np.float32))


class HostDouble(SoundHost):
    def change(self, step, batch):
        return step._replace(reward=step.reward.astype(np.float64))


class HostBothEnds(SoundHost):
    def change(self, step, batch):
        return step._replace(termination=step.truncation)


class HostLostFinal(SoundHost):
    def change(self, step, batch):
        return step._replace(final_obs=np.zeros_like(step.obs))


class HostNaN(SoundHost):
    def change(self, step, batch):
        reward = np.where(batch.calls > 2, np.float32(np.nan), step.reward)
        return step._replace(reward=reward)


class HostEndless(SoundHost):
    def change(self, step, batch):
        return step._replace(truncation=0 * step.truncation, final_obs=step.obs)


class HostUnseeded(SoundHost):
    def change(self, step, batch):
        noise = np.random.default_rng().normal(size=step.reward.shape)
        return step._replace(reward=noise.astype(np.float32))


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        (SoundHost(action_size=3), "step 1 fails with 3 float32 action entries: IndexError"),
        (SoundHost(discrete=None), "discrete is None; it must be True or False"),
        (SoundHost(dt=-1.0), "dt is -1.0; it must be a Python float above 0"),
        (HostWideObservation(), r"obs after reset has shape \(3, 5\); it must be \(3, 2\)"),
        (HostDouble(), "reward after reset has dtype float64; it must be float32"),
        (HostBothEnds(), "ends by termination and truncation both in step 4"),
        (HostLostFinal(), "final_obs after reset differs from obs although the episode goes on"),
        (HostNaN(), "reward is not finite after step 3"),
        (HostEndless(), "an episode goes on after episode_length = 4 steps"),
        (HostUnseeded(), "give different numbers after 0 steps"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_broken_host_environment_is_explained_in_a_sentence(env, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        check(env)
    assert str(error.value).startswith("test:host: ") and "\n" not in str(error.value)


def test_sound_host_environments_pass():
    check(SoundHost())
    pytest.importorskip("gymnasium")
    check(make("gym:CartPole-v1", num_workers=1))
    check(make("gym:Pendulum-v1", num_workers=1))
