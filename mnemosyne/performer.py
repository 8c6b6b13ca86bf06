# SPDX-License-Identifier: Apache-2.0
"""Bidirectional linear attention: the Performer block (Choromanski et al. 2021) on few tokens.

Parameters are plain dictionaries of arrays, so that meta-training can vmap and perturb them.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mnemosyne.kernels import FeatureMap

Params = dict[str, Array]


def linear_init(key: Key[Array, ""], fan_in: int, fan_out: int) -> Float[Array, "fan_in fan_out"]:
    """A weight matrix with entries of variance ``1 / fan_in``."""
    return jax.random.normal(key, (fan_in, fan_out)) / math.sqrt(fan_in)


def rms_norm(x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """``x / rms(x)`` along the last axis, without learned scale; zero stays zero."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def bound_norm(x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """``x / sqrt(1 + |x|^2)``: smooth, direction kept, length below 1.

    Random features are accurate on vectors this short.
    """
    return x * jax.lax.rsqrt(1.0 + jnp.sum(jnp.square(x), axis=-1, keepdims=True))


def linear_attention(
    query_features: Float[Array, "*b n r"],
    key_features: Float[Array, "*b n r"],
    values: Float[Array, "*b n d"],
    weights: Float[Array, "*b n"],
) -> Float[Array, "*b n d"]:
    """Attention of every token to all tokens, ``Q (K^T V) / Q (K^T 1)``, in time linear in ``n``.

    Args:
      query_features: positive features of the queries.
      key_features: positive features of the keys.
      values: what is averaged.
      weights: how much each token counts as a key; 0 for padding.

    Returns:
      A convex combination of the values for each query.
    """
    # A column of ones beside the values gives the normalisation in the same two products.
    extended = jnp.concatenate([values, jnp.ones_like(values[..., :1])], axis=-1)
    sums = jnp.swapaxes(key_features, -1, -2) @ (extended * weights[..., None])
    read = query_features @ sums
    return read[..., :-1] / (read[..., -1:] + 1e-9)


def attention_init(key: Key[Array, ""], dim: int, key_dim: int) -> Params:
    """Parameters of :func:`attention`; damped output, so a fresh block is near the identity."""
    key_in, key_out = jax.random.split(key)
    return {
        "qkv": linear_init(key_in, dim, 2 * key_dim + dim),
        "out": 0.5 * linear_init(key_out, dim, dim),
    }


def query_key_value(
    x: Float[Array, "*b n d"],
    weights: Float[Array, "d out"],
    feature_map: FeatureMap,
    directions: Float[Array, "m k"],
) -> tuple[Float[Array, "*b n r"], Float[Array, "*b n r"], Float[Array, "*b n v"]]:
    """Features of queries and keys, and values, of pre-normalised tokens; one matrix product.

    Args:
      x: tokens.
      weights: queries, keys and values side by side.
      feature_map: kernel features.
      directions: the features' fixed directions; their width is that of a key.
    """
    width = directions.shape[1]
    projected = rms_norm(x) @ weights
    both = jnp.stack([projected[..., :width], projected[..., width : 2 * width]])
    query, key = feature_map(bound_norm(both), directions)
    return query, key, projected[..., 2 * width :]


def attention(
    params: Params,
    x: Float[Array, "*b n d"],
    weights: Float[Array, "*b n"],
    feature_map: FeatureMap,
    directions: Float[Array, "m k"],
) -> Float[Array, "*b n d"]:
    """Pre-normalised linear self-attention, without the residual connection."""
    query, key, values = query_key_value(x, params["qkv"], feature_map, directions)
    return linear_attention(query, key, values, weights) @ params["out"]


def feed_forward_init(key: Key[Array, ""], dim: int, hidden: int) -> Params:
    """Parameters of :func:`feed_forward`."""
    key_in, key_out = jax.random.split(key)
    return {
        "in": linear_init(key_in, dim, hidden),
        "bias": jnp.zeros(hidden),
        "out": 0.5 * linear_init(key_out, hidden, dim),
    }


def feed_forward(params: Params, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """Pre-normalised two-layer perceptron, without the residual connection."""
    return jax.nn.relu(rms_norm(x) @ params["in"] + params["bias"]) @ params["out"]


def block_init(key: Key[Array, ""], dim: int, key_dim: int, hidden: int) -> dict[str, Params]:
    """Parameters of :func:`block`."""
    key_attention, key_ffn = jax.random.split(key)
    return {
        "attention": attention_init(key_attention, dim, key_dim),
        "ffn": feed_forward_init(key_ffn, dim, hidden),
    }


def block(
    params: dict[str, Params],
    x: Float[Array, "*b n d"],
    weights: Float[Array, "*b n"],
    feature_map: FeatureMap,
    directions: Float[Array, "m k"],
) -> Float[Array, "*b n d"]:
    """Attention and feed-forward, each with a residual connection; permutation equivariant."""
    x = x + attention(params["attention"], x, weights, feature_map, directions)
    return x + feed_forward(params["ffn"], x)
