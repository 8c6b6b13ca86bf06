# SPDX-License-Identifier: Apache-2.0
"""Meta-gradient estimators behind one interface: BPTT, and evolution strategies (ES) of four kinds.

A worker owns one inner problem and advances it a truncation (``K`` inner steps) at a time. All
estimators aim at the gradient of a truncation's loss, averaged over the inner problem:

| name | what a worker does | bias | variance |
|---|---|---|---|
| ``bptt`` | differentiates a truncation from a state that it takes as constant | truncation | grows with chaos |
| ``full-es`` | plays whole inner problems under ``theta + eps`` and ``theta - eps`` | none | constant |
| ``truncated-es`` | perturbs one truncation of a shared, unperturbed state | truncation | constant |
| ``pes`` | keeps perturbed states, draws ``eps`` a truncation, weighs by its sum | hysteresis | grows with horizon / K |
| ``es-single`` | keeps perturbed states, draws ``eps`` once an inner problem (also called NRES) | hysteresis | constant |

*None* means none for quadratic losses, else that of smoothing with ``sigma``; *hysteresis* is what
moving ``theta`` during an inner problem costs, none if it is frozen. All ES pairs are antithetic and
share data and resets.

Sources: Vicol et al. 2021, "Unbiased Gradient Estimation in Unrolled Computation Graphs with
Persistent Evolution Strategies", algorithm 2 (PES); Vicol et al. 2023, "Low-Variance Gradient
Estimation in Unrolled Computation Graphs with ES-Single", algorithms 1 (truncated ES) and 2; Metz
et al. 2022, "VeLO" (sign of the difference).
"""  # noqa: E501 - rows of a table cannot be broken

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

Theta = Any
State = Any
EstimatorName = Literal["bptt", "full-es", "truncated-es", "pes", "es-single"]


class System(NamedTuple):
    """A dynamical system with outer parameters, one particle at a time.

    Attributes:
      reset: ``reset(theta, key, fraction) -> state``; both members of a pair get the same key. The
        inner problem's horizon is cut to ``fraction`` of its length, below 1 only at the start of
        a run, so that problems do not end together.
      advance: ``advance(theta, state) -> (state, loss)``, one truncation; randomness lives in the
        state and must not depend on ``theta``.
      finished: ``finished(state) -> bool``, whether the inner problem has reached its horizon.
    """

    reset: Callable[[Theta, Key[Array, ""], Array | float], State]
    advance: Callable[[Theta, State], tuple[State, Float[Array, ""]]]
    finished: Callable[[State], Array]


