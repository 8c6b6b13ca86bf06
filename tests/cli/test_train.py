# SPDX-License-Identifier: Apache-2.0
"""The verbs around a real, tiny PPO run: its folder, its resume after a kill, its pictures."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mnemosyne.cli.main import main
from tests.test_docs import documented_tags

TINY = ["--env", "probe:observation-action", "--optimizer", "adam", "--no-video"]
TINY += ["--num-timesteps", "1024", "--num-evaluations", "8", "--eval-episodes", "8"]
TINY += ["--num-seeds", "2", "--seed", "3", "--ppo.num-envs", "8", "--ppo.unroll-length", "16"]
TINY += ["--ppo.num-minibatches", "2", "--ppo.network.policy-hidden", "8"]
TINY += ["--ppo.network.value-hidden", "8"]
RESULT_FIELDS = {"env", "algo", "optimizer", "seeds", "env_steps", "updates", "return_mean"}
RESULT_FIELDS |= {"return_std", "return_random", "best_return", "walltime_s", "compile_s"}
RESULT_FIELDS |= {"env_steps_per_s", "optimizer_us_per_update", "failed", "return_ci95"}
RESULT_FIELDS |= {"return_random_ci95"}
TIMES = ("walltime", "sps", "_s", "_us_per_update", "time", "run")


def without_times(fields: dict) -> dict:
    return {name: value for name, value in fields.items() if not name.endswith(TIMES)}


def rows_of(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [without_times(json.loads(line)) for line in lines]


def start(root: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "mnemosyne.cli.main", *arguments],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict, str]:
    """A run folder, its numbers, its lines."""
    base, said = tmp_path_factory.mktemp("trained"), io.StringIO()
    places = ("--logdir", str(base / "run"), "--json", str(base / "out.json"))
    with contextlib.redirect_stdout(said), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mnemosyne", "train", *TINY, *places])
        assert main() == 0
    return base / "run", json.loads((base / "out.json").read_text()), said.getvalue()


def test_help_says_that_no_policy_is_recurrent(capsys):
    assert main(["train", "--help"]) == 0
    words = " ".join(re.sub(r"[│|]", " ", capsys.readouterr().out).split())
    assert words.count("There are no recurrent policies.") == 2  # of PPO and of ES


def test_train_reports_every_field_and_counts_exactly(trained):
    folder, measured, _ = trained
    assert set(measured) >= RESULT_FIELDS
    assert measured["env_steps"] == 1024 and measured["updates"] == 1024 // 128 * 2 * 4
    assert measured["seeds"] == [3, 4] and len(measured["failed"]) == 2
    assert measured["return_mean"] > measured["return_random"]
    assert json.loads((folder / "result.json").read_text()) == measured


def test_train_announces_compiling_and_says_one_line_an_evaluation(trained):
    lines = trained[2].splitlines()
    assert any(line.startswith("compiled in ") for line in lines)
    rows = [line for line in lines if " env steps | return " in line]
    assert len(rows) == 9 and all("steps/s" in row and "left" in row for row in rows[1:])
    assert lines[-1].startswith("watch: tensorboard --logdir ")


def test_run_folder_is_complete(trained):
    folder = trained[0]
    names = {path.name for path in folder.iterdir() if not path.name.startswith("events.out")}
    expected = "best checkpoints command.txt config.json git.diff metrics.jsonl policy.json"
    expected += " policy.safetensors result.json summary.png versions.json"
    assert names == set(expected.split())
    assert {path.name for path in (folder / "best").iterdir()} == {
        "policy.json",
        "policy.safetensors",
    }
    assert json.loads((folder / "versions.json").read_text())["jax"]
    assert "--ppo.num-envs 8" in (folder / "command.txt").read_text()
    assert (folder / "summary.png").read_bytes().startswith(b"\x89PNG")


def test_events_are_those_of_metrics_jsonl(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = trained[0]
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for tag in ("eval/episode_reward", "training/kl_mean", "optimizer/update_rms", "training/sps"):
        wanted = [(row["env_steps"], np.mean(row[tag])) for row in rows if tag in row]
        found = [(event.step, event.value) for event in accumulator.Scalars(tag)]
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_every_tag_of_a_run_is_documented(trained):
    lines = (trained[0] / "metrics.jsonl").read_text().splitlines()
    written = {tag for line in lines for tag in json.loads(line) if "/" in tag}
    assert {"recovery/rollbacks", "training/v_loss"} <= written <= documented_tags()


def test_exported_policy_on_numpy_is_the_policy(trained):
    import jax
    import jax.numpy as jnp

    from mnemosyne.cli.build import build
    from mnemosyne.cli.train import read_config
    from robotics.export import load_numpy_policy, read_policy, unflatten

    folder = trained[0]
    obs = np.random.default_rng(0).normal(size=(5, 1)).astype(np.float32)
    policy = build(read_config(folder)).algorithm.policy
    for place in (folder, folder / "best"):
        params = jax.tree.map(jnp.asarray, unflatten(read_policy(place).tensors))
        theirs = policy.act(params, jnp.asarray(obs), jax.random.key(0), True)
        np.testing.assert_allclose(load_numpy_policy(place)(obs), theirs, atol=1e-6)
    header = json.loads((folder / "policy.json").read_text())
    assert header["env"] == "probe:observation-action" and header["dt"] == 1.0


def test_replayed_killed_and_resumed_run_equals_the_first_one(trained, tmp_path, root):
    folder = tmp_path / "run"
    config = str(trained[0] / "config.json")
    process = start(root, "train", "--config", config, "--logdir", str(folder))
    with process:
        deadline = time.monotonic() + 120
        while not (folder / "checkpoints" / f"{256:012d}" / "files.sha256").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
    assert not (folder / "result.json").exists()
    out = tmp_path / "out.json"
    flags = ["--resume", str(folder), "--json", str(out), "--quiet"]
    assert main(["train", *flags]) == 0
    measured = json.loads(out.read_text())
    assert without_times(measured) == without_times(trained[1])
    assert rows_of(folder) == rows_of(trained[0])
    assert (folder / "config.json").read_text() == Path(config).read_text()
    assert len((folder / "command.txt").read_text().splitlines()) == 2


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _in_two_processes(root: Path, outs: Path, *flags: str) -> None:
    """One run in two processes on this machine; each would write its numbers to ``outs``."""
    place = ("--hosts.coordinator", f"127.0.0.1:{_free_port()}", "--hosts.count", "2")
    processes = [
        start(
            *(root, "train", *flags, "--quiet", *place, "--hosts.index", str(i)),
            *("--json", str(outs / f"{i}.json")),
        )
        for i in range(2)
    ]
    for process in processes:
        _, err = process.communicate(timeout=220)
        assert process.returncode == 0, err


def _assert_near(rows: list[dict], others: list[dict]) -> None:
    """Sums in another order: the numbers are the same, their last digits are not."""
    for row, other in zip(rows, others, strict=True):
        assert row["env_steps"] == other["env_steps"]
        for name in ("training/v_loss", "training/kl_mean", "eval/episode_reward"):
            found, expected = row.get(name, 0.0), other.get(name, 0.0)
            np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-4, err_msg=name)


@pytest.fixture
def on_the_cpu(tmp_path, monkeypatch):
    """Processes keep their scratch in the test's folder and leave accelerators alone."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


