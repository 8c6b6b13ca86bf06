# SPDX-License-Identifier: Apache-2.0
"""The contract of the episode wrapper, against a plain Python account of the same episodes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.api import Env, EpisodeWrapper, State

TIME_LIMIT = 5
NUM_LANES = 4
NUM_STEPS = 40
POOL = 7


@dataclasses.dataclass(frozen=True)
class Counter:
    """Counts from a random start; ends itself where the action is above 0.6."""

    name: str = "test:counter"
    observation_size: int = 2
    action_size: int = 1
    episode_length: int = TIME_LIMIT
    dt: float = 0.1

    def reset(self, key: jax.Array) -> State:
        start = jax.random.randint(key, (), 0, 1000).astype(jnp.float32)
        zero = jnp.zeros(())
        physics = {"count": start, "key": key}
        obs = jnp.stack([start, zero])
        return State(physics, obs, zero, zero, {"count": start}, {"start": start})

    def step(self, state: State, action: jax.Array) -> State:
        count = state.physics["count"] + 1.0
        physics = {"count": count, "key": jax.random.fold_in(state.physics["key"], 1)}
        done = jnp.where(action[0] > 0.6, 1.0, 0.0)
        obs = jnp.concatenate([count[None], action])
        return State(physics, obs, 1.0 + action[0], done, {"count": count}, state.info)


def _play(env: EpisodeWrapper, actions: jax.Array, pool_index: jax.Array):
    """First states, pool and all later states [lane, time, ...] under vmap and scan."""
    pool = jax.vmap(env.reset)(jax.random.split(jax.random.key(1), POOL))
    first = jax.vmap(env.reset)(jax.random.split(jax.random.key(2), actions.shape[0]))

    def lane(state: State, actions: jax.Array, indices: jax.Array) -> State:
        def advance(state: State, inputs: tuple[jax.Array, jax.Array]) -> tuple[State, State]:
            action, index = inputs
            state = env.step(state, action, jax.tree.map(lambda leaf: leaf[index], pool))
            return state, state

        return jax.lax.scan(advance, state, (actions, indices))[1]

    return first, pool, jax.jit(jax.vmap(lane))(first, actions, pool_index)


@pytest.fixture(scope="module")
def played():
    """Random actions that terminate about one step in five, with a time limit of 5 steps."""
    key_action, key_pool = jax.random.split(jax.random.key(0))
    shape = (NUM_LANES, NUM_STEPS)
    actions = jax.random.uniform(key_action, (*shape, 1), minval=-1.0, maxval=1.0)
    indices = jax.random.randint(key_pool, shape, 0, POOL)
    first, pool, states = _play(EpisodeWrapper(Counter()), actions, indices)
    return first, pool, states, np.asarray(actions)[..., 0], np.asarray(indices)


def test_counter_is_an_env():
    assert isinstance(Counter(), Env)
    assert EpisodeWrapper(Counter()).time_limit == TIME_LIMIT
    assert EpisodeWrapper(Counter(), episode_length=3).time_limit == 3


def test_step_bookkeeping_equals_a_python_account(played):
    first, pool, states, actions, indices = played
    info = jax.tree.map(np.asarray, states.info)
    starts = np.asarray(pool.obs)[:, 0]
    for lane in range(NUM_LANES):
        count, steps, total = float(first.obs[lane, 0]), 0, 0.0
        for t in range(NUM_STEPS):
            action = actions[lane, t]
            count, steps, total = count + 1, steps + 1, total + 1.0 + action
            terminated = action > 0.6
            truncated = steps == TIME_LIMIT and not terminated
            assert info["termination"][lane, t] == terminated
            assert info["truncation"][lane, t] == truncated
            assert states.done[lane, t] == (terminated or truncated)
            assert states.reward[lane, t] == pytest.approx(1.0 + action)
            np.testing.assert_allclose(info["final_obs"][lane, t], [count, action], rtol=1e-6)
            assert info["episode_return"][lane, t] == pytest.approx(total, rel=1e-5)
            assert info["episode_steps"][lane, t] == steps
            if terminated or truncated:
                count, steps, total = starts[indices[lane, t]], 0, 0.0
            assert info["steps"][lane, t] == steps
            assert states.obs[lane, t, 0] == pytest.approx(count)


def test_step_both_kinds_of_end_occur_and_exclude_each_other(played):
    _, _, states, _, _ = played
    termination, truncation = states.info["termination"], states.info["truncation"]
    assert termination.sum() > 5
    assert truncation.sum() > 5
    assert (termination * truncation).sum() == 0


def test_step_restart_takes_physics_and_env_info_from_the_pool(played):
    _, pool, states, _, indices = played
    done = np.asarray(states.done) > 0
    chosen = indices[done]
    np.testing.assert_array_equal(
        np.asarray(states.physics["count"])[done], np.asarray(pool.physics["count"])[chosen]
    )
    np.testing.assert_array_equal(
        np.asarray(jax.random.key_data(states.physics["key"]))[done],
        np.asarray(jax.random.key_data(pool.physics["key"]))[chosen],
    )
    np.testing.assert_array_equal(
        np.asarray(states.info["start"])[done], np.asarray(pool.info["start"])[chosen]
    )


def test_step_metrics_belong_to_the_step_even_where_it_restarts(played):
    _, _, states, _, _ = played
    np.testing.assert_array_equal(
        np.asarray(states.metrics["count"]), np.asarray(states.info["final_obs"])[..., 0]
    )


def test_step_termination_at_the_time_limit_is_not_a_truncation():
    env = EpisodeWrapper(Counter(), episode_length=2)
    state = restart = env.reset(jax.random.key(0))
    state = env.step(state, jnp.array([0.0]), restart)
    state = env.step(state, jnp.array([0.9]), restart)
    assert (state.info["termination"], state.info["truncation"], state.done) == (1.0, 0.0, 1.0)


def test_reset_and_step_have_one_form():
    env = EpisodeWrapper(Counter())
    state = env.reset(jax.random.key(0))
    stepped = env.step(state, jnp.zeros(1), state)
    assert jax.tree.structure(state) == jax.tree.structure(stepped)
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(stepped), strict=True):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
    assert stepped.info["steps"].dtype == jnp.int32
    assert stepped.info["episode_steps"].dtype == jnp.float32
