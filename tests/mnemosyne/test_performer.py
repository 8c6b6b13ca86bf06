# SPDX-License-Identifier: Apache-2.0
"""Linear attention, Performer blocks and the two-level encoder."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mnemosyne import encoder, kernels, performer

DIM, KEY_DIM = 8, 4


def _setup(tokens: int = 7) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(9)
    directions = rng.standard_normal((8, KEY_DIM), np.float32)
    return jnp.asarray(rng.standard_normal((tokens, DIM), np.float32)), jnp.asarray(directions)


@functools.cache
def _block_params() -> Any:
    return performer.block_init(jax.random.key(4), DIM, KEY_DIM, 16)


@jax.jit
def _block(params: Any, x: Any, weights: Any, directions: Any) -> jax.Array:
    return performer.block(params, x, weights, kernels.cosh_features, directions)


@jax.jit
def _attend(q: Any, k: Any, v: Any, weights: Any, directions: Any) -> tuple[Any, Any, Any]:
    """Linear attention on cosh features, and these features."""
    phi_q, phi_k = (kernels.cosh_features(x, directions) for x in (q, k))
    return performer.linear_attention(phi_q, phi_k, v, weights), phi_q, phi_k


def test_linear_attention_equals_quadratic_form() -> None:
    _, directions = _setup()
    rng = np.random.default_rng(2)
    q, k = 0.4 * rng.standard_normal((2, 9, KEY_DIM)).astype(np.float32)
    v, weights = rng.standard_normal((9, DIM), np.float32), np.arange(9, dtype=np.float32)
    linear, phi_q, phi_k = map(np.asarray, _attend(q, k, v, weights, directions))
    scores = (phi_q @ phi_k.T) * weights
    expected = scores / scores.sum(axis=-1, keepdims=True) @ v
    np.testing.assert_allclose(linear, expected, rtol=1e-4, atol=1e-5)


def test_linear_attention_with_many_features_is_softmax_attention() -> None:
    rng = np.random.default_rng(2)
    directions = rng.standard_normal((20_000, KEY_DIM), np.float32)
    q, k = 0.4 * rng.standard_normal((2, 6, KEY_DIM)).astype(np.float32)
    v = rng.standard_normal((6, DIM), np.float32)
    linear, _, _ = _attend(q, k, v, np.ones(6, np.float32), directions)
    scores = np.exp(q @ k.T)
    np.testing.assert_allclose(linear, scores / scores.sum(axis=1, keepdims=True) @ v, atol=0.02)


def test_block_is_permutation_equivariant() -> None:
    x, directions = _setup()
    order = np.asarray([3, 1, 6, 0, 2, 5, 4])
    one, other = (
        _block(_block_params(), y, np.ones(7, np.float32), directions) for y in (x, x[order])
    )
    np.testing.assert_allclose(one[order], other, rtol=1e-4, atol=1e-5)


def test_block_padding_does_not_reach_other_tokens() -> None:
    x, directions = _setup()
    weights = np.asarray([1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0], np.float32)
    changed = np.array(x)
    changed[5:] = 100.0
    first, second = (_block(_block_params(), y, weights, directions) for y in (x, changed))
    np.testing.assert_allclose(first[:5], second[:5], rtol=1e-6)


def test_bound_norm_keeps_direction_and_stays_below_one() -> None:
    x = np.asarray([[3.0, 4.0], [1e-3, 0.0], [3e4, -4e4]], np.float32)
    bounded = np.asarray(jax.jit(performer.bound_norm)(x))
    assert np.all(np.linalg.norm(bounded, axis=-1) <= 1.0 + 1e-6)
    np.testing.assert_allclose(bounded[0, 1] / bounded[0, 0], 4 / 3, rtol=1e-6)


def test_encode_ignores_padding_and_order_of_chunks() -> None:
    _, directions = _setup()
    params = encoder.init(jax.random.key(0), 3, DIM, KEY_DIM, 5)
    inputs = np.random.default_rng(1).standard_normal((2, 4, 6, 3), np.float32)
    weights = np.ones((2, 4, 6), np.float32)
    weights[:, 3] = 0.0

    @jax.jit
    def tokens(inputs: jax.Array, weights: jax.Array) -> jax.Array:
        return encoder.encode(params, inputs, weights, kernels.cosh_features, directions).tokens

    base = tokens(inputs, weights)
    assert base.shape == (2, 5)
    padding, moved = inputs.copy(), inputs.copy()
    padding[:, 3] = 9.0
    moved[0, 0, 0] += 1.0
    np.testing.assert_allclose(base, tokens(padding, weights), rtol=1e-5)
    order = np.asarray([2, 3, 0, 1])
    np.testing.assert_allclose(
        base, tokens(inputs[:, order], weights[:, order]), rtol=1e-4, atol=1e-6
    )
    assert float(np.max(np.abs(base - tokens(moved, weights)))) > 1e-4
