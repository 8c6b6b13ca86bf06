# SPDX-License-Identifier: Apache-2.0
"""A user's own MuJoCo model as an environment: ``mujoco:path/to/model.xml``, simulated by MJX.

The task comes from a Python file beside the model (:mod:`envs.mujoco_task`). MJX is MuJoCo in JAX;
it computes in float32 and agrees with MuJoCo's C code to about 1e-5 for a fraction of a second,
then contacts amplify the difference. It runs as many solver iterations as the model says: for
speed, give it few, ``<option iterations="4" ls_iterations="8"/>``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from envs import _mujoco, randomization
from envs._errors import check_episode_length, nearest, refuse, unknown
from envs.api import PRIVILEGED, Bounds, State
from envs.mujoco_task import Task, failures_told, load_task


@dataclasses.dataclass(frozen=True, eq=False)
class MujocoEnv:
    """A model with a task as an :class:`envs.api.Env`; build it with :func:`make`.

    ``state.physics`` is an ``mjx.Data``. Actions are clipped to [-1, 1] and scaled to the control
    ranges of the actuators; an actuator without a range gets the action itself.
    ``metrics["diverged"]`` is 1.0 in a step that ended because the simulation exploded.

    Attributes:
      name: the registry name, such as ``"mujoco:robots/hopper.xml"``.
      observation_size: number of observation entries.
      action_size: number of actuators.
      episode_length: default time limit in environment steps.
      dt: seconds of simulated time per environment step.
      task: what the user wrote.
      model: the ``mujoco.MjModel``.
      mjx_model: the same for MJX.
      randomize: draws the model of an episode.
      privileged_observation_size: number of entries that only the critic sees, 0 if there are
        none; ``info["privileged_obs"]`` holds them.
      backend: ``"mjx"``.
    """

    name: str
    observation_size: int
    action_size: int
    episode_length: int
    dt: float
    task: Task
    model: Any
    mjx_model: Any
    randomize: randomization.Randomize
    privileged_observation_size: int = 0
    backend: str = "mjx"

    @property
    def action_bounds(self) -> Bounds:
        """The control ranges of the actuators; -1 and 1 for an actuator without one."""
        limited = self.model.actuator_ctrllimited[:, None].astype(bool)
        low, high = np.where(limited, self.model.actuator_ctrlrange, (-1.0, 1.0)).T
        return low, high

    def reset(self, key: Key[Array, ""]) -> State:
        """A fresh episode from a typed key, with a robot of its own where the task draws one."""
        mjx = _mjx()
        with self._told("randomize"):
            changed = randomization.draw(self.randomize, key, self.mjx_model)
        with self._told("reset"):
            data = self.task.reset(key, self._home())
        # Derived quantities (positions of bodies, contacts) follow from what the task has set.
        model = randomization.put(self.mjx_model, changed)
        data = mjx.forward(model, data)
        info = {randomization.INFO: changed} if changed else {}
        zero = jnp.zeros((), jnp.float32)
        return State(
            physics=_mujoco.strong(data),
            obs=self._observe(data),
            reward=zero,
            done=zero,
            metrics=self._measure(data),
            info=info | self._privileged(data, model),
        )

    def step(self, state: State, action: Float[Array, " action"]) -> State:
        """One environment step: ``dt`` seconds with one action."""
        action = jnp.clip(action, -1.0, 1.0)
        model = randomization.put(self.mjx_model, state.info.get(randomization.INFO, {}))
        data = self._advance(model, state.physics.replace(ctrl=self._control(action)))
        with self._told("reward"):
            reward = _scalar(self.task.reward(data, action))
        with self._told("done"):
            done = _scalar(self.task.done(data))
        after = State(
            physics=jax.tree.map(_mujoco.cast_like, data, state.physics),
            obs=self._observe(data),
            reward=reward,
            done=done,
            metrics=self._measure(data),
            info=state.info | self._privileged(data, model),
        )
        return _mujoco.hold_if_diverged(state, after, data.qpos, data.qvel)

    def qpos(self, physics: Any) -> np.ndarray:
        """Generalized positions [..., nq], for the ``qpos`` of an ``MjData``."""
        return np.asarray(physics.qpos)

    def segments(self, physics: Any) -> tuple[np.ndarray, np.ndarray]:
        """The body of ONE environment as line segments; see :func:`envs._mujoco.segments`."""
        return _mujoco.segments(self.model, self.qpos(physics))

    def _home(self) -> Any:
        """Where :meth:`envs.mujoco_task.Task.reset` starts from."""
        data = _mjx().make_data(self.model, impl="jax")
        if not self.model.nkey:
            return data
        return data.replace(
            **{
                name: jnp.asarray(getattr(self.model, f"key_{name}")[0], jnp.float32)
                for name in ("qpos", "qvel", "act")
            }
        )

    def _control(self, action: Float[Array, " action"]) -> Float[Array, " action"]:
        """Actions in [-1, 1] in the units of the actuators."""
        low, high = self.action_bounds
        return jnp.asarray(0.5 * (low + high) + 0.5 * (high - low) * action, jnp.float32)

    def _advance(self, model: Any, data: Any) -> Any:
        """As many simulator steps as an environment step has."""
        mjx = _mjx()
        count = round(self.dt / self.model.opt.timestep)
        step = jax.lax.scan(lambda data, _: (mjx.step(model, data), None), data, None, count)
        return step[0]

    def _observe(self, data: Any) -> Float[Array, " obs"]:
        with self._told("observation"):
            return _vector(self.task.observation(data))

    def _privileged(self, data: Any, model: Any) -> dict[str, Float[Array, " privileged"]]:
        """What goes into ``info`` for the critic; nothing unless the task has something."""
        with self._told("privileged_observation"):
            seen = self.task.privileged_observation(data, model)
            return {} if seen is None else {PRIVILEGED: _vector(seen)}

    def _measure(self, data: Any) -> dict[str, Float[Array, ""]]:
        with self._told("metrics"):
            metrics = {name: _scalar(value) for name, value in self.task.metrics(data).items()}
        return metrics | {"diverged": jnp.zeros((), jnp.float32)}

    def _told(self, method: str) -> contextlib.AbstractContextManager[None]:
        return failures_told(f"{method} of {type(self.task).__name__} for {self.name!r}")


def make(
    task: str,
    backend: str | None = None,
    episode_length: int | None = None,
    randomize: str | randomization.Randomize | None = None,
    **options: object,
) -> MujocoEnv:
    """The environment ``mujoco:<task>``.

    Args:
      task: ``path/to/model.xml``, or ``path/to/model.xml:Class`` where the file
        ``path/to/model.py`` holds more than one task.
      backend: ``None`` or ``"mjx"``.
      episode_length: default time limit in environment steps, at least 1; ``None`` takes the
        task's.
      randomize: instead of the task's own :meth:`~envs.mujoco_task.Task.randomize`; a function
        ``(key, model) -> model`` or its ``module:function``.
      **options: none; refused with a sentence.

    Raises:
      ValueError: unknown option; a file that is missing or that MuJoCo or MJX cannot take; no
        actuator; a task that is missing, fails, or was made for another robot.
    """
    name = f"mujoco:{task}"
    refuse(options, ["backend", "episode_length", "randomize"], name)
    if backend not in (None, "mjx"):
        raise unknown("backend", str(backend), ["mjx"], where=f" for {name!r}")
    path, class_name = _split(task)
    with _mujoco.no_messages():
        model = _read(path)
        written = load_task(path.with_suffix(".py"), class_name, model)
        length = written.episode_length if episode_length is None else episode_length
        env = MujocoEnv(
            name=name,
            observation_size=0,  # known once it has been traced
            action_size=int(model.nu),
            episode_length=check_episode_length(length, name),
            dt=_control_dt(written, model, name),
            task=written,
            model=model,
            mjx_model=_put(model, path),
            randomize=randomization.load(randomize) or written.randomize,
        )
        return _measured(env)


def _split(task: str) -> tuple[Path, str]:
    """File and class of ``path/to/model.xml`` or ``path/to/model.xml:Class``."""
    file, colon, class_name = task.rpartition(":")
    return (Path(file), class_name) if colon and class_name.isidentifier() else (Path(task), "")


def _read(path: Path) -> Any:
    """The ``mujoco.MjModel`` of an MJCF file with at least one actuator."""
    if not path.is_file():
        folder = path.parent
        others = [str(other) for other in sorted(folder.glob("*.xml"))]
        hint = f"; the nearest one is {nearest(str(path), others)!r}" if others else ""
        raise ValueError(f"There is no MJCF file {str(path)!r}{hint}.")
    try:
        model = _mujoco.module().MjModel.from_xml_path(str(path))
    except ValueError as error:
        said = " ".join(str(error).split())
        raise ValueError(f"MuJoCo cannot read {str(path)!r}: {said}") from None
    if not model.nu:
        raise ValueError(
            f"{str(path)!r} has no actuators; a policy needs at least one, "
            "such as <actuator><motor joint='...'/></actuator>."
        )
    return model


def _put(model: Any, path: Path) -> Any:
    """The model for MJX, which lacks some of MuJoCo's features."""
    try:
        return _mjx().put_model(model, impl="jax")
    except NotImplementedError as error:
        raise _unsupported(str(path), error) from error


