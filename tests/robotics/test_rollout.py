# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.api import EpisodeWrapper
from robotics.rollout import collect, reset
from tests.robotics.counting_env import CountingEnv, HiddenCountingEnv


def _act(obs, noise):
    return jnp.zeros((*obs.shape[:-1], 1)), noise


def _collect(env, length=12, num_envs=3):
    state = reset(env, jax.random.key(0), num_envs)
    restarts = reset(env, jax.random.key(1), num_envs)
    noise = jnp.arange(length * num_envs, dtype=jnp.float32).reshape(length, num_envs)
    after, rollout = jax.jit(lambda: collect(env, _act, state, restarts, noise))()
    return state, restarts, noise, after, rollout


@pytest.mark.parametrize("terminates", [True, False])
def test_rollout_keeps_termination_truncation_and_final_observation_apart(terminates):
    env = EpisodeWrapper(CountingEnv(horizon=4 if terminates else 0, episode_length=4 + terminates))
    _, _, noise, _, rollout = _collect(env)
    ends = np.zeros((12, 3))
    ends[3::4] = 1
    np.testing.assert_array_equal(rollout.termination, ends * terminates)
    np.testing.assert_array_equal(rollout.truncation, ends * (not terminates))
    # The observation before a restart counts 4 steps, the one after it none.
    np.testing.assert_array_equal(rollout.final_obs[3::4, :, 1], 4)
    np.testing.assert_array_equal(rollout.obs[4::4, :, 1], 0)
    np.testing.assert_array_equal(rollout.final_obs[:, :, 1], rollout.obs[:, :, 1] + 1)
    np.testing.assert_array_equal(rollout.episode_return[3::4], 1 + 2 + 3 + 4)
    np.testing.assert_array_equal(rollout.episode_steps[3::4], 4)
    np.testing.assert_array_equal(rollout.extras, noise)


@pytest.mark.parametrize("terminates", [True, False])
def test_rollout_keeps_the_privileged_observation_before_a_restart(terminates):
    fields = {"horizon": 4 if terminates else 0, "episode_length": 4 + terminates}
    *_, seen = _collect(EpisodeWrapper(CountingEnv(**fields)))
    *_, after, rollout = _collect(EpisodeWrapper(HiddenCountingEnv(**fields)))
    np.testing.assert_array_equal(rollout.privileged_obs, seen.obs)
    np.testing.assert_array_equal(rollout.final_privileged_obs, seen.final_obs)
    assert not rollout.obs.any() and after.info["privileged_obs"].shape == (3, 2)
    assert seen.privileged_obs is None and seen.final_privileged_obs is None


def test_restarts_come_from_the_pool_and_differ_between_environments_and_times():
    env = EpisodeWrapper(CountingEnv(episode_length=4))
    _, restarts, _, _, rollout = _collect(env)
    pool = np.asarray(restarts.obs[:, 0])
    for t in (4, 8):
        started = np.asarray(rollout.obs[t, :, 0])
        np.testing.assert_array_equal(started, pool[(np.arange(3) + t - 1) % 3])
        assert len(set(started.tolist())) == 3
    assert not np.any(rollout.obs[4, :, 0] == rollout.obs[8, :, 0])


def test_two_rollouts_continue_where_one_long_one_would():
    env = EpisodeWrapper(CountingEnv(episode_length=100))
    _, _, _, after, rollout = _collect(env, length=7)
    np.testing.assert_array_equal(after.obs[:, 1], 7)
    np.testing.assert_array_equal(after.obs[:, 0], rollout.obs[0, :, 0])
