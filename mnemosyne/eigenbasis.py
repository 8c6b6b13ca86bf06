# SPDX-License-Identifier: Apache-2.0
"""Matrices seen in the eigenbasis of their gradients, in which coordinates are nearly independent.

For gradients ``G`` of a matrix, ``L = mean(G G^T)`` and ``R = mean(G^T G)`` have eigenvectors
``U, V``. A step of Adam on ``U^T G V``, turned back, is one of Shampoo (Gupta et al. 2018, arXiv
1802.09568) with a second moment for each eigenvector, known as SOAP (Vyas et al. 2024, arXiv
2409.11321). The gradient of a policy is, up to advantages, the score of its actions, so that these
second moments are close to the Fisher information: the step is nearly a natural gradient's.

What decides step sizes is not touched: the transformation inside sees rotated gradients and
parameters, and its updates are rotated back. Eigenvectors are followed by one step of orthogonal
iteration every :data:`INTERVAL` updates.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

DECAY = 0.99
"""Of the second moments of rows and columns, an update."""
INTERVAL = 16
"""Updates from one step of orthogonal iteration to the next; a step costs as much as many updates.
"""
MAX_SIDE = 256
"""Longest side of a matrix that is rotated; its state and its cost grow with the square."""
_KEEP = 1e-6
"""Share of the old basis in an iteration, so that directions without gradient stay as they are."""

Bases = tuple[tuple[Array, Array], ...]
"""A square matrix for the rows of each tensor and one for its columns; of side 0 where nothing is
rotated."""


class EigenbasisState(NamedTuple):
    """State of :func:`in_eigenbasis`.

    Attributes:
      count: updates so far, int32.
      moments: ``L, R`` of each tensor in the order of its leaves, of trace 1 once there were
        gradients.
      bases: their eigenvectors as columns.
      inner: state of the transformation inside, whose coordinates are the rotated ones.
    """

    count: Int[Array, ""]
    moments: Bases
    bases: Bases
    inner: Any


def in_eigenbasis(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Runs a transformation on matrices that are rotated into the eigenbasis of their gradients.

    Tensors of more than two axes are matrices of their last one; vectors, and sides longer than
    :data:`MAX_SIDE`, stay as they are.

    Args:
      inner: any whose state has a field ``mu`` that mirrors the parameters, such as
        :func:`mnemosyne.plus.scale_by_plus` or ``optax.scale_by_adam``.

    Example:
      >>> opt = in_eigenbasis(optax.scale_by_adam())
      >>> state = opt.init({"w": jnp.ones((3, 2)), "b": jnp.ones(2)})
      >>> [u.shape for u, v in state.bases], [v.shape for u, v in state.bases]
      ([(0, 0), (3, 3)], [(0, 0), (2, 2)])
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> EigenbasisState:
        sides = [_sides(leaf.shape) for leaf in jax.tree.leaves(params)]
        return EigenbasisState(
            count=jnp.zeros((), jnp.int32),
            moments=tuple((jnp.zeros((m, m)), jnp.zeros((n, n))) for m, n in sides),
            bases=tuple((jnp.eye(m), jnp.eye(n)) for m, n in sides),
            inner=inner.init(params),
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, EigenbasisState]:
        moments = tuple(map(_gather, jax.tree.leaves(updates), state.moments))
        # The first moment is turned with the basis; the second is one of the new coordinates, as
        # far as eigenvectors keep their places.
        leaves, treedef = jax.tree.flatten(state.inner.mu)
        due = state.count % INTERVAL == 0
        bases, mu = _follow(due, moments, state.bases, [_matrix(leaf) for leaf in leaves])
        mu = [new.reshape(old.shape).astype(old.dtype) for new, old in zip(mu, leaves, strict=True)]
        kept = state.inner._replace(mu=treedef.unflatten(mu))
        seen = None if params is None else rotate(params, bases)
        moved, new = inner.update(rotate(updates, bases), kept, seen, **extra_args)
        count = jnp.asarray(optax.safe_increment(state.count))
        return rotate_back(moved, bases), EigenbasisState(count, moments, bases, new)

    return optax.GradientTransformationExtraArgs(init, update)


def rotate(tree: Any, bases: Bases) -> Any:
    """Matrices ``X`` of a tree as ``U^T X V``; all else as it is."""
    leaves, treedef = jax.tree.flatten(tree)
    out = []
    for leaf, basis in zip(leaves, bases, strict=True):
        turned = _turn(_matrix(leaf), basis) if _rotated(basis) else leaf
        out.append(turned.reshape(leaf.shape).astype(leaf.dtype))
    return treedef.unflatten(out)


def rotate_back(tree: Any, bases: Bases) -> Any:
    """The inverse of :func:`rotate`."""
    return rotate(tree, jax.tree.map(lambda q: q.mT, bases))


def second_moment(tree: Any, bases: Bases) -> Any:
    """Second moments of rotated coordinates, given those of unrotated ones that are independent."""
    return rotate(tree, jax.tree.map(jnp.square, bases))


def second_moment_back(tree: Any, bases: Bases) -> Any:
    """Second moments of unrotated coordinates, given those of rotated ones that are independent."""
    return rotate_back(tree, jax.tree.map(jnp.square, bases))


def find_bases(state: Any) -> Bases | None:
    """The bases inside any optax state, ``None`` where nothing is rotated."""
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, EigenbasisState))
    return next((leaf.bases for leaf in leaves if isinstance(leaf, EigenbasisState)), None)


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns that are rotated; 0 for those that are not."""
    rows, columns = (math.prod(shape[:-1]), shape[-1]) if len(shape) > 1 else (0, 0)
    if min(rows, columns) < 2:
        return 0, 0
    return rows * (rows <= MAX_SIDE), columns * (columns <= MAX_SIDE)


