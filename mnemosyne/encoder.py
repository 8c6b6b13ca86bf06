# SPDX-License-Identifier: Apache-2.0
"""Hierarchical pooling encoder: coordinates to tokens in two levels of bidirectional Performers.

Figure 1 of Mnemosyne (Jain et al. 2023, arXiv 2302.01128): a tensor is vectorised and chunked, each
chunk is encoded by a Performer and pooled, and the pooled vectors are encoded and pooled once more
into the memory's input.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mnemosyne import performer
from mnemosyne.kernels import FeatureMap


class Encoding(NamedTuple):
    """What the encoder knows at each level; a skip decoder reads all three.

    Attributes:
      coordinates: after the first Performer.
      chunks: after the second Performer.
      tokens: the pooled result.
    """

    coordinates: Float[Array, "tokens chunks size d1"]
    chunks: Float[Array, "tokens chunks d1"]
    tokens: Float[Array, "tokens d"]


def init(
    key: Key[Array, ""], num_inputs: int, width: int, key_dim: int, dim: int
) -> dict[str, Any]:
    """Parameters of :func:`encode`.

    Args:
      key: PRNG key.
      num_inputs: features a coordinate.
      width: ``d1``, width of both Performer levels.
      key_dim: width of keys and queries.
      dim: width of the tokens.

    Returns:
      A dictionary of float32 arrays.
    """
    key_embed, key_first, key_second, key_pool = jax.random.split(key, 4)
    return {
        "embed": performer.linear_init(key_embed, num_inputs, width),
        "bias": jnp.zeros(width),
        "first": performer.block_init(key_first, width, key_dim, width),
        "second": performer.block_init(key_second, width, key_dim, width),
        "pool": performer.linear_init(key_pool, width, dim),
    }


def _mean(x: Float[Array, "*b n d"], weights: Float[Array, "*b n"]) -> Float[Array, "*b d"]:
    total = jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-9)
    return jnp.einsum("...nd,...n->...d", x, weights) / total


def encode(
    params: dict[str, Any],
    inputs: Float[Array, "tokens chunks size f"],
    weights: Float[Array, "tokens chunks size"],
    feature_map: FeatureMap,
    directions: Float[Array, "m k"],
) -> Encoding:
    """Encodes coordinates into tokens.

    Args:
      params: from :func:`init`.
      inputs: features of the coordinates, float32.
      weights: 1 for coordinates, 0 for padding.
      feature_map: kernel features of both levels.
      directions: the features' fixed directions.

    Returns:
      All levels. Permuting coordinates inside a chunk, or whole chunks, does not change the tokens.
    """
    embedded = inputs @ params["embed"] + params["bias"]
    coordinates = performer.block(params["first"], embedded, weights, feature_map, directions)
    chunk_weights = jnp.mean(weights, axis=-1)
    pooled = _mean(coordinates, weights)
    chunks = performer.block(params["second"], pooled, chunk_weights, feature_map, directions)
    tokens = jax.nn.relu(_mean(chunks, chunk_weights)) @ params["pool"]
    return Encoding(coordinates, chunks, tokens)
