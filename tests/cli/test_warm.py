# SPDX-License-Identifier: Apache-2.0
"""Warm starts by the command line: what is taken over, what they cost, and how they resume."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mnemosyne
from mnemosyne.cli import parse, warm
from mnemosyne.cli.build import build
from mnemosyne.cli.main import main
from mnemosyne.cli.train import Train, read_config
from mnemosyne.telemetry import find_state
from robotics import run_folder
from robotics.checkpoint import Checkpointer
from robotics.run import RunConfig, state_template
from robotics.warmstart import read_source

TINY = "--num-evaluations 4 --eval-episodes 2 --no-video --optimizer adam"
TINY += " --ppo.num-envs 4 --ppo.unroll-length 8 --ppo.num-minibatches 2"
TINY += " --ppo.network.policy-hidden 4 --ppo.network.value-hidden 4 --es.population-size 4"
TINY += " --es.network.policy-hidden 4 --env probe:observation-action --num-timesteps 3200"
TIMES = ("walltime", "sps", "_s", "_us_per_update", "time", "run")


def _words(*parts: Any) -> list[str]:
    return [word for part in parts for word in str(part).split()]


def _config(*flags: Any) -> Train:
    config = parse.parse(Train, _words(TINY, *flags), "x", "x")
    assert config is not None
    return config


def _write(folder: Path, *flags: Any, seeds: int = 1) -> Path:
    """A run folder with one checkpoint of random numbers, written without training."""
    config = _config(*flags, "--num-seeds", seeds)
    built = build(config)
    template = state_template(built.algorithm, RunConfig(folder, num_seeds=seeds))
    rng = np.random.default_rng(1)

    def fill(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(0), leaf.shape)
        return jnp.asarray(rng.random(leaf.shape), leaf.dtype)

    run_folder.describe(folder, dataclasses.asdict(config), ["mnemosyne"])
    with Checkpointer(folder / "checkpoints", identity=built.identity) as checkpointer:
        host = {"history": [{"return": list(range(seeds))}]}  # the last seed is the best
        checkpointer.save(256, jax.tree.map(fill, template), host)
    return folder


def _rows(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.endswith(TIMES)} for row in rows]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Meta-parameters of a small network, untrained."""
    config = mnemosyne.MnemosyneConfig(sample=16, taus=(0.1,), token_size=8, encoder=False)
    init = jax.jit(mnemosyne.init_meta_params, static_argnums=1)
    theta = jax.device_get(init(jax.random.key(0), config))
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    mnemosyne.save_artifact(path, mnemosyne.Artifact(theta, config, {}, ()))
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of PPO with Adam."""
    return _write(tmp_path_factory.mktemp("source") / "run", seeds=2)


@pytest.fixture(scope="module")
def remembering(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """A run of PPO with Mnemosyne."""
    folder = tmp_path_factory.mktemp("remembering") / "run"
    return _write(folder, "--optimizer mnemosyne --weights", weights)


@pytest.fixture(scope="module")
def evolved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of evolution strategies."""
    return _write(tmp_path_factory.mktemp("evolved") / "run", "--algo es")


