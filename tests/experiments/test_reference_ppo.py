# SPDX-License-Identifier: Apache-2.0
"""The plain PPO solves the probes, agrees with ours where both must, and its command answers."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from envs.api import EpisodeWrapper, HostEnv
from experiments.reference_ppo import host, plain
from experiments.reference_ppo.__main__ import main
from mnemosyne.cli import parse, train
from mnemosyne.cli.train import Train
from robotics import gae, normalize, run_folder
from robotics.networks import NetworkConfig
from robotics.ppo import PPOConfig

NEEDS_GYMNASIUM = pytest.mark.skipif(
    importlib.util.find_spec("gymnasium") is None, reason="the extra [robotics] is not installed"
)
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
    learner = learned("probe:observation-action", config, 1e-3)
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


def finished_run(folder: Path, *flags: str, returns: tuple[float, ...] = (-0.2, -0.4)) -> Path:
    """A run folder with what the command reads: settings and result."""
    ppo = ["--ppo.num-envs", "8", "--ppo.unroll-length", "16"]
    words = ["--optimizer", "adam", "--num-timesteps", "1024", "--num-seeds", str(len(returns))]
    config = parse.parse(Train, [*words, *ppo, *flags], "train", "", train.defaults(flags))
    assert config is not None
    run_folder.describe(folder, dataclasses.asdict(config), "mnemosyne train")
    result = {"return_per_seed": returns, "return_random": -0.5}
    run_folder.write_json(folder / run_folder.RESULT, result)
    return folder


@pytest.mark.parametrize(
    "name", ["probe:action", pytest.param("gym:Pendulum-v1", marks=NEEDS_GYMNASIUM)]
)
def test_command_judges_a_run_by_a_plain_one(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = (
        finished_run(tmp_path / "run", "--env", name, "--eval-episodes", "4"),
        tmp_path / "r",
    )
    assert main([str(run), "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert result["rows"]["ours"]["returns"] == [-0.2, -0.4]
    assert len(result["rows"]["reference"]["returns"]) == 2
    assert max(result["rows"]["reference"]["returns"]) <= 0.0
    means = [result["rows"][row]["mean"] for row in ("ours", "reference")]
    assert result["difference"] == pytest.approx(means[0] - means[1])
    assert result["env_steps"] == 1024 and result["learning_rate"] == 3e-4
    assert "versions" in result and "ours - reference" in capsys.readouterr().out


@NEEDS_GYMNASIUM
def test_host_reference_sees_and_earns_what_the_environment_says() -> None:
    env = envs.make("gym:Pendulum-v1", episode_length=4)
    assert isinstance(env, HostEnv)
    config = settings(num_envs=2, unroll_length=8, num_timesteps=32, normalize_rewards=True)
    learner = host.train(env, config, 1e-3, jax.random.key(0))
    assert learner.obs.count == 32 and learner.reward.count == 32
    np.testing.assert_allclose(learner.obs.mean[0] ** 2 + learner.obs.mean[1] ** 2, 0.5, atol=0.6)
    assert learner.reward.mean < 0.0  # rewards of the pendulum are costs


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--env", "probe:action", "--optimizer", "lion"], "one of PPO with Adam alone"),
        (["--env", "probe:action", "--algo", "es"], "one of PPO with Adam alone"),
        pytest.param(["--env", "gym:CartPole-v1"], "actions to choose", marks=NEEDS_GYMNASIUM),
    ],
)
def test_command_refuses_in_a_sentence(
    flags: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(finished_run(tmp_path, *flags))]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and sentence in lines[0]


def test_command_refuses_a_folder_without_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
