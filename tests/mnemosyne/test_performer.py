# SPDX-License-Identifier: Apache-2.0
"""Linear attention, Performer blocks and the two-level encoder."""

import jax
import jax.numpy as jnp
import numpy as np

from mnemosyne import encoder, kernels, performer

DIM, KEY_DIM = 8, 4


def _setup(tokens: int = 7) -> tuple[jax.Array, jax.Array]:
    directions = kernels.orthogonal_directions(jax.random.key(9), 8, KEY_DIM)
    return jax.random.normal(jax.random.key(1), (tokens, DIM)), directions


def test_linear_attention_equals_quadratic_form() -> None:
    _, directions = _setup()
    q, k = jax.random.normal(jax.random.key(2), (2, 9, KEY_DIM)) * 0.4
    v, weights = jax.random.normal(jax.random.key(3), (9, DIM)), jnp.arange(9.0)
    phi_q, phi_k = (kernels.cosh_features(x, directions) for x in (q, k))
    scores = (phi_q @ phi_k.T) * weights
    expected = scores / scores.sum(axis=-1, keepdims=True) @ v
    linear = performer.linear_attention(phi_q, phi_k, v, weights)
    np.testing.assert_allclose(linear, expected, rtol=1e-4, atol=1e-5)


def test_linear_attention_with_many_features_is_softmax_attention() -> None:
    directions = kernels.orthogonal_directions(jax.random.key(0), 20_000, KEY_DIM)
    q, k = jax.random.normal(jax.random.key(2), (2, 6, KEY_DIM)) * 0.4
    v = jax.random.normal(jax.random.key(3), (6, DIM))
    phi_q, phi_k = (kernels.cosh_features(x, directions) for x in (q, k))
    linear = performer.linear_attention(phi_q, phi_k, v, jnp.ones(6))
    np.testing.assert_allclose(linear, jax.nn.softmax(q @ k.T) @ v, atol=0.02)


def test_block_is_permutation_equivariant() -> None:
    x, directions = _setup()
    params = performer.block_init(jax.random.key(4), DIM, KEY_DIM, 16)
    order = jnp.asarray([3, 1, 6, 0, 2, 5, 4])
    apply = lambda x: performer.block(  # noqa: E731
        params, x, jnp.ones(7), kernels.cosh_features, directions
    )
    np.testing.assert_allclose(apply(x)[order], apply(x[order]), rtol=1e-4, atol=1e-5)


def test_block_padding_does_not_reach_other_tokens() -> None:
    x, directions = _setup()
    params = performer.block_init(jax.random.key(4), DIM, KEY_DIM, 16)
    weights = jnp.asarray([1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    changed = x.at[5:].set(100.0)
    first, second = (
        performer.block(params, y, weights, kernels.cosh_features, directions) for y in (x, changed)
    )
    np.testing.assert_allclose(first[:5], second[:5], rtol=1e-6)


def test_bound_norm_keeps_direction_and_stays_below_one() -> None:
    x = jnp.asarray([[3.0, 4.0], [1e-3, 0.0], [3e4, -4e4]])
    bounded = performer.bound_norm(x)
    assert jnp.all(jnp.linalg.norm(bounded, axis=-1) <= 1.0 + 1e-6)
    np.testing.assert_allclose(bounded[0, 1] / bounded[0, 0], 4 / 3, rtol=1e-6)


def test_encode_ignores_padding_and_order_of_chunks() -> None:
    _, directions = _setup()
    params = encoder.init(jax.random.key(0), 3, DIM, KEY_DIM, 5)
    inputs = jax.random.normal(jax.random.key(1), (2, 4, 6, 3))
    weights = jnp.ones((2, 4, 6)).at[:, 3].set(0.0)

    def tokens(inputs: jax.Array, weights: jax.Array) -> jax.Array:
        return encoder.encode(params, inputs, weights, kernels.cosh_features, directions).tokens

    base = tokens(inputs, weights)
    assert base.shape == (2, 5)
    np.testing.assert_allclose(base, tokens(inputs.at[:, 3].set(9.0), weights), rtol=1e-5)
    order = jnp.asarray([2, 3, 0, 1])
    np.testing.assert_allclose(
        base, tokens(inputs[:, order], weights[:, order]), rtol=1e-4, atol=1e-6
    )
    assert float(jnp.max(jnp.abs(base - tokens(inputs.at[0, 0, 0].add(1.0), weights)))) > 1e-4
