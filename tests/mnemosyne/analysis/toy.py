# SPDX-License-Identifier: Apache-2.0
"""A learning-rate schedule on a curve with many minima (Vicol et al. 2021, 2D toy problem).

A small problem on which gradients through the whole unroll are useless for most schedules.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnemosyne.meta import estimators

LENGTH = 100


class Descent(NamedTuple):
    """The two weights and the number of updates made."""

    x: jax.Array
    step: jax.Array


def loss(x: jax.Array) -> jax.Array:
    """The inner loss."""
    wave = jnp.square(jnp.sin(x[1])) * jnp.exp(-5.0 * jnp.square(x[0]))
    bowl = jnp.sqrt(jnp.square(x[0]) + 5.0) - jnp.sqrt(5.0)
    return bowl + wave + 0.25 * jnp.abs(x[1] - 100.0)


def start() -> Descent:
    """Before the first update."""
    return Descent(jnp.ones(2), jnp.zeros((), jnp.int32))


def step(theta: jax.Array, state: Descent) -> Descent:
    """One update, with a rate that goes from ``exp(theta[0])`` to ``exp(theta[1])`` linearly."""
    phase = state.step / LENGTH
    rate = (1.0 - phase) * jnp.exp(theta[0]) + phase * jnp.exp(theta[1])
    return Descent(state.x - rate * jax.grad(loss)(state.x), state.step + 1)


def meta_loss(theta: jax.Array) -> jax.Array:
    """Sum of the inner losses after each of the updates."""

    def move(state: Descent, _: None) -> tuple[Descent, jax.Array]:
        state = step(theta, state)
        return state, loss(state.x)

    return jnp.sum(jax.lax.scan(move, start(), None, length=LENGTH)[1])


def system(truncation: int) -> estimators.System:
    """As the estimators see it; the loss of a truncation is a sum."""

    def reset(theta: jax.Array, key: jax.Array, fraction: jax.Array | float) -> Descent:
        del theta, key, fraction
        return start()

    def advance(theta: jax.Array, state: Descent) -> tuple[Descent, jax.Array]:
        def move(state: Descent, _: None) -> tuple[Descent, jax.Array]:
            state = step(theta, state)
            return state, loss(state.x)

        state, losses = jax.lax.scan(move, state, None, length=truncation)
        return state, jnp.sum(losses)

    return estimators.System(reset, advance, lambda state: state.step >= LENGTH)
