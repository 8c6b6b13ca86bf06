# SPDX-License-Identifier: Apache-2.0
import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from envs.api import EpisodeWrapper
from envs.registry import make
from robotics import networks, normalize
from robotics.algorithm import count_env_steps
from robotics.networks import NetworkConfig
from robotics.ppo import PPOConfig, losses, make_ppo, presets
from robotics.ppo.metrics import episode_metrics
from robotics.ppo.samples import prepare_samples, reward_scale, shuffle, unpack_samples
from robotics.rollout import Rollout, collect, reset
from tests.robotics.counting_env import HiddenCountingEnv
from tests.robotics.optimizers_under_test import PPO_FACTORIES

_SMALL = NetworkConfig(policy_hidden=(16,), value_hidden=(16,))
_EXTRAS = {
    *("value", "kl", "clip_fraction", "entropy", "explained_variance", "epoch", "progress"),
    "action_size",
}


def _config(**changes):
    fields = {
        "num_timesteps": 1024,
        "num_evaluations": 2,
        "num_envs": 16,
        "unroll_length": 8,
        "num_minibatches": 2,
        "num_updates_per_batch": 2,
        "network": _SMALL,
    }
    return PPOConfig(**(fields | changes))


def _pendulum(**options):
    return EpisodeWrapper(make("control:pendulum", episode_length=20, **options))


def _train(algorithm, key):
    epoch = jax.jit(algorithm.epoch)
    state = jax.jit(algorithm.init)(key)
    rows = []
    for _ in range(algorithm.num_epochs):
        state, metrics = epoch(state)
        rows.append(metrics)
    return state, rows


def _leaves(state):
    return [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves(state)
    ]


_PROBES = ("value", "observation", "discount", "action", "observation-action", "truncation")
_PROBES += ("privileged",)
# With the learned optimizer, twice the compilation; what these ask of it the other asks as well.
_ASKED_LATER = ("value", "observation", "discount", "action", "truncation", "privileged")


def _pair(task, name):
    late = name == "mnemosyne" and task in _ASKED_LATER
    marks = pytest.mark.slow if late else ()
    return pytest.param(task, PPO_FACTORIES[name], id=f"{task}-{name}", marks=marks)


@pytest.mark.parametrize(
    ("task", "factory"), [_pair(task, name) for task in _PROBES for name in PPO_FACTORIES]
)
def test_ppo_solves_the_probe(task, factory):
    probe = make(f"probe:{task}")
    # Truncation at a small discount, so that 1 / (1 - discount) is reached within a few rollouts.
    discount = 0.8 if task == "truncation" else 0.9
    # Long enough for steps of 5e-4 that anneal to nothing, which is what the policy weights take.
    config = _config(
        num_timesteps=400 * 128,
        num_evaluations=1,
        discount=discount,
        num_updates_per_batch=4,
        normalize_observations=False,
    )
    algorithm = make_ppo(EpisodeWrapper(probe), config, factory())
    state, _ = _train(algorithm, jax.random.key(0))
    obs = jnp.asarray(probe.observations)[:, None]
    if probe.asks == "value":
        seen = (obs, config.network)
        if probe.privileged_observation_size:
            seen = (jnp.zeros_like(obs), config.network, obs)
        actual = networks.apply_value(state.params["value"], *seen)
    else:
        params = algorithm.inference_params(state)
        actual = algorithm.policy.act(params, obs, jax.random.key(1), True)[:, 0]
    tolerance = 0.25 if task == "truncation" else 0.1
    expected = probe.answer(obs[:, 0], discount)
    np.testing.assert_allclose(actual, expected, atol=tolerance)


