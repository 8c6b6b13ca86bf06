# SPDX-License-Identifier: Apache-2.0
"""Orthogonalised momentum: what it does to singular values, and what it leaves alone."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne import features, layout, polar
from mnemosyne.controller import MetaParams
from tests.mnemosyne import problems

SHAPES = [(16, 64), (64, 32), (32, 10), (20, 96), (3, 3, 4, 24), (300, 100), (144, 300)]


def _normal(shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


_factors = jax.jit(polar.factors)
"""Compiled once for every set of shapes."""


@functools.partial(jax.jit, static_argnums=1)
def _factor(matrices: jax.Array, steps: Any = polar._STEPS) -> jax.Array:
    return polar.inverse_root(matrices @ matrices.swapaxes(1, 2), steps) @ matrices


@pytest.mark.parametrize(("steps", "lowest"), [(polar._LARGE_STEPS, -0.5), (polar._STEPS, -1.0)])
def test_inverse_root_has_singular_values_near_one(steps: Any, lowest: float) -> None:
    spread = jnp.logspace(lowest, 0, 16)[:, None]
    matrices = spread * _normal((5, 16, 64))
    factor = _factor(matrices, steps)
    singular = np.linalg.svd(factor, compute_uv=False)
    assert singular.min() > 0.9
    assert singular.max() < 1.1
    # The polar factor X (X^T X)^(-1/2) = U V^T keeps singular vectors: X^T factor is positive.
    product = np.swapaxes(matrices, 1, 2) @ factor
    np.testing.assert_allclose(product, np.swapaxes(product, 1, 2), atol=1e-3)
    assert np.linalg.eigvalsh(product).min() > -1e-3


def test_inverse_root_knows_a_zero_tile_and_its_slope() -> None:
    tiles = jnp.zeros((2, 16, 64)).at[0, 3, 5].set(2.0)
    factor, pullback = jax.vjp(_factor, tiles)
    assert factor[0, 3, 5] == pytest.approx(1.0, abs=0.1)
    assert jnp.count_nonzero(factor) == 1
    assert jnp.all(jnp.isfinite(pullback(jnp.ones_like(tiles))[0]))


def test_inverse_root_keeps_its_dtype_where_the_default_is_double(x64: None) -> None:
    assert _factor(_normal((1, 16, 64))).dtype == jnp.float32


@pytest.mark.parametrize("shape", SHAPES)
def test_factors_have_unit_size_and_ignore_scale(shape: tuple[int, ...]) -> None:
    leaf = _normal(shape)
    (factor,) = _factors([leaf])
    assert factor.shape == shape
    # A large tile knows the correlation of its rows from a sample of their columns.
    assert float(jnp.sqrt(jnp.mean(factor**2))) == pytest.approx(1.0, abs=0.12)
    np.testing.assert_allclose(_factors([1e-6 * leaf])[0], factor, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(_factors([-leaf])[0], -factor)


def test_factors_of_one_tensor_do_not_depend_on_the_others() -> None:
    leaves = [_normal(shape, i) for i, shape in enumerate(SHAPES)]
    together = _factors(leaves)
    for leaf, factor in zip(leaves, together, strict=True):
        np.testing.assert_allclose(_factors([leaf])[0], factor, rtol=1e-4, atol=1e-5)


def _polar(matrix: np.ndarray) -> np.ndarray:
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return np.sqrt(max(matrix.shape)) * left @ right


@pytest.mark.parametrize("shape", [(24, 100), (100, 24), (3, 3, 4, 24), (2, 5)])
def test_factors_of_matrices_with_a_short_side_are_those_of_the_whole(
    shape: tuple[int, ...],
) -> None:
    leaf = _normal(shape)
    expected = _polar(np.asarray(leaf).reshape(-1, shape[-1])).reshape(shape)
    (factor,) = _factors([leaf])
    np.testing.assert_allclose(factor, expected, atol=0.3)
    assert np.sum(factor * expected) / expected.size > 0.94


def test_factors_of_small_matrices_are_those_of_equal_tiles_of_the_shorter_side() -> None:
    leaf = _normal((100, 150))
    (factor,) = _factors([leaf])
    for tile in (slice(0, 50), slice(50, 100)):
        expected = _polar(np.asarray(leaf[tile]))
        assert np.sum(factor[tile] * expected) / expected.size > 0.94


def test_factors_of_large_matrices_are_those_of_their_rows() -> None:
    leaf = _normal((140, 130))
    assert leaf.size > layout.MAX_PACKED
    (factor,) = _factors([leaf])
    tile = np.asarray(factor[: polar.ROWS]) / np.sqrt(leaf.shape[1])
    # The correlation of the rows is known from half of their columns.
    np.testing.assert_allclose(tile @ tile.T, np.eye(polar.ROWS), atol=0.5)
    alone = leaf.at[polar.ROWS :].set(0.0)
    np.testing.assert_allclose(
        _factors([alone])[0][: polar.ROWS], factor[: polar.ROWS], rtol=1e-4, atol=1e-5
    )


def test_factors_leave_vectors_out() -> None:
    shapes: list[tuple[int, ...]] = [(7,), (), (1, 9), (9, 1), (0, 3)]
    for factor in _factors([jnp.ones(shape) for shape in shapes]):
        assert not jnp.any(factor)


def test_update_keeps_coordinates_without_gradient_and_equals_adam_at_weight_zero() -> None:
    theta = problems.untrained()
    follows = theta | {"skip": theta["skip"].at[features.input_row("time", 0), 4].set(5.0)}
    params, grads = problems.tree(), problems.tree(1)
    grads["matrix"][4], grads["matrix"][:, 7], grads["matrix"][11, 12] = 0.0, 0.0, 0.0

    def run(theta: MetaParams) -> Any:
        step, state, moved = problems.learned(theta), problems.init(params), params
        for _ in range(5):
            updates, state = step(grads, state, moved)
            moved = jax.tree.map(np.add, moved, jax.device_get(updates))
        return moved

    plain, moved = run(theta), run(follows)
    still = grads["matrix"] == 0
    np.testing.assert_array_equal(moved["matrix"][still], params["matrix"][still])
    np.testing.assert_array_equal(moved["bias"], plain["bias"])
    assert np.abs(moved["matrix"] - plain["matrix"])[~still].max() > 1e-3
