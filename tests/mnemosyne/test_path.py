# SPDX-License-Identifier: Apache-2.0
"""The path of the weights tells too small from too large a step, in any units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mnemosyne
from mnemosyne import path
from tests.mnemosyne import problems

COUNTS = jnp.tile(jnp.asarray([64.0, 256.0]), 4)
SHAPE = (len(COUNTS), path.WIDTH)


def _normal(seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(SHAPE), jnp.float32)


def _walk(updates: list[jax.Array]) -> path.PathState:
    state = path.init(len(COUNTS))
    for update in updates:
        state = path.advance(state, update, state.log_gain, COUNTS)
    return state


def test_features_before_the_first_update_are_zero() -> None:
    tokens, network = path.features(path.init(len(COUNTS)), _normal(0), COUNTS)
    assert not jnp.any(tokens)
    assert not jnp.any(network)


def test_straight_path_is_straight_and_points_where_the_gradient_does() -> None:
    g = _normal(0)
    tokens, network = path.features(_walk([-0.01 * g] * 30), g, COUNTS)
    np.testing.assert_allclose(tokens[:, :2], 1.0, rtol=1e-5)
    np.testing.assert_allclose(network, 1.0, rtol=1e-5)


def test_path_to_and_fro_is_not_straight() -> None:
    g = _normal(0)
    tokens, network = path.features(_walk([g, -g] * 15), g, COUNTS)
    assert float(jnp.max(tokens[:, 1])) < 0.05
    assert float(network[1]) < 0.05


def test_sum_and_length_are_discounted_as_told() -> None:
    updates = [_normal(i) for i in range(4)]
    weights = path.DECAY ** np.arange(4)[::-1]
    state = _walk(updates)
    drift = sum(w * u for w, u in zip(weights, updates, strict=True))
    np.testing.assert_allclose(state.drift, drift, rtol=1e-5, atol=1e-6)
    roots = [np.sqrt(np.mean(np.square(u), axis=1)) for u in updates]
    lengths = sum(w * r for w, r in zip(weights, roots, strict=True))
    np.testing.assert_allclose(state.length, lengths, rtol=1e-5)
    whole = [np.sqrt(np.sum(COUNTS * np.square(r))) for r in roots]
    expected = sum(w * r for w, r in zip(weights, whole, strict=True))
    np.testing.assert_allclose(state.network_length, expected, rtol=1e-5)


@pytest.mark.parametrize("gradient_scale", [1e-3, 1.0])
@pytest.mark.parametrize("update_scale", [1e-6, 1e3])
def test_features_do_not_see_units(gradient_scale: float, update_scale: float) -> None:
    updates, g = [_normal(i) for i in range(4)], 0.1 * _normal(9)
    base = path.features(_walk(updates), g, COUNTS)
    scaled = path.features(_walk([update_scale * u for u in updates]), gradient_scale * g, COUNTS)
    for a, b in zip(base, scaled, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


@pytest.mark.parametrize(("rate", "sign"), [(0.01, 1.0), (0.3, 1.0), (1.7, -1.0)])
def test_turn_is_the_sign_of_the_derivative_by_the_step_size(rate: float, sign: float) -> None:
    # Gradient descent on half the squared norm: below 1 a longer step would have been better.
    x = _normal(0)
    updates = []
    for _ in range(3):
        updates.append(-rate * x)
        x = x + updates[-1]
    _, network = path.features(_walk(updates), x, COUNTS)
    assert np.sign(network[0]) == sign


@pytest.mark.parametrize(("entries", "left"), [(16.0, 1.0 / 16.0), (128.0, 0.5), (256.0, 1.0)])
def test_turn_of_few_coordinates_is_believed_less(entries: float, left: float) -> None:
    """By the square of what they are of 256."""
    g, state = _normal(0), _walk([_normal(1)])
    told = path.features(state, g, jnp.full(len(COUNTS), entries / len(COUNTS)))[1]
    whole = path.features(state, g, jnp.full(len(COUNTS), 1e3))[1]
    assert 0.01 < abs(float(whole[0])) < 1.0
    np.testing.assert_allclose(told[0], left**2 * whole[0], rtol=1e-5)


def test_update_without_adaptive_steps_keeps_no_path() -> None:
    config = mnemosyne.MnemosyneConfig(sample=16, chunk=(2, 2), adaptive=False)
    optimizer = mnemosyne.scale_by_mnemosyne(problems.meta_params(config), config)
    params = problems.pair()
    state = jax.eval_shape(optimizer.init, params)
    assert state.path.drift.size == 0
    _, state = jax.eval_shape(optimizer.update, params, state, params)
    assert state.path.drift.size == 0


def test_gain_is_kept_through_a_skipped_gradient() -> None:
    params = problems.tree()
    step, state = problems.learned(problems.meta_params()), problems.init(params)
    for index in range(3):
        _, state = step(problems.noisy_gradient(params, index), state, params)
    assert problems.norm(state.path.log_gain) > 0
    bad = problems.noisy_gradient(params, 4)
    bad["bias"][0] = np.nan
    _, after = step(bad, state, params)
    assert problems.gap(state.path, after.path) == 0
