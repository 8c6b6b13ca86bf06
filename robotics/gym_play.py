# SPDX-License-Identifier: Apache-2.0
"""Policies in Gymnasium's environments: C MuJoCo instead of JAX, one step at a time on the host.

The second opinion on a policy: the same sizes, another simulator. Actions in [-1, 1] are stretched
to the bounds of the action space, as Brax and Playground do. An episode ends where Gymnasium says
so, be it a termination or its own time limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

PREFIX = "gym:"
Act = Callable[[np.ndarray], np.ndarray]


class Recording(NamedTuple):
    """What a renderer needs of an episode: every step's positions, observations, and the model.

    Attributes:
      physics: generalized positions [frames, nq]; empty rows without a MuJoCo model.
      observations: [frames, obs].
      body: has ``model`` and ``qpos(physics)`` if there is a MuJoCo model, else neither.
      dt: seconds of simulated time between two frames.
    """

    physics: Float[np.ndarray, "frames nq"]
    observations: Float[np.ndarray, "frames obs"]
    body: Any
    dt: float


class MuJoCoBody(NamedTuple):
    """A body that ``robotics.render`` can draw from positions alone."""

    model: Any

    def qpos(self, physics: np.ndarray) -> np.ndarray:
        """Generalized positions as they were recorded."""
        return physics


def make(name: str, observation_size: int, action_size: int) -> Any:
    """A Gymnasium environment that a policy of these sizes fits.

    Args:
      name: Gymnasium's id behind ``gym:``, such as ``"gym:Hopper-v5"``.
      observation_size: what the policy observes.
      action_size: what it gives.

    Raises:
      ImportError: without ``gymnasium``.
      ValueError: unknown id, missing simulator, or sizes that do not agree.
    """
    import gymnasium

    try:
        env = gymnasium.make(name.removeprefix(PREFIX))
    except (gymnasium.error.Error, ImportError) as error:
        reason = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().rstrip(".")
        raise ValueError(f"Gymnasium cannot make {name!r}: {reason}") from None
    ours = (observation_size,), (action_size,)
    theirs = env.observation_space.shape, env.action_space.shape
    if ours != theirs:
        env.close()
        raise ValueError(
            f"the policy observes {observation_size} numbers and gives {action_size} actions, but "
            f"{name} has {_words(theirs[0])} and {_words(theirs[1])}; name an environment of the "
            "policy's sizes"
        )
    return env


def _words(shape: tuple[int, ...] | None) -> str:
    """A size as in ``11``, or the shape of what is no vector of numbers."""
    if shape is None or not shape:
        return "choices instead of numbers"
    return " x ".join(map(str, shape))


def step_seconds(env: Any) -> float | None:
    """Seconds of simulated time in a step, where the environment knows them."""
    dt = getattr(env.unwrapped, "dt", None)
    return None if dt is None else float(dt)


def stretch(env: Any, action: Float[np.ndarray, " action"]) -> Float[np.ndarray, " action"]:
    """An action in [-1, 1] within the bounds of an environment's action space."""
    space = env.action_space
    low, high = (np.where(np.isfinite(b), b, s) for b, s in ((space.low, -1.0), (space.high, 1.0)))
    stretched = low + (np.clip(action, -1.0, 1.0) + 1.0) / 2.0 * (high - low)
    return np.asarray(stretched, space.dtype)


def random_act(env: Any, seed: int) -> Act:
    """Uniform actions in [-1, 1]."""
    rng = np.random.default_rng(seed)
    size = env.action_space.shape
    return lambda obs: rng.uniform(-1.0, 1.0, size).astype(np.float32)


def play(env: Any, act: Act, num_episodes: int, seed: int) -> dict[str, np.ndarray]:
    """Plays fresh episodes from start to end.

    Args:
      env: from :func:`make`.
      act: the deterministic policy, from one observation to one action in [-1, 1].
      num_episodes: at least 1.
      seed: of the first episode; episode ``i`` starts from ``seed + i``.

    Returns:
      Arrays [num_episodes]: ``episode_return``, ``episode_length`` (env steps) and, where the
      environment tells ``x_position``, ``distance`` (metres).
    """
    rows = [_episode(env, act, seed + i) for i in range(num_episodes)]
    return {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}


def _episode(env: Any, act: Act, seed: int) -> dict[str, float]:
    obs, info = env.reset(seed=seed)
    start, total, steps, ended = info.get("x_position"), 0.0, 0, False
    while not ended:
        action = stretch(env, act(np.asarray(obs, np.float32)))
        obs, reward, terminated, truncated, info = env.step(action)
        total, steps, ended = total + float(reward), steps + 1, terminated or truncated
    row = {"episode_return": total, "episode_length": float(steps)}
    if start is not None and "x_position" in info:
        row["distance"] = float(info["x_position"]) - float(start)
    return row


def record(env: Any, act: Act, seconds: float, seed: int) -> Recording:
    """Plays on for some simulated time; finished episodes start again.

    Args:
      env: from :func:`make`.
      act: the deterministic policy.
      seconds: above 0.
      seed: of the first episode.
    """
    inner = env.unwrapped
    dt = step_seconds(env) or 1.0 / env.metadata.get("render_fps", 30)
    data = getattr(inner, "data", None)
    obs, _ = env.reset(seed=seed)
    positions, observations = [], []
    for _ in range(max(round(seconds / dt), 10)):
        positions.append([] if data is None else np.array(data.qpos))
        observations.append(np.asarray(obs, np.float32))
        obs, _, terminated, truncated, _ = env.step(stretch(env, act(observations[-1])))
        if terminated or truncated:
            obs, _ = env.reset()
    body = object() if data is None else MuJoCoBody(inner.model)
    return Recording(np.array(positions), np.array(observations), body, dt)
