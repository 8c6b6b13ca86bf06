# SPDX-License-Identifier: Apache-2.0
"""Orthogonalised momentum, tile by tile: most of what Muon gains, at a cost linear in the weights.

A tile ``X`` of a matrix is replaced by its polar factor ``(X X^T)^(-1/2) X``, whose singular values
are all 1: directions in which the momentum is small move as far as those in which it is large
(Muon, Jordan et al. 2024). A whole matrix would cost some ``min(rows, columns)`` operations a
weight, a tile of 16 rows costs some 16. What is left out is the correlation between rows of
different tiles; ``docs/decisions.md`` has what that loses.

The iteration runs on the 16 x 16 products ``X X^T`` alone, so that the tiles themselves are read
twice and written once, whatever the number of steps.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mnemosyne.layout import MAX_PACKED, Shape
from mnemosyne.rule import NEGLIGIBLE

ROWS = 16
"""Most rows of a tile."""
COLUMNS = 64
"""Most columns of a tile of a small matrix. Tiles of a large one are as wide as the matrix, and
about this many columns of them, evenly spread, tell how its rows are correlated."""
_STEPS = ((4.5027, -12.5775, 9.1652), (3.135, -5.9925, 3.4079), (2.9, -4.1549, 2.3999))
"""Coefficients of ``x, x^3, x^5`` of three Newton-Schulz steps, fitted so that singular values from
0.03 to 1 end within 8 % of 1; smaller ones grow 40 times. Five steps gained nothing on V."""


def is_matrix(shape: Shape) -> bool:
    """Whether a tensor has rows and columns: its last axis, and all others together."""
    return len(shape) > 1 and min(math.prod(shape[:-1]), shape[-1]) > 1


def factors(leaves: list[Float[Array, "..."]]) -> list[Float[Array, "..."]]:
    """The polar factors of all matrices, of about unit root mean square; zeros for the rest.

    Args:
      leaves: momenta in units of the largest gradient, in any shapes.

    Returns:
      Arrays of the same shapes. Scaling a tile does not change its factor; a tile without history
      has factor 0.
    """
    out = [jnp.zeros(leaf.shape) for leaf in leaves]
    matrices = [i for i, leaf in enumerate(leaves) if is_matrix(leaf.shape)]
    small = [i for i in matrices if leaves[i].size <= MAX_PACKED]
    large = [i for i in matrices if leaves[i].size > MAX_PACKED]
    if not matrices:
        return out
    tiles = [_full_tiles(leaves[i]) for i in small]
    read = [jnp.concatenate(tiles)] if small else []
    read += [_sample(leaves[i]) for i in large]
    roots = _inverse_roots(read)
    if small:
        parts = jnp.split(roots[0] @ read[0], np.cumsum([len(each) for each in tiles])[:-1])
        for i, part in zip(small, parts, strict=True):
            out[i] = _join(part, leaves[i].shape)
    for i, root in zip(large, roots[len(roots) - len(large) :], strict=True):
        out[i] = _whiten(leaves[i], root)
    return out


def _inverse_roots(
    read: list[Float[Array, "_ rows _"]],
) -> list[Float[Array, "_ rows rows"]]:
    """One batch for the whole network: a step costs the same on one tile and on a hundred."""
    grams = jnp.concatenate([jnp.einsum("trw,tsw->trs", tiles, tiles) for tiles in read])
    return jnp.split(inverse_root(grams), np.cumsum([len(tiles) for tiles in read])[:-1])


def inverse_root(gram: Float[Array, "tiles rows rows"]) -> Float[Array, "tiles rows rows"]:
    """About ``(X X^T)^(-1/2)``, given ``X X^T`` of every tile; 0 for a tile without history.

    Example:
      >>> x = jnp.asarray([[[0.0, 3.0], [0.5, 0.0]]])
      >>> (inverse_root(x @ x.swapaxes(1, 2)) @ x).round(1)
      Array([[[0., 1.],
              [1., 0.]]], dtype=float32)
    """
    trace = jnp.trace(gram, axis1=1, axis2=2)[:, None, None]
    known = trace > NEGLIGIBLE
    inverse = jnp.where(known, 1.0 / jnp.where(known, trace, 1.0), 0.0)
    identity = jnp.eye(gram.shape[1])
    # The trace bounds the largest eigenvalue, so that singular values start below 1.
    gram, power = gram * inverse, identity * jnp.sqrt(inverse)
    for a, b, c in _STEPS:
        step = a * identity + b * gram + c * gram @ gram
        gram, power = step @ gram @ step, step @ power
    return power


def _grid(n: int, m: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """How many tiles below each other and their rows; how many beside each other, their columns."""
    tall, wide = -(-n // ROWS), -(-m // COLUMNS)
    return (tall, -(-n // tall)), (wide, -(-m // wide))


def _full_tiles(leaf: Float[Array, "..."]) -> Float[Array, "tiles _ _"]:
    """A small matrix cut into about equally large tiles, each filled up with zeros."""
    matrix = leaf.reshape(-1, leaf.shape[-1])
    (tall, rows), (wide, columns) = _grid(*matrix.shape)
    padding = [(0, tall * rows - matrix.shape[0]), (0, wide * columns - matrix.shape[1])]
    tiles = jnp.pad(matrix, padding).reshape(tall, rows, wide, columns).swapaxes(1, 2)
    tiles = tiles.reshape(tall * wide, rows, columns)
    return jnp.pad(tiles, [(0, 0), (0, ROWS - rows), (0, COLUMNS - columns)])


def _join(tiles: Float[Array, "tiles rows columns"], shape: Shape) -> Float[Array, "..."]:
    """The inverse of :func:`_full_tiles`, of unit root mean square where the rank is full."""
    n, m = math.prod(shape[:-1]), shape[-1]
    (tall, rows), (wide, columns) = _grid(n, m)
    matrix = tiles[:, :rows, :columns].reshape(tall, wide, rows, columns).swapaxes(1, 2)
    matrix = matrix.reshape(tall * rows, wide * columns)[:n, :m]
    return math.sqrt(max(rows, columns)) * matrix.reshape(shape)


def _rows(leaf: Float[Array, "..."]) -> tuple[Float[Array, "tiles _ m"], Float[Array, "rest m"]]:
    """Tiles as wide as a large matrix, and the rows that are left over."""
    matrix = leaf.reshape(-1, leaf.shape[-1])
    whole = len(matrix) // ROWS * ROWS
    return matrix[:whole].reshape(-1, ROWS, matrix.shape[1]), matrix[whole:]


def _sample(leaf: Float[Array, "..."]) -> Float[Array, "tiles _ columns"]:
    """A sample of the columns of a large matrix, scaled to the length that its rows have."""
    tiles, rest = _rows(leaf)
    spread = slice(None, None, max(1, leaf.shape[-1] // COLUMNS))
    read = tiles[:, :, spread]
    if len(rest):
        padding = [(0, 0), (0, ROWS - len(rest)), (0, 0)]
        read = jnp.concatenate([read, jnp.pad(rest[None, :, spread], padding)])
    return read * math.sqrt(leaf.shape[-1] / read.shape[2])


def _whiten(leaf: Float[Array, "..."], root: Float[Array, "tiles _ _"]) -> Float[Array, "..."]:
    """Applies the roots to a large matrix; of unit root mean square where the rank is full."""
    tiles, rest = _rows(leaf)
    root = root * math.sqrt(max(leaf.shape[-1], ROWS))
    moved = (root[: len(tiles)] @ tiles).reshape(-1, leaf.shape[-1])
    if len(rest):
        moved = jnp.concatenate([moved, root[-1, : len(rest), : len(rest)] @ rest])
    return moved.reshape(leaf.shape)
