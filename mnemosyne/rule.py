# SPDX-License-Identifier: Apache-2.0
"""The ``plus`` update of one tensor: Adam with learned step and momentum, and a bounded residual.

    m <- beta1 m + (1 - beta1) g          u = m / mass1 / sqrt(v / mass2)
    v <- beta2 v + (1 - beta2) g^2        h = g         / sqrt(v / mass2)
    update = -1e-3 exp(log_step) * (u (1 + r1) + h (nesterov + r2))

``r1, r2`` come from a four-input network of ratios that do not change when gradient and parameter
flip sign, so the update flips with them, and it vanishes where the gradient history does. It is
written as unrolled scalar arithmetic: XLA fuses it into one loop over the coordinates, where a
matrix product would materialise ``n x features`` arrays.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from mnemosyne.controller import Controls

BASE_STEP = 1e-3
BETA2 = 0.99
EPS = 1e-16


class Moments(NamedTuple):
    """First and second moment of one tensor, in units of the running gradient scale."""

    mu: Float[Array, "rows width"]
    nu: Float[Array, "rows width"]


class Corrections(NamedTuple):
    """Bias corrections: the weight that the moving averages have gathered so far, in (0, 1]."""

    mu: Float[Array, " rows"]
    nu: Float[Array, ""]


def _squash(x: Array) -> Array:
    """``x / (1 + |x|)``: bounded by 1, no transcendental function."""
    return x / (1.0 + jnp.abs(x))


def residual_gates(
    weights: dict[str, Array],
    hidden: Float[Array, "rows hidden"],
    u: Float[Array, "rows width"],
    h: Float[Array, "rows width"],
    p: Float[Array, "rows width"],
) -> tuple[Float[Array, "rows width"], Float[Array, "rows width"]]:
    """``r1, r2`` of the module docstring, each in (-1, 1).

    Args:
      weights: ``in [4, hidden]`` and ``out [hidden, 2]``.
      hidden: the tokens' shift of the hidden units.
      u: normalised momentum.
      h: normalised gradient.
      p: parameter over the rms of its token.
    """
    inputs = (jnp.abs(_squash(u)), jnp.abs(_squash(h)), _squash(u * h), _squash(u * p))
    r1, r2 = jnp.zeros(()), jnp.zeros(())
    for j in range(hidden.shape[1]):
        unit = hidden[:, j : j + 1]
        for i, x in enumerate(inputs):
            unit = unit + weights["in"][i, j] * x
        unit = jnp.maximum(unit, 0.0)
        r1 = r1 + weights["out"][j, 0] * unit
        r2 = r2 + weights["out"][j, 1] * unit
    return _squash(r1), _squash(r2)


def update_rows(
    g: Float[Array, "rows width"],
    moments: Moments,
    p: Float[Array, "rows width"],
    controls: Controls,
    corrections: Corrections,
    residual: dict[str, Array] | None,
    inverse_rms_p: Float[Array, " rows"],
) -> tuple[Float[Array, "rows width"], Moments]:
    """The equations of the module docstring, for rows that each belong to one token.

    Args:
      g: gradient in units of the running scale.
      moments: before this gradient.
      p: parameter.
      controls: of each row's token.
      corrections: after this gradient.
      residual: weights of the per-coordinate network, or ``None``.
      inverse_rms_p: 1 over the rms of the parameter, 0 where it is zero or unknown.

    Returns:
      The update and the new moments.
    """
    beta1 = controls.beta1[:, None]
    mu = beta1 * moments.mu + (1.0 - beta1) * g
    nu = BETA2 * moments.nu + (1.0 - BETA2) * jnp.square(g)
    inverse = 1.0 / (jnp.sqrt(nu / corrections.nu) + EPS)
    u = mu / corrections.mu[:, None] * inverse
    h = g * inverse
    momentum_gate, gradient_gate = jnp.ones(()), controls.nesterov[:, None]
    if residual is not None:
        r1, r2 = residual_gates(residual, controls.hidden, u, h, p * inverse_rms_p[:, None])
        momentum_gate, gradient_gate = momentum_gate + r1, gradient_gate + r2
    step = BASE_STEP * jnp.exp(controls.log_step)[:, None]
    return -step * (u * momentum_gate + h * gradient_gate), Moments(mu, nu)
