# SPDX-License-Identifier: Apache-2.0
"""Moments in bfloat16, for users who are short of memory.

A second moment that decays by 0.99 changes by less than half a unit in the last place of bfloat16
(1/256) whenever the squared gradient is within 40 % of it; rounding to the nearest number would
then never move it. Rounding up or down at random, in proportion, keeps the mean right (Gupta et al.
2015, "Deep Learning with Limited Numerical Precision").
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MU_DTYPES = {"float32": jnp.float32, "bfloat16-mu": jnp.bfloat16, "lean": jnp.bfloat16}
"""Type of the first moment by ``MnemosyneConfig.moments``."""
NU_DTYPES = {"float32": jnp.float32, "bfloat16-mu": jnp.float32, "lean": jnp.bfloat16}
"""Type of the second moment."""

_MIX = (2654435761, 2246822519)  # odd constants of Knuth and of xxHash


def _bits(x: Float[Array, "*n"]) -> Array:
    return jax.lax.bitcast_convert_type(x, jnp.uint32)


def round_stochastically(x: Float[Array, "*n"], *noise: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Rounds to numbers that bfloat16 can hold, up or down in proportion to the distance.

    The randomness comes from the low bits of other numbers at the same place, so that no key is
    needed and permuted coordinates are rounded alike.

    Args:
      x: float32, finite, not negative.
      noise: float32 numbers whose last bits are as good as random.

    Returns:
      float32 numbers whose conversion to bfloat16 is exact.
    """
    mixed = _bits(x) * jnp.uint32(_MIX[0])
    for other in noise:
        mixed = (mixed ^ (mixed >> 15) ^ _bits(other)) * jnp.uint32(_MIX[1])
    dither = mixed >> 16  # the high half of a product is mixed best
    return jax.lax.bitcast_convert_type((_bits(x) + dither) & jnp.uint32(0xFFFF0000), jnp.float32)
