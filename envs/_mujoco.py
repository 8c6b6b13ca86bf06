# SPDX-License-Identifier: Apache-2.0
"""What the adapters of simulators on MuJoCo models share: quiet imports, arrays, drawing."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from envs.api import PRIVILEGED, State


def module() -> Any:
    """``mujoco``, untyped: it fills its namespace in a way that type checkers cannot follow."""
    return importlib.import_module("mujoco")


@contextlib.contextmanager
def no_messages() -> Iterator[None]:
    """Swallows what importing MJX prints and what MuJoCo's C code says about a model."""
    with contextlib.redirect_stdout(io.StringIO()):
        mujoco = module()
        handler = mujoco.get_mju_user_warning()
        # Without a handler MuJoCo appends its warnings to a file in the current folder.
        mujoco.set_mju_user_warning(lambda message: None)
        try:
            yield
        finally:
            mujoco.set_mju_user_warning(handler)


def segments(model: Any, qpos: Float[np.ndarray, " nq"]) -> tuple[np.ndarray, np.ndarray]:
    """A pose as thick line segments, for drawing it without OpenGL.

    Args:
      model: a ``mujoco.MjModel``.
      qpos: generalized positions of one pose.

    Returns:
      End points [segments, 2, 3] and radii [segments], in meters. A capsule or cylinder gives its
      axis, any other shape a segment of length 0; planes are left out.
    """
    mujoco = module()
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    types, sizes = model.geom_type, model.geom_size
    drawn = types != mujoco.mjtGeom.mjGEOM_PLANE
    long = (types == mujoco.mjtGeom.mjGEOM_CAPSULE) | (types == mujoco.mjtGeom.mjGEOM_CYLINDER)
    # MuJoCo's capsules and cylinders lie along their own z axis; size is (radius, half length).
    half = data.geom_xmat.reshape(-1, 3, 3)[:, :, 2] * np.where(long, sizes[:, 1], 0.0)[:, None]
    ends = np.stack([data.geom_xpos - half, data.geom_xpos + half], axis=1)
    return ends[drawn], sizes[drawn, 0].copy()


def float32(value: Any) -> Float[Array, "..."]:
    """A strongly typed float32 array; simulators return Python floats for constant rewards."""
    return jnp.asarray(value, jnp.float32)


def strong(tree: PyTree) -> PyTree:
    """The same arrays without weak types."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.asarray(leaf).dtype), tree)


def cast_like(new: Any, old: Array) -> Array:
    """``new`` in the dtype of ``old``, strongly typed."""
    return jnp.asarray(new, old.dtype)


def hold_if_diverged(before: State, after: State, *moved: Array) -> State:
    """Ends the episode where a simulation has exploded, at the last finite state.

    A simulation that diverges (a step too long, a contact too stiff) fills everything with NaN, and
    one such environment among thousands would poison the statistics of all. Such a step gets
    reward 0 and ``done`` 1, and ``metrics["diverged"]`` counts it.

    Args:
      before: the state that was stepped.
      after: the state after the step, of the same structure.
      *moved: positions and velocities after the step, whose finiteness decides beside that of
        observations and reward.
    """
    seen = [after.obs, after.reward, *moved]
    if PRIVILEGED in after.info:
        seen.append(after.info[PRIVILEGED])
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in seen])
    sound = finite.all()
    physics, obs, metrics, info = jax.tree.map(
        lambda new, old: jnp.where(sound, new, old),
        (after.physics, after.obs, after.metrics, after.info),
        (before.physics, before.obs, before.metrics, before.info),
    )
    return State(
        physics=physics,
        obs=obs,
        reward=jnp.where(sound, after.reward, 0.0),
        done=jnp.where(sound, after.done, 1.0),
        metrics=metrics | {"diverged": 1.0 - sound.astype(jnp.float32)},
        info=info,
    )
