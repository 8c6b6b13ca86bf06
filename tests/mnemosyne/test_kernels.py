# SPDX-License-Identifier: Apache-2.0
"""Random features estimate the softmax kernel, with the noise that theory predicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne import kernels

DIM = 6


def _pair(norm: float) -> tuple[jax.Array, jax.Array]:
    q, k = jax.random.normal(jax.random.key(1), (2, DIM))
    return norm * q / jnp.linalg.norm(q), norm * k / jnp.linalg.norm(k)


def _estimates(name: str, q: jax.Array, k: jax.Array, num_features: int, draws: int) -> jax.Array:
    num = kernels.num_directions(name, num_features)
    keys = jax.random.split(jax.random.key(2), draws)

    def one(key: jax.Array) -> jax.Array:
        directions = jax.random.normal(key, (num, DIM))
        phi = kernels.FEATURE_MAPS[name]
        return phi(q, directions) @ phi(k, directions)

    return jax.vmap(one)(keys)


@pytest.mark.parametrize("name", ["cosh", "exp"])
def test_features_inner_product_is_unbiased(name: str) -> None:
    q, k = _pair(0.8)
    estimates = _estimates(name, q, k, 16, 20_000)
    error = estimates.std() / np.sqrt(len(estimates))
    assert abs(estimates.mean() - jnp.exp(q @ k)) < 5 * error


def test_cosh_features_noise_matches_formula() -> None:
    q, k = _pair(0.8)
    estimates = _estimates("cosh", q, k, 32, 20_000)
    measured = estimates.std() / jnp.exp(q @ k)
    np.testing.assert_allclose(measured, kernels.relative_std(q, k, 32), rtol=0.05)


def test_cosh_features_noise_falls_with_root_of_width() -> None:
    q, k = _pair(0.8)
    narrow, wide = (_estimates("cosh", q, k, width, 20_000).std() for width in (16, 64))
    np.testing.assert_allclose(narrow / wide, 2.0, rtol=0.1)


def test_cosh_features_beat_exp_by_the_published_factor() -> None:
    # MSE(cosh, m directions) = (1 - exp(-|x + y|^2)) / 2 * MSE(exp, m directions), Choromanski et al.
    q, k = _pair(0.6)
    cosh = jnp.var(_estimates("cosh", q, k, 32, 40_000))
    exp = jnp.var(_estimates("exp", q, k, 16, 40_000))
    expected = 0.5 * (1 - jnp.exp(-jnp.sum(jnp.square(q + k))))
    np.testing.assert_allclose(cosh / exp, expected, rtol=0.1)


@pytest.mark.parametrize("name", sorted(kernels.FEATURE_MAPS))
def test_features_are_positive_and_of_the_stated_width(name: str) -> None:
    directions = kernels.orthogonal_directions(
        jax.random.key(0), kernels.num_directions(name, 16), DIM
    )
    phi = kernels.FEATURE_MAPS[name](jax.random.normal(jax.random.key(3), (5, DIM)), directions)
    assert phi.shape == (5, 16)
    assert jnp.all(phi > 0)


def test_orthogonal_directions_are_orthogonal_in_blocks_only() -> None:
    rows = kernels.orthogonal_directions(jax.random.key(0), 10, DIM)
    unit = rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
    gram = unit[:DIM] @ unit[:DIM].T
    np.testing.assert_allclose(gram, jnp.eye(DIM), atol=1e-5)
    assert rows.shape == (10, DIM)


def test_num_directions_odd_width_is_refused() -> None:
    with pytest.raises(ValueError, match="even"):
        kernels.num_directions("cosh", 15)
