# SPDX-License-Identifier: Apache-2.0
"""The cart-pole, to be balanced or swung up.

Constants and equations are those of Gymnasium's ``CartPole-v1`` (from Florian, "Correct equations
for the dynamics of the cart-pole system", 2007, without friction); rewards and the continuous
action are ours.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from envs.api import State
from envs.control.common import Scalar, effort, make_state, upright, wrap_angle


@jax.tree_util.register_dataclass
@no_type_check  # JAX also puts shapes, flags and the like where the numbers are
@dataclasses.dataclass(frozen=True)
class CartpoleParams:
    """Physics of :class:`Cartpole` and :class:`CartpoleSwingup`."""

    cart_mass: Scalar = 1.0
    """Mass of the cart, kg, above 0."""
    pole_mass: Scalar = 0.1
    """Mass of the pole, kg, above 0."""
    half_length: Scalar = 0.5
    """Half the length of the pole, m, above 0."""
    gravity: Scalar = 9.8
    """Gravitational acceleration, m/s^2."""
    gear: Scalar = 10.0
    """Force on the cart at action 1, N, above 0."""
    track: Scalar = 2.4
    """Half the length of the track, m, above 0."""


class CartpolePhysics(NamedTuple):
    """Cart position (m) and velocity (m/s), pole angle from upright (rad) and velocity (rad/s)."""

    position: Float[Array, ""]
    velocity: Float[Array, ""]
    angle: Float[Array, ""]
    angular_velocity: Float[Array, ""]


def cartpole_step(
    params: CartpoleParams, physics: CartpolePhysics, force: Float[Array, ""], dt: float
) -> CartpolePhysics:
    """One semi-implicit Euler step of a cart with a uniform pole, without friction.

    With ``M`` and ``m`` the masses of cart and pole, ``l`` half the pole's length and ``F`` the
    force::

        h       = (F + m l theta'^2 sin(theta)) / (M + m)
        theta'' = (g sin(theta) - cos(theta) h) / (l (4/3 - m cos(theta)^2 / (M + m)))
        x''     = h - m l theta'' cos(theta) / (M + m)

    Args:
      params: masses, length, gravity.
      physics: the present state.
      force: horizontal force on the cart, N.
      dt: length of the step, s.

    Returns:
      The state after the step, the angle in [-pi, pi].
    """
    sine, cosine = jnp.sin(physics.angle), jnp.cos(physics.angle)
    total = params.cart_mass + params.pole_mass
    moment = params.pole_mass * params.half_length
    push = (force + moment * jnp.square(physics.angular_velocity) * sine) / total
    inertia = params.half_length * (4.0 / 3.0 - params.pole_mass * jnp.square(cosine) / total)
    angular_acceleration = (params.gravity * sine - cosine * push) / inertia
    acceleration = push - moment * angular_acceleration * cosine / total
    velocity = physics.velocity + acceleration * dt
    angular_velocity = physics.angular_velocity + angular_acceleration * dt
    return CartpolePhysics(
        position=physics.position + velocity * dt,
        velocity=velocity,
        angle=wrap_angle(physics.angle + angular_velocity * dt),
        angular_velocity=angular_velocity,
    )


@dataclasses.dataclass(frozen=True)
class Cartpole:
    """Keep a pole upright by pushing the cart under it.

    Equations in :func:`cartpole_step`. The observation is (x, x', theta, theta'). Start: all four
    in [-0.05, 0.05]. Reward 1 a step; terminates with the pole beyond 12 degrees or the cart off
    the track, so the return is the number of steps survived.
    """

    params: CartpoleParams = CartpoleParams()
    episode_length: int = 500
    dt: float = 0.02
    name: str = "control:cartpole"
    observation_size: int = 4
    action_size: int = 1

    def reset(self, key: Key[Array, ""]) -> State:
        """Close to upright at the middle of the track."""
        noise = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
        physics = CartpolePhysics(*noise)
        return make_state(physics, jnp.stack(physics))

    def step(self, state: State, action: Float[Array, " action"]) -> State:
        """One step of ``dt`` seconds."""
        force = self.params.gear * jnp.clip(action[0], -1.0, 1.0)
        physics = cartpole_step(self.params, state.physics, force, self.dt)
        fell = jnp.abs(physics.angle) > math.radians(12)
        left = jnp.abs(physics.position) > self.params.track
        return make_state(physics, jnp.stack(physics), reward=1.0, done=fell | left)


@dataclasses.dataclass(frozen=True)
class CartpoleSwingup:
    """Swing a hanging pole up by moving the cart, and hold it near the middle of the track.

    Equations in :func:`cartpole_step`; at the ends of the track the cart stops dead. With ``a`` the
    action and ``L`` the half length of the track::

        reward = (1 + cos(theta)) / 2 * (1 - (x / L)^2 / 2) * (1 - 0.1 a^2)

    The observation is (x, x', cos(theta), sin(theta), theta'). Start: hanging, everything within
    0.05 of rest. No termination.
    """

    params: CartpoleParams = CartpoleParams()
    episode_length: int = 500
    dt: float = 0.02
    name: str = "control:cartpole-swingup"
    observation_size: int = 5
    action_size: int = 1

    def reset(self, key: Key[Array, ""]) -> State:
        """Hanging close to rest at the middle of the track."""
        position, velocity, angle, angular_velocity = jax.random.uniform(
            key, (4,), minval=-0.05, maxval=0.05
        )
        physics = CartpolePhysics(position, velocity, wrap_angle(jnp.pi + angle), angular_velocity)
        return make_state(physics, self._observe(physics))

    def step(self, state: State, action: Float[Array, " action"]) -> State:
        """One step of ``dt`` seconds; the reward is that of the state reached."""
        params = self.params
        push = jnp.clip(action[0], -1.0, 1.0)
        moved = cartpole_step(params, state.physics, params.gear * push, self.dt)
        position = jnp.clip(moved.position, -params.track, params.track)
        velocity = jnp.where(position == moved.position, moved.velocity, 0.0)
        physics = moved._replace(position=position, velocity=velocity)
        centered = 1.0 - 0.5 * jnp.square(position / params.track)
        reward = upright(physics.angle) * centered * effort(push)
        return make_state(physics, self._observe(physics), reward)

    def _observe(self, physics: CartpolePhysics) -> Float[Array, "5"]:
        position, velocity, angle, angular_velocity = physics
        return jnp.stack([position, velocity, jnp.cos(angle), jnp.sin(angle), angular_velocity])
