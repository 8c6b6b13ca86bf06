# SPDX-License-Identifier: Apache-2.0
"""``--randomize``: a function of the user's own, named on the command line, draws the robots."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mnemosyne.cli.main import main

MY_ROBOTS = """
import jax

def weaker(key, system):
    factor = jax.random.uniform(key, (), minval=0.5, maxval=1.0)
    return system.replace(actuator=system.actuator.replace(gear=factor * system.actuator.gear))
"""
TINY = "--env brax:inverted_pendulum --optimizer adam --num-timesteps 128 --num-evaluations 1"
TINY += " --eval-episodes 2 --episode-length 8 --quiet --no-video --ppo.num-envs 4"
TINY += " --ppo.unroll-length 8 --ppo.num-minibatches 1 --ppo.num-updates-per-batch 1"
TINY += " --ppo.network.policy-hidden 4 --ppo.network.value-hidden 4"


@pytest.fixture
def my_robots(tmp_path, monkeypatch):
    """A module of the user's own that can be imported."""
    (tmp_path / "my_robots.py").write_text(MY_ROBOTS)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.slow  # half a minute, most of it to compile the body
@pytest.mark.usefixtures("my_robots")
def test_every_training_environment_has_a_robot_of_its_own(tmp_path):
    pytest.importorskip("brax")
    from robotics.warmstart import read_source

    folder = tmp_path / "run"
    flags = [*TINY.split(), "--randomize", "my_robots:weaker", "--logdir", str(folder)]
    assert main(["train", *flags]) == 0
    assert json.loads((folder / "config.json").read_text())["randomize"] == "my_robots:weaker"
    leaves = read_source(folder).leaves
    (gears,) = (leaf for path, leaf in leaves.items() if "info/randomized/" in path)
    assert gears.shape == (1, 4, 1) and len(np.unique(gears)) == 4
    assert gears.min() >= 50.0 and gears.max() <= 100.0  # the model file says 100
    assert json.loads((folder / "result.json").read_text())["env_steps"] == 128


@pytest.mark.usefixtures("my_robots")
@pytest.mark.parametrize(
    ("env", "option", "sentence"),
    [
        ("gym:CartPole-v1", "my_robots:weaker", "'gym:CartPole-v1' has no model"),
        ("control:pendulum", "my_robots:weaker", "only brax, mujoco, playground have one"),
        ("brax:inverted_pendulum", "my_robots:weakr", "'my_robots:weakr' cannot be imported"),
        ("brax:inverted_pendulum", "default", "'default' must be 'module:function'"),
    ],
)
def test_what_cannot_be_randomized_is_refused_in_a_sentence(
    tmp_path, capsys, env, option, sentence
):
    folder = tmp_path / "run"
    flags = [*TINY.split(), "--env", env, "--randomize", option, "--logdir", str(folder)]
    assert main(["train", *flags]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert not folder.exists()
