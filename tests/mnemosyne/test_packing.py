# SPDX-License-Identifier: Apache-2.0
"""Packing small tensors changes nothing but the number of operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne import MnemosyneConfig, packing
from mnemosyne.layout import Shape, cut_by_rows, make_layout, sample_indices, token_of_row

CONFIG = MnemosyneConfig()
# Odd sizes, scalars, empty tensors, tensors of several tokens, large ones before and after small.
CASES = [
    ((64, 33), (10,), (200, 200), ()),
    ((200, 200), (0, 4), (129, 128), (3, 5, 7)),
    ((1009,), (2, 1500), (), (63,), (65,)),
    ((300, 300),),
    ((353, 353), (20_000,), (7000, 3), (2, 3, 70, 80)),
]


def _leaves(shapes: tuple[Shape, ...]) -> list[jax.Array]:
    # Every entry is its own position, so that a misplaced one cannot hide.
    sizes = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)])
    return [
        jnp.asarray(np.arange(first, first + np.prod(shape), dtype=np.float32).reshape(shape))
        for first, shape in zip(sizes, shapes, strict=False)
    ]


@pytest.mark.parametrize("shapes", CASES)
def test_from_blocks_inverts_to_blocks(shapes: tuple[Shape, ...]) -> None:
    layout = make_layout(shapes, CONFIG)
    plan = packing.make_packing(layout, 16)
    leaves = _leaves(shapes)
    there_and_back = jax.jit(  # one program instead of one for each operation
        lambda leaves: packing.from_blocks(packing.to_blocks(leaves, plan, layout), plan, layout)
    )
    for before, after in zip(leaves, there_and_back(leaves), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("shapes", CASES)
def test_take_reads_every_token_of_its_own_tensor(shapes: tuple[Shape, ...]) -> None:
    layout = make_layout(shapes, CONFIG)
    plan = packing.make_packing(layout, 16)
    leaves = _leaves(shapes)
    take = jax.jit(lambda leaves: packing.take(packing.to_blocks(leaves, plan, layout), plan))
    taken = np.asarray(take(leaves))
    expected = []
    for leaf, tokens in zip(leaves, layout.tokens, strict=True):
        if cut_by_rows(leaf.shape):
            owners = token_of_row(len(leaf), tokens)
            parts = [np.asarray(leaf)[owners == token].ravel() for token in range(tokens)]
        else:
            parts = np.asarray(leaf).reshape(tokens, -1) if tokens else []
        expected += [part[sample_indices(part.size, 16)] for part in parts]
    np.testing.assert_array_equal(taken, np.stack(expected))


def test_rows_belong_to_one_token_and_cover_all_of_them() -> None:
    layout = make_layout(((64, 33), (10,), (200, 200)), CONFIG)
    plan = packing.make_packing(layout, 16)
    assert [len(rows) for rows in plan.row_tokens] == [34, 200]
    rows = np.concatenate(plan.row_tokens)
    covered = sorted(set(rows.tolist()))
    assert covered == list(range(layout.num_tokens))


@pytest.mark.parametrize(("shape", "packed"), [((128, 128), True), ((129, 128), False)])
def test_large_tensors_are_not_copied(shape: tuple, packed: bool) -> None:
    plan = packing.make_packing(make_layout((shape,), CONFIG), 16)
    assert (plan.packed == (0,)) is packed
