# SPDX-License-Identifier: Apache-2.0
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from envs.api import EpisodeWrapper
from envs.registry import make
from robotics.algorithm import add_env_steps, count_env_steps, zero_env_steps
from robotics.es import ESConfig, make_es, presets, shaping
from robotics.es.perturb import (
    LowRankKernel,
    estimate_gradient,
    member_axes,
    perturb,
    sample_noise,
)
from robotics.es.shaping import gradient_weights
from robotics.networks import NetworkConfig
from tests.robotics.counting_env import CountingEnv
from tests.robotics.optimizers_under_test import ES_FACTORIES

_SMALL = NetworkConfig(policy_hidden=(8,), noise="none")
# Each operation on its own would be compiled on its own.
ars_weights = jax.jit(shaping.ars_weights, static_argnums=1)
centered_ranks = jax.jit(shaping.centered_ranks)


def _config(**changes):
    fields = {"num_timesteps": 200, "num_evaluations": 3, "population_size": 4, "network": _SMALL}
    return ESConfig(**(fields | changes))


_LOW_RANK = {"perturbation": "low-rank", "rank": 2}
_ARS = {"shaping": "ars", "top_directions": 4}


@pytest.mark.parametrize(
    ("task", "variant", "optimizer"),
    [
        ("action", {}, "adam"),
        # Twice the compilation; what this asks of the learned optimizer the next probe asks too.
        pytest.param("action", {}, "mnemosyne", marks=pytest.mark.slow),
        *itertools.product(["observation-action"], [{}], ES_FACTORIES),
        ("observation-action", _LOW_RANK, "adam"),
        ("observation-action", _ARS, "adam"),
    ],
)
def test_es_solves_the_probe(task, variant, optimizer):
    probe = make(f"probe:{task}")
    config = _config(
        num_timesteps=20_000,
        num_evaluations=1,
        population_size=16,
        episodes_per_member=4,
        normalize_observations=False,
        **variant,
    )
    env = EpisodeWrapper(probe, episode_length=1)
    algorithm = make_es(env, config, ES_FACTORIES[optimizer]())
    state, _ = jax.jit(lambda key: algorithm.epoch(algorithm.init(key)))(jax.random.key(0))
    obs = jnp.asarray(probe.observations)[:, None]
    params = algorithm.inference_params(state)
    action = algorithm.policy.act(params, obs, jax.random.key(1), True)[:, 0]
    np.testing.assert_allclose(action, probe.answer(obs[:, 0], 1.0), atol=0.1)


@pytest.mark.parametrize("rank", [None, 1, 3])
def test_gradient_of_a_quadratic_is_unbiased(rank):
    shapes = {"bias": (3,), "kernel": (4, 3)}
    center, slope, curvature = (
        jax.tree.map(
            lambda shape, seed=seed: jnp.asarray(
                np.random.default_rng(seed).normal(size=shape), jnp.float32
            ),
            shapes,
            is_leaf=lambda shape: isinstance(shape, tuple),
        )
        for seed in (0, 1, 2)
    )
    std, pairs, inputs = 0.3, 20_000, jnp.eye(4)

    def fitness_of(member):
        matrix = inputs @ member["kernel"]  # also where the kernel is never formed
        moved = {"bias": member["bias"] - center["bias"], "kernel": matrix - center["kernel"]}
        quadratic = optax.tree.vdot(curvature, jax.tree.map(jnp.square, moved))
        return optax.tree.vdot(slope, moved) + quadratic

    at = jax.tree.map(lambda leaf: leaf + 0.5, center)

    @jax.jit
    def estimate(key):
        noise = sample_noise(key, at, pairs, rank)
        members = perturb(at, noise, std)
        axes = member_axes(members, 0, None)
        fitness = jax.vmap(jax.vmap(fitness_of, (axes,)), (axes,))(members)
        return estimate_gradient(noise, gradient_weights(fitness, std))

    gradient = estimate(jax.random.key(0))
    exact = jax.tree.map(lambda a, b: a + b, slope, curvature)
    # Fourth moments of rank one are nine times those of a normal; 30 covers them, see kurtosis.
    error = 5 * np.sqrt(30 * float(optax.tree.norm(exact)) ** 2 / pairs)
    for name in shapes:
        assert gradient[name].shape == shapes[name]
        np.testing.assert_allclose(gradient[name], -exact[name], atol=error, err_msg=name)
    assert error < 0.3 * float(optax.tree.norm(exact))


