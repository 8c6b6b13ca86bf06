# SPDX-License-Identifier: Apache-2.0
"""Policy runs that differ: what is drawn, what the optimizer is told, what a run's loss is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import envs
from envs import checker
from envs.api import EpisodeWrapper
from experiments import policies, variety
from experiments.together import Together
from experiments.variety import NONE, Variety
from mnemosyne.features import EXTRAS
from mnemosyne.learned import LearnedOptimizer

PENDULUM = EpisodeWrapper(envs.make("control:pendulum"), 200)
SGD = LearnedOptimizer(
    "sgd",
    lambda _: jnp.asarray(-4.0),
    lambda theta: optax.with_extra_args_support(optax.sgd(lambda _: jnp.exp(theta))),
)


@pytest.fixture(scope="module")
def draws() -> Any:
    keys = jax.random.split(jax.random.key(0), 256)
    return jax.vmap(lambda key: variety.draw(key, PENDULUM, Variety()))(keys)


def test_draws_fill_their_ranges_and_keep_to_them(draws: Any) -> None:
    ranges = {"physics": (-0.4, 0.4), "reward": (np.exp(-1.5), np.exp(1.5)), "limit": (100, 200)}
    for name, (low, high) in ranges.items():
        values = np.asarray(getattr(draws, name), float)
        assert low <= values.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < values.max() <= high
    np.testing.assert_allclose(np.mean(draws.told, axis=0), 0.9, atol=0.07)


def test_without_variety_the_environment_is_as_it_is() -> None:
    drawn = variety.draw(jax.random.key(1), PENDULUM, NONE)
    varied, key = variety.varied_env(PENDULUM, drawn), jax.random.key(2)
    action = jnp.asarray([0.3])
    own, other = (env.step(env.reset(key), action, env.reset(key)) for env in (PENDULUM, varied))
    np.testing.assert_array_equal(own.obs, other.obs)
    np.testing.assert_array_equal(own.reward, other.reward)
    assert int(drawn.limit) == 200 and bool(np.all(drawn.told))


def test_varied_physics_and_rewards_differ_and_the_limit_ends_episodes() -> None:
    drawn = variety.draw(jax.random.key(1), PENDULUM, Variety())._replace(limit=jnp.asarray(1))
    varied, key = variety.varied_env(PENDULUM, drawn), jax.random.key(2)
    state = varied.reset(key)
    moved = varied.step(state, jnp.asarray([1.0]), state)
    plain = PENDULUM.env.step(PENDULUM.env.reset(key), jnp.asarray([1.0]))
    assert float(moved.info["truncation"]) == 1.0
    assert not np.allclose(moved.info["final_obs"], plain.obs)
    ratio = float(moved.reward / plain.reward)
    assert 0.5 < ratio / float(drawn.reward) < 2.0


def test_host_withholds_what_is_not_told_and_stretches_progress() -> None:
    seen: dict[str, Any] = {}

    def update(updates: Any, state: Any, params: Any = None, **extras: Any) -> Any:
        seen.update(extras)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
    told = jnp.asarray([name != "kl" for name in EXTRAS])
    drawn = variety.draw(jax.random.key(0), PENDULUM, NONE)._replace(told=told)
    host = variety.varied_host(inner, drawn, 0.5)
    host.update({}, (), None, kl=0.01, entropy=1.0, progress=0.25, policy={"policy": True})
    assert np.isnan(seen["kl"])
    assert float(seen["entropy"]) == 1.0 and float(seen["progress"]) == 0.5
    assert seen["policy"] == {"policy": True}
    assert set(seen) == {"kl", "entropy", "progress", "policy"}


@pytest.mark.parametrize("chunks", [1, 4, 7])
def test_weights_are_half_area_and_half_the_end(chunks: int) -> None:
    found = np.asarray(
        [variety.weights(jnp.asarray(i), jnp.asarray(chunks)) for i in range(chunks)]
    )
    assert found.sum() == pytest.approx(chunks)
    late = found > 0.5
    assert late.sum() == chunks - int(0.75 * chunks)
    assert found[late].sum() - 0.5 * late.sum() == pytest.approx(chunks / 2)


def test_copies_together_are_that_many_environments() -> None:
    pendulum = envs.make("control:pendulum")
    three, key = Together(pendulum, 3), jax.random.key(0)
    assert not checker.problems(three)
    actions = jnp.asarray([-0.5, 0.1, 0.9])
    state = three.step(three.reset(key), actions)
    alone = [
        pendulum.step(pendulum.reset(k), action[None])
        for k, action in zip(jax.random.split(key, 3), actions, strict=True)
    ]
    np.testing.assert_allclose(state.obs, np.concatenate([x.obs for x in alone]), rtol=1e-6)
    np.testing.assert_allclose(state.reward, np.mean([x.reward for x in alone]), rtol=1e-6)


def test_loss_of_a_run_is_what_its_return_lacks_half_over_the_run_half_at_its_end() -> None:
    problem = policies.make_problem(
        "control:pointmass", 20, 8, 2, 20.0, width=8, num_envs=4, unroll_length=20
    )
    system, theta = policies.make_system(problem, SGD, NONE), SGD.init(jax.random.key(0))
    advance = jax.jit(system.advance)
    state = jax.jit(system.reset)(theta, jax.random.key(1), 1.0)
    losses, ended = [], []
    while not system.finished(state):
        state, loss = advance(theta, state)
        losses.append(float(loss))
        ended.append(bool(system.finished(state)))
    assert ended == [False, False, False, True]
    algorithm = problem.algorithm(SGD.transform(theta))
    train = algorithm.init(jax.random.split(jax.random.key(1))[1])
    returns = []
    for _ in range(4):
        train, metrics = jax.jit(algorithm.epoch)(train)
        returns.append(float(metrics["episode/sum_reward"]) / 20.0)
    expected = 0.5 * (1 - np.mean(returns)) + 0.5 * (1 - returns[-1])
    assert np.mean(losses) == pytest.approx(expected, rel=1e-4)


def test_half_a_run_ends_after_half_of_its_chunks() -> None:
    problem = policies.make_problem(
        "control:pointmass", 20, 8, 2, 20.0, width=8, num_envs=4, unroll_length=20
    )
    system = policies.make_system(problem, SGD, Variety())
    state = system.reset(jnp.asarray(-4.0), jax.random.key(1), 0.5)
    assert int(state.limit) == 2
