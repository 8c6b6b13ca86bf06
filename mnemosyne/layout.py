# SPDX-License-Identifier: Apache-2.0
"""How tensors become tokens, and tokens become memory slots; decided by shapes alone.

Small tensors are vectorised and cut into equal tokens, without padding: the number of tokens is the
largest divisor of the size under the cap. Large matrices and kernels are cut between rows (slices
of the first axis), so that a loop over them keeps the shape they have.

Normally every token has a memory slot of its own. A network of very many tensors would then carry
more memory than weights, so slots are shared, tensors of equal shape first, until the memory fits
the budget. The memory is associative: tokens that share a slot still find what they wrote by
content.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Int

from mnemosyne.config import MnemosyneConfig

Shape = tuple[int, ...]

ROW = 64
"""Entries of a row of packed tensors, and of the shortest row that a large tensor is cut by."""
MAX_PACKED = 16_384
"""Tensors up to this size are small."""
MEMORY_BUDGET = 0.09
"""Floats of memory a parameter on networks of a million parameters and more; a hundredth is left
for the path."""
MIN_SLOTS = 110
"""Slots that are always affordable: the budget of a million parameters at 816 floats a slot."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """The static plan for one tuple of shapes.

    Attributes:
      shapes: the tensors' shapes, in tree order.
      tokens: tokens of each tensor; 0 for an empty one.
      slots: memory slot of each token, ``[sum(tokens)]``, int.
      num_slots: number of distinct slots.
    """

    shapes: tuple[Shape, ...]
    tokens: tuple[int, ...]
    slots: np.ndarray
    num_slots: int

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole network."""
        return len(self.slots)

    @property
    def shared(self) -> bool:
        """Whether any slot serves several tokens."""
        return self.num_slots < self.num_tokens

    @property
    def offsets(self) -> list[int]:
        """First token of each tensor, and the number of tokens at the end."""
        return [0, *np.cumsum(self.tokens).tolist()]


def _largest_divisor(n: int, cap: int) -> int:
    return next((d for d in range(min(n, cap), 0, -1) if n % d == 0), 0)


def cut_by_rows(shape: Shape) -> bool:
    """Whether tokens are runs of rows of this tensor, of as equal length as possible."""
    return math.prod(shape) > MAX_PACKED and math.prod(shape[1:]) >= ROW and len(shape) > 1


def token_of_row(rows: int, tokens: int) -> Int[np.ndarray, " rows"]:
    """The token, counted from 0, of each row of a tensor that is cut by rows."""
    return (np.arange(rows) * tokens) // rows


def _token_count(shape: Shape, token_size: int, cap: int) -> int:
    size = math.prod(shape)
    most = min(cap, -(-size // token_size))
    return min(most, shape[0]) if cut_by_rows(shape) else _largest_divisor(size, most)


def _groups(keys: list[tuple]) -> np.ndarray:
    order = {key: index for index, key in enumerate(sorted(set(keys)))}
    return np.asarray([order[key] for key in keys], dtype=np.int32)


@functools.lru_cache(maxsize=256)
def make_layout(shapes: tuple[Shape, ...], config: MnemosyneConfig) -> Layout:
    """Plans tokens and slots in ``plus`` mode.

    Args:
      shapes: shapes of the tensors; a scalar has shape ``()`` and gets one token.
      config: gives the token size, the cap of tokens a tensor and the floats a slot.

    Returns:
      The layout. Permuting ``shapes`` permutes it: equal shapes are always treated alike.
    """
    sizes = [math.prod(shape) for shape in shapes]
    budget = max(MIN_SLOTS, int(MEMORY_BUDGET * sum(sizes) / config.memory_floats))
    cap = config.max_tokens
    tokens = [_token_count(shape, config.token_size, cap) for shape in shapes]
    while sum(tokens) > budget and cap > 1:
        cap //= 2
        tokens = [_token_count(shape, config.token_size, cap) for shape in shapes]
    owners = [shape for shape, count in zip(shapes, tokens, strict=True) for _ in range(count)]
    # Coarser and coarser ways of sharing; the first that fits the budget wins.
    candidates = (
        np.arange(len(owners), dtype=np.int32),
        _groups([(shape,) for shape in owners]),
        _groups([(len(shape), round(math.log2(math.prod(shape)))) for shape in owners]),
        np.zeros(len(owners), dtype=np.int32),
    )
    slots = next((c for c in candidates if len(set(c.tolist())) <= budget), candidates[-1])
    return Layout(shapes, tuple(tokens), slots, len(set(slots.tolist())))


def sample_indices(size: int, count: int) -> np.ndarray:
    """``count`` evenly spread positions in ``range(size)``; they repeat where ``size < count``."""
    return (np.arange(count) * size) // count


def paper_layout(shapes: tuple[Shape, ...], config: MnemosyneConfig) -> Layout:
    """Plans the paper modes: ``prod(config.chunk)`` coordinates a token, the last one padded."""
    per_token = math.prod(config.chunk)
    tokens = tuple(-(-math.prod(shape) // per_token) for shape in shapes)
    return Layout(shapes, tokens, np.arange(sum(tokens), dtype=np.int32), sum(tokens))