def _recorder(inner, size):
    """``inner``, with the extras of every update kept in its state."""

    def init(params):
        seen = {name: jnp.zeros(size) for name in _EXTRAS}
        return seen, jnp.zeros((), jnp.int32), inner.init(params)

    def update(grads, state, params=None, **extras):
        seen, count, inner_state = state
        assert extras.pop("policy") == {"policy": True, "value": False}
        assert set(extras) == _EXTRAS
        assert all(x.dtype == jnp.float32 and not x.shape for x in extras.values())
        seen = {name: seen[name].at[count].set(extras[name]) for name in _EXTRAS}
        updates, inner_state = inner.update(grads, inner_state, params)
        return updates, (seen, count + 1, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def test_every_update_gets_its_extras_and_the_first_of_a_rollout_has_ratio_one():
    config = _config(num_timesteps=512, num_evaluations=1, num_updates_per_batch=3)
    optimizer = _recorder(optax.adam(1e-2), config.num_updates)
    state, _ = _train(make_ppo(_pendulum(), config, optimizer), jax.random.key(0))
    seen = {name: np.asarray(values) for name, values in state.opt_state[0].items()}
    assert state.opt_state[1] == config.num_updates == int(state.updates) == 24
    assert all(np.all(np.isfinite(values)) for values in seen.values())
    np.testing.assert_allclose(seen["epoch"], np.tile(np.arange(6) / 6, 4), rtol=1e-6)
    np.testing.assert_allclose(seen["progress"], np.arange(24) / 24, rtol=1e-6)
    assert np.all(seen["explained_variance"] <= 1) and np.all(seen["action_size"] == 1)
    # Observation statistics move between rollouts; the ratio must not notice.
    kl, clipped = seen["kl"].reshape(4, 6), seen["clip_fraction"].reshape(4, 6)
    np.testing.assert_allclose(kl[:, 0], 0, atol=1e-9)
    np.testing.assert_array_equal(clipped[:, 0], 0)
    assert np.all(kl[:, 1:] > 1e-6)


def test_loss_is_the_clipped_objective_by_hand():
    config = _config(clipping_epsilon=0.2, value_cost=0.5, entropy_cost=0.1)
    params = {
        "policy": networks.init_policy(jax.random.key(0), 2, 1, config.network),
        "value": networks.init_value(jax.random.key(1), 2, config.network),
    }
    obs, action = jnp.ones((4, 2)), jnp.full((4, 1), 0.3)
    value = networks.apply_value(params["value"], obs, config.network)
    mean, std = networks.apply_policy(params["policy"], obs, config.network)
    log_prob = losses.distributions.log_prob(mean, std, action)
    ratio = np.array([1.5, 1.5, 0.5, 1.1])
    advantage = np.array([2.0, -1.0, 3.0, 1.0])
    minibatch = losses.Minibatch(
        obs, action, log_prob - jnp.log(ratio), jnp.asarray(advantage, jnp.float32), value + 2.0
    )
    loss, scalars = losses.compute_ppo_loss(params, minibatch, config)
    # min(r A, clip(r) A): 1.2 * 2, 1.5 * -1, 0.5 * 3, 1.1 * 1
    np.testing.assert_allclose(scalars["policy_loss"], -np.mean([2.4, -1.5, 1.5, 1.1]), rtol=1e-5)
    np.testing.assert_allclose(scalars["v_loss"], 0.5 * 4.0, rtol=1e-5)
    np.testing.assert_allclose(scalars["clip_fraction"], 0.75)
    np.testing.assert_allclose(scalars["kl"], np.mean(ratio - 1 - np.log(ratio)), rtol=1e-4)
    np.testing.assert_allclose(
        loss, scalars["policy_loss"] + 2.0 - 0.1 * scalars["entropy"], rtol=1e-5
    )


@pytest.mark.parametrize(("size", "low", "high"), [(1, 0.95, 1.0), (0, -0.2, 0.2)])
def test_value_that_only_the_critic_can_know_is_explained_if_it_is_shown(size, low, high):
    # Without the declaration the probe is the same and its critic as blind as the policy.
    probe = dataclasses.replace(make("probe:privileged"), privileged_observation_size=size)
    config = _config(num_timesteps=200 * 128, num_updates_per_batch=4)
    state, rows = _train(
        make_ppo(EpisodeWrapper(probe), config, optax.adam(3e-3)), jax.random.key(0)
    )
    assert low <= float(rows[-1]["training/explained_variance"]) <= high
    assert ("privileged" in state.normalizer) == (size == 1)


def _hidden(horizon=0, size=2, **changes):
    """PPO in an environment whose critic alone knows the time, 12 steps of it, and its samples."""
    config = _config(num_envs=4, unroll_length=12, normalize_advantages=False, **changes)
    limit = 4 if horizon == 0 else 100
    env = EpisodeWrapper(HiddenCountingEnv(horizon, limit, privileged_observation_size=size))
    algorithm = make_ppo(env, config, optax.adam(1e-3))
    state = algorithm.init(jax.random.key(0))
    if size:
        # The value is the number of steps: no other entry of (observation, start, steps) counts.
        kernel = jnp.array([[0.0], [0.0], [1.0]])
        state.params["value"] = {"mlp": {"layer_0": {"bias": jnp.zeros(1), "kernel": kernel}}}
    zeros = jnp.zeros((12, 4, 1))
    restarts = reset(env, jax.random.key(1), 4)
    act = lambda obs, noise: (noise, (noise, noise[:, 0]))  # noqa: E731
    _, rollout = jax.jit(lambda s: collect(env, act, s, restarts, zeros))(state.env_state)
    samples, normalizer, _ = prepare_samples(config, state, rollout)
    return algorithm, state, rollout, samples, normalizer


@pytest.mark.parametrize("horizon", [0, 4])
def test_truncated_episode_bootstraps_from_its_last_privileged_observation(horizon):
    network = NetworkConfig(policy_hidden=(), value_hidden=())
    fields = {"discount": 0.5, "gae_lambda": 0.0, "normalize_observations": False}
    *_, samples, _ = _hidden(horizon, network=network, **fields)
    minibatch = unpack_samples(samples, 1, 1, 2)
    target = np.asarray(minibatch.target).reshape(12, 4)
    # Reward and value of what step t leads to are both t; only a termination is worth nothing.
    steps = np.tile([1.0, 2.0, 3.0, 4.0], 3)
    expected = steps + 0.5 * steps * ((steps < 4) | (horizon == 0))
    np.testing.assert_allclose(target, np.tile(expected[:, None], 4), rtol=1e-6)
    np.testing.assert_array_equal(minibatch.privileged[:, 1].reshape(12, 4)[:, 0], steps - 1)


def test_privileged_observation_is_normalized_by_its_own_statistics():
    network = NetworkConfig(policy_hidden=(), value_hidden=())
    *_, rollout, _, normalizer = _hidden(network=network)
    seen = np.asarray(rollout.privileged_obs).reshape(-1, 2)
    statistics = normalizer["privileged"]
    np.testing.assert_allclose(statistics.mean, seen.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics.variance, seen.var(0), rtol=1e-4)
    assert normalizer["observation"].mean.shape == (1,)


def test_policy_is_the_same_whatever_the_critic_sees():
    shown, state, *_ = _hidden()
    alone, plain, rollout, samples, normalizer = _hidden(size=0)
    assert shown.policy.spec == alone.policy.spec and shown.policy.spec["observation_size"] == 1
    both = (shown.inference_params(state), alone.inference_params(plain))
    for one, other in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_array_equal(one, other)
    # Nothing privileged, nothing changed: networks, statistics, samples, state of environments.
    assert plain.params["value"]["mlp"]["layer_0"]["kernel"].shape == (1, 16)
    assert set(normalizer) == {"observation"} and samples.shape == (48, 1 + 1 + 3)
    assert rollout.privileged_obs is None and "final_privileged_obs" not in plain.env_state.info


def test_explained_variance_of_known_cases():
    targets = jnp.array([1.0, 2.0, 3.0])
    assert float(losses.explained_variance(targets, targets)) == 1.0
    assert float(losses.explained_variance(jnp.zeros(3), targets)) == pytest.approx(0.0, abs=1e-6)
    assert float(losses.explained_variance(-9 * targets, targets)) == -1.0
    assert float(losses.explained_variance(targets, jnp.ones(3))) == 0.0


def _telemetry(opt_state, updates, params):
    after = optax.tree.norm(optax.apply_updates(params, updates))
    return {"optimizer/after": after, "optimizer/moved": optax.tree.norm(updates)}


@pytest.fixture(scope="module")
def run():
    """One compiled run of 1000 steps in two chunks, with everything switched on."""
    config = _config(num_timesteps=1000, normalize_rewards=True)
    env = EpisodeWrapper(make("control:pendulum", episode_length=32))
    algorithm = make_ppo(env, config, optax.adam(1e-3), _telemetry)
    init, epoch = jax.jit(algorithm.init), jax.jit(algorithm.epoch)

    def train(key):
        state, rows = init(key), []
        for _ in range(algorithm.num_epochs):
            state, metrics = epoch(state)
            rows.append(jax.tree.map(np.asarray, metrics))
        return state, rows

    return algorithm, train


def test_same_seed_twice_is_bitwise_equal(run):
    _, train = run
    first, again = train(jax.random.key(3)), train(jax.random.key(3))
    for a, b in zip(_leaves(first), _leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_vmapped_seeds_equal_single_ones(run):
    algorithm, train = run
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    state = jax.jit(jax.vmap(algorithm.init))(keys)
    state, metrics = jax.jit(jax.vmap(algorithm.epoch))(state)
    for i in range(2):
        rows = train(keys[i])[1]
        for name, value in rows[0].items():
            np.testing.assert_allclose(metrics[name][i], value, rtol=5e-3, atol=1e-4, err_msg=name)
    assert metrics["training/v_loss"][0] != metrics["training/v_loss"][1]


def test_env_steps_are_exact_and_never_above_the_budget(run):
    algorithm, train = run
    state, rows = train(jax.random.key(0))
    # 1000 steps are 7 whole rollouts of 128; two chunks of 3 leave the seventh out.
    assert algorithm.num_epochs == 2
    assert [int(row["env_steps"]) for row in rows] == [384, 384]
    assert int(count_env_steps(state.env_steps)) == 768 == 2 * algorithm.env_steps_per_epoch
    assert int(state.epoch) == 2


def test_episode_metrics_count_finished_episodes_and_stay_finite(run):
    _, train = run
    _, rows = train(jax.random.key(0))
    # 24 steps of each of the 16 environments a chunk, episodes of 32 steps.
    assert [float(row["episode/count"]) for row in rows] == [0, 16]
    assert [float(row["episode/length"]) for row in rows] == [0, 32]
    assert 0 < rows[1]["episode/sum_reward"] < 32
    assert all(np.all(np.isfinite(value)) for row in rows for value in row.values())


def test_episode_metrics_hold_their_last_value():
    one = {"episode/sum_reward": jnp.array([6.0, 0.0]), "episode/length": jnp.array([30.0, 0.0])}
    carried = {name: jnp.zeros(()) for name in one}
    metrics, carried = episode_metrics(one | {"episode/count": jnp.array([3.0, 0.0])}, carried)
    assert metrics["episode/sum_reward"] == 2.0 and metrics["episode/length"] == 10.0
    nothing = {name: jnp.zeros(2) for name in (*one, "episode/count")}
    metrics, _ = episode_metrics(nothing, carried)
    assert metrics["episode/sum_reward"] == 2.0 and metrics["episode/count"] == 0.0


def test_telemetry_sees_the_last_update_and_the_parameters_before_it(run):
    state, rows = run[1](jax.random.key(0))
    np.testing.assert_allclose(
        rows[-1]["optimizer/after"], optax.tree.norm(state.params), rtol=1e-6
    )
    assert rows[-1]["optimizer/moved"] > 0


def test_state_structure_is_fixed_and_can_be_a_scan_carry(run):
    state = run[1](jax.random.key(0))[0]
    carry, _ = jax.eval_shape(
        lambda s: jax.lax.scan(lambda c, _: run[0].epoch(c), s, None, length=2), state
    )
    assert jax.tree.structure(carry) == jax.tree.structure(state)
    assert [x.dtype for x in jax.tree.leaves(carry)] == [x.dtype for x in jax.tree.leaves(state)]


def test_rewards_are_divided_by_the_deviation_of_discounted_returns():
    config = _config(normalize_rewards=True, discount=0.9, reward_scaling=2.0)
    rng = np.random.default_rng(0)
    statistics, running = normalize.init_statistics(()), jnp.zeros(3)
    normalizer = {"return": statistics, "running_return": running}
    returns, total = [], np.zeros(3)
    for _ in range(2):
        reward = rng.normal(2.0, 1.0, (4, 3))
        ends = rng.integers(0, 2, (2, 4, 3))
        ends[1] *= 1 - ends[0]
        arrays = [jnp.asarray(a, jnp.float32) for a in (reward, *ends)]
        unused = jnp.zeros((4, 3))
        rollout = Rollout(unused[..., None], None, *arrays, unused[..., None], unused, unused)
        normalizer, scale = reward_scale(config, normalizer, rollout)
        for t in range(4):
            total = 0.9 * total + reward[t]
            returns.append(total)
            total = total * (1 - ends[:, t].sum(0))
    np.testing.assert_allclose(scale, 2.0 / np.std(returns), rtol=1e-5)
    assert reward_scale(_config(reward_scaling=3.0), {}, rollout) == ({}, 3.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_minibatches": 3}, "nearest number that fits is 2"),
        ({"num_timesteps": 127}, "at least 128"),
        ({"num_timesteps": -5}, "above 0"),
        ({"num_envs": 0}, "above 0"),
        ({"num_evaluations": 0}, "above 0"),
        ({"discount": 1.5}, "discount"),
        ({"clipping_epsilon": 0.0}, "clipping_epsilon"),
        ({"entropy_cost": -1.0}, "entropy_cost"),
        ({"network": NetworkConfig(noise="none")}, "noise"),
    ],
)
def test_bad_setting_is_refused_with_a_sentence(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        _config(**changes)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_presets_are_configs_and_take_changes():
    for name in ("brax:hopper", "brax:inverted_pendulum", "control:pendulum"):
        assert presets(name, num_timesteps=100_000).num_timesteps == 100_000
    assert presets("gym:Any-v0").batch_size == 2048 == presets("gym:Any-v0").unroll_length * 16
    with pytest.raises(TypeError):
        presets("brax:hopper", no_such_field=1)


def test_vmapped_start_does_not_hang():
    # Two batched factorizations in one vmapped program deadlock on the CPU; a hang cannot be
    # stopped from inside the process, hence another one.
    code = """
import jax, jax.numpy as jnp, optax
from envs.api import EpisodeWrapper
from envs.registry import make
from robotics.ppo import PPOConfig, make_ppo
algorithm = make_ppo(EpisodeWrapper(make("probe:action")), PPOConfig(), optax.adam(1e-3))
keys = jax.vmap(jax.random.key)(jnp.arange(4))
jax.block_until_ready(jax.jit(jax.vmap(algorithm.init))(keys).params)
text = jax.jit(jax.vmap(algorithm.init)).lower(keys).as_text()
assert "geqrf" not in text and "householder" not in text
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("size", [1, 2, 7, 2048, 65536, 65537])
def test_shuffle_takes_every_row_once(size):
    order = np.asarray(jax.jit(shuffle, static_argnums=1)(jax.random.key(3), size))
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_shuffle_draws_every_order_equally_often():
    keys = jax.random.split(jax.random.key(0), 24_000)
    orders = np.asarray(jax.jit(jax.vmap(lambda key: shuffle(key, 4)))(keys))
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    # Chi-squared with 23 degrees of freedom exceeds 58 once in ten thousand times.
    assert np.sum((counts - 1000.0) ** 2 / 1000.0) < 58.0


def test_shuffle_puts_any_two_rows_into_one_minibatch_equally_often():
    size, minibatches = 2048, 4
    keys = jax.random.split(jax.random.key(1), 1000)
    orders = np.asarray(jax.jit(jax.vmap(lambda key: shuffle(key, size)))(keys))
    belongs = np.empty_like(orders)
    np.put_along_axis(belongs, orders, np.arange(size)[None] // (size // minibatches), axis=1)
    for other in (1, 64, 2047):
        together = np.mean(belongs[:, 0] == belongs[:, other])
        expected = (size / minibatches - 1) / (size - 1)
        assert abs(together - expected) < 4.0 * np.sqrt(expected * (1 - expected) / len(keys))
