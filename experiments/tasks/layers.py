# SPDX-License-Identifier: Apache-2.0
"""Layers of the benchmark networks, as pure functions on dictionaries of arrays.

Written for the CPU under ``vmap`` and ``scan``: products instead of convolutions, one-hot products
instead of gathers.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

Layer = dict[str, Any]


def dense(key: Key[Array, ""], fan_in: int, fan_out: int, gain: float = 1.0) -> Layer:
    """A dense layer: weights of variance ``gain / fan_in``, biases zero."""
    kernel = jax.random.normal(key, (fan_in, fan_out)) * math.sqrt(gain / fan_in)
    return {"kernel": kernel, "bias": jnp.zeros(fan_out)}


def apply_dense(layer: Layer, x: Float[Array, "*batch fan_in"]) -> Float[Array, "*batch fan_out"]:
    """Product and bias."""
    return x @ layer["kernel"] + layer["bias"]


def norm(width: int) -> Layer:
    """The scale and offset of a layer normalisation."""
    return {"scale": jnp.ones(width), "offset": jnp.zeros(width)}


def apply_norm(layer: Layer, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """Layer normalisation over the last axis (Ba et al. 2016)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-5) * layer["scale"] + layer["offset"]


def embedding(key: Key[Array, ""], vocabulary: int, width: int, scale: float = 1.0) -> Array:
    """A table of Gaussian vectors, ``[vocabulary, width]``."""
    return scale * jax.random.normal(key, (vocabulary, width))


def apply_embedding(table: Float[Array, "vocabulary width"], tokens: Int[Array, "*batch"]) -> Array:
    """Rows of the table, ``[*batch, width]``."""
    return jax.nn.one_hot(tokens, table.shape[0]) @ table


def block(key: Key[Array, ""], width: int, hidden: int) -> Layer:
    """A pre-norm transformer block: attention, then a two-layer perceptron."""
    names = ("qkv", "out", "up", "down")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    return {
        "norm_attention": norm(width),
        "qkv": dense(keys["qkv"], width, 3 * width),
        "out": dense(keys["out"], width, width),
        "norm_hidden": norm(width),
        "up": dense(keys["up"], width, hidden),
        "down": dense(keys["down"], hidden, width),
    }


def apply_block(
    layer: Layer, x: Float[Array, "batch tokens width"], heads: int, causal: bool
) -> Float[Array, "batch tokens width"]:
    """Both residual branches; ``causal`` keeps tokens from seeing later ones."""
    x = x + _attention(layer, apply_norm(layer["norm_attention"], x), heads, causal)
    hidden = jax.nn.gelu(apply_dense(layer["up"], apply_norm(layer["norm_hidden"], x)))
    return x + apply_dense(layer["down"], hidden)


def _attention(layer: Layer, x: Array, heads: int, causal: bool) -> Array:
    batch, tokens, width = x.shape
    split = apply_dense(layer["qkv"], x).reshape(batch, tokens, 3, heads, width // heads)
    query, key, value = split.transpose(2, 0, 3, 1, 4)
    scores = query @ key.swapaxes(-1, -2) / math.sqrt(width // heads)
    if causal:
        scores = jnp.where(jnp.tri(tokens, dtype=bool), scores, -1e9)
    mixed = jax.nn.softmax(scores) @ value
    return apply_dense(layer["out"], mixed.transpose(0, 2, 1, 3).reshape(batch, tokens, width))
