# SPDX-License-Identifier: Apache-2.0
"""The coordinate-wise rule: its residual is bounded and odd, and halves keep the mean."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mnemosyne
from mnemosyne import halves, rule
from tests.mnemosyne import problems


def test_basis_is_bounded_and_even_under_a_common_flip() -> None:
    rng = np.random.default_rng(0)
    u, h, p = np.float32(rng.standard_normal((3, 1000)) * np.asarray([[1.0], [50.0], [1e9]]))
    basis = jax.jit(rule.basis)
    functions = basis(u, h, p)
    assert len(functions) == rule.NUM_BASIS
    for function, flipped in zip(functions, basis(-u, -h, -p), strict=True):
        assert np.all(np.abs(function) <= 1.0)
        np.testing.assert_array_equal(function, flipped)


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-25, 2e-24, 1e-3, 1.0])
def test_roots_have_finite_derivatives(size: float) -> None:
    known = size > rule.NEGLIGIBLE
    value, slope = jax.jit(jax.value_and_grad(rule.safe_sqrt))(size)
    np.testing.assert_allclose(value, np.sqrt(size) if known else 0.0, rtol=1e-6)
    np.testing.assert_allclose(slope, 0.5 / np.sqrt(size) if known else 0.0, rtol=1e-6)
    value, slope = jax.jit(jax.value_and_grad(rule.inverse_sqrt))(size)
    np.testing.assert_allclose(value, 1 / np.sqrt(size) if known else 0.0, rtol=1e-6)
    np.testing.assert_allclose(slope, -0.5 * size**-1.5 if known else 0.0, rtol=1e-6)


def test_round_stochastically_keeps_the_mean_and_the_format() -> None:
    rng = np.random.default_rng(0)
    x = jnp.full(20_000, 1.001, jnp.float32)  # a quarter of the way to the next bfloat16
    noise = jnp.asarray(rng.standard_normal((2, 20_000)), jnp.float32)
    rounded = halves.round_stochastically(x, *noise)
    np.testing.assert_array_equal(rounded, rounded.astype(jnp.bfloat16).astype(jnp.float32))
    assert set(np.unique(rounded).tolist()) == {1.0, 1.0078125}
    np.testing.assert_allclose(np.mean(rounded), 1.001, atol=2e-4)


def test_round_stochastically_leaves_exact_numbers_alone() -> None:
    exact = jnp.asarray([0.0, 1.0, 0.5, 3.0, 2.0**-60], jnp.float32)
    np.testing.assert_array_equal(halves.round_stochastically(exact, exact + 0.3), exact)


def test_lean_second_moment_follows_a_slow_decay() -> None:
    """To the nearest bfloat16, an average with decay 0.999 would stop far from its target."""
    value = np.full(4_000, 2.0, np.float32)
    follow = jax.jit(lambda v, noise: halves.round_stochastically(0.999 * v + 0.001, noise))
    rng = np.random.default_rng(1)
    for _ in range(300):
        value = follow(value, rng.standard_normal(4_000).astype(np.float32))
    np.testing.assert_allclose(np.mean(value), 1.0 + 0.999**300, rtol=0.01)


@pytest.mark.parametrize(
    ("moments", "floats"), [("float32", 2.1), ("bfloat16-mu", 1.6), ("lean", 1.1)]
)
def test_moments_settings_keep_their_promise_of_memory(moments: str, floats: float) -> None:
    config = mnemosyne.MnemosyneConfig(moments=moments)
    # The weights do not depend on how moments are kept.
    optimizer = mnemosyne.scale_by_mnemosyne(problems.untrained(), config)
    params = {"a": jnp.zeros((1000, 1000)), "b": jnp.zeros((100, 1000))}
    state = jax.eval_shape(optimizer.init, params)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert size / 4 / 1.1e6 <= floats


@functools.cache
def _moved(moments: str) -> jax.Array:
    """How far 30 updates of the untrained network, which are Adam's, move a matrix."""
    small = {"token_size": 4, "taus": (0.1,), "encoder": False, "cross_token": False}
    config = mnemosyne.MnemosyneConfig(sample=16, polar=False, moments=moments, **small)
    theta = problems.untrained(dataclasses.replace(config, moments="float32"))
    optimizer = mnemosyne.scale_by_mnemosyne(theta, config)
    start = np.random.default_rng(0).standard_normal((40, 5))
    params = p = {"w": jnp.asarray(0.3 * start, jnp.float32)}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(state)]
    for index in range(30):
        updates, state = update(problems.noisy_gradient(p, index), state, p)
        p = optax.apply_updates(p, updates)
    assert dtypes == [leaf.dtype for leaf in jax.tree.leaves(state)]
    return p["w"] - params["w"]


@pytest.mark.parametrize("moments", ["bfloat16-mu", "lean"])
def test_half_moments_stay_close_to_full_ones(moments: str) -> None:
    runs = [_moved("float32"), _moved(moments)]
    np.testing.assert_allclose(runs[1], runs[0], atol=0.1 * float(jnp.max(jnp.abs(runs[0]))))
    assert problems.gap(*runs) > 0
