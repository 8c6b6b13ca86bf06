# SPDX-License-Identifier: Apache-2.0
"""The plain PPO solves the probes, agrees with ours where both must, and its command answers."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from envs.api import EpisodeWrapper
from experiments.reference_ppo import plain
from experiments.reference_ppo.__main__ import main
from robotics import gae, normalize
from robotics.networks import NetworkConfig
from robotics.ppo import PPOConfig

SMALL = NetworkConfig(policy_hidden=(16,), value_hidden=(16,))


def settings(**changes: object) -> PPOConfig:
    fields: dict[str, object] = {"num_envs": 16, "unroll_length": 16, "network": SMALL}
    return PPOConfig(**(fields | changes))  # pyright: ignore[reportArgumentType]


def learned(name: str, config: PPOConfig, rate: float = 1e-2) -> plain.Learner:
    env = EpisodeWrapper(envs.make(name))
    return jax.jit(lambda key: plain.train(env, config, rate, key))(jax.random.key(0))


def test_reference_solves_the_probe_of_actions() -> None:
    network = NetworkConfig(policy_hidden=(16,), value_hidden=(16,), noise="network")
    changes: dict[str, object] = {
        "network": network,
        "normalize_rewards": True,
        "entropy_cost": 1e-4,
    }
    config = settings(num_timesteps=60_000, **changes)
    learner = learned("probe:observation-action", config, 3e-3)
    obs = plain.normalize(learner.obs, jnp.asarray([[-1.0], [1.0]]))
    action = jnp.tanh(plain.policy(learner.params, obs, network)[0])[:, 0]
    np.testing.assert_allclose(action, [-0.5, 0.5], atol=0.1)


def test_reference_bootstraps_what_a_time_limit_has_cut() -> None:
    config = settings(num_timesteps=60_000, discount=0.9)
    learner = learned("probe:truncation", config)
    value = plain.value(learner.params, jnp.zeros((1, 1)), config.network)
    np.testing.assert_allclose(value, [10.0], atol=1.0)


def test_advantages_and_statistics_are_those_of_ours() -> None:
    rng = np.random.default_rng(0)
    reward, value, after = jnp.asarray(rng.standard_normal((3, 12, 5)), jnp.float32)
    ended, cut = (rng.random((2, 12, 5)) < 0.2).astype(np.float32)
    cut = cut * (1 - ended)
    batch = plain.Batch(*[jnp.zeros(())] * 4, jnp.asarray(ended), jnp.asarray(cut), jnp.zeros(()))
    config = settings(discount=0.97, gae_lambda=0.8)
    mine = plain.advantages(config, batch, reward, value, after)
    ours, _ = gae.compute_gae(reward, value, after, batch.termination, batch.truncation, 0.97, 0.8)
    np.testing.assert_allclose(mine, ours, rtol=1e-5, atol=1e-5)
    moments = plain.Moments(jnp.zeros(()), jnp.zeros(5), jnp.zeros(5))
    statistics = normalize.init_statistics((5,))
    for chunk in jnp.split(3.0 + 2.0 * reward[..., None] * jnp.arange(1.0, 6.0), 3):
        moments, statistics = plain.take_in(moments, chunk), normalize.update(statistics, chunk)
    np.testing.assert_allclose(moments.mean, statistics.mean, rtol=1e-5)
    np.testing.assert_allclose(moments.m2 / moments.count, statistics.variance, rtol=1e-4)


def test_command_compares_both_and_writes_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "r.json"
    words = ["--env", "probe:action", "--num-timesteps", "4096", "--num-seeds", "2"]
    assert main([*words, "--learning-rate", "1e-3", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    for row in result["rows"].values():
        assert len(row["returns"]) == 2 and max(row["returns"]) <= 0.0
    means = [result["rows"][name]["mean"] for name in ("ours", "reference")]
    assert result["difference"] == pytest.approx(means[0] - means[1])
    assert result["env_steps"] == 4096 and "versions" in result
    assert "ours - reference" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--env", "brax:hoper"], "hopper"),
        (["--env", "gym:Pendulum-v1"], "does not run inside JAX"),
        (["--env", "probe:action", "--num-timesteps", "5"], "use at least 2048"),
        (["--env", "probe:action", "--num-seeds", "0"], "must be above 0"),
    ],
)
def test_command_refuses_in_a_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and sentence in lines[0]
