# SPDX-License-Identifier: Apache-2.0
"""The recipe for a user's own robot works as the page has it, up to a trained policy."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("mujoco.mjx")

import envs
from envs import randomization
from mnemosyne.cli.main import main

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "your-own-robot.md").read_text()
ROBOTS = ROOT / "tests" / "envs" / "robots"
TINY = ["--optimizer", "adam", "--no-video", "--quiet", "--num-timesteps", "64"]
TINY += ["--num-evaluations", "1", "--eval-episodes", "2", "--episode-length", "8"]
TINY += ["--ppo.num-envs", "4", "--ppo.unroll-length", "8", "--ppo.num-minibatches", "1"]
TINY += ["--ppo.network.policy-hidden", "4", "--ppo.network.value-hidden", "4"]


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A user's folder with the model and the task of the page, in which commands are typed."""
    (tmp_path / "hopper.xml").write_text(_blocks("xml")[0])
    (tmp_path / "hopper.py").write_text(_blocks("python")[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_model_and_task_of_the_page_are_the_tested_ones():
    assert _blocks("xml") == [(ROBOTS / "hopper.xml").read_text()]
    tested = (ROBOTS / "hopper.py").read_text()
    assert tested.endswith(_blocks("python")[0])
    lines = [line for line in _blocks("python")[0].splitlines() if line.strip()]
    assert len(lines) <= 20


def test_recipe_of_the_page_makes_an_environment_and_a_random_robot(folder):
    env = envs.make("mujoco:hopper.xml:Hop")
    assert (env.observation_size, env.action_size, env.dt) == (11, 3, 0.02)
    methods = textwrap.indent("\n".join(_blocks("python")[1:]), "    ")
    (folder / "hopper.py").write_text(f"import jax\n{_blocks('python')[0]}\n{methods}")
    env = envs.make("mujoco:hopper.xml")
    assert (env.observation_size, env.privileged_observation_size) == (11, 5 + 6)
    import jax

    key = jax.random.key(0)
    assert list(randomization.draw(env.task.randomize, key, env.mjx_model)) == [".body_mass"]


@pytest.mark.slow  # four programs around MJX: two minutes of compilation
def test_command_trains_a_users_robot_and_evaluates_it(tmp_path, monkeypatch, capsys):
    for file in ("two_link_crawler.xml", "two_link_crawler.py"):
        shutil.copy(ROBOTS / file, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert (
        main(["train", "--env", "mujoco:two_link_crawler.xml:Crawl", "--logdir", "run", *TINY]) == 0
    )
    measured = json.loads((tmp_path / "run" / "result.json").read_text())
    assert measured["env_steps"] == 64 and measured["backend"] == "mjx"
    assert measured["failed"] == [False] and "distance_m" in measured
    assert json.loads((tmp_path / "run" / "policy.json").read_text())["observation_size"] == 6


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mujoco:hoper.xml", "There is no MJCF file 'hoper.xml'; the nearest one is 'hopper.xml'."),
        ("mujoco:hopper.xml:Run", "Unknown task 'Run' in 'hopper.py'; the nearest valid one is"),
        ("mujoco:bare.xml", "There is no task file 'bare.py' beside the model"),
        ("mujoco:", "Unknown environment 'mujoco:'; the nearest valid one is 'mujoco:path/to/"),
    ],
)
def test_command_meets_a_mistake_with_one_sentence_and_code_2(folder, capsys, name, sentence):
    shutil.copy(folder / "hopper.xml", folder / "bare.xml")
    assert main(["train", "--env", name]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert not (folder / "runs").exists()
