# SPDX-License-Identifier: Apache-2.0
"""Small tensors side by side in one array of short rows, so that a network is a few operations.

A dozen biases and small matrices, one by one, would cost a dozen times the compile time and the
launches of one. Tokens are padded to whole rows; every row belongs to one token. Large tensors stay
as they are: copying them would cost more than it saves.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mnemosyne.layout import (
    MAX_PACKED,
    ROW,
    Layout,
    Shape,
    cut_by_rows,
    sample_indices,
    token_of_row,
)


class Packing(NamedTuple):
    """The static plan for one layout: a block for all packed tensors, and one for each other.

    Attributes:
      packed: indices of the tensors that are packed.
      single: indices of the others, empty tensors left out.
      row_tokens: token of each row, a block.
      samples: positions of the tokens' samples in the flattened block, a block.
      order: puts the tokens of packed and then single tensors back into tree order.
    """

    packed: tuple[int, ...]
    single: tuple[int, ...]
    row_tokens: tuple[np.ndarray, ...]
    samples: tuple[np.ndarray, ...]
    order: np.ndarray


Blocks = list[Float[Array, "_ _"]]
"""Tensors as matrices of any sizes whose rows each belong to one token, float32."""


def _rows_per_token(shape: Shape, tokens: int) -> int:
    return -(-(math.prod(shape) // tokens) // ROW)


@functools.lru_cache(maxsize=256)
def _plan(shapes: tuple[Shape, ...], tokens: tuple[int, ...], sample: int) -> Packing:
    filled = [i for i, count in enumerate(tokens) if count]
    packed = tuple(i for i in filled if math.prod(shapes[i]) <= MAX_PACKED)
    single = tuple(i for i in filled if math.prod(shapes[i]) > MAX_PACKED)
    offsets = np.cumsum([0, *tokens])
    row_tokens, samples, start = [], [], 0
    for i in packed:
        rows, size = _rows_per_token(shapes[i], tokens[i]), math.prod(shapes[i]) // tokens[i]
        for token in range(offsets[i], offsets[i + 1]):
            row_tokens += [token] * rows
            samples.append(start + sample_indices(size, sample))
            start += rows * ROW
    owners = [np.arange(offsets[i], offsets[i + 1]) for i in (*packed, *single)]
    blocks = [(np.asarray(row_tokens, np.int32), np.asarray(samples, np.int32))] if packed else []
    blocks += [_single(shapes[i], tokens[i], int(offsets[i]), sample) for i in single]
    return Packing(
        packed,
        single,
        tuple(rows for rows, _ in blocks),
        tuple(positions for _, positions in blocks),
        np.argsort(np.concatenate(owners)),
    )


def _view(shape: Shape, tokens: int) -> tuple[int, int]:
    """The matrix as which a large tensor is updated; each of its rows belongs to one token."""
    size = math.prod(shape)
    rows = shape[0] if cut_by_rows(shape) else tokens
    return rows, size // rows


def _single(shape: Shape, tokens: int, first: int, sample: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of the rows of a large tensor, and positions of the tokens' samples."""
    rows, width = _view(shape, tokens)
    owners = token_of_row(rows, tokens)
    starts = np.searchsorted(owners, np.arange(tokens)) * width
    sizes = np.bincount(owners, minlength=tokens) * width
    positions = [s + sample_indices(int(n), sample) for s, n in zip(starts, sizes, strict=True)]
    return (first + owners).astype(np.int32), np.stack(positions).astype(np.int32)


def make_packing(layout: Layout, sample: int) -> Packing:
    """Plans which tensors of ``layout`` are packed, and where ``sample`` entries a token lie."""
    return _plan(layout.shapes, layout.tokens, sample)


def to_blocks(leaves: list[Array], packing: Packing, layout: Layout) -> Blocks:
    """All tensors but the empty ones as blocks; rows of packed tensors end with zeros."""
    rows = []
    for i in packing.packed:
        flat = leaves[i].reshape(layout.tokens[i], -1).astype(jnp.float32)
        padding = _rows_per_token(layout.shapes[i], layout.tokens[i]) * ROW - flat.shape[1]
        rows.append(jnp.pad(flat, ((0, 0), (0, padding))).reshape(-1, ROW))
    blocks = [jnp.concatenate(rows)] if rows else []
    return blocks + [
        leaves[i].reshape(_view(layout.shapes[i], layout.tokens[i])).astype(jnp.float32)
        for i in packing.single
    ]


def from_blocks(blocks: Blocks, packing: Packing, layout: Layout) -> list[Array]:
    """The inverse of :func:`to_blocks`: tensors in tree order, empty ones included."""
    leaves = {i: jnp.zeros(shape) for i, shape in enumerate(layout.shapes) if not math.prod(shape)}
    start = 0
    for i in packing.packed:
        shape, tokens = layout.shapes[i], layout.tokens[i]
        count = tokens * _rows_per_token(shape, tokens)
        flat = blocks[0][start : start + count].reshape(tokens, -1)
        leaves[i] = flat[:, : math.prod(shape) // tokens].reshape(shape)
        start += count
    for i, block in zip(packing.single, blocks[len(blocks) - len(packing.single) :], strict=True):
        leaves[i] = block.reshape(layout.shapes[i])
    return [leaves[i] for i in range(len(layout.shapes))]


def take(blocks: Blocks, packing: Packing) -> Float[Array, "tokens sample"]:
    """Evenly spread entries of every token, in tree order."""
    parts = [
        block.reshape(-1)[positions]
        for block, positions in zip(blocks, packing.samples, strict=True)
    ]
    return jnp.concatenate(parts)[packing.order]
