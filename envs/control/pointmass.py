# SPDX-License-Identifier: Apache-2.0
"""The point mass in a plane."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from envs.api import State
from envs.control.common import Scalar, effort, make_state


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


class PointmassPhysics(NamedTuple):
    """Position (m) and velocity (m/s) in the plane; the goal is the origin."""

    position: Float[Array, "2"]
    velocity: Float[Array, "2"]


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
        return make_state(physics, jnp.concatenate(physics))

    def step(self, state: State, action: Float[Array, " action"]) -> State:
        """One step of ``dt`` seconds; the reward is that of the state reached."""
        params, physics = self.params, state.physics
        push = jnp.clip(action, -1.0, 1.0)
        force = params.gear * push - params.damping * physics.velocity
        velocity = physics.velocity + force / params.mass * self.dt
        position = physics.position + velocity * self.dt
        reward = effort(push) / (1.0 + jnp.sum(jnp.square(position / 0.2)))
        return make_state(
            PointmassPhysics(position, velocity), jnp.concatenate([position, velocity]), reward
        )
