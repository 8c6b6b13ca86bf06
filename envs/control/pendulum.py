# SPDX-License-Identifier: Apache-2.0
"""The pendulum: constants and equations of Gymnasium's ``Pendulum-v1``, a reward of our own."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from envs.api import State
from envs.control.common import Scalar, effort, make_state, upright, wrap_angle


@jax.tree_util.register_dataclass
@no_type_check  # JAX also puts shapes, flags and the like where the numbers are
@dataclasses.dataclass(frozen=True)
class PendulumParams:
    """Physics of :class:`Pendulum`."""

    mass: Scalar = 1.0
    """Mass of the rod, kg, above 0."""
    length: Scalar = 1.0
    """Length of the rod, m, above 0."""
    gravity: Scalar = 10.0
    """Gravitational acceleration, m/s^2."""
    gear: Scalar = 2.0
    """Torque at action 1, N m, above 0."""
    damping: Scalar = 0.0
    """Viscous friction of the joint, N m s/rad, at least 0."""
    max_speed: Scalar = 8.0
    """Angular speed is clipped to this, rad/s, above 0."""


class PendulumPhysics(NamedTuple):
    """Angle from upright (rad, in [-pi, pi]) and angular velocity (rad/s)."""

    angle: Float[Array, ""]
    velocity: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Pendulum:
    """Swing a rod up with a torque too weak to lift it at once, and hold it there.

    With ``theta`` the angle from upright, ``a`` the action and ``m, l, g`` as in the parameters::

        theta'' = 3 g / (2 l) sin(theta) + 3 / (m l^2) (gear a - damping theta')
        reward  = (1 + cos(theta)) / 2 * (1 - 0.1 a^2)

    The observation is (cos(theta), sin(theta), theta'). Start: any angle, velocity in [-1, 1]
    rad/s. No termination.
    """

    params: PendulumParams = PendulumParams()
    episode_length: int = 200
    dt: float = 0.05
    name: str = "control:pendulum"
    observation_size: int = 3
    action_size: int = 1

    def reset(self, key: Key[Array, ""]) -> State:
        """A random angle and a small random velocity."""
        key_angle, key_velocity = jax.random.split(key)
        angle = jax.random.uniform(key_angle, (), minval=-jnp.pi, maxval=jnp.pi)
        velocity = jax.random.uniform(key_velocity, (), minval=-1.0, maxval=1.0)
        physics = PendulumPhysics(angle, velocity)
        return make_state(physics, self._observe(physics))

    def step(self, state: State, action: Float[Array, " action"]) -> State:
        """One step of ``dt`` seconds; the reward is that of the state reached."""
        params, physics = self.params, state.physics
        push = jnp.clip(action[0], -1.0, 1.0)
        torque = params.gear * push - params.damping * physics.velocity
        acceleration = 1.5 * params.gravity / params.length * jnp.sin(physics.angle)
        acceleration += 3.0 / (params.mass * params.length**2) * torque
        velocity = physics.velocity + acceleration * self.dt
        velocity = jnp.clip(velocity, -params.max_speed, params.max_speed)
        physics = PendulumPhysics(wrap_angle(physics.angle + velocity * self.dt), velocity)
        reward = upright(physics.angle) * effort(push)
        return make_state(physics, self._observe(physics), reward)

    def _observe(self, physics: PendulumPhysics) -> Float[Array, "3"]:
        return jnp.stack([jnp.cos(physics.angle), jnp.sin(physics.angle), physics.velocity])