@pytest.mark.parametrize("rank", [1, 2])
def test_low_rank_noise_has_rank_and_covariance_and_is_applied_without_being_formed(rank):
    params = jax.device_put({"bias": np.zeros(5, "f4"), "kernel": np.ones((6, 5), "f4")})
    noise = jax.jit(lambda key: sample_noise(key, params, 4000, rank))(jax.random.key(3))
    formed = np.einsum("pmr,pnr->pmn", noise["kernel"].left, noise["kernel"].right)
    assert set(np.linalg.matrix_rank(formed[:20], tol=1e-4)) == {rank}
    flat = formed.reshape(4000, -1)
    covariance = flat.T @ flat / 4000
    np.testing.assert_allclose(covariance, np.eye(30), atol=5 * np.sqrt(8 / 4000))
    x = np.random.default_rng(4).normal(size=(3, 6)).astype(np.float32)

    @jax.jit
    def apply(noise, x):
        member = jax.tree.map(lambda leaf: leaf[1, 7], perturb(params, noise, 0.1)["kernel"][1:])
        return x @ LowRankKernel(params["kernel"], *member)

    applied = apply(noise, x)
    np.testing.assert_allclose(applied, x @ (1.0 - 0.1 * formed[7]), rtol=1e-4, atol=1e-5)


def test_perturbations_are_antithetic_and_follow_the_tree():
    params = jax.device_put({"a": np.ones((2, 3), "f4"), "b": np.zeros(4, "f4")})
    draw = jax.jit(lambda key: perturb(params, sample_noise(key, params, 5), 0.3))
    population = jax.device_get(draw(jax.random.key(0)))
    assert jax.tree.map(np.shape, population) == {"a": (2, 5, 2, 3), "b": (2, 5, 4)}
    for leaf, center in zip(jax.tree.leaves(population), jax.tree.leaves(params), strict=True):
        mean = 0.5 * (leaf[0] + leaf[1])
        np.testing.assert_allclose(mean, np.broadcast_to(center, leaf[0].shape), atol=1e-6)


def test_ars_step_is_that_of_the_paper_by_hand():
    rng = np.random.default_rng(0)
    directions, returns = rng.normal(size=(5, 3)), rng.normal(size=(2, 5)) * 10 + 100
    top, step = 2, 0.02
    order = np.argsort(-returns.max(axis=0))[:top]
    wanted = np.array([1.0, 2.0, 3.0])
    for i in order:
        move = (returns[0, i] - returns[1, i]) * directions[i]
        wanted = wanted + step / (top * returns[:, order].std()) * move
    weights = ars_weights(jnp.asarray(returns, jnp.float32), top)
    assert np.count_nonzero(weights) == top
    noise = {"w": jnp.asarray(directions, jnp.float32)}
    params = {"w": jnp.array([1.0, 2.0, 3.0])}
    sgd = optax.sgd(step)
    updates, _ = sgd.update(estimate_gradient(noise, weights), sgd.init(params), params)
    np.testing.assert_allclose(optax.apply_updates(params, updates)["w"], wanted, rtol=1e-5)


def test_ars_never_uses_a_return_that_is_not_finite_and_equal_ones_do_not_move():
    returns = np.float32([[1.0, np.nan, 3.0, 2.0], [0.0, 9.0, 1.0, np.inf]])
    wanted = np.array([1.0, 0.0, 2.0, 0.0]) / (2 * np.std([1.0, 0.0, 3.0, 1.0]))
    np.testing.assert_allclose(ars_weights(returns, 3), wanted, rtol=1e-5)
    np.testing.assert_allclose(ars_weights(np.ones((2, 4), np.float32), 2), 0.0)


def test_ranks_are_centered_shared_among_equals_and_worst_for_nan():
    np.testing.assert_allclose(
        centered_ranks(np.float32([3.0, -7.0, 100.0, 4.0, 3.5])), [-0.25, -0.5, 0.5, 0.25, 0.0]
    )
    np.testing.assert_allclose(centered_ranks(np.ones(4, np.float32)), 0.0)
    np.testing.assert_allclose(centered_ranks(np.float32([1.0, jnp.nan, 2.0])), [0.0, -0.5, 0.5])


def _telemetry(opt_state, updates, params):
    return {"optimizer/after": optax.tree.norm(optax.apply_updates(params, updates))}


