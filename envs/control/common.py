# SPDX-License-Identifier: Apache-2.0
"""What the control tasks share: the form of a state, angles, and terms of rewards."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from envs.api import State

Scalar = float | Float[Array, "*batch"]
"""A physics parameter of one environment, or of a batch."""


def make_state(
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


def wrap_angle(angle: Float[Array, ""]) -> Float[Array, ""]:
    """The same angle in [-pi, pi), so that it stays exact however often the pole turns."""
    return jnp.mod(angle + jnp.pi, 2.0 * jnp.pi) - jnp.pi


def upright(angle: Float[Array, ""]) -> Float[Array, ""]:
    """1 upright, 0 hanging."""
    return 0.5 * (1.0 + jnp.cos(angle))


def effort(push: Float[Array, "..."]) -> Float[Array, ""]:
    """1 without effort, 0.9 at full effort."""
    return 1.0 - 0.1 * jnp.mean(jnp.square(push))
