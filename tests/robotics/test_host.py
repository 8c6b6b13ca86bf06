# SPDX-License-Identifier: Apache-2.0
"""Rollouts, evaluation and training in environments outside of JAX, on ones that can be read."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from envs.api import HostStep
from robotics import host
from robotics.algorithm import Policy, count_env_steps
from robotics.evaluate import make_player, random_policy
from robotics.networks import NetworkConfig
from robotics.ppo import PPOConfig, make_host_ppo
from robotics.ppo.runner import Runner


@dataclasses.dataclass(frozen=True)
class CountingHost:
    """Observes ``[seed, episode, steps]``; reward is the number of steps.

    Episode e of the environment with seed s lasts ``1 + (s + e) % 3`` steps and is truncated if s
    is odd, terminated if not; every step moves by the action (or by the number of the choice).
    """

    discrete: bool = False
    action_size: int = 1
    name: str = "test:counting-host"
    observation_size: int = 3
    episode_length: int = 3
    dt: float = 1.0

    def start(self, num_envs: int) -> CountingBatch:
        return CountingBatch(num_envs, self.discrete)


class CountingBatch:
    def __init__(self, num_envs: int, discrete: bool):
        self.num_envs, self.discrete = num_envs, discrete

    def reset(self, seeds):
        self.seed, self.x = np.array(seeds) % 1000, np.zeros(self.num_envs)
        self.episode, self.steps = np.zeros((2, self.num_envs))
        return self._step(np.zeros(self.num_envs), np.zeros(self.num_envs), self._obs(), self.x)

    def step(self, actions):
        actions = np.asarray(actions)
        assert actions.shape == ((self.num_envs,) if self.discrete else (self.num_envs, 1))
        assert not self.discrete or actions.dtype.kind == "i"
        self.steps = self.steps + 1
        self.x = self.x + actions.reshape(self.num_envs)
        reward, final, moved = self.steps, self._obs(), self.x
        done = self.steps >= 1 + (self.seed + self.episode) % 3
        self.episode = self.episode + done
        self.steps, self.x = np.where(done, 0, self.steps), np.where(done, 100.0, self.x)
        return self._step(reward, done.astype(float), final, moved)

    def close(self):
        pass

    def _obs(self):
        return np.stack([self.seed, self.episode, self.steps], axis=1).astype(np.float32)

    def _step(self, reward, done, final, moved):
        odd = self.seed % 2
        columns = (reward, done * (1 - odd), done * odd)
        reward, termination, truncation = (np.asarray(x, np.float32) for x in columns)
        here, there = self.x.astype(np.float32), moved.astype(np.float32)
        return HostStep(self._obs(), reward, termination, truncation, final, here, there)


def _constant(action) -> Policy:
    """The same action whatever is observed; parameters are added to it."""

    def act(params, obs, key, deterministic):
        return jnp.broadcast_to(jnp.asarray(action) + params, obs.shape[:-1] + jnp.shape(action))

    return Policy(act, {})


def _keys(count):
    return jax.vmap(jax.random.key)(jnp.arange(count))


def test_evaluation_plays_a_fixed_number_of_whole_episodes_in_every_lane():
    play = host.make_host_evaluate(CountingHost(), _constant(jnp.ones(1)), num_episodes=20)
    keys = _keys(2)
    episodes = play(jnp.zeros(2), keys)
    quota = [2] * 4 + [1] * 12
    expected = []
    for seeds in host.env_seeds(keys, 16):
        lanes = zip(seeds % 1000, quota, strict=True)
        expected.append([1 + (seed + e) % 3 for seed, count in lanes for e in range(count)])
    lengths = np.array(expected)
    np.testing.assert_array_equal(episodes["episode_length"], lengths)
    np.testing.assert_array_equal(episodes["episode_return"], lengths * (lengths + 1) / 2)
    # From the start of that very episode, which is at 0 first and at 100 later.
    np.testing.assert_array_equal(episodes["distance"], lengths)
    again = play(jnp.zeros(2), keys)
    np.testing.assert_array_equal(again["episode_return"], episodes["episode_return"])


def test_evaluation_gives_every_policy_its_own_parameters_and_episodes():
    player = make_player(CountingHost(), _constant(jnp.ones(1)), 4)
    episodes = player(jnp.array([0.0, 1.0]), _keys(2))
    np.testing.assert_array_equal(
        episodes["distance"], episodes["episode_length"] * np.array([[1.0], [2.0]])
    )
    assert not np.array_equal(*host.env_seeds(_keys(2), 4))


def test_random_choices_are_uniform_whole_numbers():
    policy = random_policy(3, discrete=True)
    drawn = np.asarray(policy.act(None, jnp.zeros((3000, 2)), jax.random.key(0), True))
    assert drawn.dtype.kind == "i" and drawn.shape == (3000,)
    np.testing.assert_allclose(np.bincount(drawn) / 3000, 1 / 3, atol=0.04)


def test_rollout_keeps_what_belongs_together():
    """Which observation was acted on, where the step led, what the episode has gathered."""
    seeds = np.array([[0, 1], [2, 3]])
    runner = Runner(CountingHost().start(4), seeds)
    noise = jnp.arange(2 * 6 * 2, dtype=jnp.float32).reshape(2, 6, 2, 1)

    def act(obs, noise):
        return np.zeros((2, 2, 1), np.float32), (noise, obs[..., 0])

    first, second = runner.collect(act, noise[:, :3]), runner.collect(act, noise[:, 3:])
    rollout = jax.tree.map(lambda *x: np.concatenate(x, axis=1), first, second)
    assert rollout.reward.shape == (2, 6, 2) and rollout.obs.shape == (2, 6, 2, 3)
    np.testing.assert_array_equal(rollout.extras[0], noise)
    np.testing.assert_array_equal(rollout.extras[1], rollout.obs[..., 0])
    done = rollout.termination + rollout.truncation
    for s, e in np.ndindex(2, 2):
        seed = seeds[s, e]
        assert (rollout.obs[s, :, e, 0] == seed).all()
        episode, steps = 0, 0
        for t in range(6):
            np.testing.assert_array_equal(rollout.obs[s, t, e, 1:], [episode, steps])
            steps += 1
            np.testing.assert_array_equal(rollout.final_obs[s, t, e, 1:], [episode, steps])
            assert rollout.episode_steps[s, t, e] == steps == rollout.reward[s, t, e]
            assert rollout.episode_return[s, t, e] == steps * (steps + 1) / 2
            ends = steps == 1 + (seed + episode) % 3
            assert done[s, t, e] == ends
            assert rollout.truncation[s, t, e] == (ends and seed % 2)
            episode, steps = (episode + 1, 0) if ends else (episode, steps)


@dataclasses.dataclass(frozen=True)
class ChoiceHost:
    """One step an episode; observes -1 or 1 and is paid 1 for choice 0 or choice 2 then."""

    discrete: bool = True
    action_size: int = 3
    name: str = "test:choice"
    observation_size: int = 1
    episode_length: int = 10
    dt: float = 1.0

    def start(self, num_envs: int) -> ChoiceBatch:
        return ChoiceBatch(num_envs)


class ChoiceBatch:
    def __init__(self, num_envs: int):
        self.num_envs = num_envs

    def reset(self, seeds):
        self.rng = [np.random.default_rng(seed) for seed in seeds]
        return self._step(np.zeros(self.num_envs, np.float32), 0.0, None)

    def step(self, actions):
        right = np.where(self.obs[:, 0] > 0, 2, 0)
        return self._step((actions == right).astype(np.float32), 1.0, self.obs)

    def close(self):
        pass

    def _step(self, reward, done, final):
        self.obs = np.array([[rng.choice([-1.0, 1.0])] for rng in self.rng], np.float32)
        final = self.obs if final is None else final
        flag, nowhere = np.full(self.num_envs, done, np.float32), np.full(self.num_envs, np.nan)
        nowhere = nowhere.astype(np.float32)
        return HostStep(self.obs, reward, flag, 0 * flag, final, nowhere, nowhere)


def _ppo(env, optimizer=None, **changes):
    fields = {
        "num_timesteps": 128 * 60,
        "num_evaluations": 2,
        "num_envs": 16,
        "unroll_length": 8,
        "num_minibatches": 2,
        "normalize_observations": False,
        "network": NetworkConfig(policy_hidden=(8,), value_hidden=(8,)),
    }
    config = PPOConfig(**(fields | changes))
    return make_host_ppo(env, config, optimizer or optax.adam(1e-2))


def _state(algorithm, count):
    return jax.jit(jax.vmap(algorithm.init))(_keys(count))


@pytest.fixture(scope="module")
def learned():
    """Two seeds of the choice environment, trained side by side, their metrics and ticks."""
    algorithm = _ppo(ChoiceHost())
    start, ticks, rows, params = _state(algorithm, 2), [], [], []
    state = start
    epoch, seconds = algorithm.open(state)
    for _ in range(algorithm.num_epochs):
        state, metrics = epoch(state, lambda: ticks.append(1))
        rows.append(jax.device_get(metrics))
        params.append(state.params)
    assert seconds > 0
    return algorithm, state, rows, ticks, (start, params[0])


def test_ppo_learns_choices_from_observations(learned):
    algorithm, state, rows, *_ = learned
    params = jax.vmap(algorithm.inference_params)(state)
    for i in range(2):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], params)
        act = algorithm.policy.act(one, jnp.array([[-1.0], [1.0]]), jax.random.key(0), True)
        assert act.tolist() == [0, 2]
    assert np.all(rows[-1]["episode/sum_reward"] > 0.9)
    assert np.all(rows[-1]["training/entropy"] < rows[0]["training/entropy"])
    assert "training/policy_dist_mean_std" not in rows[0]


def test_ppo_on_the_host_counts_exactly_and_ticks(learned):
    algorithm, state, rows, ticks, _ = learned
    assert algorithm.num_epochs == 2 and len(ticks) == 60
    assert count_env_steps(state.env_steps).tolist() == [128 * 60] * 2
    assert [row["env_steps"].tolist() for row in rows] == [[128 * 30] * 2] * 2
    assert rows[0]["episode/count"].tolist() == [128 * 30] * 2
    assert state.updates.tolist() == [60 * 8] * 2


def test_ppo_on_the_host_is_repeatable_and_seeds_are_their_own(learned):
    algorithm, (state, after) = learned[0], learned[4]
    epoch, _ = algorithm.open(state)
    again = epoch(state, lambda: None)[0]
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a[0], a[1])


def test_first_update_of_a_rollout_has_ratio_one():
    def init(params):
        return jnp.zeros(64), jnp.zeros((), jnp.int32)

    def update(grads, state, params=None, **extras):
        seen, count = state
        return jax.tree.map(lambda g: -0.05 * g, grads), (
            seen.at[count].set(extras["kl"]),
            count + 1,
        )

    optimizer = optax.GradientTransformationExtraArgs(init, update)
    algorithm = _ppo(ChoiceHost(), optimizer, num_timesteps=512, num_evaluations=1)
    state = _state(algorithm, 1)
    state, _ = algorithm.open(state)[0](state, lambda: None)
    seen = np.asarray(state.opt_state[0][0])[:32].reshape(4, 8)
    np.testing.assert_allclose(seen[:, 0], 0, atol=1e-9)
    assert np.all(seen[:, 2:] > 1e-9)
