# SPDX-License-Identifier: Apache-2.0
"""The token network of ``plus`` mode.

Tokens look at each other, then at their own past, then set the controls:
encoder -> attention over the network -> compact associative memory over time -> feed-forward ->
heads.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mnemosyne import encoder, features, memory, performer, rule
from mnemosyne.config import MnemosyneConfig
from mnemosyne.kernels import FEATURE_MAPS, num_directions, orthogonal_directions
from mnemosyne.layout import Layout
from mnemosyne.memory import MemoryState
from mnemosyne.rule import Controls

MetaParams = dict[str, Any]

MAX_LOG_STEP = 9.0
"""Bound of a token's log step size around ``log(1e-3)``: rates from 1e-7 to 8."""
NUM_SCALARS = 7
"""Step size, Nesterov weight, the two decays, the weight of the orthogonalised momentum, and
direction and pace of the change of the gain."""


def init(key: Key[Array, ""], config: MnemosyneConfig) -> MetaParams:
    """Meta-parameters; the heads are zero, so that a fresh network leaves Adam's update alone."""
    names = ("embed", "encoder", "cross", "memory", "ffn", "omega")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    dim, heads = config.dim, len(config.taus)
    key_in, key_out = jax.random.split(keys["memory"])
    directions = num_directions(config.kernel, config.num_features)
    theta = {
        "embed": _init_embed(keys["embed"], dim),
        "bias": jnp.zeros(dim),
        "memory": {
            "qkv": performer.linear_init(key_in, dim, 2 * config.key_dim + dim),
            "out": 0.5 * performer.linear_init(key_out, heads * dim, dim),
            "log_tau": jnp.log(jnp.asarray(config.taus)),
        },
        "ffn": performer.feed_forward_init(keys["ffn"], dim, dim),
        "heads": jnp.zeros((dim, NUM_SCALARS)),
        "skip": jnp.zeros((features.NUM_INPUTS, NUM_SCALARS)),
        "directions": orthogonal_directions(keys["omega"], directions, config.key_dim),
    }
    if config.encoder:
        theta["encoder"] = encoder.init(
            keys["encoder"],
            features.NUM_COORDINATE_FEATURES,
            config.encoder_width,
            config.key_dim,
            dim,
        )
    if config.cross_token:
        theta["cross"] = performer.attention_init(keys["cross"], dim, config.key_dim)
    if config.residual:
        theta["residual"] = jnp.zeros((dim, 2 * rule.NUM_BASIS))
    return theta


def _init_embed(key: Key[Array, ""], dim: int) -> Float[Array, "inputs dim"]:
    """Weights of the inputs; zero for the extras, so that a host without them is the default."""
    known = features.NUM_TOKEN_FEATURES + features.NUM_GLOBAL_FEATURES
    weights = performer.linear_init(key, known, dim)
    return jnp.zeros((features.NUM_INPUTS, dim)).at[:known].set(weights)


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
    query, key, values = performer.query_key_value(
        x, weights["qkv"], feature_map, theta["directions"]
    )
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
    log_gain: Float[Array, " tokens"],
) -> tuple[Controls, MemoryState]:
    """One pass of the token network.

    Args:
      theta: meta-parameters from :func:`init`.
      config: the configuration they belong to.
      layout: tokens and memory slots of this network.
      state: memory of the past.
      token_inputs: token features, global features and extras, joined.
      coordinates: encoder inputs of the sampled coordinates.
      counts: coordinates a token stands for.
      log_gain: what steps have been multiplied by so far, see :mod:`mnemosyne.path`.

    Returns:
      The controls of every token, and the memory.
    """
    feature_map, directions = FEATURE_MAPS[config.kernel], theta["directions"]
    x = token_inputs @ theta["embed"] + theta["bias"]
    if config.encoder:
        weights = jnp.ones(coordinates.shape[:-1])
        levels = encoder.encode(theta["encoder"], coordinates, weights, feature_map, directions)
        x = x + levels.tokens
    if config.cross_token:
        # Tokens weigh as keys by the logarithm of their size: a bias counts, but a matrix more.
        importance = jnp.log1p(counts)
        x = x + performer.attention(theta["cross"], x, importance, feature_map, directions)
    recalled, state = remember(theta, config, layout, state, x)
    x = x + recalled
    x = x + performer.feed_forward(theta["ffn"], x)
    normed = performer.rms_norm(x)
    out = normed @ theta["heads"] + token_inputs @ theta["skip"]
    gates = normed @ theta["residual"] if config.residual else normed[:, :0]
    change = config.max_gain_change * jax.nn.sigmoid(out[:, 6]) * jnp.tanh(out[:, 5])
    log_gain = jnp.clip(log_gain + change, -MAX_LOG_STEP, MAX_LOG_STEP)
    return _controls(out, log_gain, gates), state


def _controls(
    out: Float[Array, "tokens scalars"],
    log_gain: Float[Array, " tokens"],
    gates: Float[Array, "tokens gates"],
) -> Controls:
    """Bounds what the heads say; all zero is exactly Adam, up to rounding."""
    log_step = MAX_LOG_STEP * jnp.tanh((out[:, 0] + log_gain) / MAX_LOG_STEP)
    bounded = jnp.tanh(out[:, :5])
    coefficients = 0.5 * jnp.tanh(2.0 * gates)
    half = coefficients.shape[1] // 2
    return Controls(
        log_step=log_step,
        log_gain=log_gain,
        nesterov=bounded[:, 1],
        # The logits of 0.9 and 0.99; decays from 0.55 to 0.985, and from 0.91 to 0.999.
        beta1=jax.nn.sigmoid(jnp.log(9.0) + 2.0 * bounded[:, 2]),
        beta2=jax.nn.sigmoid(jnp.log(99.0) + 2.3 * bounded[:, 3]),
        polar=bounded[:, 4],
        momentum_gates=coefficients[:, :half],
        gradient_gates=coefficients[:, half:],
    )
