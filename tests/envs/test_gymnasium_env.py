# SPDX-License-Identifier: Apache-2.0
"""Gymnasium behind the host protocol, against Gymnasium itself stepped by hand."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
import types

import numpy as np
import pytest

from envs.api import HostEnv, action_bounds
from envs.gymnasium_worker import action_map
from envs.registry import describe, list_envs, make

gymnasium = pytest.importorskip("gymnasium")

# Bodies held out are listed, never made.
_LISTED = [
    name
    for name in list_envs()
    if name.startswith("gym:")
    and not any(body in name for body in ("Ant", "Human", "Swim", "Walk"))
]


def _actions(env, steps, seed=0):
    rng = np.random.default_rng(seed)
    if env.discrete:
        return rng.integers(0, env.action_size, (steps, 3))
    return rng.uniform(-1, 1, (steps, 3, env.action_size)).astype(np.float32)


@pytest.mark.parametrize("name", _LISTED)
def test_make_gives_what_describe_promises(name):
    env, info = make(name, episode_length=17), describe(name)
    assert isinstance(env, HostEnv)
    assert (env.name, env.episode_length) == (name, 17)
    assert (env.observation_size, env.action_size) == (info.observation_size, info.action_size)


@pytest.mark.parametrize("name", ["gym:CartPole-v1", "gym:Pendulum-v1", "gym:HalfCheetah-v5"])
def test_batch_steps_like_gymnasium_by_hand(name, tmp_path, monkeypatch):
    """Observation, reward, flags, observation before a restart; actions mapped to the bounds."""
    monkeypatch.chdir(tmp_path)  # MuJoCo by itself leaves a log wherever it has something to say
    env = make(name, episode_length=12, num_workers=1)
    batch, actions = env.start(3), _actions(env, 30)
    plain = [gymnasium.make(name[4:], max_episode_steps=12) for _ in range(3)]
    step = batch.reset([5, 6, 7])
    for i, one in enumerate(plain):
        np.testing.assert_array_equal(step.obs[i], one.reset(seed=5 + i)[0].astype(np.float32))
    ended = 0
    for action in actions:
        step = batch.step(action)
        for i, one in enumerate(plain):
            space = one.action_space
            mapped = action[i]
            if not env.discrete:
                mapped = space.low + 0.5 * (mapped + 1.0) * (space.high - space.low)
                mapped = mapped.astype(space.dtype)
            obs, reward, terminated, truncated, info = one.step(mapped)
            np.testing.assert_allclose(step.final_obs[i], obs, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(step.reward[i], reward, rtol=1e-6)
            assert (step.termination[i], step.truncation[i]) == (
                float(terminated),
                float(truncated and not terminated),
            )
            if "x_position" in info:
                assert step.final_x_position[i] == np.float32(info["x_position"])
            if terminated or truncated:
                ended += 1
                obs, info = one.reset()
                if "x_position" in info:
                    assert step.x_position[i] == np.float32(info["x_position"])
            np.testing.assert_allclose(step.obs[i], obs, rtol=1e-6, atol=1e-6)
    assert ended >= 6


@pytest.mark.parametrize("name", ["gym:Pendulum-v1", "gym:HalfCheetah-v5"])
def test_action_bounds_are_those_of_the_space_and_where_actions_end(name):
    env = make(name)
    space = env.gymnasium_env.action_space
    low, high = action_bounds(env)
    np.testing.assert_array_equal((low, high), (space.low, space.high))
    mapped = action_map(space)(np.array([[-1.0] * env.action_size, [1.0] * env.action_size]))
    np.testing.assert_array_equal(mapped, (space.low, space.high))


def test_actions_of_unlike_and_nested_bounds_are_flattened_in_the_order_of_actions():
    low, high = np.float32([[-1.0, -2.0], [0.0, 3.0]]), np.float32([[1.0, 2.0], [5.0, 4.0]])
    space = gymnasium.spaces.Box(low, high)
    inner = types.SimpleNamespace(action_space=space)
    env = dataclasses.replace(make("gym:Pendulum-v1"), gymnasium_env=inner, action_size=4)
    found_low, found_high = action_bounds(env)
    assert found_low.tolist() == [-1.0, -2.0, 0.0, 3.0]
    np.testing.assert_array_equal(action_map(space)(np.ones((1, 4)))[0].ravel(), found_high)


def test_choices_have_no_bounds():
    assert make("gym:CartPole-v1").action_bounds is None


def test_mujoco_leaves_no_log_behind(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for workers in (1, 2):
        make("gym:HalfCheetah-v5", num_workers=workers).start(2).close()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_number_of_processes_changes_nothing():
    found = []
    for workers in (1, 2):
        env = make("gym:CartPole-v1", num_workers=workers)
        batch = env.start(3)
        steps = [batch.reset([1, 2, 3])]
        steps += [batch.step(action) for action in _actions(env, 40)]
        batch.close()
        found.append(steps)
    for here, there in zip(*found, strict=True):
        for a, b in zip(here, there, strict=True):
            np.testing.assert_array_equal(a, b)
    assert sum(step.termination.sum() for step in found[0]) > 2


def test_process_that_dies_or_fails_is_told_in_a_sentence_and_none_is_left():
    env = make("gym:CartPole-v1", num_workers=2)
    batch = env.start(2)
    batch.reset([0, 1])
    with pytest.raises(ValueError, match="takes 1 action entries an environment, not 2"):
        batch.step(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="runs 2 environments and got 3 actions"):
        batch.step(np.zeros(3))
    processes = [shard._process for shard in batch._shards]
    os.kill(processes[0].pid, signal.SIGKILL)
    processes[0].wait()
    with pytest.raises(ChildProcessError, match="'gym:CartPole-v1' has ended unexpectedly"):
        batch.step(np.zeros(2))
    batch.close()
    del batch
    deadline = time.monotonic() + 5
    while any(process.poll() is None for process in processes):
        assert time.monotonic() < deadline


def test_failing_environment_is_told_in_a_sentence():
    # Gymnasium's CartPole refuses a third action by an assertion.
    for workers in (1, 2):
        batch = make("gym:CartPole-v1", num_workers=workers).start(2)
        batch.reset([0, 1])
        with pytest.raises(ValueError, match="'gym:CartPole-v1' failed: AssertionError"):
            batch.step(np.array([0, 7]))
        batch.close()


class _Shaped(gymnasium.Env):
    """Observes a matrix or a choice, acts with a matrix or an offset choice."""

    def __init__(self, discrete=False, action=None, obs=None):
        spaces = gymnasium.spaces
        self.observation_space = (
            spaces.Discrete(4, start=2) if discrete else spaces.Box(0, 9, (2, 3))
        )
        self.action_space = (
            spaces.Discrete(3, start=-1)
            if discrete
            else spaces.Box(np.array([[0.0], [-4.0]]), np.array([[2.0], [4.0]]), dtype=np.float64)
        )
        self.action_space, self.observation_space = (
            action or self.action_space,
            obs or self.observation_space,
        )

    def _obs(self):
        if isinstance(self.observation_space, gymnasium.spaces.Discrete):
            return 3
        return np.arange(6, dtype=np.float32).reshape(2, 3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._obs(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        return self._obs(), float(np.sum(action)), False, False, {}


@pytest.fixture
def register():
    made = []

    def add(**options):
        name = f"Test{len(made)}-v0"
        gymnasium.register(name, entry_point=lambda **more: _Shaped(**options, **more))
        made.append(name)
        return f"gym:{name}"

    yield add
    for name in made:
        del gymnasium.registry[name]


def test_other_shapes_are_flattened_and_a_time_limit_is_given(register):
    env = make(register())
    assert (env.observation_size, env.action_size, env.discrete) == (6, 2, False)
    assert env.episode_length == 1000
    batch = env.start(1)
    np.testing.assert_array_equal(batch.reset([0]).obs, [np.arange(6)])
    assert batch.step(np.array([[1.0, 0.5]])).reward == [2.0 + 2.0]
    assert batch.step(np.array([[-1.0, -5.0]])).reward == [0.0 - 4.0]
    env = make(register(discrete=True))
    assert (env.observation_size, env.action_size, env.discrete) == (4, 3, True)
    batch = env.start(2)
    np.testing.assert_array_equal(batch.reset([0, 1]).obs, [[0, 1, 0, 0]] * 2)
    np.testing.assert_array_equal(batch.step(np.array([0, 2])).reward, [-1.0, 1.0])


_SPACES = gymnasium.spaces


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"action": _SPACES.MultiDiscrete([2, 2])}, "actions of the space MultiDiscrete"),
        ({"action": _SPACES.Dict(a=_SPACES.Discrete(2))}, "actions of the space Dict"),
        ({"action": _SPACES.Box(-np.inf, np.inf, (2,))}, "actions without finite bounds"),
        ({"obs": _SPACES.Text(5)}, "observations of the space Text"),
        ({"obs": _SPACES.Box(0, 255, (8, 8, 3), np.uint8)}, "observes pixels"),
    ],
)
def test_space_that_cannot_be_used_is_refused_with_a_sentence(register, options, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        make(register(**options))
    assert str(error.value).startswith("'gym:Test") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("gym:HalfCheeta-v5", {}, "the nearest valid one is 'gym:HalfCheetah-v5'."),
        ("gym:HalfCheetah-v9", {}, "the nearest valid one is 'gym:HalfCheetah-v5'."),
        ("gym:nowhere:Foo-v0", {}, "cannot be made: ModuleNotFoundError"),
        ("gym:CartPole-v1", {"gravty": 3.0}, "unexpected keyword argument 'gravty'"),
        ("gym:CartPole-v1", {"episode_length": 0}, "at least 1 step"),
        ("gym:CartPole-v1", {"num_workers": 0}, "num_workers .* at least 1"),
        ("gym:CartPole-v1", {"backend": "mjx"}, "has no backend to choose"),
    ],
)
def test_wrong_input_is_met_with_one_sentence(name, options, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        make(name, **options)
    assert "\n" not in str(error.value)
