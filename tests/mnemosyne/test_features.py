# SPDX-License-Identifier: Apache-2.0
"""Features are bounded, scale-free and neutral when something is missing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne import features, path


def _sample(scale: float = 1.0, history: bool = True) -> features.Sample:
    g, m, v, p = np.random.default_rng(0).standard_normal((4, 3, 16)).astype(np.float32)
    m, v = (m, v) if history else (0.0 * m, 0.0 * v)
    sample = (scale * g, scale * m, (scale * v) ** 2, p)
    return features.Sample(*(jnp.asarray(x, jnp.float32) for x in sample))


COUNTS = np.asarray([16.0, 100.0, 1.0], np.float32)
STATIC = np.zeros((3, 5), np.float32)
# Each operation on its own would be compiled on its own.
token_features = jax.jit(features.token_features)
coordinate_features = jax.jit(features.coordinate_features)


@pytest.mark.parametrize("history", [True, False])
def test_token_features_do_not_see_the_gradient_scale(history: bool) -> None:
    base, network = token_features(_sample(1.0, history), COUNTS, STATIC)
    scaled, scaled_network = token_features(_sample(1e-4, history), COUNTS, STATIC)
    np.testing.assert_allclose(base, scaled, atol=1e-5)
    np.testing.assert_allclose(network, scaled_network, atol=1e-5)
    looked_back = jax.eval_shape(
        path.features, path.init(3), jnp.ones((3, path.WIDTH)), jnp.asarray(COUNTS)
    )
    assert base.shape[1] + looked_back[0].shape[1] == features.NUM_TOKEN_FEATURES
    times = jax.eval_shape(features.time_features, jnp.zeros(()))
    assert network.shape[1] + looked_back[1].size + times.size == features.NUM_GLOBAL_FEATURES


def test_token_features_of_policy_and_value_network_are_those_of_two_networks() -> None:
    sample, acting = _sample(), np.asarray([1.0, 0.0, 1.0], np.float32)
    together, networks = token_features(sample, COUNTS, STATIC, acting)
    for role in (1.0, 0.0):
        of = np.flatnonzero(acting == role)
        alone = jax.tree.map(lambda x, of=of: x[of], sample)
        expected, network = token_features(alone, COUNTS[of], STATIC[of])
        np.testing.assert_allclose(together[of], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(networks[of], network, rtol=1e-5, atol=1e-6)
    assert np.max(np.abs(networks[0] - networks[1])) > 0.01


def test_tell_says_of_actions_to_others_only_that_they_are_known() -> None:
    known = features.encode_extras({"kl": 0.002, "progress": 0.5}, features.init_loss())
    policy, value = features.tell(known, jnp.asarray([1.0, 0.0]))
    np.testing.assert_array_equal(policy, known)
    first = features.EXTRAS.index("kl") * 3
    np.testing.assert_array_equal(value[first : first + 3], [-1.0, 0.0, 0.0])
    np.testing.assert_array_equal(value[first + 3 :], known[first + 3 :])


def test_token_features_degenerate_samples_are_finite_and_bounded() -> None:
    zero = np.zeros((3, 16), np.float32)
    huge = np.full((3, 16), 1e18, np.float32)
    for sample in (
        (zero, zero, zero, zero),
        (huge, zero, zero, huge),
        (zero, huge, huge, zero),
    ):
        sample = features.Sample(*map(jnp.asarray, sample))
        per_token, network = token_features(sample, COUNTS, STATIC)
        assert np.all(np.abs(per_token) <= 1.0 + 1e-5)
        assert np.all(np.abs(network) <= 1.0 + 1e-5)
        assert np.all(np.isfinite(coordinate_features(sample)))


def test_coordinate_features_flip_with_the_gradient() -> None:
    sample = _sample()
    flipped = sample._replace(g=-sample.g, m=-sample.m, p=-sample.p)
    np.testing.assert_allclose(
        coordinate_features(sample), -np.asarray(coordinate_features(flipped)), rtol=1e-6
    )


@pytest.mark.parametrize("name", features.EXTRAS)
@pytest.mark.parametrize("missing", [None, jnp.nan, jnp.inf])
def test_encode_extra_absent_and_non_finite_mean_the_same(name: str, missing: float | None) -> None:
    encoded = features.encode_extras({name: missing}, features.init_loss())
    np.testing.assert_array_equal(encoded, jnp.zeros(len(features.EXTRAS) * 3))


@pytest.mark.parametrize("name", features.EXTRAS)
@pytest.mark.parametrize("value", [-1e9, 0.0, 1e-9, 1.0, 1e9])
def test_encode_extra_is_bounded(name: str, value: float) -> None:
    loss = features.update_loss(features.init_loss(), jnp.asarray(1.0))
    encoded = features.encode_extras({name: value}, loss).reshape(-1, 3)
    index = features.EXTRAS.index(name)
    assert float(encoded[index, 0]) == 1.0
    assert jnp.all(jnp.abs(encoded) <= 1.0 + 1e-6)
    assert not np.any(np.delete(encoded, index, axis=0))


def test_update_loss_features_ignore_scale_and_offset() -> None:
    values = jax.random.normal(jax.random.key(3), (50,))

    def encode(scale: float, offset: float) -> jax.Array:
        state = features.init_loss()
        for value in scale * values + offset:
            state = features.update_loss(state, value)
        return features.encode_extras({"value": scale * values[-1] + offset}, state)

    base = encode(1.0, 0.0)
    assert float(jnp.abs(base[1])) > 0.01
    np.testing.assert_allclose(base, encode(1e6, 0.0), atol=1e-4)
    np.testing.assert_allclose(base, encode(1.0, 10.0), atol=1e-3)


@pytest.mark.parametrize("size", [0.0, 1e-8, 0.3, -7e6])
def test_update_loss_constant_up_to_rounding_is_neutral(size: float) -> None:
    def step(state: features.LossState, value: jax.Array) -> tuple[features.LossState, jax.Array]:
        state = features.update_loss(state, value)
        return state, features.encode_extras({"value": value}, state)[:3]

    values = jnp.full(3000, size, jnp.float32)
    _, encoded = jax.lax.scan(step, features.init_loss(), values)
    np.testing.assert_array_equal(encoded, np.tile([1.0, 0.0, 0.0], (3000, 1)))


def test_update_loss_non_finite_changes_nothing() -> None:
    state = features.update_loss(features.init_loss(), jnp.asarray(2.0))
    after = features.update_loss(state, jnp.asarray(jnp.nan))
    assert all(bool(a == b) for a, b in zip(state, after, strict=True))


def test_log_and_sign_known_values() -> None:
    # Andrychowicz et al. (2016), appendix A, with p = 10.
    encoded = features.log_and_sign(jnp.asarray([1.0, -np.exp(-5.0), 0.0, np.exp(-11.0)]))
    expected = [[0.0, 1.0], [-0.5, -1.0], [-1.0, 0.0], [-1.0, np.exp(-1.0)]]
    np.testing.assert_allclose(encoded, expected, rtol=1e-5)
