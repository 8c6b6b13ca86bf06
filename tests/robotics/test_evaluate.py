# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.api import EpisodeWrapper
from envs.registry import make
from robotics.algorithm import Policy
from robotics.evaluate import make_evaluate, random_policy, summary
from tests.robotics.counting_env import CountingEnv


def _constant(params, obs, key, deterministic):
    return jnp.full((*obs.shape[:-1], 1), params)


_CONSTANT = Policy(_constant, {})


@pytest.mark.parametrize(("horizon", "expected"), [(0, 5), (3, 3)])
def test_episodes_are_counted_once_to_their_end(horizon, expected):
    env = EpisodeWrapper(CountingEnv(horizon=horizon))
    episodes = jax.jit(make_evaluate(env, _CONSTANT, 4))(0.25, jax.random.key(0))
    np.testing.assert_array_equal(episodes["episode_length"], expected)
    np.testing.assert_array_equal(episodes["episode_return"], expected * (expected + 1) / 2)
    np.testing.assert_allclose(episodes["distance"], 0.25 * expected, rtol=1e-5)


def test_distance_is_absent_where_there_is_no_position():
    env = EpisodeWrapper(make("probe:action"))
    episodes = make_evaluate(env, _CONSTANT, 2)(0.5, jax.random.key(0))
    assert set(episodes) == {"episode_return", "episode_length"}


def test_evaluation_is_reproducible_and_fresh_for_another_key():
    env = EpisodeWrapper(make("control:pendulum", episode_length=10))
    evaluate = jax.jit(make_evaluate(env, random_policy(1), 8))
    first, again = (evaluate(None, jax.random.key(0))["episode_return"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len(set(np.asarray(first).tolist())) == 8
    assert not np.allclose(first, evaluate(None, jax.random.key(1))["episode_return"])


def test_vmapped_evaluation_equals_single_ones():
    env = EpisodeWrapper(CountingEnv(horizon=3))
    evaluate = make_evaluate(env, _CONSTANT, 4)
    keys = jax.random.split(jax.random.key(2), 2)
    actions = jnp.array([0.1, -0.2])
    both = jax.jit(jax.vmap(evaluate))(actions, keys)
    for i in range(2):
        one = evaluate(actions[i], keys[i])
        np.testing.assert_allclose(both["distance"][i], one["distance"], rtol=1e-6)


def test_policy_that_gives_nan_ends_and_is_reported():
    env = EpisodeWrapper(CountingEnv())
    episodes = jax.jit(make_evaluate(env, _CONSTANT, 2))(jnp.nan, jax.random.key(0))
    assert np.all(np.isnan(episodes["distance"]))


def test_random_policy_is_uniform_over_the_whole_range():
    actions = random_policy(2).act(None, jnp.zeros((5_000, 3)), jax.random.key(0), True)
    assert actions.shape == (5_000, 2)
    np.testing.assert_allclose(np.mean(actions, 0), 0.0, atol=0.05)
    np.testing.assert_allclose(np.var(actions, 0), 1 / 3, rtol=0.05)


def test_summary_is_mean_sample_deviation_and_normal_interval():
    values = [1.0, 2.0, 3.0, 4.0]
    mean, std, (low, high) = summary(values)
    assert mean == 2.5
    assert std == pytest.approx(np.std(values, ddof=1))
    assert high - mean == pytest.approx(1.96 * std / 2, rel=1e-3)
    assert mean - low == pytest.approx(high - mean)
    assert summary([7.0]) == (7.0, 0.0, (7.0, 7.0))


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        make_evaluate(EpisodeWrapper(CountingEnv()), _CONSTANT, 0)
    with pytest.raises(ValueError, match="at least one"):
        summary([])
