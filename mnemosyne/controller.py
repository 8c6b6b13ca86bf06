# SPDX-License-Identifier: Apache-2.0
"""The token network of ``plus`` mode.

Tokens look at each other, then at their own past, then set the controls:
encoder -> attention over the network -> compact associative memory over time -> feed-forward ->
heads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mnemosyne import encoder, features, memory, performer
from mnemosyne.config import MnemosyneConfig
from mnemosyne.kernels import FEATURE_MAPS, num_directions, orthogonal_directions
from mnemosyne.layout import Layout
from mnemosyne.memory import MemoryState

MetaParams = dict[str, Any]

MAX_LOG_STEP = 7.0
"""Bound of a token's log step size around ``log(1e-3)``: rates from 1e-6 to 1."""
NUM_CONTROLS = 3


class Controls(NamedTuple):
    """What the network decides for each token.

    Attributes:
      log_step: logarithm of the step size relative to 1e-3, within +-``MAX_LOG_STEP``.
      nesterov: weight of the fresh gradient beside the momentum, in (-1, 1).
      beta1: decay of the first moment, around 0.9, in (0.54, 0.986).
      hidden: shift of the residual network's hidden units.
    """

    log_step: Float[Array, " tokens"]
    nesterov: Float[Array, " tokens"]
    beta1: Float[Array, " tokens"]
    hidden: Float[Array, "tokens hidden"]


def init(key: Key[Array, ""], config: MnemosyneConfig) -> MetaParams:
    """Meta-parameters; the heads are zero, so that a fresh network leaves Adam's update alone."""
    names = ("embed", "encoder", "cross", "memory", "ffn", "omega")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    dim, heads = config.dim, len(config.taus)
    inputs = features.NUM_TOKEN_FEATURES + features.NUM_GLOBAL_FEATURES
    key_q, key_k, key_v, key_o = jax.random.split(keys["memory"], 4)
    directions = num_directions(config.kernel, config.num_features)
    theta = {
        "embed": performer.linear_init(keys["embed"], inputs, dim),
        "bias": jnp.zeros(dim),
        "extras": {name: jnp.zeros((features.NUM_EXTRA_FEATURES, dim)) for name in features.EXTRAS},
        "encoder": encoder.init(
            keys["encoder"],
            features.NUM_COORDINATE_FEATURES,
            config.encoder_width,
            config.key_dim,
            dim,
        ),
        "memory": {
            "query": performer.linear_init(key_q, dim, config.key_dim),
            "key": performer.linear_init(key_k, dim, config.key_dim),
            "value": performer.linear_init(key_v, dim, dim),
            "out": 0.5 * performer.linear_init(key_o, heads * dim, dim),
            "log_tau": jnp.log(jnp.asarray(config.taus)),
        },
        "ffn": performer.feed_forward_init(keys["ffn"], dim, dim),
        "heads": jnp.zeros((dim, NUM_CONTROLS)),
        "skip": jnp.zeros((inputs, NUM_CONTROLS)),
        "extras_skip": {
            name: jnp.zeros((features.NUM_EXTRA_FEATURES, NUM_CONTROLS)) for name in features.EXTRAS
        },
        "directions": orthogonal_directions(keys["omega"], directions, config.key_dim),
    }
    if config.cross_token:
        theta["cross"] = performer.attention_init(keys["cross"], dim, config.key_dim)
    if config.residual:
        theta["residual"] = init_residual(jax.random.fold_in(key, 1), config)
    return theta


def init_residual(key: Key[Array, ""], config: MnemosyneConfig) -> dict[str, Array]:
    """Meta-parameters of the per-coordinate network; the output layer is zero."""
    key_in, key_hidden = jax.random.split(key)
    return {
        "in": performer.linear_init(key_in, 4, config.residual_hidden),
        "hidden": performer.linear_init(key_hidden, config.dim, config.residual_hidden),
        "out": jnp.zeros((config.residual_hidden, 2)),
    }


