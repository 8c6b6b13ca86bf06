# SPDX-License-Identifier: Apache-2.0
"""Random-feature maps whose inner products estimate the softmax kernel ``exp(q . k)``.

FAVOR+ positive features (Choromanski et al. 2021, "Rethinking Attention with Performers") and their
hyperbolic-cosine form, which the compact associative memory of Mnemosyne uses (Jain et al. 2023,
arXiv 2302.01128, appendix A.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

KernelName = Literal["cosh", "exp", "relu", "elu", "ema"]
FeatureMap = Callable[[Float[Array, "*n d"], Float[Array, "m d"]], Float[Array, "*n r"]]


def cosh_features(x: Float[Array, "*n d"], directions: Float[Array, "m d"]) -> Float[Array, "*n r"]:
    """Hyperbolic-cosine features, ``r = 2 m``: unbiased, and never worse than :func:`exp_features`.

    ``phi(x) = exp(-|x|^2 / 2) / sqrt(2 m) * [exp(w_i . x), exp(-w_i . x)]``

    Args:
      x: keys or queries. Keep ``|x| <= 1``: the noise grows like ``sinh(|q + k|^2 / 2)``.
      directions: the ``w_i``, standard normal rows (see :func:`orthogonal_directions`).

    Returns:
      Positive features, float32.
    """
    projection = x @ directions.T
    norm = 0.5 * jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    both = jnp.concatenate([projection, -projection], axis=-1)
    return jnp.exp(both - norm) / math.sqrt(2 * directions.shape[0])


def exp_features(x: Float[Array, "*n d"], directions: Float[Array, "m d"]) -> Float[Array, "*n r"]:
    """Positive features of FAVOR+, ``r = m``: ``exp(w_i . x - |x|^2 / 2) / sqrt(m)``."""
    norm = 0.5 * jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return jnp.exp(x @ directions.T - norm) / math.sqrt(directions.shape[0])


def relu_features(x: Float[Array, "*n d"], directions: Float[Array, "m d"]) -> Float[Array, "*n r"]:
    """``relu(w_i . x) + 1e-3``; the offset keeps the read-out's denominator positive."""
    return (jax.nn.relu(x @ directions.T) + 1e-3) / math.sqrt(directions.shape[0])


def elu_features(x: Float[Array, "*n d"], directions: Float[Array, "m d"]) -> Float[Array, "*n r"]:
    """``elu(w_i . x) + 1`` (Katharopoulos et al. 2020), always positive."""
    return (jax.nn.elu(x @ directions.T) + 1.0) / math.sqrt(directions.shape[0])


def ema_features(x: Float[Array, "*n d"], directions: Float[Array, "m d"]) -> Float[Array, "*n r"]:
    """Features of the zero key.

    Every pattern looks alike, so a memory becomes a bias-corrected moving average.
    """
    return cosh_features(jnp.zeros_like(x), directions)


FEATURE_MAPS: dict[KernelName, FeatureMap] = {
    "cosh": cosh_features,
    "exp": exp_features,
    "relu": relu_features,
    "elu": elu_features,
    "ema": ema_features,
}


def num_directions(kernel: KernelName, num_features: int) -> int:
    """Directions needed for ``num_features`` features; cosh-type maps use each of them twice."""
    if num_features < 2 or num_features % 2:
        raise ValueError(f"num_features must be even and at least 2, got {num_features}.")
    return num_features // 2 if kernel in ("cosh", "ema") else num_features


def orthogonal_directions(key: Key[Array, ""], num: int, dim: int) -> Float[Array, "num dim"]:
    """Rows that are standard normal one by one and orthogonal in blocks of ``dim``.

    Orthogonality lowers the kernel's variance at no cost (Choromanski et al. 2021, section 3.3).

    Args:
      key: PRNG key.
      num: number of rows.
      dim: width of keys and queries.

    Returns:
      float32 array.
    """
    key_basis, key_length = jax.random.split(key)
    blocks = -(-num // dim)
    gaussian = jax.random.normal(key_basis, (blocks, dim, dim))
    # One QR for all blocks, never inside a vmapped program: two batched QRs there can dead-lock
    # the thread pool of the CPU.
    basis, _ = jnp.linalg.qr(gaussian)
    lengths = jnp.linalg.norm(jax.random.normal(key_length, (blocks * dim, dim)), axis=-1)
    return (basis.reshape(blocks * dim, dim) * lengths[:, None])[:num]


def relative_std(
    q: Float[Array, " d"], k: Float[Array, " d"], num_features: int
) -> Float[Array, ""]:
    """Relative standard deviation of the cosh estimate of ``exp(q . k)`` with ``r`` features.

    ``2 sinh(|q + k|^2 / 2) / sqrt(r)`` for independent directions; orthogonal ones do slightly
    better.
    """
    return 2.0 * jnp.sinh(0.5 * jnp.sum(jnp.square(q + k))) / math.sqrt(num_features)
