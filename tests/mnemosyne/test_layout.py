# SPDX-License-Identifier: Apache-2.0
"""Tokens and memory slots are decided by shapes, and the memory stays within its budget."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from mnemosyne import MnemosyneConfig
from mnemosyne.layout import (
    MIN_SLOTS,
    cut_by_rows,
    make_layout,
    paper_layout,
    sample_indices,
    token_of_row,
)

CONFIG = MnemosyneConfig()
SHAPES = st.lists(st.lists(st.integers(1, 40), max_size=3).map(tuple), min_size=1, max_size=30)


@hypothesis.given(shapes=SHAPES)
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_layout_tokens_divide_every_tensor(shapes: list) -> None:
    layout = make_layout(tuple(shapes), CONFIG)
    for shape, tokens in zip(shapes, layout.tokens, strict=True):
        assert 1 <= tokens <= CONFIG.max_tokens
        assert math.prod(shape) % tokens == 0 or (cut_by_rows(shape) and tokens <= shape[0])
    assert layout.num_tokens == sum(layout.tokens)
    assert set(layout.slots.tolist()) == set(range(layout.num_slots))


@hypothesis.given(shapes=SHAPES, data=st.data())
@hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
def test_layout_permuting_tensors_permutes_tokens(shapes: list, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(shapes))))
    base = make_layout(tuple(shapes), CONFIG)
    moved = make_layout(tuple(shapes[i] for i in order), CONFIG)
    assert moved.tokens == tuple(base.tokens[i] for i in order)
    assert moved.num_slots == base.num_slots


@pytest.mark.parametrize(
    ("shape", "tokens"),
    [((), 1), ((0, 3), 0), ((64, 32), 2), ((1000, 1000), 16), ((1009,), 1), ((353, 353), 16)],
)
def test_layout_known_token_counts(shape: tuple, tokens: int) -> None:
    assert make_layout((shape, (2, 2)), CONFIG).tokens[0] == tokens


@pytest.mark.parametrize(("rows", "tokens"), [(16, 16), (353, 16), (1000, 3)])
def test_token_of_row_cuts_into_runs_of_nearly_equal_length(rows: int, tokens: int) -> None:
    owners = token_of_row(rows, tokens)
    assert np.all(np.diff(owners) >= 0)
    lengths = np.bincount(owners)
    assert len(lengths) == tokens
    assert np.ptp(lengths) <= 1


def test_layout_many_small_tensors_share_slots_by_shape() -> None:
    shapes = ((32, 32),) * 500 + ((32,),) * 500
    layout = make_layout(shapes, CONFIG)
    assert layout.num_slots == 2
    assert layout.num_slots <= MIN_SLOTS
    assert len(set(layout.slots[:500].tolist())) == 1


def test_layout_shared_slots_follow_shapes_whatever_the_order_of_tensors() -> None:
    shapes = ((32, 32),) * 100 + ((5, 7),) * 3 + ((32,),) * 100
    one, other = make_layout(shapes, CONFIG), make_layout(shapes[::-1], CONFIG)
    assert one.shared
    assert one.num_tokens == len(shapes)
    np.testing.assert_array_equal(one.slots, other.slots[::-1])


def test_layout_a_million_weights_keeps_memory_below_a_tenth() -> None:
    shapes = ((256, 256),) * 15 + ((256,),) * 15
    layout = make_layout(shapes, CONFIG)
    weights = sum(math.prod(shape) for shape in shapes)
    assert layout.num_slots * CONFIG.memory_floats <= 0.1 * weights


def test_paper_layout_pads_the_last_token() -> None:
    config = MnemosyneConfig("paper", chunk=(4, 4))
    assert paper_layout(((5, 5), (), (16,)), config).tokens == (2, 1, 1)


@pytest.mark.parametrize(("size", "count"), [(1, 8), (10, 8), (1000, 64)])
def test_sample_indices_are_evenly_spread_and_inside(size: int, count: int) -> None:
    indices = sample_indices(size, count)
    assert indices.shape == (count,)
    assert indices.min() == 0
    assert indices.max() < size
    assert np.ptp(np.bincount(indices, minlength=size)[: min(size, count)]) <= 1