@pytest.fixture(scope="module")
def run():
    """A run in which every generation costs 4 episodes x 3 steps, though the limit is 5 steps."""
    algorithm = make_es(
        EpisodeWrapper(CountingEnv(horizon=3)), _config(), optax.adam(1e-2), _telemetry
    )
    init, epoch = jax.jit(algorithm.init), jax.jit(algorithm.epoch)

    def train(key):
        state, rows = init(key), []
        for _ in range(algorithm.num_epochs):
            state, metrics = epoch(state)
            rows.append(jax.tree.map(np.asarray, metrics))
        return state, rows

    return algorithm, train


def test_only_active_steps_count_and_the_budget_is_never_exceeded(run):
    algorithm, train = run
    state, rows = train(jax.random.key(0))
    # A generation may cost 20, so that none starts at 181 or more: 16 x 12 = 192.
    assert int(count_env_steps(state.env_steps)) == 192
    assert sum(int(row["env_steps"]) for row in rows) == 192
    assert int(state.updates) == sum(int(row["training/generations"]) for row in rows) == 16
    assert len(rows) == algorithm.num_epochs == 3
    assert all(row["training/generations"] >= 1 for row in rows)
    assert all(row["episode/length"] == 3 for row in rows)
    np.testing.assert_allclose(rows[0]["episode/sum_reward"], 1 + 2 + 3)


def test_observation_statistics_are_those_of_active_steps(run):
    state, _ = run[1](jax.random.key(0))
    statistics = state.normalizer["observation"]
    assert float(statistics.count) == 192
    np.testing.assert_allclose(statistics.mean[1], 1.0, rtol=1e-5)
    np.testing.assert_allclose(statistics.variance[1], 2 / 3, rtol=1e-4)


def test_same_seed_twice_is_bitwise_equal_and_vmapped_seeds_equal_single_ones(run):
    algorithm, train = run
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    first, again = train(keys[1])[0], train(keys[1])[0]
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_array_equal(a, b)
    both = jax.jit(jax.vmap(lambda key: algorithm.epoch(algorithm.init(key))))(keys)[1]
    rows = train(keys[1])[1]
    for name, value in rows[0].items():
        np.testing.assert_allclose(both[name][1], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_telemetry_sees_the_last_update(run):
    state, rows = run[1](jax.random.key(0))
    np.testing.assert_allclose(
        rows[-1]["optimizer/after"], optax.tree.norm(state.params), rtol=1e-6
    )


def test_optimizer_gets_value_and_progress():
    def update(grads, state, params=None, **extras):
        assert set(extras) == {"value", "progress"}
        return jax.tree.map(jnp.zeros_like, grads), jnp.stack([extras["value"], extras["progress"]])

    optimizer = optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(2), update)
    config = _config(num_timesteps=40, num_evaluations=1)
    algorithm = make_es(EpisodeWrapper(CountingEnv(horizon=3)), config, optimizer)
    state, _ = jax.jit(lambda key: algorithm.epoch(algorithm.init(key)))(jax.random.key(0))
    # Generations start at 0 and 12 of 21 env steps.
    np.testing.assert_allclose(state.opt_state, [-6.0, 12 / 21], rtol=1e-6)


def test_counter_does_not_overflow_at_two_to_the_31():
    add = jax.jit(lambda counter: add_env_steps(counter, 2**30 - 1))
    counter = zero_env_steps()
    for _ in range(5):
        counter = add(counter)
    assert int(count_env_steps(counter)) == 5 * (2**30 - 1) > 2**32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"population_size": 7}, "nearest size that fits is 8"),
        ({"population_size": 0}, "nearest size that fits is 2"),
        ({"population_size": -4}, "nearest size that fits is 2"),
        ({"num_timesteps": 0}, "above 0"),
        ({"perturbation_std": 0.0}, "perturbation_std"),
        ({"num_timesteps": 19}, "at least 20"),
        ({"rank": 0}, "above 0"),
        ({"top_directions": 3}, "1 to 2 directions"),
    ],
)
def test_bad_setting_is_refused_with_a_sentence(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        make_es(EpisodeWrapper(CountingEnv()), _config(**changes), optax.sgd(0.1))
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_presets_are_configs_and_take_changes():
    assert presets("brax:inverted_pendulum", num_timesteps=50_000).population_size == 16
    assert presets("control:pendulum").population_size % 2 == 0