def test_warm_started_run_says_what_it_takes_counts_its_probe_and_resumes_without_a_source(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, whole = tmp_path / "base", tmp_path / "whole"
    shutil.copytree(source, base)
    flags = ("--warm-probe 0.01 --warm-start", base, "--logdir", whole)
    assert main(_words("train", TINY, *flags)) == 0
    said = capsys.readouterr().out
    about = "(probe:observation-action, ppo, adam, 256 env steps, seed 1)"
    assert f"warm start from {base} {about}" in said
    for line in ("policy: 5 of 5 arrays taken over", "memory: begins anew, adam has none"):
        assert f"  {line}" in said
    assert "probe: 32 env steps without an update" in said
    rows, measured = _rows(whole), json.loads((whole / "result.json").read_text())
    assert rows[0]["env_steps"] == 32 <= 0.01 * 3200
    assert measured["env_steps"] == rows[-1]["env_steps"] <= 3200
    assert measured["updates"] == (measured["env_steps"] - 32) // 32 * 2 * 4
    # From now on the checkpoint has all of it, before the first one the source is needed.
    shutil.rmtree(base)
    config = dataclasses.replace(read_config(whole), resume=whole)
    assert warm.make_warm_up(warm.settle(config), build(config), whole) is None
    shutil.rmtree(whole / "checkpoints")
    assert main(_words("train --resume", whole)) == 2
    assert f"--warm-start {base} holds no run any more" in capsys.readouterr().err


def _first_state(config: Train, folder: Path) -> tuple[Any, list[str]]:
    """What a run would begin with, and what it would say."""
    config = warm.settle(config)
    built = build(config)
    warm_up = warm.make_warm_up(config, built, folder)
    assert warm_up is not None
    state = jax.jit(jax.vmap(built.algorithm.init))(jax.vmap(jax.random.key)(jnp.arange(2)))
    said: list[str] = []
    state, env_steps = warm_up(state, said.append)
    assert env_steps == 0
    return state, said


def test_mnemosyne_begins_with_the_memory_the_weights_and_the_networks_of_the_source(
    remembering: Path, weights: Path, tmp_path: Path
) -> None:
    config = _config("--optimizer mnemosyne --warm-start", remembering)
    assert warm.settle(config).weights == str(weights)
    state, said = _first_state(config, tmp_path)
    theirs = read_source(remembering)
    for name in ("matrix", "mass"):
        old = theirs.leaves[f"opt_state/memory/{name}"]
        new = np.asarray(getattr(state.opt_state.memory, name))
        np.testing.assert_array_equal(new, np.concatenate([old, old]))  # both new seeds
    kernel = theirs.leaves["params/policy/mlp/layer_0/kernel"][0]
    np.testing.assert_array_equal(state.params["policy"]["mlp"]["layer_0"]["kernel"][1], kernel)
    assert float(jnp.max(state.opt_state.mu_mass)) == 0.0 and int(state.updates[0]) == 0
    assert f"  weights: {weights}" in said and "  memory: pooled from" in said[-1]


def test_memory_is_pooled_into_larger_networks_and_hand_overs(
    remembering: Path, tmp_path: Path
) -> None:
    flags = "--optimizer adam --hand-over 0.5 --ppo.network.policy-hidden 24 --warm-start"
    state, _ = _first_state(_config(flags, remembering, "--warm-parts memory"), tmp_path)
    old = read_source(remembering).leaves["opt_state/memory/mass"][0]
    new = np.asarray(state.opt_state.ours.memory.mass)
    assert new.shape[1] > len(old) and 0.5 * old.mean() < new.mean() < 2.0 * old.mean()
    assert state.opt_state.adam[0].count.tolist() == [0, 0]


def test_heads_come_from_the_same_environment_only(source: Path, tmp_path: Path) -> None:
    old = read_source(source)
    head = "params/policy/mlp/layer_1/kernel"
    for env, kept in (("probe:observation-action", True), ("probe:action", False)):
        config = _config("--env", env, "--warm-start", source)
        state, said = _first_state(config, tmp_path)
        new = np.asarray(state.params["policy"]["mlp"]["layer_1"]["kernel"][0])
        assert np.array_equal(new, old.leaves[head][old.seed]) == kept
        assert ("  heads: begin anew, this is another environment" in said) != kept


def test_memory_of_other_weights_is_left_alone(remembering: Path, tmp_path: Path) -> None:
    config = _config("--optimizer mnemosyne --weights mnemosyne-rl --warm-start", remembering)
    state, said = _first_state(config, tmp_path)
    assert "  memory: begins anew, it was written with other weights" in said
    ours = find_state(state.opt_state)
    assert ours is not None and float(jnp.max(ours.memory.mass)) == 0.0


def test_weights_as_a_source_are_settings_of_the_run(weights: Path) -> None:
    settled = warm.settle(_config("--optimizer mnemosyne --warm-start", weights))
    named = build(_config("--optimizer mnemosyne --weights", weights))
    assert settled.weights == str(weights)
    hashes = [built.identity["weights_sha256"] for built in (build(settled), named)]
    assert hashes[0] == hashes[1] == mnemosyne.load(str(weights)).tensor_sha256


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--warm-start nowhere", "--warm-start nowhere is no run, and as weights: no artifact"),
        ("--warm-start {weights}", "which --optimizer adam does not read"),
        (
            "--warm-start {weights} --optimizer mnemosyne --weights mnemosyne-rl",
            "different weights",
        ),
        ("--warm-start {weights} --optimizer mnemosyne --warm-parts value", "takes parts of a run"),
        ("--warm-parts policy", "--warm-start must say from where"),
        ("--warm-parts network", "network"),
        ("--warm-start {evolved}", "was trained with --algo es, not ppo"),
        ("--warm-start {empty}", "has no checkpoint yet"),
        ("--warm-start {source} --warm-parts heads", "--warm-parts heads cannot be had of"),
        ("--warm-start {source} --warm-parts memory", "--warm-parts memory cannot be had of"),
        (
            "--warm-start {source} --optimizer mnemosyne --weights {weights} --warm-parts memory",
            "begins anew, adam has none",
        ),
        (
            "--warm-start {source} --warm-parts value --ppo.reward-scaling 0.5",
            "--ppo.reward-scaling was 1.0 and is 0.5",
        ),
        (
            "--warm-start {source} --env control:pointmass --ppo.network.policy-hidden 3 "
            "--ppo.network.value-hidden 3 --ppo.network.noise network --ppo.normalize-rewards",
            "nothing of {source} fits this run: policy",
        ),
        ("--warm-probe 0.02", "--warm-probe is 0.02, but it must lie in (0, 0.01]"),
        ("--warm-probe 0.01 --num-timesteps 160", "use --num-timesteps 400 or more, or no probe"),
        ("--warm-probe 0.01 --algo es", "--algo es does not have"),
        ("--hand-over 1.5 --optimizer mnemosyne", "is 1.5, not in [0, 1]"),
        ("--hand-over 0.5 --optimizer lion", "not from lion"),
    ],
)
def test_warm_start_refuses(
    flags: str,
    sentence: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    names = ("weights", "source", "evolved")
    known = {name: request.getfixturevalue(name) for name in names} | {"empty": empty}
    shutil.copy(known["source"] / "config.json", empty)
    capsys.readouterr()
    assert main(_words("train", TINY, flags.format(**known))) == 2
    said = capsys.readouterr()
    assert sentence.format(**known) in said.err and said.err.count("\n") == 1 and said.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_run_is_not_resumed_with_another_source(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(source, folder)
    assert main(_words("train --resume", folder, "--warm-start", source)) == 2
    assert "was started with --warm-start None" in capsys.readouterr().err