class PESState(NamedTuple):
    """One antithetic pair.

    Attributes:
      plus, minus: states under ``theta + eps`` and ``theta - eps``.
      accumulated: PES: the sum of the perturbations since the last reset (minus has its negative);
        ES-Single: the perturbation of this inner problem in units of ``sigma``.
    """

    plus: State
    minus: State
    accumulated: Theta


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
      advance: ``advance(system, theta, mask, state, key) -> (state, contribution)``: one truncation
        of one worker (``full-es``: one inner problem), after a reset if the last one has ended.
        ``mask`` is like theta, 1 where it may change.
      gradient: ``gradient(contributions) -> theta``, from all workers (leading axis).
    """

    name: str
    init: Callable[[System, Theta, Key[Array, ""], Array | float], State]
    advance: Callable[
        [System, Theta, Theta, State, Key[Array, ""]],
        tuple[State, Contribution],
    ]
    gradient: Callable[[Contribution], Theta]


def make_estimator(
    name: EstimatorName | str,
    sigma: float = 0.01,
    clip: float = float("inf"),
    sign_scale: float | None = None,
) -> Estimator:
    """An estimator by name.

    Args:
      name: one of the table at the top of this module.
      sigma: standard deviation of the perturbations, > 0; ``bptt`` has none.
      clip: bound of a pair's difference, in multiples of the median one (see
        :func:`pes_gradient`); for ``bptt`` the same bound of a worker's gradient norm.
      sign_scale: if given, > 0, a pair's difference is replaced by its sign times this number
        (VeLO uses 1), which no heavy tail can hurt; not for ``bptt``.

    Raises:
      ValueError: for an unknown name, or a number out of range.

    Example:
      >>> make_estimator("es-single", sigma=0.1).name
      'es-single'
    """
    names = get_args(EstimatorName)
    if name not in names:
        best = (difflib.get_close_matches(name, names, 1, 0.0) or names)[0]
        raise ValueError(f"unknown estimator {name!r}; did you mean {best!r}?")
    if not (sigma > 0 and clip > 0):
        raise ValueError(f"sigma and clip must be positive, got {sigma} and {clip}.")
    if sign_scale is not None and (name == "bptt" or not sign_scale > 0):
        raise ValueError(f"sign_scale must be positive and is not for bptt, got {sign_scale}.")
    if name == "bptt":
        return Estimator(name, _state_init, _bptt_advance, lambda c: _bptt_gradient(c, clip))
    init, advance = _PAIRS[name]
    return Estimator(
        name,
        init,
        functools.partial(advance, sigma),
        lambda c: pes_gradient(c.direction, c.losses, sigma, clip, sign_scale),
    )


def estimate(
    estimator: Estimator,
    system: System,
    theta: Theta,
    mask: Theta,
    states: State,
    keys: Key[Array, " workers"],
) -> tuple[State, Theta, Float[Array, "workers members"]]:
    """Advances all workers and combines what they learned.

    Args:
      estimator: how.
      system: of what.
      theta: outer parameters.
      mask: like ``theta``, 1 where it may change.
      states: of the workers, leading axis.
      keys: one a worker.

    Returns:
      New states, the gradient, and the losses.
    """
    advance = functools.partial(estimator.advance, system, theta, mask)
    states, contributions = jax.vmap(advance)(states, keys)
    return states, estimator.gradient(contributions), contributions.losses


def unit_noise(key: Key[Array, ""], theta: Theta) -> Theta:
    """Standard normal noise like ``theta``.

    Drawn as one vector and cut into leaves: a draw a leaf would multiply the time of compilation.
    """
    leaves, treedef = jax.tree.flatten(theta)
    ends = np.cumsum([leaf.size for leaf in leaves])
    pieces = jnp.split(jax.random.normal(key, (int(ends[-1]),)), ends[:-1])
    return treedef.unflatten([p.reshape(x.shape) for p, x in zip(pieces, leaves, strict=True)])


def perturbation(key: Key[Array, ""], theta: Theta, mask: Theta, sigma: float) -> Theta:
    """Gaussian noise like ``theta`` with standard deviation ``sigma``, zero where ``mask`` is 0."""
    return _scaled(unit_noise(key, theta), mask, sigma)


def _scaled(noise: Theta, mask: Theta, sigma: float) -> Theta:
    return jax.tree.map(lambda n, m: sigma * m * n, noise, mask)


def _restart(done: Array, fresh: State, state: State) -> State:
    """``fresh`` where the inner problem has ended."""
    return jax.tree.map(lambda f, s: jnp.where(done, f, s), fresh, state)


def _around(theta: Theta, eps: Theta) -> Theta:
    """``theta + eps`` and ``theta - eps``, stacked."""
    return jax.tree.map(lambda t, e: jnp.stack([t + e, t - e]), theta, eps)


def _advance_pair(
    system: System, theta: Theta, eps: Theta, state: PESState
) -> tuple[State, State, Float[Array, " 2"]]:
    """Both members by one truncation, in one batch."""
    both = jax.tree.map(lambda p, m: jnp.stack([p, m]), state.plus, state.minus)
    both, losses = jax.vmap(system.advance)(_around(theta, eps), both)
    plus, minus = (jax.tree.map(lambda x, i=i: x[i], both) for i in (0, 1))
    return plus, minus, losses


def pes_init(
    system: System, theta: Theta, key: Key[Array, ""], fraction: Array | float = 1.0
) -> PESState:
    """A pair at the start of an inner problem."""
    state = system.reset(theta, key, fraction)
    return PESState(state, state, jax.tree.map(jnp.zeros_like, theta))


def pes_advance(
    system: System,
    theta: Theta,
    mask: Theta,
    sigma: float,
    state: PESState,
    key: Key[Array, ""],
) -> tuple[PESState, Float[Array, " 2"]]:
    """Advances one pair by one truncation.

    Args:
      system: the inner problem.
      theta: outer parameters.
      mask: like ``theta``, 1 where it may be perturbed.
      sigma: standard deviation of the perturbations.
      state: the pair.
      key: for the perturbation and a possible reset.

    Returns:
      The pair, with the new perturbation accumulated, and the losses of both members.
    """
    key_reset, key_noise = jax.random.split(key)
    # Both members share the horizon, so one of them decides for the pair.
    state = _restart(system.finished(state.plus), pes_init(system, theta, key_reset), state)
    eps = perturbation(key_noise, theta, mask, sigma)
    plus, minus, losses = _advance_pair(system, theta, eps, state)
    return PESState(plus, minus, jax.tree.map(jnp.add, state.accumulated, eps)), losses


def pes_gradient(
    accumulated: Theta,
    losses: Float[Array, "pairs 2"],
    sigma: float,
    clip: float = float("inf"),
    sign_scale: float | None = None,
) -> Theta:
    """The estimate ``mean_i xi_i (L_i+ - L_i-) / (2 sigma^2)``.

    Args:
      accumulated: perturbations ``xi``, leading axis ``pairs``.
      losses: of both members.
      sigma: standard deviation of the perturbations.
      clip: bound of a difference, in multiples of the median absolute difference. Long unrolls have
        heavy tails; a finite bound trades a little bias for much variance. A difference that is not
        finite counts as zero.
      sign_scale: replaces a difference by its sign times this number.

    Returns:
      A gradient like theta.
    """
    difference = losses[:, 0] - losses[:, 1]
    difference = jnp.where(jnp.isfinite(difference), difference, 0.0)
    if sign_scale is not None:
        difference = sign_scale * jnp.sign(difference)
    elif clip < float("inf"):
        limit = clip * jnp.median(jnp.abs(difference))
        difference = jnp.clip(difference, -limit, limit)
    weights = difference / (2.0 * sigma**2 * difference.shape[0])
    return jax.tree.map(lambda x: jnp.tensordot(weights, x, axes=1), accumulated)


def _pes_contribution(
    sigma: float, system: System, theta: Theta, mask: Theta, state: PESState, key: Key[Array, ""]
) -> tuple[PESState, Contribution]:
    state, losses = pes_advance(system, theta, mask, sigma, state, key)
    return state, Contribution(state.accumulated, losses)


def _single_init(
    system: System, theta: Theta, key: Key[Array, ""], fraction: Array | float = 1.0
) -> PESState:
    """A pair with the noise of its inner problem, still without scale and mask."""
    key_reset, key_noise = jax.random.split(key)
    state = system.reset(theta, key_reset, fraction)
    return PESState(state, state, unit_noise(key_noise, theta))


def _single_advance(
    sigma: float, system: System, theta: Theta, mask: Theta, state: PESState, key: Key[Array, ""]
) -> tuple[PESState, Contribution]:
    """ES-Single: the same perturbation until the inner problem ends."""
    state = _restart(system.finished(state.plus), _single_init(system, theta, key), state)
    eps = _scaled(state.accumulated, mask, sigma)
    plus, minus, losses = _advance_pair(system, theta, eps, state)
    return PESState(plus, minus, state.accumulated), Contribution(eps, losses)


def _state_init(
    system: System, theta: Theta, key: Key[Array, ""], fraction: Array | float = 1.0
) -> State:
    """For estimators that carry the unperturbed state alone."""
    return system.reset(theta, key, fraction)


def _truncated_advance(
    sigma: float, system: System, theta: Theta, mask: Theta, state: State, key: Key[Array, ""]
) -> tuple[State, Contribution]:
    """Truncated ES; the state is carried on under theta itself, the perturbed ones are dropped."""
    key_reset, key_noise = jax.random.split(key)
    state = _restart(system.finished(state), system.reset(theta, key_reset, 1.0), state)
    eps = perturbation(key_noise, theta, mask, sigma)
    points = jax.tree.map(lambda t, e: jnp.stack([t + e, t - e, t]), theta, eps)
    moved, losses = jax.vmap(system.advance, in_axes=(0, None))(points, state)
    return jax.tree.map(lambda x: x[2], moved), Contribution(eps, losses[:2])


def _nothing_init(
    system: System, theta: Theta, key: Key[Array, ""], fraction: Array | float = 1.0
) -> tuple[()]:
    """Full ES starts anew every time, so there is no phase to scatter."""
    del system, theta, key, fraction
    return ()


def _full_advance(
    sigma: float, system: System, theta: Theta, mask: Theta, state: tuple[()], key: Key[Array, ""]
) -> tuple[tuple[()], Contribution]:
    """A whole inner problem; in a batch the longest decides the time. Losses are means over it."""
    key_reset, key_noise = jax.random.split(key)
    eps = perturbation(key_noise, theta, mask, sigma)
    pair = pes_init(system, theta, key_reset)

    def piece(carry: tuple[PESState, Array, Array]) -> tuple[PESState, Array, Array]:
        pair, total, count = carry
        plus, minus, losses = _advance_pair(system, theta, eps, pair)
        return PESState(plus, minus, pair.accumulated), total + losses, count + 1

    start = (pair, jnp.zeros(2), jnp.zeros((), jnp.int32))
    _, total, count = jax.lax.while_loop(
        lambda carry: jnp.logical_not(system.finished(carry[0].plus)), piece, start
    )
    return state, Contribution(eps, total / count)


def _bptt_advance(
    system: System, theta: Theta, mask: Theta, state: State, key: Key[Array, ""]
) -> tuple[State, Contribution]:
    """Truncated BPTT; the state at the start of a truncation counts as a constant."""
    state = _restart(system.finished(state), system.reset(theta, key, 1.0), state)

    def loss_of(theta: Theta) -> tuple[Float[Array, ""], State]:
        moved, loss = system.advance(theta, state)
        return loss, moved

    (loss, moved), gradient = jax.value_and_grad(loss_of, has_aux=True)(theta)
    return moved, Contribution(jax.tree.map(jnp.multiply, gradient, mask), loss[None])


def _bptt_gradient(contributions: Contribution, clip: float) -> Theta:
    """The mean over workers; one whose gradient is not finite counts as zero."""
    leaves = jax.tree.leaves(contributions.direction)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim))) for x in leaves))
    finite = jnp.isfinite(norm)
    norm = jnp.where(finite, norm, 0.0)
    weights = finite / norm.shape[0]
    if clip < float("inf"):
        weights *= jnp.minimum(1.0, clip * jnp.median(norm) / jnp.maximum(norm, 1e-30))

    def mean(x: Array) -> Array:
        # Zero times nan would be nan.
        return jnp.tensordot(weights, jnp.where(jnp.isfinite(x), x, 0.0), axes=1)

    return jax.tree.map(mean, contributions.direction)


_PAIRS: dict[str, tuple[Callable[..., State], Callable[..., tuple[State, Contribution]]]] = {
    "full-es": (_nothing_init, _full_advance),
    "truncated-es": (_state_init, _truncated_advance),
    "pes": (pes_init, _pes_contribution),
    "es-single": (_single_init, _single_advance),
}
