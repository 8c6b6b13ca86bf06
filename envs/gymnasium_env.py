# SPDX-License-Identifier: Apache-2.0
"""Any Gymnasium id as a host environment: ``gym:HalfCheetah-v5``, ``gym:CartPole-v1``, ...

A batch is cut into shards (:mod:`envs.gymnasium_shards`), each a ``gymnasium.vector.SyncVectorEnv``
(:mod:`envs.gymnasium_worker`): one in this process, or one in each of as many processes as there
are cores where a step is worth a message. What an environment does depends on its own seed only, so
the number of processes changes the speed and nothing else.

What the adapter settles: restarts happen in the step that ends an episode and the observation
before them is kept (Gymnasium's default gives it one step later, with an action that is ignored);
termination wins where time runs out in the same step; actions in [-1, 1] are mapped to the bounds;
an environment without a time limit gets one, or an evaluation might never end.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from envs import gymnasium_worker as worker
from envs._errors import check_episode_length, nearest
from envs.api import Bounds, HostBatch, HostStep
from envs.gymnasium_shards import LocalShard, ProcessShard, cores

DEFAULT_EPISODE_LENGTH = 1000  # environment steps, where Gymnasium knows no limit
_MIN_WORK_S = 3e-4  # work of a process in one step; a message to it and back takes about 1e-4 s
_TIMED_STEPS = 100


@dataclasses.dataclass(frozen=True, eq=False)
class GymnasiumEnv:
    """One Gymnasium environment as an :class:`envs.api.HostEnv`; build it with :func:`make`.

    Attributes:
      name: the registry name, such as ``"gym:HalfCheetah-v5"``.
      observation_size: number of observation entries after flattening.
      action_size: number of action entries or, if ``discrete``, of actions to choose from.
      discrete: whether an action is a choice.
      episode_length: time limit in environment steps.
      dt: seconds of simulated time an environment step takes.
      num_workers: processes of a batch; ``None`` decides by the time that a step takes.
      options: keyword arguments of the environment.
      gymnasium_env: one ``gymnasium.Env``, for looking at.
    """

    name: str
    observation_size: int
    action_size: int
    discrete: bool
    episode_length: int
    dt: float
    num_workers: int | None
    options: dict[str, Any]
    gymnasium_env: Any

    @property
    def model(self) -> Any:
        """The ``mujoco.MjModel``, for rendering with :meth:`qpos`; ``None`` without one."""
        return getattr(self.gymnasium_env.unwrapped, "model", None)

    @property
    def action_bounds(self) -> Bounds | None:
        """The bounds of the action space, flattened as actions are; ``None`` for choices."""
        if self.discrete:
            return None
        space = self.gymnasium_env.action_space
        low, high = (np.asarray(bound, np.float64).ravel() for bound in (space.low, space.high))
        return low, high

    def qpos(self, physics: Any) -> np.ndarray:
        """Generalized positions [..., nq]; ``physics`` is what a batch's ``qpos()`` gave."""
        return np.asarray(physics)

    def start(self, num_envs: int) -> HostBatch:
        """A batch of ``num_envs`` environments.

        Raises:
          ValueError: if they cannot be started.
        """
        workers = self.num_workers
        if workers is None:
            workers = min(cores(), int(num_envs * self.step_s / _MIN_WORK_S))
        return GymnasiumBatch(self, num_envs, max(1, min(workers, num_envs)))

    @functools.cached_property
    def step_s(self) -> float:
        """Seconds that a step of one environment takes, measured once."""
        env = self.gymnasium_env
        env.reset(seed=0)
        env.action_space.seed(0)
        actions = [env.action_space.sample() for _ in range(_TIMED_STEPS)]
        started = time.perf_counter()
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        return (time.perf_counter() - started) / _TIMED_STEPS