def remember(
    theta: MetaParams,
    config: MnemosyneConfig,
    layout: Layout,
    state: MemoryState,
    x: Float[Array, "tokens dim"],
) -> tuple[Float[Array, "tokens dim"], MemoryState]:
    """Writes the tokens to their slots, then reads back; returns the residual and the memory."""
    weights = theta["memory"]
    feature_map = FEATURE_MAPS[config.kernel]
    normed = performer.rms_norm(x)
    query, key = (
        feature_map(performer.bound_norm(normed @ weights[name]), theta["directions"])
        for name in ("query", "key")
    )
    values = normed @ weights["value"]
    decay = jnp.exp(-jnp.exp(weights["log_tau"]))
    if not layout.shared:
        state = memory.write(state, key, values, decay)
        recalled = memory.read(state, query)
    else:
        state = _write_shared(state, key, values, decay, layout)
        recalled = memory.read(jax.tree.map(lambda a: a[layout.slots], state), query)
    return recalled.reshape(x.shape[0], -1) @ weights["out"], state


def _write_shared(
    state: MemoryState, key: Array, values: Array, decay: Array, layout: Layout
) -> MemoryState:
    """Tokens that share a slot write the mean of their patterns."""
    slots, num = layout.slots, layout.num_slots
    per_slot = jax.ops.segment_sum(jnp.ones(layout.num_tokens), slots, num)
    mean = 1.0 / per_slot[slots]
    outer = jnp.einsum("nr,nd->nrd", key * mean[:, None], values)
    matrix = jax.ops.segment_sum(outer, slots, num)
    mass = jax.ops.segment_sum(key * mean[:, None], slots, num)
    return MemoryState(
        matrix=decay[:, None, None] * state.matrix + matrix[:, None],
        mass=decay[:, None] * state.mass + mass[:, None],
    )


def control(
    theta: MetaParams,
    config: MnemosyneConfig,
    layout: Layout,
    state: MemoryState,
    token_inputs: Float[Array, "tokens inputs"],
    coordinates: Float[Array, "tokens chunks size f"],
    counts: Float[Array, " tokens"],
    extras: dict[str, Float[Array, " 3"]],
) -> tuple[Controls, MemoryState]:
    """One pass of the token network.

    Args:
      theta: meta-parameters from :func:`init`.
      config: the configuration they belong to.
      layout: tokens and memory slots of this network.
      state: memory of the past.
      token_inputs: token and global features, joined.
      coordinates: encoder inputs of the sampled coordinates.
      counts: coordinates a token stands for.
      extras: encoded optional scalars, by name.

    Returns:
      The controls of every token, and the memory.
    """
    feature_map, directions = FEATURE_MAPS[config.kernel], theta["directions"]
    context = sum(extras[name] @ theta["extras"][name] for name in features.EXTRAS)
    weights = jnp.ones(coordinates.shape[:-1])
    encoded = encoder.encode(theta["encoder"], coordinates, weights, feature_map, directions)
    x = token_inputs @ theta["embed"] + theta["bias"] + context + encoded.tokens
    if config.cross_token:
        # Tokens weigh as keys by the logarithm of their size: a bias counts, but a matrix more.
        importance = jnp.log1p(counts)
        x = x + performer.attention(theta["cross"], x, importance, feature_map, directions)
    recalled, state = remember(theta, config, layout, state, x)
    x = x + recalled
    x = x + performer.feed_forward(theta["ffn"], x)
    normed = performer.rms_norm(x)
    direct = sum(extras[name] @ theta["extras_skip"][name] for name in features.EXTRAS)
    out = normed @ theta["heads"] + token_inputs @ theta["skip"] + direct
    hidden = normed @ theta["residual"]["hidden"] if config.residual else normed[:, :0]
    controls = Controls(
        log_step=MAX_LOG_STEP * jnp.tanh(out[:, 0] / MAX_LOG_STEP),
        nesterov=jnp.tanh(out[:, 1]),
        # logit(0.9) = log 9; at zero output this is exactly Adam's 0.9 up to rounding.
        beta1=jax.nn.sigmoid(jnp.log(9.0) + 2.0 * jnp.tanh(out[:, 2])),
        hidden=hidden,
    )
    return controls, state
