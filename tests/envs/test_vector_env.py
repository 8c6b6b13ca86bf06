# SPDX-License-Identifier: Apache-2.0
"""Our environments under Gymnasium's own checks, and against our wrapper stepped by hand."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from envs.registry import make
from envs.vector_env import make_single_env, make_vector_env

gymnasium = pytest.importorskip("gymnasium")


@pytest.mark.filterwarnings("ignore:.*WARN.*A Box observation space (minimum|maximum) value is")
def test_single_env_passes_the_checks_of_gymnasium():
    from gymnasium.utils.env_checker import check_env

    check_env(make_single_env(make("control:pendulum", episode_length=5)), skip_render_check=True)


def test_vector_env_keeps_the_contract_of_gymnasium():
    vector = make_vector_env(make("control:pendulum", episode_length=4), 3)
    assert isinstance(vector, gymnasium.vector.VectorEnv)
    assert vector.metadata["autoreset_mode"] is gymnasium.vector.AutoresetMode.SAME_STEP
    vector.action_space.seed(0)
    obs, infos = vector.reset(seed=1)
    assert infos == {} and vector.observation_space.contains(obs)
    for _ in range(9):
        obs, reward, terminated, truncated, infos = vector.step(vector.action_space.sample())
        assert vector.observation_space.contains(obs)
        assert reward.shape == terminated.shape == truncated.shape == (3,)
        assert (terminated.dtype, truncated.dtype) == (bool, bool)
    again = vector.reset(seed=1)[0]
    np.testing.assert_array_equal(vector.reset(seed=[1, 2, 3])[0], again)
    assert not np.array_equal(vector.reset()[0], again)
    vector.close()
    assert vector.closed


def test_wrapper_of_gymnasium_counts_the_same_episodes():
    vector = make_vector_env(make("control:cartpole", episode_length=30), 4)
    counted = gymnasium.wrappers.vector.RecordEpisodeStatistics(vector)
    counted.reset(seed=0)
    rng = np.random.default_rng(0)
    sums, found = np.zeros(4), 0
    for _ in range(80):
        _, reward, terminated, truncated, infos = counted.step(rng.uniform(-1, 1, (4, 1)))
        sums += reward
        for i in np.flatnonzero(terminated | truncated):
            assert infos["episode"]["r"][i] == pytest.approx(sums[i], rel=1e-5)
            sums[i], found = 0.0, found + 1
    assert found >= 8


def test_environment_of_a_batch_is_the_single_one_with_its_seed():
    """Also across restarts, although the others restart at other times."""
    env = make("control:cartpole", episode_length=25)
    vector, rng = make_vector_env(env, 3), np.random.default_rng(1)
    actions = rng.uniform(-1, 1, (70, 3, 1)).astype(np.float32)
    singles = [make_single_env(env) for _ in range(3)]
    obs = vector.reset(seed=7)[0]
    for i, one in enumerate(singles):
        np.testing.assert_allclose(obs[i], one.reset(seed=7 + i)[0], rtol=1e-6)
    ends = set()
    for t, action in enumerate(actions):
        obs, reward, terminated, truncated, infos = vector.step(action)
        for i, one in enumerate(singles):
            expected = one.step(action[i])
            ended = terminated[i] or truncated[i]
            seen = infos["final_obs"][i] if ended else obs[i]
            np.testing.assert_allclose(seen, expected[0], rtol=1e-4, atol=1e-5)
            assert (terminated[i], truncated[i]) == expected[2:4]
            np.testing.assert_allclose(reward[i], expected[1], rtol=1e-4, atol=1e-6)
            if ended:
                ends.add((t, bool(terminated[i])))
                np.testing.assert_allclose(obs[i], one.reset()[0], rtol=1e-5, atol=1e-6)
    assert {kind for _, kind in ends} == {True, False} and len(ends) >= 4


def test_wrong_use_is_told_in_a_sentence():
    env = make("probe:value")
    with pytest.raises(ValueError, match="num_envs is 0; it must be at least 1"):
        make_vector_env(env, 0)
    vector = make_vector_env(env, 2)
    with pytest.raises(ValueError, match="'probe:value' must be reset before its first step"):
        vector.step(np.zeros((2, 1)))
    vector.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions of shape \(2, 1\), not \(2,\)"):
        vector.step(np.zeros(2))
    with pytest.raises(ValueError, match="runs 2 environments and got 3 seeds"):
        vector.reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match="runs outside of JAX already"):
        make_vector_env(make("gym:CartPole-v1"), 2)
    assert jax.tree.leaves(vector._state.obs)[0].shape == (2, 1)
