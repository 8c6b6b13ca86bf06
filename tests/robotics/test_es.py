# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from envs.api import EpisodeWrapper
from envs.registry import make
from robotics.algorithm import add_env_steps, count_env_steps, zero_env_steps
from robotics.es import ESConfig, make_es, presets
from robotics.es.perturb import centered_ranks, estimate_gradient, perturb, sample_noise
from robotics.networks import NetworkConfig
from tests.robotics.counting_env import CountingEnv
from tests.robotics.optimizers_under_test import ES_FACTORIES

_SMALL = NetworkConfig(policy_hidden=(8,), noise="none")


def _config(**changes):
    fields = {"num_timesteps": 200, "num_evaluations": 3, "population_size": 4, "network": _SMALL}
    return ESConfig(**(fields | changes))


@pytest.mark.parametrize("factory", ES_FACTORIES.values(), ids=ES_FACTORIES.keys())
@pytest.mark.parametrize("task", ["action", "observation-action"])
def test_es_solves_the_probe(task, factory):
    probe = make(f"probe:{task}")
    config = _config(
        num_timesteps=20_000,
        num_evaluations=1,
        population_size=16,
        episodes_per_member=4,
        normalize_observations=False,
    )
    env = EpisodeWrapper(probe, episode_length=1)
    algorithm = make_es(env, config, factory())
    state, _ = jax.jit(lambda key: algorithm.epoch(algorithm.init(key)))(jax.random.key(0))
    obs = jnp.asarray(probe.observations)[:, None]
    params = algorithm.inference_params(state)
    action = algorithm.policy.act(params, obs, jax.random.key(1), True)[:, 0]
    np.testing.assert_allclose(action, probe.answer(obs[:, 0], 1.0), atol=0.1)


def test_gradient_of_a_linear_fitness_is_unbiased():
    params = {"a": jnp.array([1.0, -1.0]), "b": {"c": jnp.array([[2.0]])}}
    slope = {"a": jnp.array([0.5, 2.0]), "b": {"c": jnp.array([[-1.0]])}}
    noise = sample_noise(jax.random.key(0), params, 20_000)
    population = perturb(params, noise, 0.1)
    fitness = jax.vmap(lambda member: optax.tree.vdot(slope, member))(population)
    gradient = estimate_gradient(noise, fitness, 0.1)
    for estimate, exact in zip(jax.tree.leaves(gradient), jax.tree.leaves(slope), strict=True):
        # Standard error sqrt(|slope|^2 + slope^2) / sqrt(pairs) is at most 0.022; five of them.
        np.testing.assert_allclose(estimate, -exact, atol=0.11)


def test_perturbations_are_antithetic_and_follow_the_tree():
    params = {"a": jnp.ones((2, 3)), "b": jnp.zeros(4)}
    noise = sample_noise(jax.random.key(0), params, 5)
    population = perturb(params, noise, 0.3)
    assert jax.tree.map(jnp.shape, population) == {"a": (10, 2, 3), "b": (10, 4)}
    for leaf, center in zip(jax.tree.leaves(population), jax.tree.leaves(params), strict=True):
        mean = 0.5 * (leaf[:5] + leaf[5:])
        np.testing.assert_allclose(mean, np.broadcast_to(center, leaf[:5].shape), atol=1e-6)


def test_ranks_are_centered_shared_among_equals_and_worst_for_nan():
    np.testing.assert_allclose(
        centered_ranks(jnp.array([3.0, -7.0, 100.0, 4.0, 3.5])), [-0.25, -0.5, 0.5, 0.25, 0.0]
    )
    np.testing.assert_allclose(centered_ranks(jnp.ones(4)), 0.0)
    np.testing.assert_allclose(centered_ranks(jnp.array([1.0, jnp.nan, 2.0])), [0.0, -0.5, 0.5])


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
    ],
)
def test_bad_setting_is_refused_with_a_sentence(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        make_es(EpisodeWrapper(CountingEnv()), _config(**changes), optax.sgd(0.1))
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_presets_are_configs_and_take_changes():
    assert presets("brax:inverted_pendulum", num_timesteps=50_000).population_size == 16
    assert presets("control:pendulum").population_size % 2 == 0
