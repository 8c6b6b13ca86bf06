# SPDX-License-Identifier: Apache-2.0
"""Kinds of networks, as shapes of their tensors, that the cost of an update is measured on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

Shapes = list[tuple[int, ...]]


def mlp(params: int) -> Shapes:
    """Eight equal layers with biases."""
    width = max(1, round(math.sqrt(params / 8)))
    return [shape for _ in range(8) for shape in ((width, width), (width,))]


def transformer(params: int) -> Shapes:
    """Blocks of width 128 (about 200,000 weights each) with biases and normalisation scales."""
    width = 128 if params >= 200_000 else max(2, round(math.sqrt(params / 12)))
    block = [(width, 3 * width), (3 * width,), (width, width), (width,)]
    block += [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    block += [(width,)] * 4
    size = sum(math.prod(shape) for shape in block)
    return block * max(1, round(params / size))


def many_small(params: int) -> Shapes:
    """Tensors of 32 x 32 and a bias each."""
    return [(32, 32), (32,)] * max(1, round(params / 1056))


LAYOUTS: Mapping[str, Callable[[int], Shapes]] = {
    "mlp": mlp,
    "transformer": transformer,
    "many-small": many_small,
}
