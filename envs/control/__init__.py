# SPDX-License-Identifier: Apache-2.0
"""Cheap control tasks in plain JAX: pendulum, cart-pole (balance and swing-up), point mass.

They cost microseconds a step and compile in under a second: for tests, and as tasks to meta-train
on. All of them move by semi-implicit Euler: accelerations from the present state, then velocities,
then positions with the new velocities. Rewards lie in [0, 1]. Actions are clipped to [-1, 1] and
scaled by ``gear``. Physics parameters are pytrees, so that they can be vmapped over or drawn at
random: ``jax.vmap(lambda params, key: Pendulum(params).reset(key))``.

Pendulum and cart-pole have the constants and equations of Gymnasium's ``Pendulum-v1`` and
``CartPole-v1`` (the latter from Florian, "Correct equations for the dynamics of the cart-pole
system", 2007, without friction); rewards and, for the cart-pole, the continuous action are ours.
"""

from __future__ import annotations

import dataclasses
import math

from envs._errors import check_episode_length, refuse, unknown
from envs.control.cartpole import (
    Cartpole,
    CartpoleParams,
    CartpolePhysics,
    CartpoleSwingup,
    cartpole_step,
)
from envs.control.pendulum import Pendulum, PendulumParams, PendulumPhysics
from envs.control.pointmass import Pointmass, PointmassParams, PointmassPhysics

__all__ = [
    "Cartpole",
    "CartpoleParams",
    "CartpolePhysics",
    "CartpoleSwingup",
    "Pendulum",
    "PendulumParams",
    "PendulumPhysics",
    "Pointmass",
    "PointmassParams",
    "PointmassPhysics",
    "cartpole_step",
    "make",
]

_TASKS = {
    "cartpole": Cartpole,
    "cartpole-swingup": CartpoleSwingup,
    "pendulum": Pendulum,
    "pointmass": Pointmass,
}


def make(
    task: str, episode_length: int | None = None, **physics: float
) -> Pendulum | Cartpole | CartpoleSwingup | Pointmass:
    """The task ``control:<task>``.

    Args:
      task: ``"pendulum"``, ``"cartpole"``, ``"cartpole-swingup"`` or ``"pointmass"``.
      episode_length: default time limit in steps, at least 1; ``None`` takes the task's own.
      **physics: fields of the task's physics parameters, such as ``gravity=3.7``.

    Raises:
      ValueError: unknown task or field, or a value that makes no physical sense.

    Example:
      >>> make("pendulum", gravity=3.7).params.gravity
      3.7
    """
    if task not in _TASKS:
        raise unknown("control task", task, list(_TASKS))
    env = _TASKS[task]()
    fields = [field.name for field in dataclasses.fields(env.params)]
    refuse([name for name in physics if name not in fields], [*fields, "episode_length"], env.name)
    for field, value in physics.items():
        _check_physics(env.name, field, value)
    if episode_length is not None:
        env = dataclasses.replace(
            env, episode_length=check_episode_length(episode_length, env.name)
        )
    return dataclasses.replace(env, params=dataclasses.replace(env.params, **physics))


def _check_physics(name: str, field: str, value: float) -> None:
    """Raises ValueError for a value outside the range that the field's docstring gives."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        valid, wanted = False, "a number"
    elif field == "gravity":
        valid, wanted = math.isfinite(value), "finite"
    elif field == "damping":
        valid, wanted = math.isfinite(value) and value >= 0, "finite and at least 0"
    else:
        valid, wanted = math.isfinite(value) and value > 0, "finite and above 0"
    if not valid:
        raise ValueError(f"{field} of {name!r} is {value!r}; it must be {wanted}.")