def _matrix(leaf: Any) -> Array:
    """In two axes and float32; a vector or a scalar, which nothing is done with, as it is."""
    return leaf.reshape(-1, leaf.shape[-1]).astype(jnp.float32) if leaf.ndim > 1 else leaf


def _rotated(pair: tuple[Array, Array]) -> bool:
    return pair[0].size > 0 or pair[1].size > 0


def _turn(
    x: Float[Array, "*lanes rows columns"], basis: tuple[Array, Array]
) -> Float[Array, "*lanes rows columns"]:
    """``U^T X V``, without the factor of a side that is not rotated."""
    u, v = basis
    x = u.mT @ x if u.size else x
    return x @ v if v.size else x


def _gather(leaf: Any, moments: tuple[Array, Array]) -> tuple[Array, Array]:
    """Takes in one gradient; each counts alike, whatever its size, and none that is not finite."""
    if not _rotated(moments):
        return moments
    x = _matrix(leaf)
    peak = jnp.max(jnp.abs(x))
    known = jnp.isfinite(peak) & (peak > 0)
    x = jnp.where(known, x / jnp.where(known, peak, 1.0), 0.0)
    keep, add = jnp.where(known, DECAY, 1.0), (1.0 - DECAY) / jnp.maximum(jnp.sum(x * x), 1.0)
    rows, columns = moments
    return (
        keep * rows + add * (x @ x.mT) if rows.size else rows,
        keep * columns + add * (x.mT @ x) if columns.size else columns,
    )


Followed = tuple[Bases, list[Array]]
"""Bases, and matrices in their coordinates."""


@jax.custom_jvp
def _follow(due: Bool[Array, ""], moments: Bases, bases: Bases, seen: list[Array]) -> Followed:
    """The bases one step of orthogonal iteration later, where that is due, and what they show.

    Nothing flows back through the bases: an optimizer should not learn to bend its own coordinates.
    """
    return _iterate_where(due, moments, bases, seen)


@_follow.defjvp
def _constant_bases(primals: Any, tangents: Any) -> Any:
    _, _, old, _ = primals
    new, seen = _follow(*primals)
    turned = [_move(x, *pair) for x, *pair in zip(tangents[3], old, new, strict=True)]
    return (new, seen), (jax.tree.map(jnp.zeros_like, new), turned)


@jax.custom_batching.custom_vmap
def _iterate_where(
    due: Bool[Array, "*lanes"], moments: Bases, bases: Bases, seen: list[Array]
) -> Followed:
    """All lanes side by side: a condition on one of many would compute both of its branches."""

    def step() -> Followed:
        chosen = due[..., None, None]
        new = jax.tree.map(lambda m, b: jnp.where(chosen, _iterate(m, b), b), moments, bases)
        return new, [_move(x, *pair) for x, *pair in zip(seen, bases, new, strict=True)]

    return jax.lax.cond(jnp.any(due), step, lambda: (bases, seen))


@_iterate_where.def_vmap
def _in_lanes(axis_size: int, in_batched: Any, *arguments: Any) -> Any:
    spread = jax.tree.map(
        lambda x, batched: x if batched else jnp.broadcast_to(x, (axis_size, *x.shape)),
        list(arguments),
        list(in_batched),
    )
    out = _iterate_where(*spread)
    return out, jax.tree.map(lambda _: True, out)


def _move(x: Array, old: tuple[Array, Array], new: tuple[Array, Array]) -> Array:
    """From the coordinates of one basis to those of another."""
    return _turn(_turn(x, (old[0].mT, old[1].mT)), new) if _rotated(old) else x


def _iterate(
    moment: Float[Array, "*lanes side side"], basis: Float[Array, "*lanes side side"]
) -> Float[Array, "*lanes side side"]:
    """One step of orthogonal iteration; columns keep their signs."""
    if not basis.shape[-1]:
        return basis
    q, r = jnp.linalg.qr(moment @ basis + _KEEP * basis)
    signs = jnp.where(jnp.diagonal(r, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
    return q * signs[..., None, :]
