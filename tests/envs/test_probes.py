# SPDX-License-Identifier: Apache-2.0
"""The probes' stated answers, recomputed from their rewards."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.api import EpisodeWrapper
from envs.probes import make
from envs.registry import list_envs

DISCOUNT = 0.9
TASKS = [name.partition(":")[2] for name in list_envs() if name.startswith("probe:")]


def _episode(probe, key, action):
    """Observations and rewards of one episode, observation before the step."""
    state = probe.reset(key)
    observations, rewards = [], []
    while not state.done and len(rewards) < 50:
        observations.append(float(state.info.get("privileged_obs", state.obs)[0]))
        state = probe.step(state, jnp.full((1,), action))
        rewards.append(float(state.reward))
    return observations, rewards


def test_make_knows_the_seven_probes():
    assert set(TASKS) == {
        "value",
        "observation",
        "discount",
        "action",
        "observation-action",
        "truncation",
        "privileged",
    }


@pytest.mark.parametrize("task", ["value", "observation", "discount", "privileged"])
def test_value_answer_equals_discounted_return(task):
    probe = make(task)
    assert probe.asks == "value"
    met = set()
    for seed in range(8):
        observations, rewards = _episode(probe, jax.random.key(seed), action=0.3)
        for t, observation in enumerate(observations):
            value = sum(DISCOUNT**k * reward for k, reward in enumerate(rewards[t:]))
            answer = probe.answer(jnp.float32(observation), DISCOUNT)
            assert float(answer) == pytest.approx(value)
            met.add(observation)
    assert met == set(probe.observations)


def test_discount_probe_answers_differ_by_the_discount():
    answer = make("discount").answer(jnp.array([0.0, 1.0]), 0.7)
    np.testing.assert_allclose(answer, [0.7, 1.0], rtol=1e-6)


@pytest.mark.parametrize("task", ["action", "observation-action"])
def test_action_answer_is_the_best_action(task):
    probe = make(task)
    assert probe.asks == "action"
    actions = jnp.linspace(-1.0, 1.0, 41)
    met = set()
    for seed in range(8):
        state = probe.reset(jax.random.key(seed))
        stepped = jax.vmap(lambda action, state=state: probe.step(state, action[None]))(actions)
        best = actions[jnp.argmax(stepped.reward)]
        assert float(probe.answer(state.obs[0], DISCOUNT)) == pytest.approx(float(best), abs=1e-6)
        assert float(stepped.reward.max()) == pytest.approx(0.0, abs=1e-6)
        np.testing.assert_array_equal(stepped.done, 1.0)
        met.add(float(state.obs[0]))
    assert met == set(probe.observations)


def test_truncation_probe_never_terminates_and_is_its_own_bootstrap():
    probe = make("truncation")
    env = EpisodeWrapper(probe)
    state = restart = env.reset(jax.random.key(0))
    step = jax.jit(env.step)
    flags = []
    for _ in range(30):
        state = step(state, jnp.zeros(1), restart)
        assert (state.reward, state.info["termination"]) == (1.0, 0.0)
        flags.append(float(state.info["truncation"]))
    np.testing.assert_array_equal(np.flatnonzero(flags), [9, 19, 29])
    value = float(probe.answer(jnp.float32(0.0), DISCOUNT))
    first_ten = sum(DISCOUNT**k for k in range(10))
    assert value == pytest.approx(first_ten + DISCOUNT**10 * value)


@pytest.mark.parametrize("task", [task for task in TASKS if task != "truncation"])
def test_terminating_probes_never_reach_their_time_limit(task):
    probe = make(task)
    _, rewards = _episode(probe, jax.random.key(0), action=0.0)
    assert len(rewards) == probe.horizon < probe.episode_length


def test_privileged_probe_shows_its_policy_nothing():
    probe = make("privileged")
    starts = [probe.reset(jax.random.key(seed)) for seed in range(8)]
    assert {float(state.obs[0]) for state in starts} == {0.0}
    assert {float(state.info["privileged_obs"][0]) for state in starts} == {-1.0, 1.0}


def test_make_unknown_option_is_refused():
    with pytest.raises(ValueError, match=r"'horizn' for 'probe:value'.*'episode_length'"):
        make("value", horizn=3)
