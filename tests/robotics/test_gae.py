# SPDX-License-Identifier: Apache-2.0
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from robotics.gae import compute_gae


def _loop(rewards, values, next_values, termination, truncation, discount, gae_lambda):
    """The definition, episode by episode, as sums of discounted temporal differences."""
    length, envs = rewards.shape
    advantages = np.zeros((length, envs))
    for b in range(envs):
        for t in range(length):
            weight = 1.0
            for k in range(t, length):
                bootstrap = 0.0 if termination[k, b] else discount * next_values[k, b]
                advantages[t, b] += weight * (rewards[k, b] + bootstrap - values[k, b])
                if termination[k, b] or truncation[k, b]:
                    break
                weight *= discount * gae_lambda
    return advantages


def _episodes(seed, length=12, envs=3):
    rng = np.random.default_rng(seed)
    rewards, values, next_values = rng.normal(size=(3, length, envs))
    kind = rng.choice(3, (length, envs), p=[0.6, 0.2, 0.2])
    return rewards, values, next_values, (kind == 1) * 1.0, (kind == 2) * 1.0


_COMPILED = jax.jit(compute_gae)


def _gae(*arrays, discount, gae_lambda):
    return _COMPILED(*(jnp.asarray(a, jnp.float32) for a in (*arrays, discount, gae_lambda)))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_gae_equals_a_loop_over_random_episodes(seed, discount, gae_lambda):
    arrays = _episodes(seed)
    advantages, targets = _gae(*arrays, discount=discount, gae_lambda=gae_lambda)
    expected = _loop(*arrays, discount, gae_lambda)
    np.testing.assert_allclose(advantages, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(targets, expected + arrays[1], rtol=1e-4, atol=1e-5)


def test_gae_by_hand():
    # Two steps: delta = 1 + 0.5 * 4 - 2 = 1, then 3 + 0.5 * 2 - 4 = 0; A_0 = 1 + 0.5 * 0.5 * 0.
    ends = np.zeros((2, 1))
    advantages, _ = _gae(
        np.array([[1.0], [3.0]]),
        np.array([[2.0], [4.0]]),
        np.array([[4.0], [2.0]]),
        ends,
        ends,
        discount=0.5,
        gae_lambda=0.5,
    )
    np.testing.assert_allclose(advantages[:, 0], [1.0, 0.0])


def test_termination_cuts_value_and_sum():
    one, zero = np.array([[1.0], [0.0]]), np.zeros((2, 1))
    advantages, _ = _gae(
        np.full((2, 1), 1.0), zero, np.full((2, 1), 10.0), one, zero, discount=0.9, gae_lambda=1.0
    )
    np.testing.assert_allclose(advantages[:, 0], [1.0, 10.0])


def test_truncation_bootstraps_the_final_observation_and_cuts_the_sum():
    one, zero = np.array([[1.0], [0.0]]), np.zeros((2, 1))
    advantages, _ = _gae(
        np.full((2, 1), 1.0),
        zero,
        np.array([[20.0], [10.0]]),
        zero,
        one,
        discount=0.9,
        gae_lambda=1.0,
    )
    np.testing.assert_allclose(advantages[:, 0], [1.0 + 0.9 * 20.0, 10.0], rtol=1e-6)


def test_gae_agrees_with_brax_where_brax_means_the_same():
    # Brax gives other advantages for lambda < 1, and drops truncated steps; targets without
    # truncation, and with lambda = 1 the advantages as well, are the same quantities.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from brax.training.agents.ppo import losses

    rewards, values, _, termination, _ = _episodes(3)
    last = np.array([0.3, -0.2, 0.9])
    next_values = np.concatenate([values[1:], last[None]])
    zero = np.zeros_like(termination)
    for gae_lambda in (1.0, 0.8):
        ours = _gae(
            rewards, values, next_values, termination, zero, discount=0.9, gae_lambda=gae_lambda
        )
        arrays = (jnp.asarray(a, jnp.float32) for a in (zero, termination, rewards, values, last))
        targets, advantages = losses.compute_gae(*arrays, lambda_=gae_lambda, discount=0.9)
        np.testing.assert_allclose(ours[1], targets, rtol=1e-4, atol=1e-5)
        if gae_lambda == 1.0:
            np.testing.assert_allclose(ours[0], advantages, rtol=1e-4, atol=1e-5)
