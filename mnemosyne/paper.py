# SPDX-License-Identifier: Apache-2.0
"""The paper modes: log-and-sign gradients -> encoder -> memory -> skip decoder -> ``x <- x + s u``.

Nothing hand-designed in the update. ``paper`` gives one memory to every ``prod(chunk)`` coordinates
of a tensor; ``paper-coordinate`` gives one to each coordinate, which costs about a hundred times
Adam's state.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from mnemosyne import encoder, features, memory, performer
from mnemosyne.config import MnemosyneConfig
from mnemosyne.kernels import FEATURE_MAPS, num_directions, orthogonal_directions
from mnemosyne.layout import Layout, paper_layout
from mnemosyne.memory import MemoryState

OUTPUT_SCALE = 0.01
"""``s``; the output scale of Andrychowicz et al. (2016)."""


class ScaleByPaperState(NamedTuple):
    """State of the paper modes: the memory is all there is.

    Attributes:
      count: updates so far, int32.
      memory: one slot a token.
    """

    count: Int[Array, ""]
    memory: MemoryState


def init(key: Key[Array, ""], config: MnemosyneConfig) -> dict[str, Any]:
    """Meta-parameters; the decoder's last layer is zero, so a fresh network does not move."""
    key_encoder, key_memory, key_decoder, key_omega = jax.random.split(key, 4)
    key_q, key_k, key_v = jax.random.split(key_memory, 3)
    dim, heads, width = config.dim, len(config.taus), config.encoder_width
    return {
        "encoder": encoder.init(key_encoder, 2, width, config.key_dim, dim),
        "memory": {
            "query": performer.linear_init(key_q, dim, config.key_dim),
            "key": performer.linear_init(key_k, dim, config.key_dim),
            "value": performer.linear_init(key_v, dim, dim),
            "log_tau": jnp.log(jnp.asarray(config.taus)),
        },
        "decoder": {
            "in": performer.linear_init(key_decoder, 2 * width + (1 + heads) * dim, 2 * dim),
            "bias": jnp.zeros(2 * dim),
            "out": jnp.zeros(2 * dim),
        },
        "directions": orthogonal_directions(
            key_omega, num_directions(config.kernel, config.num_features), config.key_dim
        ),
    }


def scale_by_paper(
    theta: dict[str, Any], config: MnemosyneConfig
) -> optax.GradientTransformationExtraArgs:
    """The pure learned update; extras are ignored, the paper's inputs are gradients alone."""

    def init_state(params: optax.Params) -> ScaleByPaperState:
        layout = _layout(params, config)
        slots = memory.init(layout.num_slots, len(config.taus), config.num_features, config.dim)
        return ScaleByPaperState(jnp.zeros((), jnp.int32), slots)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByPaperState]:
        del extra_args
        gradients, treedef = jax.tree.flatten(updates)
        like = gradients if params is None else treedef.flatten_up_to(params)
        layout = _layout(updates, config)
        inputs, weights = _gather(gradients, layout, config)
        steps, remembered = _network(theta, config, inputs, weights, state.memory)
        deltas = _scatter(steps, layout)
        cast = [delta.astype(p.dtype) for delta, p in zip(deltas, like, strict=True)]
        count = jnp.asarray(optax.safe_increment(state.count))
        return treedef.unflatten(cast), ScaleByPaperState(count, remembered)

    return optax.GradientTransformationExtraArgs(init_state, update)


def _layout(tree: Any, config: MnemosyneConfig) -> Layout:
    return paper_layout(tuple(leaf.shape for leaf in jax.tree.leaves(tree)), config)


def _gather(
    gradients: list[Array], layout: Layout, config: MnemosyneConfig
) -> tuple[Float[Array, "tokens chunks size 2"], Float[Array, "tokens chunks size"]]:
    """All tensors as padded tokens; weights are 0 on the padding."""
    size, chunks = config.chunk
    rows, weights = [], []
    for g, tokens in zip(gradients, layout.tokens, strict=True):
        flat = jnp.nan_to_num(g.reshape(-1).astype(jnp.float32))
        pad = tokens * size * chunks - flat.size
        rows.append(jnp.pad(flat, (0, pad)).reshape(tokens, chunks, size))
        weights.append(jnp.pad(jnp.ones(flat.size), (0, pad)).reshape(tokens, chunks, size))
    return features.log_and_sign(jnp.concatenate(rows)), jnp.concatenate(weights)


def _network(
    theta: dict[str, Any],
    config: MnemosyneConfig,
    inputs: Float[Array, "tokens chunks size 2"],
    weights: Float[Array, "tokens chunks size"],
    state: MemoryState,
) -> tuple[Float[Array, "tokens chunks size"], MemoryState]:
    """Encoder, memory (write, then read, with a residual connection) and skip decoder."""
    feature_map, directions = FEATURE_MAPS[config.kernel], theta["directions"]
    encoded = encoder.encode(theta["encoder"], inputs, weights, feature_map, directions)
    xi = encoded.tokens
    query, key = (
        feature_map(performer.bound_norm(xi @ theta["memory"][name]), directions)
        for name in ("query", "key")
    )
    decay = jnp.exp(-jnp.exp(theta["memory"]["log_tau"]))
    state = memory.write(state, key, xi @ theta["memory"]["value"], decay)
    recalled = memory.read(state, query).reshape(xi.shape[0], -1)
    token = jnp.concatenate([xi, recalled], axis=-1)[:, None, None]
    chunk = encoded.chunks[:, :, None]
    shape = inputs.shape[:-1]
    skip = [
        encoded.coordinates,
        *(jnp.broadcast_to(x, (*shape, x.shape[-1])) for x in (chunk, token)),
    ]
    decoder = theta["decoder"]
    hidden = jax.nn.relu(jnp.concatenate(skip, axis=-1) @ decoder["in"] + decoder["bias"])
    return OUTPUT_SCALE * (hidden @ decoder["out"]), state


def _scatter(steps: Float[Array, "tokens chunks size"], layout: Layout) -> list[Array]:
    """The inverse of :func:`_gather`, for the updates."""
    offsets, deltas = layout.offsets, []
    for index, shape in enumerate(layout.shapes):
        flat = steps[offsets[index] : offsets[index + 1]].reshape(-1)
        deltas.append(flat[: math.prod(shape)].reshape(shape))
    return deltas
