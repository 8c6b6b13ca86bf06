# SPDX-License-Identifier: Apache-2.0
"""Gymnasium environments behind flat float32 matrices, in this process or as a program of its own.

``python gymnasium_worker.py SETTINGS``: reads requests from the standard input and answers on the
standard output, so that environments use as many cores as there are such processes. It imports
neither JAX nor this package, so it starts in a moment, and it ends when its input does, so none
outlives the program that started it. Nothing is pickled: a message is a letter, a length, bytes.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

HEADER = struct.Struct("<cI")  # what a message is, and the number of bytes that follow
RESET, STEP, ANSWER, FAILURE = b"r", b"s", b"a", b"f"


def make_one(task: str, options: dict[str, Any], time_limit: int | None) -> Any:
    """One ``gymnasium.Env``; its errors are Gymnasium's.

    Args:
      task: a Gymnasium id.
      options: keyword arguments of the environment.
      time_limit: in environment steps; ``None`` takes the registered one.
    """
    import gymnasium

    with quiet(task):
        return gymnasium.make(
            task, max_episode_steps=time_limit, disable_env_checker=True, **options
        )


@contextlib.contextmanager
def quiet(task: str) -> Iterator[None]:
    """Keeps MuJoCo from remarks about the model files that Gymnasium ships, one an environment."""
    import gymnasium

    spec = gymnasium.registry.get(task)
    if spec is None or "mujoco" not in str(spec.entry_point):
        yield
        return
    mujoco: Any = importlib.import_module("mujoco")  # has no types
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda text: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


class Shard:
    """Some environments of a batch, stepped one after the other by Gymnasium's ``SyncVectorEnv``.

    Args:
      task: a Gymnasium id.
      options: keyword arguments of the environment.
      time_limit: in environment steps.
      num_envs: how many, at least 1.
    """

    def __init__(self, task: str, options: dict[str, Any], time_limit: int, num_envs: int):
        from gymnasium.vector import AutoresetMode, SyncVectorEnv

        one: Callable[[], Any] = lambda: make_one(task, options, time_limit)  # noqa: E731
        self._envs = SyncVectorEnv([one] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
        self.num_envs = num_envs
        self._to_obs = observation_map(self._envs.single_observation_space)
        self._to_action = action_map(self._envs.single_action_space)

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        """Fresh episodes; one row an environment, columns as in :meth:`step`."""
        obs, info = self._envs.reset(seed=[int(seed) for seed in seeds])
        obs, zero, here = self._to_obs(obs), np.zeros(self.num_envs), self._position(info)
        return _rows(obs, obs, zero, zero, zero, here, here)

    def step(self, actions: np.ndarray) -> np.ndarray:
        """One step of each environment.

        Args:
          actions: float32 [envs, action entries], or [envs, 1] with the number of the choice.

        Returns:
          float32 [envs, 2 * observation + 5]: observation after a restart, the one before it,
          reward, termination, truncation, x_position (NaN if there is none) after a restart, and
          before it.
        """
        obs, reward, terminated, truncated, info = self._envs.step(self._to_action(actions))
        obs, done = self._to_obs(obs), terminated | truncated
        here = self._position(info)
        final, there = obs, here
        if done.any():
            final = obs.copy()
            final[done] = self._to_obs(np.stack([np.asarray(x) for x in info["final_obs"][done]]))
            there = np.where(done, self._position(info.get("final_info", {})), here)
        # Termination wins where time runs out in the same step.
        return _rows(obs, final, reward, terminated, truncated & ~terminated, here, there)

    def qpos(self) -> np.ndarray:
        """Generalized positions [envs, nq] of MuJoCo environments; nq is 0 without MuJoCo."""
        data = [getattr(env.unwrapped, "data", None) for env in self._envs.envs]
        return np.array([getattr(one, "qpos", ()) for one in data], np.float64)

    def close(self) -> None:
        """Ends the environments."""
        self._envs.close()

    def _position(self, info: dict[str, Any]) -> np.ndarray:
        """``x_position`` where the environments report it as a number, else NaN."""
        known, value = info.get("_x_position"), np.asarray(info.get("x_position"))
        if known is None or value.shape != (self.num_envs,) or value.dtype.kind != "f":
            return np.full(self.num_envs, np.nan)
        return np.where(known, value, np.nan)


def _rows(obs: np.ndarray, final: np.ndarray, *columns: np.ndarray) -> np.ndarray:
    return np.concatenate([obs, final, np.stack(columns, axis=1)], axis=1, dtype=np.float32)


def observation_map(space: Any) -> Callable[[Any], np.ndarray]:
    """Observations [envs, ...] of a space as float32 [envs, entries]; choices become one-hot.

    Raises:
      ValueError: a space that cannot be flattened so; the sentence lacks its subject.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        start, table = int(space.start), np.eye(int(space.n), dtype=np.float32)
        return lambda obs: table[np.asarray(obs) - start]
    if not isinstance(space, spaces.Box):
        raise ValueError(
            f"has observations of the space {type(space).__name__}; only Box and Discrete ones "
            "can be used, the wrappers of Gymnasium turn others into a Box."
        )
    if space.dtype == np.uint8 and len(space.shape) > 1:
        raise ValueError(
            f"observes pixels {space.shape}; the networks here are for vectors, choose an "
            "environment that observes its state."
        )
    size = int(np.prod(space.shape))
    return lambda obs: np.asarray(obs, np.float32).reshape(-1, size)


