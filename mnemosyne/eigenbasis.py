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


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns that are rotated; 0 for those that are not."""
    if len(shape) < 2:
        return 0, 0
    rows, columns = math.prod(shape[:-1]), shape[-1]
    if min(rows, columns) < 2:
        return 0, 0
    return tuple(side if side <= MAX_SIDE else 0 for side in (rows, columns))  # pyright: ignore


def in_eigenbasis(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Runs a transformation on matrices that are rotated into the eigenbasis of their gradients.

    Args:
      inner: any whose state has moments ``mu`` that mirror the parameters, such as
        :func:`mnemosyne.plus.scale_by_plus`.
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
        due = state.count % INTERVAL == 0
        bases = _follow(due, moments, state.bases)
        # The first moment is turned with the basis; the second is one of the new coordinates, as
        # far as eigenvectors keep their places.
        kept = state.inner._replace(mu=_turn(state.inner.mu, state.bases, bases))
        seen = None if params is None else rotate(params, bases)
        moved, new = inner.update(rotate(updates, bases), kept, seen, **extra_args)
        count = jnp.asarray(optax.safe_increment(state.count))
        return rotate_back(moved, bases), EigenbasisState(count, moments, bases, new)

    return optax.GradientTransformationExtraArgs(init, update)


def rotate(tree: Any, bases: Bases) -> Any:
    """Matrices ``X`` of a tree as ``U^T X V``; all else as it is."""
    return _product(tree, bases, lambda x, u, v: _right(_left(u.T, x), v))


def rotate_back(tree: Any, bases: Bases) -> Any:
    """The inverse of :func:`rotate`."""
    return _product(tree, bases, lambda x, u, v: _right(_left(u, x), v.T))


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


def _left(q: Array, x: Array) -> Array:
    return q @ x if q.size else x


def _right(x: Array, q: Array) -> Array:
    return x @ q if q.size else x


def _product(tree: Any, bases: Bases, apply: Any) -> Any:
    leaves, treedef = jax.tree.flatten(tree)
    out = []
    for leaf, (u, v) in zip(leaves, bases, strict=True):
        if u.size or v.size:
            matrix = leaf.reshape(-1, leaf.shape[-1]).astype(jnp.float32)
            leaf = apply(matrix, u, v).reshape(leaf.shape).astype(leaf.dtype)
        out.append(leaf)
    return treedef.unflatten(out)


def _turn(mu: Any, old: Bases, new: Bases) -> Any:
    """First moments in the coordinates of another basis."""
    return rotate(rotate_back(mu, old), new)


def _gather(leaf: Any, moments: tuple[Array, Array]) -> tuple[Array, Array]:
    """Takes in one gradient; each counts alike, whatever its size, and none that is not finite."""
    if not (moments[0].size or moments[1].size):
        return moments
    matrix = leaf.reshape(-1, leaf.shape[-1]).astype(jnp.float32)
    peak = jnp.max(jnp.abs(matrix))
    known = jnp.isfinite(peak) & (peak > 0)
    matrix = jnp.where(known, matrix / jnp.where(known, peak, 1.0), 0.0)
    trace = jnp.maximum(jnp.sum(jnp.square(matrix)), 1.0)
    keep = jnp.where(known, DECAY, 1.0)
    products = (matrix @ matrix.T, matrix.T @ matrix)
    return tuple(  # pyright: ignore[reportReturnType]
        keep * old + (1.0 - DECAY) / trace * product if old.size else old
        for old, product in zip(moments, products, strict=True)
    )


@jax.custom_jvp
def _follow(due: Bool[Array, ""], moments: Any, bases: Any) -> Any:
    """The bases one step of orthogonal iteration later, where that is due.

    Nothing flows back through them: an optimizer should not learn to bend its own coordinates.
    """
    return _iterate_where(due, moments, bases)


@_follow.defjvp
def _constant(primals: Any, tangents: Any) -> Any:
    del tangents
    out = _follow(*primals)
    return out, jax.tree.map(jnp.zeros_like, out)


@jax.custom_batching.custom_vmap
def _iterate_where(due: Bool[Array, "*lanes"], moments: Any, bases: Any) -> Any:
    """All lanes side by side: a condition on one of many would compute both of its branches."""

    def step() -> Any:
        return jax.tree.map(
            lambda m, b: jnp.where(due[..., None, None], _iterate(m, b), b), moments, bases
        )

    return jax.lax.cond(jnp.any(due), step, lambda: bases)


@_iterate_where.def_vmap
def _in_lanes(axis_size: int, in_batched: Any, due: Any, moments: Any, bases: Any) -> Any:
    arguments = jax.tree.map(
        lambda x, batched: x if batched else jnp.broadcast_to(x, (axis_size, *x.shape)),
        [due, moments, bases],
        list(in_batched),
    )
    out = _iterate_where(*arguments)
    return out, jax.tree.map(lambda _: True, out)


def _iterate(
    moment: Float[Array, "*lanes side side"], basis: Float[Array, "*lanes side side"]
) -> Float[Array, "*lanes side side"]:
    """One step of orthogonal iteration; columns keep their signs."""
    if not basis.shape[-1]:
        return basis
    q, r = jnp.linalg.qr(moment @ basis + _KEEP * basis)
    signs = jnp.where(jnp.diagonal(r, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
    return q * signs[..., None, :]
