# SPDX-License-Identifier: Apache-2.0
"""Memory of an earlier run in another network: nothing is lost, nothing is invented."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mnemosyne
from mnemosyne import plus, warmstart
from mnemosyne.layout import Layout
from mnemosyne.memory import MemoryState
from tests.mnemosyne import problems

CONFIG = mnemosyne.MnemosyneConfig(token_size=32, taus=(0.1, 0.01))
OPTIMIZER = mnemosyne.scale_by_mnemosyne(problems.untrained(CONFIG), CONFIG)


def _params(inputs: int, hidden: int = 16, depth: int = 1) -> dict[str, Any]:
    sizes = [inputs, *[hidden] * depth, 2]
    layers = {
        f"layer_{i}": {"bias": jnp.zeros(sizes[i + 1]), "kernel": jnp.zeros(sizes[i : i + 2])}
        for i in range(len(sizes) - 1)
    }
    return {"mlp": layers, "log_std": jnp.zeros(2)}


def _remembering(params: Any) -> Any:
    """A state whose memory is full of numbers."""
    state = OPTIMIZER.init(params)
    rng = np.random.default_rng(0)
    full = jax.tree.map(lambda x: jnp.asarray(rng.random(x.shape), jnp.float32), state.memory)
    return state._replace(memory=full)


def _by_tensor(state: Any) -> dict[str, list[np.ndarray]]:
    """Means of the memory over the tokens of each tensor."""
    layout = plus.layout_of(state.mu, CONFIG)
    assert not layout.shared
    ends = layout.offsets
    return {
        role: [np.mean(leaf[ends[i] : ends[i + 1]], axis=0) for leaf in state.memory]
        for i, role in enumerate(warmstart.roles(state.mu))
    }


def _same(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_identical_shapes_give_the_identical_memory_and_nothing_else() -> None:
    old = _remembering(_params(5))
    new = warmstart.make_warm_start(OPTIMIZER, CONFIG)(old._replace(count=jnp.int32(7)), _params(5))
    _same(new.memory, old.memory)
    _same(new._replace(memory=()), OPTIMIZER.init(_params(5))._replace(memory=()))


def test_pooling_keeps_the_mean_of_every_tensor_that_has_a_predecessor() -> None:
    old = _remembering(_params(5))
    new = warmstart.make_warm_start(OPTIMIZER, CONFIG)(old, _params(21, depth=2))
    tokens = [dict(zip(warmstart.roles(s.mu), plus.layout_of(s.mu, CONFIG).tokens, strict=True))
              for s in (old, new)]  # fmt: skip
    assert tokens[0]["mlp/layer_0/kernel"] != tokens[1]["mlp/layer_0/kernel"] > 1
    before, after = _by_tensor(old), _by_tensor(new)
    for role in set(before) & set(after):
        for ours, theirs in zip(after[role], before[role], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    # A layer that is new takes the mean over all tokens of its kind.
    kinds = [role for role in before if role.endswith("kernel")]
    weights = [tokens[0][role] for role in kinds]
    expected = np.average([before[role][1] for role in kinds], axis=0, weights=weights)
    np.testing.assert_allclose(after["mlp/layer_2/kernel"][1], expected, rtol=1e-5)


def test_a_token_takes_the_mean_over_those_that_it_overlaps() -> None:
    old = Layout(((6,), (4,)), (3, 1), np.arange(4), 4)
    new = Layout(((6,), (1, 4)), (2, 1), np.arange(3), 3)
    weights = warmstart.pooling_weights(["a", "b"], old, ["a", "c"], new)
    np.testing.assert_allclose(
        weights, [[2 / 3, 1 / 3, 0, 0], [0, 1 / 3, 2 / 3, 0], [0.25] * 4], rtol=1e-6
    )


def test_shared_slots_are_a_mean_of_tokens_and_alike_networks_change_nothing() -> None:
    # Three tensors of one shape share a slot, a fourth has its own.
    shared = Layout(((2,), (2,), (2,), (3,)), (1, 1, 1, 1), np.asarray([0, 0, 0, 1]), 2)
    apart = Layout(shared.shapes, shared.tokens, np.arange(4), 4)
    roles = ["a", "b", "c", "d"]
    np.testing.assert_array_equal(
        warmstart.pooling_weights(roles, shared, roles, shared), np.eye(2)
    )
    together = warmstart.pooling_weights(roles, apart, roles, shared)
    np.testing.assert_allclose(together, [[1 / 3] * 3 + [0], [0, 0, 0, 1]], rtol=1e-6)


@pytest.mark.parametrize("tokens", [(1, 1), (3, 7), (16, 5)])
def test_overlaps_are_shares(tokens: tuple[int, int]) -> None:
    found = warmstart.overlaps(*tokens)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    np.testing.assert_allclose(found.sum(axis=0), tokens[0] / tokens[1])


def test_memory_is_found_inside_other_transformations_and_hand_overs() -> None:
    old = _remembering(_params(5))
    wrapped = optax.chain(OPTIMIZER, optax.scale(0.5))
    new = warmstart.make_warm_start(wrapped, CONFIG)((optax.EmptyState(), old), _params(5))
    _same(new[0].memory, old.memory)
    both = mnemosyne.hand_over(OPTIMIZER, CONFIG, share=0.5, learning_rate=1e-3, total_steps=9)
    start = warmstart.make_warm_start(both, CONFIG)
    _same(start(start(old, _params(5)), _params(5)).ours.memory, old.memory)


def test_state_is_found_again_among_stored_leaves_and_seeds_are_pooled() -> None:
    states = jax.tree.map(lambda x: np.stack([x, 2 * x, 3 * x]), _remembering(_params(5)))
    matrix = states.memory.matrix.copy()
    matrix[1] = np.nan  # a seed that diverged has no say
    states = states._replace(memory=MemoryState(matrix, states.memory.mass))
    paths = jax.tree_util.tree_leaves_with_path(((), states))
    leaves = {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in paths}
    assert "1/memory/mass" in leaves and "1/mu/mlp/layer_0/kernel" in leaves
    found = warmstart.from_leaves(leaves)
    assert found is not None
    pooled = warmstart.mean_memory(found)
    np.testing.assert_allclose(pooled.memory.mass, 2 * _remembering(_params(5)).memory.mass, 1e-6)
    assert pooled.mu["mlp"]["layer_0"]["kernel"].shape == (5, 16)
    assert warmstart.from_leaves({"0/mu/w": leaves["1/mu/log_std"]}) is None
    with pytest.raises(ValueError, match="not finite"):
        warmstart.mean_memory(states._replace(memory=MemoryState(matrix[1:2], matrix[1:2, ..., 0])))


def test_what_cannot_be_pooled_is_refused() -> None:
    start, params = warmstart.make_warm_start(OPTIMIZER, CONFIG), _params(5)
    with pytest.raises(ValueError, match="the old optimizer has no memory"):
        start(optax.adam(1e-3).init(params), params)
    with pytest.raises(ValueError, match="the new optimizer has no memory"):
        warmstart.make_warm_start(optax.adam(1e-3), CONFIG)(OPTIMIZER.init(params), params)
    other = mnemosyne.MnemosyneConfig(taus=(0.1,))
    wide = mnemosyne.scale_by_mnemosyne(problems.untrained(other), other)
    with pytest.raises(ValueError, match="the old memory has slots of"):
        start(wide.init(params), params)
