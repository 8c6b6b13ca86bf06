# SPDX-License-Identifier: Apache-2.0
"""What an estimator of meta-gradients is, and what it works on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Theta = Any
State = Any
EstimatorName = Literal["bptt", "full-es", "truncated-es", "pes", "es-single"]


class System(NamedTuple):
    """A dynamical system with outer parameters, one particle at a time.

    Attributes:
      reset: ``reset(theta, key, fraction) -> state``; both members of a pair get the same key. The
        inner problem's horizon is cut to ``fraction`` of its length.
      advance: ``advance(theta, state) -> (state, loss)``, one truncation; randomness lives in the
        state and must not depend on ``theta``.
      finished: ``finished(state) -> bool``, whether the inner problem has reached its horizon.
    """

    reset: Callable[[Theta, Key[Array, ""], Array | float], State]
    advance: Callable[[Theta, State], tuple[State, Float[Array, ""]]]
    finished: Callable[[State], Array]


class Contribution(NamedTuple):
    """What a worker learned from one call of ``advance``.

    Attributes:
      direction: like theta: the perturbation that weighs the pair's difference, or, for ``bptt``,
        the gradient itself.
      losses: of both members of a pair, or of the one state of ``bptt``.
    """

    direction: Theta
    losses: Float[Array, "*workers members"]


class Estimator(NamedTuple):
    """One way to estimate a meta-gradient; pure functions, to be vmapped over workers.

    Attributes:
      name: what :func:`make_estimator` was asked for.
      init: ``init(system, theta, key, fraction) -> state`` of one worker.
      advance: ``advance(system, theta, mask, state, key, fraction) -> (state, contribution)``: one
        truncation of one worker (``full-es``: one inner problem), after a reset if the last one has
        ended. ``mask`` is like theta: 0 where it stays as it is, else the unit of its changes.
        ``fraction`` is what problems that start now are cut to, 1 by default.
      gradient: ``gradient(contributions) -> theta``, from all workers (leading axis).
    """

    name: str
    init: Callable[[System, Theta, Key[Array, ""], Array | float], State]
    advance: Callable[..., tuple[State, Contribution]]
    gradient: Callable[[Contribution], Theta]


def restart(done: Array, fresh: State, state: State) -> State:
    """``fresh`` where the inner problem has ended."""
    return jax.tree.map(lambda f, s: jnp.where(done, f, s), fresh, state)


def init_state(
    system: System, theta: Theta, key: Key[Array, ""], fraction: Array | float = 1.0
) -> State:
    """A worker that carries the unperturbed state alone."""
    return system.reset(theta, key, fraction)
