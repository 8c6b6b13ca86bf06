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
from typing import Any, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from envs._errors import check_episode_length, refuse, unknown
from envs.api import State

Scalar = float | Float[Array, "*batch"]


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


@jax.tree_util.register_dataclass
@no_type_check  # JAX also puts shapes, flags and the like where the numbers are
@dataclasses.dataclass(frozen=True)
class PointmassParams:
    """Physics of :class:`Pointmass`."""

    mass: Scalar = 1.0
    """Mass of the point, kg, above 0."""
    gear: Scalar = 2.0
    """Force along each axis at action 1, N, above 0."""
    damping: Scalar = 1.0
    """Viscous friction, N s/m, at least 0; top speed along an axis is gear / damping."""


class PendulumPhysics(NamedTuple):
    """Angle from upright (rad, in [-pi, pi]) and angular velocity (rad/s)."""

    angle: Float[Array, ""]
    velocity: Float[Array, ""]


class CartpolePhysics(NamedTuple):
    """Cart position (m) and velocity (m/s), pole angle from upright (rad) and velocity (rad/s)."""

    position: Float[Array, ""]
    velocity: Float[Array, ""]
    angle: Float[Array, ""]
    angular_velocity: Float[Array, ""]


class PointmassPhysics(NamedTuple):
    """Position (m) and velocity (m/s) in the plane; the goal is the origin."""

    position: Float[Array, "2"]
    velocity: Float[Array, "2"]


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
        return _state(physics, self._observe(physics))

    def step(self, state: State, action: Float[Array, " action"]) -> State:
        """One step of ``dt`` seconds; the reward is that of the state reached."""
        params, physics = self.params, state.physics
        push = jnp.clip(action[0], -1.0, 1.0)
        torque = params.gear * push - params.damping * physics.velocity
        acceleration = 1.5 * params.gravity / params.length * jnp.sin(physics.angle)
        acceleration += 3.0 / (params.mass * params.length**2) * torque
        velocity = physics.velocity + acceleration * self.dt
        velocity = jnp.clip(velocity, -params.max_speed, params.max_speed)
        physics = PendulumPhysics(_wrap(physics.angle + velocity * self.dt), velocity)
        reward = _upright(physics.angle) * _effort(push)
        return _state(physics, self._observe(physics), reward)

    def _observe(self, physics: PendulumPhysics) -> Float[Array, "3"]:
        return jnp.stack([jnp.cos(physics.angle), jnp.sin(physics.angle), physics.velocity])


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
        return _state(physics, jnp.stack(physics))

    def step(self, state: State, action: Float[Array, " action"]) -> State:
        """One step of ``dt`` seconds."""
        force = self.params.gear * jnp.clip(action[0], -1.0, 1.0)
        physics = cartpole_step(self.params, state.physics, force, self.dt)
        fell = jnp.abs(physics.angle) > math.radians(12)
        left = jnp.abs(physics.position) > self.params.track
        return _state(physics, jnp.stack(physics), reward=1.0, done=fell | left)


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
        physics = CartpolePhysics(position, velocity, _wrap(jnp.pi + angle), angular_velocity)
        return _state(physics, self._observe(physics))

    def step(self, state: State, action: Float[Array, " action"]) -> State:
        """One step of ``dt`` seconds; the reward is that of the state reached."""
        params = self.params
        push = jnp.clip(action[0], -1.0, 1.0)
        moved = cartpole_step(params, state.physics, params.gear * push, self.dt)
        position = jnp.clip(moved.position, -params.track, params.track)
        velocity = jnp.where(position == moved.position, moved.velocity, 0.0)
        physics = moved._replace(position=position, velocity=velocity)
        centered = 1.0 - 0.5 * jnp.square(position / params.track)
        reward = _upright(physics.angle) * centered * _effort(push)
        return _state(physics, self._observe(physics), reward)

    def _observe(self, physics: CartpolePhysics) -> Float[Array, "5"]:
        position, velocity, angle, angular_velocity = physics
        return jnp.stack([position, velocity, jnp.cos(angle), jnp.sin(angle), angular_velocity])


@dataclasses.dataclass(frozen=True)
class Pointmass:
    """Bring a point on a plane to the origin with a force, against viscous friction.

    With ``p`` the position and ``a`` the two actions::

        m p''  = gear a - damping p'
        reward = 1 / (1 + |p|^2 / 0.2^2) * (1 - 0.1 |a|^2 / 2)

    The observation is (p, p'). Start: ``p`` in [-1, 1]^2 m at rest. No termination.
    """

    params: PointmassParams = PointmassParams()
    episode_length: int = 100
    dt: float = 0.05
    name: str = "control:pointmass"
    observation_size: int = 4
    action_size: int = 2

    def reset(self, key: Key[Array, ""]) -> State:
        """At rest, anywhere in the square."""
        position = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
        physics = PointmassPhysics(position, jnp.zeros((2,), jnp.float32))
        return _state(physics, jnp.concatenate(physics))

    def step(self, state: State, action: Float[Array, " action"]) -> State:
        """One step of ``dt`` seconds; the reward is that of the state reached."""
        params, physics = self.params, state.physics
        push = jnp.clip(action, -1.0, 1.0)
        force = params.gear * push - params.damping * physics.velocity
        velocity = physics.velocity + force / params.mass * self.dt
        position = physics.position + velocity * self.dt
        reward = _effort(push) / (1.0 + jnp.sum(jnp.square(position / 0.2)))
        return _state(
            PointmassPhysics(position, velocity), jnp.concatenate([position, velocity]), reward
        )


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
        angle=_wrap(physics.angle + angular_velocity * dt),
        angular_velocity=angular_velocity,
    )


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


def _state(
    physics: Any,
    obs: Float[Array, " obs"],
    reward: float | Float[Array, ""] = 0.0,
    done: bool | Array = False,
) -> State:
    """A state without metrics or info, everything strongly typed float32."""
    return State(
        physics=physics,
        obs=jnp.asarray(obs, jnp.float32),
        reward=jnp.asarray(reward, jnp.float32),
        done=jnp.asarray(done, jnp.float32),
        metrics={},
        info={},
    )


def _wrap(angle: Float[Array, ""]) -> Float[Array, ""]:
    """The same angle in [-pi, pi), so that it stays exact however often the pole turns."""
    return jnp.mod(angle + jnp.pi, 2.0 * jnp.pi) - jnp.pi


def _upright(angle: Float[Array, ""]) -> Float[Array, ""]:
    """1 upright, 0 hanging."""
    return 0.5 * (1.0 + jnp.cos(angle))


def _effort(push: Float[Array, "..."]) -> Float[Array, ""]:
    """1 without effort, 0.9 at full effort."""
    return 1.0 - 0.1 * jnp.mean(jnp.square(push))
