# SPDX-License-Identifier: Apache-2.0
"""What is trained at each size: the same settings for ours and for every peer."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import envs
from envs.api import Env, EpisodeWrapper
from experiments.benchmarks.options import Size
from robotics.es import ESConfig
from robotics.networks import NetworkConfig
from robotics.ppo import PPOConfig


@dataclasses.dataclass(frozen=True)
class Course:
    """Where a race is run, and to what end."""

    env: str
    """Registry name."""
    episode_length: int
    """Time limit, env steps."""
    config: Any
    """Settings of PPO or ES; its chunks are the turns of the race."""
    learning_rate: float
    """Of Adam, for everybody but Mnemosyne."""
    target: float | None = None
    """Return of the deterministic policy that has to be reached, if there is one."""
    seeds: int = 1
    """Runs, one after another."""
    eval_episodes: int = 16
    """Of the evaluation after each turn, which no clock counts."""
    backend: str | None = None
    """Physics backend."""

    @functools.cached_property
    def inner(self) -> Env:
        """The environment without its time limit."""
        made = envs.make(self.env, backend=self.backend)
        assert isinstance(made, Env)
        return made

    @property
    def wrapped(self) -> EpisodeWrapper:
        """The environment with its time limit."""
        return EpisodeWrapper(self.inner, self.episode_length)

    def describe(self) -> dict[str, Any]:
        """For the record, as JSON knows it."""
        return dataclasses.asdict(self) | {"total_env_steps": self.config.num_timesteps}


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that one size measures."""

    ppo: Course
    es: tuple[Course, ...]
    gym_id: str
    """Gymnasium id without prefix."""
    gym: PPOConfig
    scaling: Course
    """``num_envs`` is replaced by each of :attr:`num_envs`."""
    num_envs: tuple[int, ...]
    lanes: Course
    """A run of one seed, to be compared with several side by side."""
    num_seeds: int
    rounds: int
    """Turns of everything that has no return to reach."""


def ppo(turns: int, rollouts: int, num_envs: int, **changes: Any) -> PPOConfig:
    """``turns`` chunks of ``rollouts`` rollouts; the policy gives its deviation, as Brax's does."""
    length = changes.pop("unroll_length", 32)
    network = NetworkConfig(noise="network")
    return PPOConfig(
        num_timesteps=turns * rollouts * num_envs * length,
        num_evaluations=turns,
        num_envs=num_envs,
        unroll_length=length,
        network=network,
        **changes,
    )


def es(turns: int, population: int, time_limit: int, **changes: Any) -> ESConfig:
    """Turns of as many env steps as one generation of full episodes has."""
    cost = population * time_limit
    return ESConfig(
        num_timesteps=(turns + 1) * cost,
        num_evaluations=turns,
        population_size=population,
        **changes,
    )


def _smoke() -> Plan:
    small = {"unroll_length": 8, "num_minibatches": 2, "num_updates_per_batch": 1}
    pendulum = functools.partial(Course, "control:pendulum", 20, learning_rate=1e-3, target=0.0)
    return Plan(
        ppo=pendulum(ppo(3, 1, 4, **small), eval_episodes=2),
        es=(pendulum(es(3, 4, 20), eval_episodes=2),),
        gym_id="Pendulum-v1",
        gym=ppo(3, 1, 4, **small),
        scaling=pendulum(ppo(3, 1, 4, **small)),
        num_envs=(8,),
        lanes=pendulum(ppo(3, 1, 4, **small)),
        num_seeds=2,
        rounds=3,
    )


def _small() -> Plan:
    # Rewards times 0.1 keep the value loss in bounds without a normalization that Brax lacks.
    hopper = functools.partial(Course, "brax:hopper", 1000, learning_rate=1e-3, backend="spring")
    pole = functools.partial(
        Course, "brax:inverted_pendulum", 1000, learning_rate=1e-3, backend="spring"
    )
    evolve = functools.partial(Course, learning_rate=2e-2, backend="spring")
    return Plan(
        ppo=hopper(ppo(12, 10, 64, reward_scaling=0.1), target=300.0, seeds=2),
        es=(
            evolve("brax:hopper", 200, es(30, 64, 200), target=400.0),
            # Nothing ends these episodes early, so everybody simulates the same.
            evolve("brax:reacher", 50, es(5, 128, 50)),
        ),
        gym_id="HalfCheetah-v5",
        gym=ppo(5, 1, 16, unroll_length=128, num_minibatches=32, num_updates_per_batch=10),
        # Turns of a tenth of a second and more: shorter ones tell more about the clock.
        scaling=pole(ppo(9, 16, 64)),
        num_envs=(16, 64, 256, 1024),
        lanes=hopper(ppo(5, 8, 64, reward_scaling=0.1)),
        num_seeds=8,
        rounds=9,
    )


def _full() -> Plan:
    ant = functools.partial(Course, "brax:ant", 1000, learning_rate=3e-4, backend="mjx")
    settings = {"num_minibatches": 32, "reward_scaling": 0.1}
    small = _small()
    return dataclasses.replace(
        small,
        ppo=ant(ppo(20, 40, 2048, **settings), target=2000.0, seeds=5),
        es=tuple(dataclasses.replace(course, seeds=5) for course in small.es),
        scaling=ant(ppo(5, 4, 256, **settings)),
        num_envs=(256, 1024, 4096, 16384),
        lanes=ant(ppo(5, 4, 64, reward_scaling=0.1)),
        rounds=9,
    )


def plan(size: Size) -> Plan:
    """What a size measures."""
    return {"smoke": _smoke, "small": _small, "full": _full}[size]()
