# SPDX-License-Identifier: Apache-2.0
"""Takes notes of every update of any optimizer, inside the compiled training loop.

Sizes are relative to Adam: the length of a tensor's update over the length of the direction that
Adam, which sees the same gradients, would go. For Adam itself that is its learning rate.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

KL_EDGES = np.logspace(-4, -1, 7)
"""Edges between the bins of the KL divergence; the outermost bins are open."""
_TINY = 1e-30


class Notes(NamedTuple):
    """Sums over updates; a column for each tensor, in the order of ``jax.tree.leaves``.

    Attributes:
      by_place: logarithms of step sizes, by the place of an update among those of its rollout.
      place_count: updates in each place.
      by_kl: logarithms of step sizes, by the KL divergence that the optimizer was told.
      kl_count: updates in each bin.
      to_adam: cosines of update and Adam's direction.
      to_gradient: cosines of update and negative gradient.
    """

    by_place: Float[Array, "places tensors"]
    place_count: Float[Array, " places"]
    by_kl: Float[Array, "bins tensors"]
    kl_count: Float[Array, " bins"]
    to_adam: Float[Array, " tensors"]
    to_gradient: Float[Array, " tensors"]


class WatchState(NamedTuple):
    """State of the watched optimizer, of the Adam beside it, and the notes so far."""

    inner: optax.OptState
    adam: optax.OptState
    count: Int[Array, ""]
    notes: Notes


def watched(
    optimizer: optax.GradientTransformation, places: int
) -> optax.GradientTransformationExtraArgs:
    """The same optimizer, with notes in its state.

    Args:
      optimizer: any; its updates pass through as they are.
      places: updates that are made from a rollout, at least 1.

    Example:
      >>> state = watched(optax.sgd(0.1), 4).init({"w": jnp.ones(3)})
      >>> state.notes.by_place.shape
      (4, 1)
    """
    inner, adam = optax.with_extra_args_support(optimizer), optax.scale_by_adam()

    def init(params: optax.Params) -> WatchState:
        tensors, bins = len(jax.tree.leaves(params)), len(KL_EDGES) + 1
        zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
        notes = Notes(
            by_place=zeros((places, tensors)),
            place_count=zeros(places),
            by_kl=zeros((bins, tensors)),
            kl_count=zeros(bins),
            to_adam=zeros(tensors),
            to_gradient=zeros(tensors),
        )
        return WatchState(inner.init(params), adam.init(params), jnp.zeros((), jnp.int32), notes)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extras: Any
    ) -> tuple[optax.Updates, WatchState]:
        moved, inner_state = inner.update(updates, state.inner, params, **extras)
        direction, adam_state = adam.update(updates, state.adam)
        place = state.count % places
        notes = _note(state.notes, moved, direction, updates, place, extras.get("kl"))
        return moved, WatchState(inner_state, adam_state, state.count + 1, notes)

    return optax.GradientTransformationExtraArgs(init, update)


def _note(notes: Notes, moved: Any, direction: Any, gradient: Any, place: Array, kl: Any) -> Notes:
    """The notes with one more update."""
    tensors = [jax.tree.leaves(tree) for tree in (moved, direction, gradient)]
    lengths = [jnp.stack([jnp.linalg.norm(leaf) for leaf in leaves]) for leaves in tensors]
    size = jnp.log(jnp.maximum(lengths[0], _TINY) / jnp.maximum(lengths[1], _TINY))
    seen = kl is not None
    told = jnp.asarray(kl if seen else 0.0, jnp.float32)
    row = jnp.searchsorted(jnp.asarray(KL_EDGES, jnp.float32), told)
    one = jnp.asarray(float(seen))
    return Notes(
        by_place=notes.by_place.at[place].add(size),
        place_count=notes.place_count.at[place].add(1.0),
        by_kl=notes.by_kl.at[row].add(one * size),
        kl_count=notes.kl_count.at[row].add(one),
        # Adam's direction, as optax has it, points up the slope like the gradient.
        to_adam=notes.to_adam - _cosines(tensors[0], tensors[1], lengths[0] * lengths[1]),
        to_gradient=notes.to_gradient - _cosines(tensors[0], tensors[2], lengths[0] * lengths[2]),
    )


def _cosines(left: list[Array], right: list[Array], lengths: Array) -> Float[Array, " tensors"]:
    """Of each pair; ``lengths`` are the products of their lengths."""
    dots = jnp.stack([jnp.vdot(a, b) for a, b in zip(left, right, strict=True)])
    return dots / jnp.maximum(lengths, _TINY)
