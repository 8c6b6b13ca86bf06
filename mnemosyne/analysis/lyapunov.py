# SPDX-License-Identifier: Apache-2.0
"""Finite-time Lyapunov exponents: how fast an unroll forgets, or amplifies, a small perturbation.

The largest exponent is the mean logarithm of what a step does to the length of a perturbation that
is carried along by Jacobian-vector products and renormalized (Benettin et al. 1980). Where it is
clearly positive, gradients through the unroll have a variance that grows like ``exp(2 exponent K)``
with its length ``K`` (Metz et al. 2021, "Gradients are not all you need"), and evolution strategies
are the better estimator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mnemosyne.meta.estimators import System, Theta, evolution

State = Any

THRESHOLD = 0.05
"""Exponent per inner step above which :func:`recommend` says ES.

On the learning-rate toy of Vicol et al. (100 steps), exact gradients are fine at exponents of -0.09
and 0.001, and have 1e10 times the spread of ES at 0.13: about the middle.
"""


def log_growth(
    step: Callable[[State], State], state: State, key: Key[Array, ""], num_steps: int
) -> tuple[State, Float[Array, " steps"]]:
    """Carries a random perturbation along a trajectory.

    Args:
      step: one step of the system; pure, and differentiable in the floating-point leaves that it
        changes. Integers, booleans, keys and leaves that it hands through count as constants.
      state: any pytree of arrays.
      key: draws the perturbation.
      num_steps: steps to make, at least 1.

    Returns:
      The last state, and the logarithm of the perturbation's growth in each step, in nats:
      ``-inf`` once it has died out, not finite where the derivative is not.

    Raises:
      ValueError: if nothing in the state can be perturbed.
    """
    leaves, treedef = jax.tree.flatten(state)
    moves = _moving(step, leaves, treedef)
    if not any(moves):
        raise ValueError("the state has no floating-point leaf that the step changes.")

    def body(
        carry: tuple[list[Array], list[Array]], _: None
    ) -> tuple[tuple[list[Array], list[Array]], Float[Array, ""]]:
        leaves, tangent = carry

        def advance(moving: list[Array]) -> tuple[list[Array], list[Array]]:
            free = iter(moving)
            filled = [next(free) if m else x for m, x in zip(moves, leaves, strict=True)]
            after = jax.tree.leaves(step(treedef.unflatten(filled)))
            return _select(after, moves), after

        _, tangent, leaves = jax.jvp(advance, (_select(leaves, moves),), (tangent,), has_aux=True)
        tangent, length = _normalized(tangent)
        return (leaves, tangent), jnp.log(length)

    tangent = _random_direction(key, _select(leaves, moves))
    (leaves, _), growth = jax.lax.scan(body, (leaves, tangent), None, length=num_steps)
    return treedef.unflatten(leaves), growth


def ftle(
    step: Callable[[State], State], state: State, key: Key[Array, ""], num_steps: int
) -> Float[Array, ""]:
    """The largest finite-time Lyapunov exponent, in nats a step, as of :func:`log_growth`.

    Args:
      step: one step of the system.
      state: where it starts.
      key: draws the perturbation.
      num_steps: steps to make, at least 1.

    Example:
      >>> halve = lambda x: 0.5 * x
      >>> round(float(ftle(halve, jnp.ones(2), jax.random.key(0), 10)), 4)
      -0.6931
    """
    return jnp.mean(log_growth(step, state, key, num_steps)[1])


def unroll_ftle(
    system: System,
    theta: Theta,
    key: Key[Array, ""],
    num_truncations: int,
    steps: int = 1,
    warmup: int = 1,
) -> Float[Array, ""]:
    """The exponent of an inner problem under fixed outer parameters; jittable, vmappable over keys.

    Args:
      system: the inner problem.
      theta: outer parameters.
      key: draws the problem and the perturbation.
      num_truncations: truncations to carry the perturbation along, at least 2; those past the end
        of the problem do not count, nor does the first one (unless it is the only one), because
        there the random perturbation still turns into the direction that grows most.
      steps: inner steps a truncation, so that the result is per inner step.
      warmup: truncations before that; an optimizer that has seen no gradient yet need not be
        differentiable.
    """
    key_reset, key_tangent = jax.random.split(key)
    fresh = system.reset(theta, key_reset, 1.0)
    state, _ = jax.lax.scan(
        lambda s, _: (system.advance(theta, s)[0], None), fresh, None, length=warmup
    )

    def step(carry: tuple[State, Int[Array, ""]]) -> tuple[State, Int[Array, ""]]:
        state, made = carry
        alive = jnp.logical_not(system.finished(state))
        return system.advance(theta, state)[0], made + alive.astype(jnp.int32)

    start = (state, jnp.zeros((), jnp.int32))
    (_, made), growth = log_growth(step, start, key_tangent, num_truncations)
    index = jnp.arange(num_truncations)
    counts = (index < jnp.maximum(made, 1)) & (index >= jnp.clip(made - 1, 0, 1))
    return jnp.sum(jnp.where(counts, growth, 0.0)) / (jnp.sum(counts) * steps)


def recommend(
    exponent: Float[Array, ""] | float, threshold: float = THRESHOLD
) -> Literal["bptt", "es"]:
    """Which kind of estimator suits an unroll; not for use under ``jit``.

    Args:
      exponent: per inner step. Not a number, or infinitely large, means ES.
      threshold: above it, ES. :func:`variance_threshold` gives one for given sizes.

    Example:
      >>> recommend(-0.1), recommend(0.3), recommend(float("nan"))
      ('bptt', 'es', 'es')
    """
    return "bptt" if float(exponent) <= threshold else "es"


def variance_threshold(num_steps: int, num_params: int, num_pairs: int) -> float:
    """The exponent at which both kinds have the same variance, in nats a step.

    Through ``K`` steps the squared gradient is amplified by ``exp(2 exponent K)``; antithetic ES
    has a total variance of ``(P + 1) / pairs`` times the squared norm of the gradient (Vicol et al.
    2023, proposition 3.2), for ``P`` outer parameters. The variance that BPTT has without chaos is
    left out.

    Args:
      num_steps: ``K``, at least 1.
      num_params: ``P``, at least 1.
      num_pairs: antithetic pairs, at least 1.

    Example:
      >>> round(variance_threshold(50, 4701, 8), 3)
      0.064
    """
    return 0.5 * math.log((num_params + 1) / num_pairs) / num_steps


def _moving(step: Callable[[State], State], leaves: list[Array], treedef: Any) -> list[bool]:
    """Which leaves are floating-point numbers that the step does not simply hand through.

    A parameter that is kept in the state would otherwise count as a direction that never shrinks.
    """
    flat_step = jax.make_jaxpr(lambda *x: jax.tree.leaves(step(treedef.unflatten(x))))
    jaxpr = flat_step(*leaves).jaxpr
    return [
        jnp.issubdtype(leaf.dtype, jnp.floating) and before is not after
        for leaf, before, after in zip(leaves, jaxpr.invars, jaxpr.outvars, strict=True)
    ]


def _select(leaves: list[Array], chosen: list[bool]) -> list[Array]:
    return [leaf for leaf, take in zip(leaves, chosen, strict=True) if take]


def _random_direction(key: Key[Array, ""], leaves: list[Array]) -> list[Array]:
    """A perturbation of length 1, entries in proportion to those of the state.

    Units differ by orders of magnitude between weights and second moments; a perturbation of equal
    size in both would say more about units than about the system.
    """
    drawn = evolution.unit_noise(key, leaves)
    scaled = [
        (noise * (jnp.abs(leaf) + 1e-6)).astype(leaf.dtype)
        for noise, leaf in zip(drawn, leaves, strict=True)
    ]
    return _normalized(scaled)[0]


def _normalized(tangent: list[Array]) -> tuple[list[Array], Float[Array, ""]]:
    """The direction and the length of a perturbation; one without length stays as it is."""
    length = jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in tangent))
    scale = 1.0 / jnp.where(length > 0, length, 1.0)
    return [x * scale.astype(x.dtype) for x in tangent], length
