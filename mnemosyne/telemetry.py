# SPDX-License-Identifier: Apache-2.0
"""What the optimizer is doing, as scalars for TensorBoard, defined in docs/monitoring.md."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from mnemosyne import eigenbasis
from mnemosyne.path import straightness
from mnemosyne.plus import ScaleByMnemosyneState
from mnemosyne.rule import inverse_sqrt

Scalars = dict[str, Float[Array, ""]]


def find_state(state: Any) -> ScaleByMnemosyneState | None:
    """The first Mnemosyne state inside any optax state, or ``None``."""
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, ScaleByMnemosyneState))
    return next((leaf for leaf in leaves if isinstance(leaf, ScaleByMnemosyneState)), None)


def _rms(tree: Any) -> Float[Array, ""]:
    size = sum(leaf.size for leaf in jax.tree.leaves(tree))
    return optax.tree.norm(tree) / jnp.sqrt(jnp.maximum(size, 1))


def _cosine(a: Any, b: Any) -> Float[Array, ""]:
    norms = optax.tree.norm(a) * optax.tree.norm(b)
    return jnp.divide(optax.tree.vdot(a, b), jnp.maximum(norms, 1e-30))


def telemetry(state: Any, updates: optax.Updates, params: optax.Params) -> Scalars:
    """Scalars after one update, for any optax transformation; more of them for Mnemosyne.

    Args:
      state: optimizer state after the update.
      updates: what the optimizer returned.
      params: parameters before the update.

    Returns:
      ``optimizer/...`` and, with Mnemosyne, ``memory/...``, float32 scalars.
    """
    scalars = {
        "optimizer/update_rms": _rms(updates),
        "optimizer/update_to_param_ratio": optax.tree.norm(updates)
        / jnp.maximum(optax.tree.norm(params), 1e-30),
    }
    ours = find_state(state)
    if ours is None:
        return scalars
    turned = eigenbasis.find_bases(state)
    updates = updates if turned is None else eigenbasis.rotate(updates, turned)
    adam = jax.tree.map(lambda m, v: -m * inverse_sqrt(v), ours.mu, ours.nu)
    found: Scalars = {}
    if ours.path.log_gain.size:
        found["optimizer/log_gain"] = jnp.mean(ours.path.log_gain)
    if ours.path.drift.size:
        # Where only the gain is remembered, there is no path: a mean over no tokens is nan.
        found["optimizer/straightness"] = jnp.mean(straightness(ours.path))
    normalized = jnp.sqrt(jnp.mean(ours.nu_mass)) / jnp.maximum(jnp.mean(ours.mu_mass), 1e-30)
    return (
        scalars
        | found
        | {
            "optimizer/cosine_to_momentum": -_cosine(updates, ours.mu),
            "optimizer/cosine_to_adam": _cosine(updates, adam),
            "optimizer/effective_step_size": _rms(updates)
            / jnp.maximum(_rms(adam) * normalized, 1e-30),
            "optimizer/skipped": ours.units.skipped.astype(jnp.float32),
            "memory/norm": optax.tree.norm(ours.memory.matrix),
            "memory/effective_rank": _effective_rank(ours.memory.matrix),
            "memory/saturation": jnp.max(ours.memory.mass)
            / jnp.maximum(jnp.sum(ours.memory.mass, axis=-1).max(), 1e-30),
        }
    )


def _effective_rank(matrix: Float[Array, "slots heads r d"]) -> Float[Array, ""]:
    """Mean participation ratio ``tr(G)^2 / tr(G^2)`` of ``G = N^T N``: 1 if all patterns agree."""
    gram = jnp.einsum("nhrd,nhre->nhde", matrix, matrix)
    trace = jnp.trace(gram, axis1=-2, axis2=-1)
    square = jnp.sum(jnp.square(gram), axis=(-2, -1))
    return jnp.mean(jnp.square(trace) / jnp.maximum(square, 1e-30))