def _unsupported(what: str, error: NotImplementedError) -> ValueError:
    said = " ".join(str(error).split()).rstrip(".")
    return ValueError(f"MJX cannot simulate {what!r}: {said}.")


def _control_dt(task: Task, model: Any, name: str) -> float:
    """Seconds between actions, a whole multiple of the model's timestep."""
    timestep = float(model.opt.timestep)
    if task.dt is None:
        return timestep
    count = max(round(task.dt / timestep), 1)
    if abs(count * timestep - task.dt) > 1e-6 * timestep:
        raise ValueError(
            f"dt of the task of {name!r} is {task.dt} s, which is no multiple of the model's "
            f"timestep, {timestep} s; the nearest one is {count * timestep:.6g} s."
        )
    return float(task.dt)


def _measured(env: MujocoEnv) -> MujocoEnv:
    """The environment with its observation sizes, once everything in it has been traced."""

    def trace(key: Key[Array, ""], action: Float[Array, " action"]) -> tuple[Array, Array]:
        start = env.reset(key)
        env.step(start, action)
        return start.obs, start.info.get(PRIVILEGED, jnp.zeros(0))

    action = jax.ShapeDtypeStruct((env.action_size,), jnp.float32)
    try:
        obs, privileged = jax.eval_shape(trace, jax.random.key(0), action)
    except NotImplementedError as error:
        raise _unsupported(env.name, error) from error
    env = dataclasses.replace(
        env, observation_size=obs.shape[0], privileged_observation_size=privileged.shape[0]
    )
    for field in ("action_size", "observation_size"):
        declared, found = getattr(env.task, field), getattr(env, field)
        if declared is not None and declared != found:
            raise ValueError(
                f"{type(env.task).__name__} declares {field} {declared}, "
                f"but {env.name!r} has {found}."
            )
    return env


def _vector(value: Any) -> Float[Array, " entries"]:
    """A float32 vector of a task's result."""
    result = jnp.asarray(value, jnp.float32)
    if result.ndim != 1:
        raise ValueError(f"its result has shape {result.shape}, but it must have one axis")
    return result


def _scalar(value: Any) -> Float[Array, ""]:
    """A float32 scalar of a task's result."""
    result = jnp.asarray(value, jnp.float32)
    if result.shape:
        raise ValueError(f"its result has shape {result.shape}, but it must be one number")
    return result


def _mjx() -> Any:
    return importlib.import_module("mujoco.mjx")
