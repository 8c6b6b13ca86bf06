# SPDX-License-Identifier: Apache-2.0
"""The ``plus`` update of one tensor: Adam with learned step and decays, and a bounded residual.

    m <- beta1 m + (1 - beta1) g          u = m / mass1 / sqrt(v / mass2)
    v <- beta2 v + (1 - beta2) g^2        h = g         / sqrt(v / mass2)
    adam   = u (1 + r1) + h (nesterov + r2)
    update = -1e-3 exp(log_step) * ((1 - w) adam + 0.3 w polar(m / mass1 + nesterov g))

``polar`` is the momentum of a matrix, orthogonalised tile by tile (:mod:`mnemosyne.polar`), and
``w`` its weight, 0 for all that is no matrix. ``r1`` and ``r2`` are the residual: readouts of four
bounded functions of the coordinate, with coefficients that the network chooses for each token. The
functions do not change when gradient and parameter flip sign, so the update flips with them, and it
vanishes where the gradient history does.

All but ``polar`` is scalar arithmetic without transcendental functions: XLA fuses it into one
vectorized loop over the coordinates, where a matrix product would materialise ``n x features``
arrays.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

BASE_STEP = 1e-3
NEGLIGIBLE = 1e-24
"""Squared gradients this small, in units of the largest, count as none: a coordinate with no larger
history does not move. Derivatives, which meta-training needs, would overflow."""
POLAR_SCALE = 0.3
"""Size of the orthogonalised direction beside Adam's: the best rates of both are then alike."""
NUM_BASIS = 4
"""Functions of a coordinate that the residual reads."""


class Controls(NamedTuple):
    """What the network decides for each token, or for each row of one.

    Attributes:
      log_step: logarithm of the step size relative to 1e-3, gain included.
      log_gain: the part of it that is kept from update to update.
      nesterov: weight of the fresh gradient beside the momentum, in (-1, 1).
      beta1: decay of the first moment, in (0, 1).
      beta2: decay of the second moment, in (0, 1).
      polar: weight of the orthogonalised momentum, in (-1, 1).
      momentum_gates: coefficients of ``r1``, each in (-0.5, 0.5); no columns without a residual.
      gradient_gates: coefficients of ``r2``.
    """

    log_step: Float[Array, " tokens"]
    log_gain: Float[Array, " tokens"]
    nesterov: Float[Array, " tokens"]
    beta1: Float[Array, " tokens"]
    beta2: Float[Array, " tokens"]
    polar: Float[Array, " tokens"]
    momentum_gates: Float[Array, "tokens basis"]
    gradient_gates: Float[Array, "tokens basis"]


class Moments(NamedTuple):
    """First and second moment of one tensor, in units of the running gradient scale."""

    mu: Float[Array, "rows width"]
    nu: Float[Array, "rows width"]


class Coefficients(NamedTuple):
    """All that the loop over coordinates needs to know of a row.

    Attributes:
      keep_mu: factor of the old first moment.
      add_mu: factor of the gradient in the new one.
      keep_nu: factor of the old second moment.
      add_nu: factor of the squared gradient in the new one.
      correct_mu: bias correction of the new first moment.
      correct_nu: bias correction of the new second moment.
      step: step size.
      nesterov: weight of the fresh gradient.
      polar: weight of the orthogonalised momentum.
      inverse_rms_p: 1 over the rms of the parameter, 0 where it is zero or unknown.
      momentum_gates: see :class:`Controls`.
      gradient_gates: see :class:`Controls`.
    """

    keep_mu: Float[Array, "rows 1"]
    add_mu: Float[Array, "rows 1"]
    keep_nu: Float[Array, "rows 1"]
    add_nu: Float[Array, "rows 1"]
    correct_mu: Float[Array, "rows 1"]
    correct_nu: Float[Array, "rows 1"]
    step: Float[Array, "rows 1"]
    nesterov: Float[Array, "rows 1"]
    polar: Float[Array, "rows 1"]
    inverse_rms_p: Float[Array, "rows 1"]
    momentum_gates: Float[Array, "rows basis"]
    gradient_gates: Float[Array, "rows basis"]

    def rows(self, tokens: np.ndarray) -> Coefficients:
        """The coefficients of each row, given its token; one gather for all of them."""
        # The barrier keeps their arithmetic out of the loops over coordinates.
        table = jax.lax.optimization_barrier(jnp.concatenate(self, axis=1)[tokens])
        edges = np.cumsum([part.shape[1] for part in self])[:-1]
        return Coefficients(*jnp.split(table, edges, axis=1))