@pytest.mark.slow  # two processes compile the run anew
@pytest.mark.usefixtures("on_the_cpu")
def test_two_processes_go_on_with_the_numbers_of_one(trained, tmp_path, root):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    (folder / "result.json").unlink()
    first, *later = sorted((folder / "checkpoints").iterdir())
    for checkpoint in later:
        shutil.rmtree(checkpoint)
    _in_two_processes(root, tmp_path, "--resume", str(folder))
    result, wanted = json.loads((folder / "result.json").read_text()), trained[1]
    assert result["devices"] == 2 and wanted["devices"] == 1
    assert result["env_steps"] == wanted["env_steps"] and int(first.name) == 768
    rows = rows_of(folder)
    assert len(rows) == 9
    _assert_near(rows, rows_of(trained[0]))
    # Only the first process writes, and what the other one kept meanwhile is gone.
    assert {path.name for path in tmp_path.iterdir()} == {"run", "0.json"}


@pytest.mark.slow  # two processes compile the run and its probe anew
@pytest.mark.usefixtures("on_the_cpu")
def test_two_processes_start_warm_with_the_numbers_of_one(trained, tmp_path, root):
    flags = [*TINY, "--num-evaluations", "2", "--warm-start", str(trained[0])]
    flags += ["--warm-probe", "0.01"]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = (tmp_path / name / "run" for name in ("one", "two"))
    assert main(["train", *flags, "--quiet", "--logdir", str(one)]) == 0
    _in_two_processes(root, two.parent, *flags, "--logdir", str(two))
    result = json.loads((two / "result.json").read_text())
    assert result["devices"] == 2 and result["return_mean"] > result["return_random"]
    rows = rows_of(two)
    assert rows[0]["env_steps"] == 8  # those of the probe, a step of each environment
    _assert_near(rows, rows_of(one))


