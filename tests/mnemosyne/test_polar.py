# SPDX-License-Identifier: Apache-2.0
"""Orthogonalised momentum: what it does to singular values, and what it leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mnemosyne
from mnemosyne import features, polar
from mnemosyne.controller import MetaParams
from mnemosyne.layout import MAX_PACKED

SHAPES = [(16, 64), (64, 32), (32, 10), (20, 96), (3, 3, 4, 24), (200, 100), (70, 300)]


def _normal(shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _factor(tiles: jax.Array) -> jax.Array:
    return polar.inverse_root(tiles @ tiles.swapaxes(1, 2)) @ tiles


def test_inverse_root_has_singular_values_near_one() -> None:
    spread = jnp.logspace(-0.5, 0, 16)[:, None]
    tiles = spread * _normal((5, 16, 64))
    singular = np.linalg.svd(_factor(tiles), compute_uv=False)
    assert singular.min() > 0.9
    assert singular.max() < 1.1
    # The polar factor X (X^T X)^(-1/2) = U V^T keeps singular vectors: X^T factor is positive.
    product = np.swapaxes(tiles, 1, 2) @ _factor(tiles)
    np.testing.assert_allclose(product, np.swapaxes(product, 1, 2), atol=1e-3)
    assert np.linalg.eigvalsh(product).min() > -1e-3


def test_inverse_root_knows_a_zero_tile_and_its_slope() -> None:
    tiles = jnp.zeros((2, 16, 64)).at[0, 3, 5].set(2.0)
    factor, pullback = jax.vjp(_factor, tiles)
    assert factor[0, 3, 5] == pytest.approx(1.0, abs=0.1)
    assert jnp.count_nonzero(factor) == 1
    assert jnp.all(jnp.isfinite(pullback(jnp.ones_like(tiles))[0]))


@pytest.mark.parametrize("shape", SHAPES)
def test_factors_have_unit_size_and_ignore_scale(shape: tuple[int, ...]) -> None:
    leaf = _normal(shape)
    (factor,) = polar.factors([leaf])
    assert factor.shape == shape
    assert float(jnp.sqrt(jnp.mean(factor**2))) == pytest.approx(1.0, abs=0.1)
    np.testing.assert_allclose(polar.factors([1e-6 * leaf])[0], factor, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(polar.factors([-leaf])[0], -factor)


def test_factors_of_one_tensor_do_not_depend_on_the_others() -> None:
    leaves = [_normal(shape, i) for i, shape in enumerate(SHAPES)]
    together = polar.factors(leaves)
    for leaf, factor in zip(leaves, together, strict=True):
        np.testing.assert_allclose(polar.factors([leaf])[0], factor, rtol=1e-4, atol=1e-5)


def test_factors_of_small_and_large_matrices_follow_one_rule() -> None:
    """A large matrix is cut by rows alone; one tile wide, a small one is too."""
    small = _normal((16, 64))
    large = jnp.tile(small, (MAX_PACKED // small.size + 1, 1))
    np.testing.assert_allclose(
        polar.factors([large])[0][:16], polar.factors([small])[0], rtol=1e-4, atol=1e-5
    )


def test_factors_leave_vectors_out() -> None:
    shapes: list[tuple[int, ...]] = [(7,), (), (1, 9), (9, 1), (0, 3)]
    for factor in polar.factors([jnp.ones(shape) for shape in shapes]):
        assert not jnp.any(factor)


def test_update_keeps_coordinates_without_gradient_and_equals_adam_at_weight_zero() -> None:
    config = mnemosyne.MnemosyneConfig()
    theta = mnemosyne.init_meta_params(jax.random.key(0), config)
    rows = features.input_row("time", 0)
    follows = theta | {"skip": theta["skip"].at[rows, 4].set(5.0)}
    params = {"kernel": _normal((20, 30)), "bias": jnp.ones(30)}
    grads = {"kernel": _normal((20, 30), 1).at[4].set(0.0).at[:, 7].set(0.0).at[11, 12].set(0.0)}
    grads["bias"] = _normal((30,), 2)

    def run(theta: MetaParams) -> optax.Params:
        optimizer = mnemosyne.scale_by_mnemosyne(theta, config)
        state, moved = optimizer.init(params), params
        for _ in range(5):
            updates, state = jax.jit(optimizer.update)(grads, state, moved)
            moved = optax.apply_updates(moved, updates)
        return moved

    plain, moved = run(theta), run(follows)
    still = np.asarray(grads["kernel"]) == 0
    np.testing.assert_array_equal(np.asarray(moved["kernel"])[still], params["kernel"][still])
    np.testing.assert_array_equal(moved["bias"], plain["bias"])
    change = np.asarray(moved["kernel"] - params["kernel"])[~still]
    assert np.abs(change - np.asarray(plain["kernel"] - params["kernel"])[~still]).max() > 1e-3
