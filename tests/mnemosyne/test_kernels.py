# SPDX-License-Identifier: Apache-2.0
"""Random features estimate the softmax kernel, with the noise that theory predicts."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from mnemosyne import kernels

DIM = 6


def _pair(norm: float) -> np.ndarray:
    pair = np.random.default_rng(1).standard_normal((2, DIM)).astype(np.float32)
    return np.float32(norm) * pair / np.linalg.norm(pair, axis=1, keepdims=True)


@functools.partial(jax.jit, static_argnums=0)
def _products(name: kernels.KernelName, q: Any, k: Any, directions: Any) -> jax.Array:
    phi = kernels.FEATURE_MAPS[name]
    return jax.vmap(lambda w: phi(q, w) @ phi(k, w))(directions)


def _estimates(
    name: kernels.KernelName, q: np.ndarray, k: np.ndarray, num_features: int
) -> np.ndarray:
    """One estimate of the kernel for each of 40,000 draws of independent directions."""
    shape = (40_000, kernels.num_directions(name, num_features), DIM)
    directions = np.random.default_rng(2).standard_normal(shape, np.float32)
    return np.asarray(_products(name, q, k, directions))


@pytest.mark.parametrize("name", ["cosh", "exp"])
def test_features_inner_product_is_unbiased(name: kernels.KernelName) -> None:
    q, k = _pair(0.8)
    estimates = _estimates(name, q, k, 16)
    error = estimates.std() / np.sqrt(len(estimates))
    assert abs(estimates.mean() - np.exp(q @ k)) < 5 * error


def test_cosh_features_noise_matches_formula() -> None:
    q, k = _pair(0.8)
    measured = _estimates("cosh", q, k, 32).std() / np.exp(q @ k)
    expected = jax.jit(lambda q, k: kernels.relative_std(q, k, 32))(q, k)
    np.testing.assert_allclose(measured, expected, rtol=0.05)


def test_cosh_features_noise_falls_with_root_of_width() -> None:
    q, k = _pair(0.8)
    narrow, wide = (_estimates("cosh", q, k, width).std() for width in (16, 64))
    np.testing.assert_allclose(narrow / wide, 2.0, rtol=0.1)


def test_cosh_features_beat_exp_by_the_published_factor() -> None:
    # Choromanski et al., for m directions each: MSE(cosh) = (1 - exp(-|x + y|^2)) / 2 * MSE(exp).
    q, k = _pair(0.6)
    cosh, exp = np.var(_estimates("cosh", q, k, 32)), np.var(_estimates("exp", q, k, 16))
    expected = 0.5 * (1 - np.exp(-np.sum(np.square(q + k))))
    np.testing.assert_allclose(cosh / exp, expected, rtol=0.1)


@pytest.mark.parametrize("name", sorted(kernels.FEATURE_MAPS))
def test_features_are_positive_and_of_the_stated_width(name: kernels.KernelName) -> None:
    rng = np.random.default_rng(3)
    directions = rng.standard_normal((kernels.num_directions(name, 16), DIM), np.float32)
    x = rng.standard_normal((5, DIM), np.float32)
    phi = jax.jit(kernels.FEATURE_MAPS[name])(x, directions)
    assert phi.shape == (5, 16)
    assert np.all(np.asarray(phi) > 0)


def test_orthogonal_directions_are_orthogonal_in_blocks_only() -> None:
    rows = np.asarray(kernels.orthogonal_directions(jax.random.key(0), 10, DIM))
    unit = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    gram = unit @ unit.T
    for block in (gram[:DIM, :DIM], gram[DIM:, DIM:]):
        np.testing.assert_allclose(block, np.eye(len(block)), atol=1e-5)
    assert np.max(np.abs(gram[:DIM, DIM:])) > 0.1
    assert rows.shape == (10, DIM)


def test_num_directions_odd_width_is_refused() -> None:
    with pytest.raises(ValueError, match="even"):
        kernels.num_directions("cosh", 15)