def safe_sqrt(x: Array) -> Array:
    """``sqrt(x)`` for ``x >= 0``; 0, with derivative 0, below :data:`NEGLIGIBLE`."""
    known = x > NEGLIGIBLE
    return jnp.where(known, jnp.sqrt(jnp.where(known, x, 1.0)), 0.0)


def inverse_sqrt(x: Array) -> Array:
    """``1 / sqrt(x)`` for ``x >= 0``; 0, with derivative 0, below :data:`NEGLIGIBLE`."""
    known = x > NEGLIGIBLE
    return jnp.where(known, 1.0 / jnp.sqrt(jnp.where(known, x, 1.0)), 0.0)


def _squash(x: Array) -> Array:
    """``x / sqrt(1 + x^2)``, bounded by 1; cheaper than a division."""
    return x * jax.lax.rsqrt(1.0 + jnp.square(x))


def basis(u: Array, h: Array, p: Array) -> tuple[Array, Array, Array, Array]:
    """The functions that the residual reads, each within [-1, 1].

    Args:
      u: normalised momentum.
      h: normalised gradient.
      p: parameter over the rms of its token.

    Returns:
      Size of momentum and of gradient, their agreement, and whether the momentum shrinks the
      parameter.
    """
    u, h, p = _squash(u), _squash(h), _squash(p)
    return jnp.abs(u), jnp.abs(h), u * h, u * p


def _readout(coefficients: Float[Array, "rows basis"], functions: tuple[Array, ...]) -> Array:
    return sum(
        (coefficients[:, i : i + 1] * function for i, function in enumerate(functions)),
        start=jnp.zeros(()),
    )


def momentum(
    g: Float[Array, "rows width"], mu: Float[Array, "rows width"], row: Coefficients
) -> Float[Array, "rows width"]:
    """The first moment with this gradient."""
    return row.keep_mu * mu + row.add_mu * g


def lookahead(
    g: Float[Array, "rows width"], mu: Float[Array, "rows width"], row: Coefficients
) -> Float[Array, "rows width"]:
    """What is orthogonalised: the new first moment, with a share of the fresh gradient."""
    return mu * row.correct_mu + row.nesterov * g


def update_rows(
    g: Float[Array, "rows width"],
    moments: Moments,
    p: Float[Array, "rows width"],
    polar: Float[Array, "rows width"] | None,
    row: Coefficients,
) -> tuple[Float[Array, "rows width"], Float[Array, "rows width"]]:
    """The equations of the module docstring, for rows that each belong to one token.

    Args:
      g: gradient in units of the running scale.
      moments: the first one with this gradient, see :func:`momentum`; the second one before it.
      p: parameter.
      polar: the orthogonalised first moment, ``None`` for an optimizer without.
      row: coefficients of each row.

    Returns:
      The update and the new second moment.
    """
    nu = row.keep_nu * moments.nu + row.add_nu * jnp.square(g)
    inverse = inverse_sqrt(nu * row.correct_nu)
    u = moments.mu * row.correct_mu * inverse
    h = g * inverse
    momentum_gate, gradient_gate = jnp.ones(()), row.nesterov
    if row.momentum_gates.shape[1]:
        functions = basis(u, h, p * row.inverse_rms_p)
        momentum_gate = momentum_gate + _readout(row.momentum_gates, functions)
        gradient_gate = gradient_gate + _readout(row.gradient_gates, functions)
    direction = u * momentum_gate + h * gradient_gate
    if polar is not None:
        # Coordinates of a tile share their rows; one without a history stays where it is.
        known = jnp.where(inverse > 0, POLAR_SCALE * polar, 0.0)
        direction = direction + row.polar * (known - direction)
    return -row.step * direction, nu
