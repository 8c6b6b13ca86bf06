# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robotics import distributions


def _density(u: np.ndarray, mean: float, std: float) -> np.ndarray:
    """Density of tanh(u) in float64, with the Jacobian 1 / cosh(u)^2 taken literally."""
    normal = np.exp(-0.5 * ((u - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    return normal * np.cosh(u) ** 2


def test_log_prob_agrees_with_a_float64_reference():
    u = np.linspace(-4, 4, 41)
    actual = distributions.log_prob(
        jnp.full((41, 1), 0.3), jnp.full((1,), 0.7), jnp.asarray(u, jnp.float32)[:, None]
    )
    np.testing.assert_allclose(actual, np.log(_density(u, 0.3, 0.7)), rtol=1e-5, atol=1e-5)


def test_log_prob_integrates_to_one_over_the_actions():
    a = np.linspace(-1, 1, 20_001)[1:-1]
    u = jnp.asarray(np.arctanh(a), jnp.float32)[:, None]
    density = np.exp(distributions.log_prob(jnp.full_like(u, -0.2), jnp.full((1,), 0.5), u))
    np.testing.assert_allclose(density.sum() * (a[1] - a[0]), 1.0, rtol=1e-3)


def test_log_prob_sums_over_action_entries():
    u = jnp.array([[0.1, -0.4]])
    mean, std = jnp.array([[0.0, 0.2]]), jnp.array([0.5, 0.9])
    parts = [
        distributions.log_prob(mean[:, i : i + 1], std[i : i + 1], u[:, i : i + 1])
        for i in range(2)
    ]
    np.testing.assert_allclose(distributions.log_prob(mean, std, u), sum(parts), rtol=1e-6)


@pytest.mark.parametrize("u", [-60.0, -20.0, 0.0, 20.0, 60.0])
def test_saturated_actions_keep_a_finite_density_and_gradient(u):
    u = jnp.asarray(u)
    np.testing.assert_allclose(
        distributions.log_det_tanh(u), -2 * np.log(np.cosh(np.float64(u))), rtol=1e-5, atol=1e-6
    )
    gradient = jax.grad(lambda m: distributions.log_prob(m[None], jnp.ones(1), u[None]))(u + 1)
    np.testing.assert_allclose(gradient, -1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("mean", "std", "tolerance"),
    [(0.0, 0.1, 1e-4), (0.5, 0.6, 0.01), (-2.0, 1.0, 0.01), (0.3, 2.0, 0.1)],
)
def test_entropy_agrees_with_a_numerical_integral(mean, std, tolerance):
    u = np.linspace(mean - 10 * std, mean + 10 * std, 200_001)
    normal = np.exp(-0.5 * ((u - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    expected = -np.sum(normal * np.log(_density(u, mean, std) + 1e-300)) * (u[1] - u[0])
    actual = distributions.entropy(jnp.full((1,), mean), jnp.full((1,), std))
    assert abs(float(actual) - expected) < tolerance


def test_categorical_agrees_with_a_softmax_by_hand():
    logits = np.array([[0.0, 1.0, -2.0], [3.0, 3.0, 3.0]])
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    policy = distributions.Categorical(jnp.asarray(logits, jnp.float32))
    raw = jnp.array([[2.0], [0.0]])
    np.testing.assert_allclose(
        policy.log_prob(raw), np.log([chances[0, 2], chances[1, 0]]), rtol=1e-5
    )
    np.testing.assert_allclose(policy.entropy(), -(chances * np.log(chances)).sum(1), rtol=1e-5)
    assert policy.action(policy.mode()).tolist() == [1, 0]


def test_categorical_samples_with_its_probabilities():
    logits = jnp.log(jnp.array([0.7, 0.1, 0.2]))
    noise = distributions.draw_noise(jax.random.key(0), (20_000, 3), True)
    policy = distributions.Categorical(jnp.broadcast_to(logits, (20_000, 3)))
    raw = policy.sample(noise)
    assert raw.shape == (20_000, distributions.raw_size(3, True)) and raw.dtype == jnp.float32
    shares = np.bincount(np.asarray(policy.action(raw))) / 20_000
    np.testing.assert_allclose(shares, [0.7, 0.1, 0.2], atol=0.015)  # 5 sigma are 0.016


def test_categorical_gradient_raises_the_probability_of_what_was_chosen():
    def log_prob(logits):
        return distributions.Categorical(logits).log_prob(jnp.array([1.0]))

    gradient = jax.grad(log_prob)(jnp.zeros(4))
    np.testing.assert_allclose(gradient, [-0.25, 0.75, -0.25, -0.25], rtol=1e-6)