class GymnasiumBatch:
    """An :class:`envs.api.HostBatch` in one or more shards.

    Args:
      env: what to run.
      num_envs: how many.
      num_workers: processes; 1 means this one.
    """

    def __init__(self, env: GymnasiumEnv, num_envs: int, num_workers: int):
        self._env, self._num_envs = env, num_envs
        counts = [len(part) for part in np.array_split(np.arange(num_envs), num_workers)]
        self._ends = np.cumsum(counts)[:-1]
        make_shard = LocalShard if num_workers == 1 else ProcessShard
        self._shards = [make_shard(env.name, _settings(env, count)) for count in counts]
        for shard in self._shards:
            shard.begin()

    def reset(self, seeds: Sequence[int]) -> HostStep:
        """See :class:`envs.api.HostBatch`."""
        self._check("seeds", len(seeds))
        return self._all("reset", np.split(np.asarray(seeds, np.int64), self._ends))

    def step(self, actions: Any) -> HostStep:
        """See :class:`envs.api.HostBatch`."""
        rows = np.asarray(actions, np.float32)
        self._check("actions", rows.shape[0] if rows.ndim else 0)
        rows = rows.reshape(self._num_envs, -1)
        width = 1 if self._env.discrete else self._env.action_size
        if rows.shape[1] != width:
            raise ValueError(
                f"{self._env.name!r} takes {width} action entries an environment, not "
                f"{rows.shape[1]}."
            )
        return self._all("step", np.split(rows, self._ends))

    def qpos(self) -> np.ndarray:
        """Generalized positions [envs, nq] of MuJoCo environments; nq is 0 without MuJoCo.

        Raises:
          ValueError: if the environments run in processes of their own.
        """
        parts = [shard.qpos() for shard in self._shards if isinstance(shard, LocalShard)]
        if not parts:
            raise ValueError(f"positions of {self._env.name!r} need num_workers=1.")
        return np.concatenate(parts)

    def close(self) -> None:
        """See :class:`envs.api.HostBatch`."""
        for shard in self._shards:
            shard.close()

    def _check(self, what: str, count: int) -> None:
        if count != self._num_envs:
            raise ValueError(
                f"{self._env.name!r} runs {self._num_envs} environments and got {count} {what}."
            )

    def _all(self, what: str, parts: Sequence[np.ndarray]) -> HostStep:
        """Has all shards work at the same time, and puts their rows together."""
        for shard, part in zip(self._shards, parts, strict=True):
            shard.ask(what, part)
        rows = np.concatenate([shard.answer() for shard in self._shards])
        size = self._env.observation_size
        reward, termination, truncation, *x_positions = rows[:, 2 * size :].T
        obs, final_obs = rows[:, :size], rows[:, size : 2 * size]
        return HostStep(obs, reward, termination, truncation, final_obs, *x_positions)


def _settings(env: GymnasiumEnv, num_envs: int) -> dict[str, Any]:
    """What a shard is made of, as JSON knows it."""
    return {
        "task": env.name.removeprefix("gym:"),
        "options": env.options,
        "time_limit": env.episode_length,
        "num_envs": num_envs,
    }


def make(
    task: str,
    episode_length: int | None = None,
    num_workers: int | None = None,
    **options: Any,
) -> GymnasiumEnv:
    """The environment with the Gymnasium id ``task``.

    Args:
      task: any id that ``gymnasium.make`` takes, also one that names the module which registers
        it, such as ``my_robots:Crawler-v0``.
      episode_length: time limit in steps, at least 1; ``None`` takes the registered one, or 1000.
      num_workers: processes of a batch, at least 1; ``None`` uses all cores where a step takes
        long enough.
      **options: keyword arguments of the environment, as JSON knows them.

    Raises:
      ValueError: an id, option or space that cannot be used, in a sentence.
    """
    name = f"gym:{task}"
    if episode_length is not None:
        check_episode_length(episode_length, name)
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers of {name!r} is {num_workers}; it must be at least 1.")
    env = _make_one(name, task, options, episode_length)
    limit = episode_length or env.spec.max_episode_steps or DEFAULT_EPISODE_LENGTH
    try:
        entries = worker.observation_map(env.observation_space)(_example(env.observation_space))
        worker.action_map(env.action_space)
    except ValueError as error:
        raise ValueError(f"{name!r} {error}") from None
    discrete = not env.action_space.shape and hasattr(env.action_space, "n")
    size = env.action_space.n if discrete else np.prod(env.action_space.shape)
    return GymnasiumEnv(
        name=name,
        observation_size=entries.shape[1],
        action_size=int(size),
        discrete=discrete,
        episode_length=int(limit),
        dt=_dt(env),
        num_workers=num_workers,
        options=options,
        gymnasium_env=env,
    )


def _make_one(name: str, task: str, options: dict[str, Any], time_limit: int | None) -> Any:
    """``gymnasium.make`` with every failure in one sentence."""
    import gymnasium

    try:
        json.dumps(options)
        return worker.make_one(task, options, time_limit)
    except gymnasium.error.UnregisteredEnv:
        known = sorted(gymnasium.registry, reverse=True)  # the newest of equally near versions
        raise ValueError(
            f"Unknown environment {name!r}; the nearest valid one is 'gym:{nearest(task, known)}'."
        ) from None
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise ValueError(f"{name!r} cannot be made: {worker.brief(error)}") from None


def _example(space: Any) -> Any:
    """A batch of one observation."""
    return np.asarray(space.sample())[None]


def _dt(env: Any) -> float:
    """Seconds a step, from whatever the environment says of itself; else 1/30."""
    inner = env.unwrapped
    frames = env.metadata.get("render_fps") or 30
    for value in (getattr(inner, "dt", None), getattr(inner, "tau", None), 1.0 / frames):
        if isinstance(value, int | float) and value > 0:
            return float(value)
    return 1.0 / 30.0
