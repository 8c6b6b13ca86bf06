# SPDX-License-Identifier: Apache-2.0
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robotics import export, networks
from robotics.networks import NetworkConfig
from robotics.normalize import init_statistics, update

# Each operation on its own would be compiled on its own.
init_mlp = jax.jit(networks.init_mlp, static_argnums=(1, 2))
init_policy = jax.jit(networks.init_policy, static_argnums=(1, 2, 3, 4))
apply_mlp = jax.jit(networks.apply_mlp, static_argnums=2)
apply_policy = jax.jit(networks.apply_policy, static_argnums=2)


@jax.jit
def statistics_of(obs):
    return update(init_statistics(obs.shape[1:]), obs)


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_mlp_agrees_with_numpy():
    params = init_mlp(jax.random.key(0), (3, 5, 4, 2))
    x = np.linspace(-1, 1, 21).reshape(7, 3).astype(np.float32)
    hidden = x
    for name in ("layer_0", "layer_1"):
        hidden = np.tanh(hidden @ params[name]["kernel"] + params[name]["bias"])
    expected = hidden @ params["layer_2"]["kernel"] + params["layer_2"]["bias"]
    np.testing.assert_allclose(apply_mlp(params, jnp.asarray(x), "tanh"), expected, rtol=1e-5)


def test_kernels_start_with_variance_two_over_fan_in():
    params = init_mlp(jax.random.key(1), (200, 300, 100), 0.01)
    np.testing.assert_allclose(np.var(params["layer_0"]["kernel"]), 2 / 200, rtol=0.05)
    np.testing.assert_allclose(np.var(params["layer_1"]["kernel"]), 1e-4 * 2 / 300, rtol=0.05)


@pytest.mark.parametrize("noise", ["parameter", "network"])
def test_policy_starts_near_zero_mean_with_the_configured_std(noise):
    config = NetworkConfig(noise=noise, init_std=0.4)
    params = init_policy(jax.random.key(2), 6, 2, config)
    mean, std = apply_policy(params, normal(50, 6), config)
    assert mean.shape == (50, 2)
    assert np.max(np.abs(mean)) < 0.1
    np.testing.assert_allclose(np.broadcast_to(std, mean.shape), 0.4, rtol=0.1)


def test_std_stays_positive_and_finite_for_extreme_parameters():
    config = NetworkConfig()
    params = init_policy(jax.random.key(2), 1, 2, config)
    params["log_std"] = jnp.array([-1e30, 1e30])
    _, std = apply_policy(params, jnp.zeros((1,)), config)
    assert np.all(np.isfinite(std)) and np.all(np.asarray(std) >= 1e-3)


def test_policy_acts_on_any_leading_axes_inside_the_range():
    config = NetworkConfig(policy_hidden=(8,))
    policy = networks.make_policy(3, 2, config)
    act = jax.jit(policy.act, static_argnums=3)
    statistics = statistics_of(normal(100, 3))
    raw = init_policy(jax.random.key(0), 3, 2, config)
    params = networks.policy_params(raw, statistics)
    for shape in [(3,), (5, 3), (4, 5, 3)]:
        for deterministic in (True, False):
            action = act(params, np.full(shape, 1e6, np.float32), jax.random.key(1), deterministic)
            assert action.shape == (*shape[:-1], 2)
            assert np.all(np.abs(action) <= 1)


def test_deterministic_action_ignores_the_key_and_follows_the_spec():
    config = NetworkConfig(policy_hidden=(8, 8), activation="elu", noise="network")
    policy = networks.make_policy(3, 2, config)
    act = jax.jit(policy.act, static_argnums=3)
    statistics = statistics_of(2 + normal(100, 3))
    raw = init_policy(jax.random.key(5), 3, 2, config)
    params = networks.policy_params(raw, statistics)
    obs = normal(10, 3) * 20
    first = act(params, obs, jax.random.key(0), True)
    second = act(params, obs, jax.random.key(1), True)
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, act(params, obs, jax.random.key(1), False))

    spec = json.loads(json.dumps(policy.spec))
    x = (np.asarray(obs) - params["normalizer"]["mean"]) / params["normalizer"]["std"]
    x = np.clip(x, -spec["obs_clip"], spec["obs_clip"])
    for i in range(spec["num_layers"]):
        layer = params["policy"]["mlp"][f"layer_{i}"]
        x = x @ np.asarray(layer["kernel"]) + layer["bias"]
        if i < spec["num_layers"] - 1:
            x = np.where(x > 0, x, np.expm1(x))
    np.testing.assert_allclose(first, np.tanh(x[:, : spec["action_size"]]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"policy_hidden": (64, 0)}, "above 0"),
        ({"init_std": 0.0}, "init_std"),
    ],
)
def test_bad_network_is_refused_with_a_sentence(fields, words):
    with pytest.raises(ValueError, match=words):
        NetworkConfig(**fields)


def test_policy_of_choices_has_logits_and_no_noise_parameters(tmp_path):
    config = NetworkConfig(policy_hidden=(4,))
    params = init_policy(jax.random.key(0), 3, 5, config, True)
    assert "log_std" not in params and params["mlp"]["layer_1"]["bias"].shape == (5,)
    policy = networks.make_policy(3, 5, config, discrete=True)
    act = jax.jit(policy.act, static_argnums=3)
    assert (policy.spec["squash"], policy.spec["noise"]) == ("argmax", "none")
    acting = networks.policy_params(params, init_statistics((3,)))
    obs = normal(7, 3)
    best = act(acting, obs, jax.random.key(2), True)
    logits = apply_mlp(params["mlp"], obs, config.activation)
    assert best.dtype == jnp.int32
    np.testing.assert_array_equal(best, np.argmax(logits, axis=-1))
    export.export_policy(tmp_path, policy.spec, acting, {})
    np.testing.assert_array_equal(export.load_numpy_policy(tmp_path)(np.asarray(obs)), best)
    drawn = act(acting, np.zeros((900, 3), np.float32), jax.random.key(3), False)
    np.testing.assert_allclose(np.bincount(drawn) / 900, 0.2, atol=0.07)
