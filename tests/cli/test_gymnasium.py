# SPDX-License-Identifier: Apache-2.0
"""Runs in environments on the host: their folder, and that they learn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mnemosyne.cli.main import main

pytest.importorskip("gymnasium")


def _rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_gymnasium_run_resumes_with_new_episodes_and_is_evaluated(tmp_path, capsys):
    folder, numbers = tmp_path / "run", tmp_path / "n.json"
    flags = "--env gym:CartPole-v1 --optimizer adam --num-timesteps 256 --num-evaluations 2"
    flags += " --num-seeds 2 --eval-episodes 4 --quiet --no-video --ppo.num-envs 4"
    flags += " --ppo.unroll-length 32 --ppo.num-minibatches 2 --ppo.num-updates-per-batch 1"
    flags += " --ppo.network.policy-hidden 4 --ppo.network.value-hidden 4"
    assert main(["train", *flags.split(), "--logdir", str(folder)]) == 0
    whole = json.loads((folder / "result.json").read_text())
    assert (whole["env_steps"], whole["updates"], whole["seeds"]) == (256, 4, [0, 1])
    policy = json.loads((folder / "policy.json").read_text())
    assert (policy["action_range"], policy["network"]["squash"]) == ([0, 1], "argmax")
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    assert int(newest.name) == 256
    shutil.rmtree(newest)
    assert main(["train", "--resume", str(folder)]) == 0
    assert [row["env_steps"] for row in _rows(folder)] == [0, 128, 256]
    assert json.loads((folder / "result.json").read_text())["updates"] == 4
    assert main(["evaluate", str(folder), "--num-episodes", "5", "--json", str(numbers)]) == 0
    played = json.loads(numbers.read_text())
    assert played["eval_episodes"] == 5 and 8 <= played["return_mean"] <= 500
    assert 8 <= played["return_random"] <= 60
    assert main(["render", str(folder), "--seconds", "1", "--out", str(tmp_path / "v.gif")]) == 0
    assert (tmp_path / "v.gif").read_bytes().startswith(b"GIF")


@pytest.mark.slow  # 40,000 steps of each of three seeds
def test_cartpole_learns_with_adam(tmp_path):
    """Where uniform random actions hold the pole for about 22 steps, of 500."""
    folder = tmp_path / "run"
    flags = "--env gym:CartPole-v1 --optimizer adam --num-timesteps 40960 --num-evaluations 5"
    flags += " --num-seeds 3 --seed 10 --eval-episodes 16 --quiet --no-video"
    assert main(["train", *flags.split(), "--logdir", str(folder)]) == 0
    measured = json.loads((folder / "result.json").read_text())
    assert 15 < measured["return_random"] < 30
    first, second, *_, last = _rows(folder)
    # Some policies that have learned nothing hold the pole by luck; these three do not.
    assert max(first["eval/episode_reward"]) < 15
    assert max(second["episode/sum_reward"]) < 60
    # Nine seeds ended between 292 and 500, these three at 500.
    assert min(measured["return_per_seed"]) > 200
    assert min(last["episode/sum_reward"]) > 150
