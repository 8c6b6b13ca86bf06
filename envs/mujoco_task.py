# SPDX-License-Identifier: Apache-2.0
"""What a user writes beside an MJCF file: observation, reward and end of an episode.

A task is a subclass of :class:`Task` in a Python file with the name of the model,
``hopper.py`` beside ``hopper.xml``. ``docs/your-own-robot.md`` is the recipe.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from envs._errors import unknown

_NOISE = 0.01  # rad, m, rad/s, m/s: what makes episodes differ and hardly moves a robot


class Task:
    """What a robot is to do; subclass it and write at least :meth:`reward`.

    All methods are traced by JAX, for one environment at a time: use ``jax.numpy``, and
    ``jnp.where`` instead of ``if``. ``data`` is an ``mjx.Data``, whose fields have MuJoCo's names;
    as after ``mj_step``, positions and velocities are new and what MuJoCo derives from them
    (``xpos``, ``sensordata``, contacts) is older by one simulator step. Names become numbers in
    ``__init__`` or anywhere else through ``self.mj_model``: ``self.mj_model.body("foot").id``.

    Attributes:
      dt: seconds between actions, a whole multiple of the model's timestep; ``None`` takes one
        timestep.
      episode_length: default time limit in environment steps, at least 1.
      action_size: number of actuators that the task is made for; checked unless ``None``.
      observation_size: number of observation entries; checked unless ``None``.
      mj_model: the ``mujoco.MjModel``.
    """

    dt: float | None = None
    episode_length: int = 1000
    action_size: int | None = None
    observation_size: int | None = None

    def __init__(self, mj_model: Any):
        self.mj_model = mj_model

    def reset(self, key: Key[Array, ""], data: Any) -> Any:
        """The start of an episode: ``data`` with other ``qpos``, ``qvel``, ``mocap_pos``, ...

        Args:
          key: a typed PRNG key, fresh in every episode.
          data: at the model's first keyframe, or at ``qpos0`` where there is none.

        Returns:
          Unless overridden, positions and velocities with uniform noise of 0.01.
        """
        key_position, key_velocity = jax.random.split(key)
        qpos = data.qpos + jax.random.uniform(key_position, data.qpos.shape, minval=-1.0) * _NOISE
        qvel = data.qvel + jax.random.uniform(key_velocity, data.qvel.shape, minval=-1.0) * _NOISE
        return data.replace(qpos=qpos, qvel=qvel)

    def observation(self, data: Any) -> Float[Array, " obs"]:
        """What the policy sees, one axis; unless overridden, all of ``qpos`` and ``qvel``."""
        return jnp.concatenate([data.qpos, data.qvel])

    def privileged_observation(self, data: Any, model: Any) -> Float[Array, " privileged"] | None:
        """What the critic sees beside the observation, one axis: what no sensor of a robot gives.

        Args:
          data: as for the observation.
          model: the ``mjx.Model`` of this episode, as :meth:`randomize` has made it.

        Returns:
          Unless overridden, ``None``: there is nothing.
        """
        return None

    def reward(self, data: Any, action: Float[Array, " action"]) -> Float[Array, ""]:
        """The reward of the step that led to ``data``; the action's entries are in [-1, 1]."""
        raise NotImplementedError

    def done(self, data: Any) -> Array | float:
        """Whether the episode ends here (a fall, a crash); time limits are not its business."""
        return 0.0

    def metrics(self, data: Any) -> dict[str, Array]:
        """Named numbers to watch; ``"x_position"`` (metres) is reported as distance."""
        return {}

    def randomize(self, key: Key[Array, ""], model: Any) -> Any:
        """The robot of one episode: an ``mjx.Model`` with other masses, friction, ..."""
        return model


def load_task(path: Path, class_name: str, mj_model: Any) -> Task:
    """The task in a Python file.

    Args:
      path: the file; it is run.
      class_name: which subclass of :class:`Task`; empty takes the only one.
      mj_model: the ``mujoco.MjModel`` that the task is for.

    Raises:
      ValueError: no such file or class, or a file that fails.
    """
    if not path.is_file():
        raise ValueError(
            f"There is no task file {str(path)!r} beside the model; it holds a subclass of "
            "envs.mujoco_task.Task (docs/your-own-robot.md shows one)."
        )
    found = _tasks(_run(path))
    if not found:
        raise ValueError(f"{str(path)!r} has no subclass of envs.mujoco_task.Task.")
    if class_name and class_name not in found:
        raise unknown("task", class_name, sorted(found), where=f" in {str(path)!r}")
    if not class_name and len(found) > 1:
        listed = ", ".join(found)
        raise ValueError(
            f"{str(path)!r} has {len(found)} tasks ({listed}); "
            f"choose one, as in 'mujoco:{path.with_suffix('.xml').name}:{next(iter(found))}'."
        )
    chosen = found[class_name] if class_name else next(iter(found.values()))
    if chosen.reward is Task.reward:
        raise ValueError(f"{chosen.__name__} in {str(path)!r} has no method reward(data, action).")
    with failures_told(f"{chosen.__name__} in {str(path)!r}"):
        return chosen(mj_model)


@contextlib.contextmanager
def failures_told(what: str) -> Iterator[None]:
    """Turns whatever a user's code raises into one sentence that says where."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} fails: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    """Kind, first line of the message, and the innermost line of a task file, of an error."""
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0].rstrip('.') if lines else ''}".rstrip(": ")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in _FILES:
            return f"{said} (line {frame.lineno} of {Path(frame.filename).name})."
    return f"{said}."


_FILES: set[str] = set()  # task files that were run, so that an error can name the line in them


def _run(path: Path) -> ModuleType:
    """The module that a file makes; run anew each time, as it may have been edited."""
    file = str(path.resolve())
    module = ModuleType(f"mujoco_task_{path.stem}")
    module.__file__ = file
    _FILES.add(file)
    sys.modules[module.__name__] = module  # dataclasses look up the module that they are made in
    with failures_told(f"The task file {str(path)!r}"):
        # Not by an import: it would leave a folder with bytecode beside the user's file.
        exec(compile(path.read_text(), file, "exec"), vars(module))
    return module


def _tasks(module: ModuleType) -> dict[str, type[Task]]:
    """Subclasses of :class:`Task` that the module itself defines, in its order."""
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, Task)
        and value.__module__ == module.__name__
    }