def action_map(space: Any) -> Callable[[np.ndarray], Any]:
    """Rows of :meth:`Shard.step` as actions of a space; a Box is reached from [-1, 1].

    Raises:
      ValueError: a space that has no such map; the sentence lacks its subject.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return lambda rows: rows[:, 0].astype(np.int64) + start
    if not isinstance(space, spaces.Box):
        raise ValueError(
            f"takes actions of the space {type(space).__name__}; only Box and Discrete ones can "
            "be used."
        )
    low, high = np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(
            "takes actions without finite bounds, so [-1, 1] cannot be mapped to them; wrap it in "
            "gymnasium.wrappers.RescaleAction or another wrapper that bounds them."
        )
    kind = space.dtype

    def act(rows: np.ndarray) -> np.ndarray:
        unit = 0.5 * (np.clip(rows, -1.0, 1.0).reshape(-1, *low.shape) + 1.0)
        return (low + unit * (high - low)).astype(kind)

    return act


def brief(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def receive(stream: BinaryIO) -> tuple[bytes, bytes]:
    """One message; an empty kind at the end of the stream."""
    head = stream.read(HEADER.size)
    if len(head) < HEADER.size:
        return b"", b""
    kind, length = HEADER.unpack(head)
    return kind, stream.read(length)


def send(stream: BinaryIO, kind: bytes, payload: bytes) -> None:
    """Writes one message."""
    stream.write(HEADER.pack(kind, len(payload)) + payload)
    stream.flush()


def serve(shard: Shard, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers requests until they end, or an environment fails."""
    while True:
        kind, payload = receive(requests)
        if not kind:
            return
        if kind == RESET:
            rows = shard.reset(np.frombuffer(payload, np.int64))
        else:
            actions = np.frombuffer(payload, np.float32).reshape(shard.num_envs, -1)
            rows = shard.step(actions)
        send(answers, ANSWER, rows.tobytes())


def main(settings: str) -> None:
    """Serves one shard whose arguments are given as JSON."""
    # Whatever an environment prints must not end up among the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        shard = Shard(**json.loads(settings))
        send(answers, ANSWER, b"")
        serve(shard, sys.stdin.buffer, answers)
    except Exception as error:  # whatever a broken environment raises is told to the other side
        send(answers, FAILURE, brief(error).encode())


if __name__ == "__main__":
    main(sys.argv[1])