def test_evaluate_plot_and_render_work_on_the_run(trained, tmp_path, capsys):
    folder = str(trained[0])
    numbers, picture = tmp_path / "n.json", tmp_path / "curve.svg"
    assert main(["evaluate", folder, "--num-episodes", "16", "--json", str(numbers)]) == 0
    last = json.loads(numbers.read_text())
    assert last["env_steps"] == 1024 and last["eval_episodes"] == 16 and last["seeds"] == [3, 4]
    assert last["return_mean"] == pytest.approx(trained[1]["return_mean"], abs=0.1)
    assert main(["evaluate", folder, "--best", "--json", str(numbers)]) == 0
    assert json.loads(numbers.read_text())["seeds"] == [trained[1]["best_seed"]]
    assert main(["plot", folder, folder, "--out", str(picture)]) == 0
    assert "<svg" in picture.read_text()
    assert main(["render", folder, "--seconds", "20", "--out", str(tmp_path / "v.gif")]) == 0
    assert (tmp_path / "v.gif").read_bytes().startswith(b"GIF")
    assert f"video: {tmp_path / 'v.gif'}" in capsys.readouterr().out


def test_es_with_mnemosyne_writes_its_telemetry(tmp_path):
    import jax

    import mnemosyne

    weights = tmp_path / "weights.safetensors"
    parts = {"encoder": False, "cross_token": False, "residual": False, "polar": False}
    config = mnemosyne.MnemosyneConfig(sample=16, taus=(0.1,), **parts)
    theta = jax.device_get(mnemosyne.init_meta_params(jax.random.key(0), config))
    mnemosyne.save_artifact(weights, mnemosyne.Artifact(theta, config, {}, ("none",)))
    flags = "--env probe:action --algo es --num-timesteps 400 --num-evaluations 2 --quiet"
    flags += " --eval-episodes 2 --es.population-size 4 --es.network.policy-hidden 4 --no-video"
    folder = tmp_path / "run"
    places = ["--weights", str(weights), "--logdir", str(folder)]
    assert main(["train", *flags.split(), *places]) == 0
    rows = rows_of(folder)
    assert rows[-1]["env_steps"] == json.loads((folder / "result.json").read_text())["env_steps"]
    assert 0 < rows[-1]["env_steps"] <= 400
    assert {"optimizer/update_rms", "memory/norm", "training/fitness_mean"} <= set(rows[-1])
    assert {tag for tag in rows[-1] if "/" in tag} <= documented_tags()


@pytest.mark.parametrize(("env", "bound"), [("gym:Pendulum-v1", 2.0), ("control:pendulum", 1.0)])
def test_policy_is_told_the_range_of_its_environments_actions(env, bound):
    pytest.importorskip("gymnasium")
    from mnemosyne.cli.build import build
    from mnemosyne.cli.train import Train

    built = build(Train(env=env, optimizer="adam"))
    assert built.policy_info["action_range"] == {"low": [-bound], "high": [bound]}
