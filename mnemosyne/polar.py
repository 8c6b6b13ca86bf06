# SPDX-License-Identifier: Apache-2.0
"""Orthogonalised momentum, in tiles of a few rows: most of what Muon gains, at a bounded cost.

A tile ``X`` of a matrix is replaced by its polar factor ``(X X^T)^(-1/2) X``, whose singular values
are all 1: directions in which the momentum is small move as far as those in which it is large
(Muon, Jordan et al. 2024). A whole matrix would cost some ``min(rows, columns)`` operations a
weight, a tile of 64 rows costs some 64. What is left out is the correlation between rows of
different tiles; ``docs/decisions.md`` has what that loses.

The iteration runs on the products ``X X^T`` alone, so that the tiles themselves are read twice and
written once, whatever the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mnemosyne.layout import MAX_PACKED, Shape
from mnemosyne.rule import NEGLIGIBLE

SMALL_ROWS = 64
"""Most rows of a tile of a small matrix, which is cut across its shorter side."""
SIDES = (16, 32, 64)
"""Products of small tiles are filled up to one of these sizes, and run side by side."""
ROWS = 16
"""Rows of a tile of a large matrix, which is cut across its first axis."""
COLUMNS = 64
"""About this many columns of a large tile, evenly spread, tell how its rows are correlated."""
_STEPS = (
    (8.3175, -24.0727, 17.7261),
    (3.5693, -2.5819, 0.4819),
    (3.0774, -2.6018, 0.6270),
    (2.2105, -1.7181, 0.5073),
)
"""Coefficients of ``x, x^3, x^5`` of four Newton-Schulz steps, fitted so that singular values from
0.006 to 1 end within 6 % of 1."""
_LARGE_STEPS = ((4.5027, -12.5775, 9.1652), (3.135, -5.9925, 3.4079), (2.9, -4.1549, 2.3999))
"""The same in three steps for large tiles: values from 0.03 to 1, which end within 8 %."""


def is_matrix(shape: Shape) -> bool:
    """Whether a tensor has rows and columns: its last axis, and all others together."""
    return len(shape) > 1 and min(math.prod(shape[:-1]), shape[-1]) > 1


def factors(leaves: list[Float[Array, "..."]]) -> list[Float[Array, "..."]]:
    """The polar factors of all matrices, of about unit root mean square; zeros for the rest.

    Args:
      leaves: momenta in units of the largest gradient, in any shapes.

    Returns:
      Arrays of the same shapes. Scaling a matrix does not change its factor; one without history
      has factor 0.
    """
    out = [jnp.zeros(leaf.shape) for leaf in leaves]
    matrices = [i for i, leaf in enumerate(leaves) if is_matrix(leaf.shape)]
    small = [i for i in matrices if leaves[i].size <= MAX_PACKED]
    for side in SIDES:
        group = [i for i in small if _side(leaves[i].shape) == side]
        _fill(out, group, _small_factors([leaves[i] for i in group], side))
    large = [i for i in matrices if leaves[i].size > MAX_PACKED]
    _fill(out, large, _large_factors([leaves[i] for i in large]))
    return out


def _fill(out: list[Array], indices: list[int], found: list[Array]) -> None:
    for i, factor in zip(indices, found, strict=True):
        out[i] = factor


def _sides(shape: Shape) -> tuple[int, int]:
    return math.prod(shape[:-1]), shape[-1]


def _grid(shape: Shape) -> tuple[int, int]:
    """How many tiles a small matrix is cut into, across its shorter side, and their rows."""
    short = min(_sides(shape))
    count = -(-short // SMALL_ROWS)
    return count, -(-short // count)


def _side(shape: Shape) -> int:
    return next(side for side in SIDES if _grid(shape)[1] <= side)


def _small_factors(leaves: list[Float[Array, "..."]], side: int) -> list[Float[Array, "..."]]:
    """Factors of matrices whose tiles have up to ``side`` rows; one batch of products for all."""
    if not leaves:
        return []
    tiles = [_cut(leaf) for leaf in leaves]
    grams = [jnp.einsum("trw,tsw->trs", x, x) for x in tiles]
    padded = [jnp.pad(gram, ((0, 0), *[(0, side - gram.shape[1])] * 2)) for gram in grams]
    edges = np.cumsum([len(x) for x in tiles])[:-1]
    roots = jnp.split(inverse_root(jnp.concatenate(padded), _STEPS), edges)
    return [
        _join(root[:, : x.shape[1], : x.shape[1]] @ x, leaf.shape)
        for leaf, x, root in zip(leaves, tiles, roots, strict=True)
    ]


def _cut(leaf: Float[Array, "..."]) -> Float[Array, "tiles rows long"]:
    """Tiles of a small matrix, each as long as its longer side; the last one ends with zeros."""
    matrix = leaf.reshape(_sides(leaf.shape))
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    count, rows = _grid(leaf.shape)
    matrix = jnp.pad(matrix, ((0, count * rows - len(matrix)), (0, 0)))
    return matrix.reshape(count, rows, matrix.shape[1])


def _join(tiles: Float[Array, "tiles rows long"], shape: Shape) -> Float[Array, "..."]:
    """The inverse of :func:`_cut`, of unit root mean square where the rank is full."""
    n, m = _sides(shape)
    matrix = math.sqrt(max(n, m)) * tiles.reshape(-1, max(n, m))[: min(n, m)]
    return (matrix if n <= m else matrix.T).reshape(shape)


def _large_factors(leaves: list[Float[Array, "..."]]) -> list[Float[Array, "..."]]:
    """Factors of large matrices, tile by tile; one batch of products for all of them."""
    if not leaves:
        return []
    read = [_sample(leaf) for leaf in leaves]
    grams = jnp.concatenate([jnp.einsum("trw,tsw->trs", tiles, tiles) for tiles in read])
    edges = np.cumsum([len(tiles) for tiles in read])[:-1]
    roots = jnp.split(inverse_root(grams, _LARGE_STEPS), edges)
    return [_whiten(leaf, root) for leaf, root in zip(leaves, roots, strict=True)]


def inverse_root(
    gram: Float[Array, "batch rows rows"], steps: Sequence[tuple[float, float, float]]
) -> Float[Array, "batch rows rows"]:
    """About ``(X X^T)^(-1/2)``, given ``X X^T``; 0 for a matrix without history.

    Args:
      gram: products.
      steps: coefficients of ``x, x^3, x^5`` in each Newton-Schulz step.

    Example:
      >>> x = jnp.asarray([[[0.0, 3.0], [0.5, 0.0]]])
      >>> (inverse_root(x @ x.swapaxes(1, 2), _STEPS) @ x).round(1)
      Array([[[0., 1.],
              [1., 0.]]], dtype=float32)
    """
    trace = jnp.trace(gram, axis1=1, axis2=2)[:, None, None]
    known = trace > NEGLIGIBLE
    inverse = jnp.where(known, 1.0 / jnp.where(known, trace, 1.0), 0.0)
    identity = jnp.eye(gram.shape[1], dtype=gram.dtype)

    def step(carry: tuple[Array, Array], coefficients: Array) -> tuple[tuple[Array, Array], None]:
        gram, power = carry
        a, b, c = coefficients
        factor = a * identity + b * gram + c * gram @ gram
        return (factor @ gram @ factor, factor @ power), None

    # The trace bounds the largest eigenvalue, so that singular values start below 1. A loop, and
    # one product too many at its end, because every product that is unrolled has to be compiled.
    start = (gram * inverse, identity * jnp.sqrt(inverse))
    return jax.lax.scan(step, start, jnp.asarray(steps, gram.dtype))[0][1]


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
