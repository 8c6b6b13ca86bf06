# SPDX-License-Identifier: Apache-2.0
"""The host loop on a tiny algorithm: exact resume, kept policies, reported numbers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import envs
from envs.api import EpisodeWrapper
from robotics import limits, programs, result
from robotics.checkpoint import Checkpointer
from robotics.export import load_numpy_policy, read_policy
from robotics.monitor import read_metrics
from robotics.recovery import DivergedError
from robotics.run import RunConfig, train
from tests.robotics.fake import STEPS_PER_EPOCH, make_fake

TIMES = (
    "walltime",
    "sps",
    "_s",
    "_us_per_update",
    "time",
)  # the only fields that may differ between runs
ENV = EpisodeWrapper(envs.make("probe:action"))
OPTIMIZER = optax.adam(0.1)
IDENTITY = {"optimizer": "adam"}


def run(folder: Path, seeds: int = 2, **options) -> dict:
    config = RunConfig(folder, seed=5, num_seeds=seeds, eval_episodes=32, quiet=True)
    return train(make_fake(OPTIMIZER, **options), ENV, OPTIMIZER, config, IDENTITY)


def without_times(fields: dict) -> dict:
    return {name: value for name, value in fields.items() if not name.endswith(TIMES)}


def rows_of(folder: Path) -> list[dict]:
    return [without_times(row) for row in read_metrics(folder / "metrics.jsonl")]


def events_of(folder: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars("eval/episode_reward")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(folder)


def assert_same_run(folder: Path, fields: dict, whole: tuple[Path, dict]) -> None:
    assert without_times(fields) == without_times(whole[1])
    assert rows_of(folder) == rows_of(whole[0])
    assert events_of(folder) == events_of(whole[0])
    ours, theirs = read_policy(folder / "best"), read_policy(whole[0] / "best")
    assert ours.header == theirs.header


def test_run_counts_steps_and_learns(whole):
    folder, fields = whole
    assert fields["env_steps"] == 4 * STEPS_PER_EPOCH and fields["updates"] == 20
    assert fields["env_steps_per_seed"] == [400, 400] and fields["seeds"] == [5, 6]
    assert fields["return_random"] < fields["return_mean"] < 0.0
    assert fields["failed"] == [False, False]
    assert fields["return_random_ci95"][1] < fields["return_ci95"][0]
    assert [row["env_steps"] for row in rows_of(folder)] == [0, 100, 200, 300, 400]
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {
        f"{step:012d}" for step in (200, 300, 400)
    }
    json.dumps(fields, allow_nan=False)


def test_same_seed_gives_the_same_numbers_whatever_runs_beside_it(whole, tmp_path):
    alone = run(tmp_path / "alone", seeds=1)
    np.testing.assert_allclose(alone["return_per_seed"][0], whole[1]["return_per_seed"][0], 1e-5)
    assert_same_run(tmp_path / "again", run(tmp_path / "again"), whole)


def test_best_policy_is_the_best_evaluation_and_runs_on_numpy(whole):
    folder, fields = whole
    returns = np.array([row["eval/episode_reward"] for row in rows_of(folder)])
    header = read_policy(folder / "best").header
    assert header["return"] == fields["best_return"] == returns.max()
    assert header["seed"] == [5, 6][np.unravel_index(returns.argmax(), returns.shape)[1]]
    assert json.loads((folder / "best" / "policy.json").read_text()) == header
    with pytest.raises(ValueError, match="unknown kind"):
        load_numpy_policy(folder / "best")  # this test's policy is no network


def test_resume_after_a_stop_between_chunks_is_bit_for_bit(whole, tmp_path):
    folder = tmp_path / "run"
    run(folder, num_epochs=4)
    # Back to how the folder looked when chunk 3 had been evaluated, but not saved.
    for path in sorted((folder / "checkpoints").iterdir())[-2:]:
        shutil.rmtree(path)
    assert_same_run(folder, run(folder), whole)


def test_resume_of_a_finished_run_changes_nothing(whole, tmp_path):
    folder = tmp_path / "run"
    run(folder)
    assert_same_run(folder, run(folder), whole)


_CHILD = """
import sys, time
from pathlib import Path
from tests.robotics import test_run, fake
from robotics import run
save = run.Checkpointer.save
def slow(self, step, state, host):
    save(self, step, state, host)
    print(step, flush=True)
    time.sleep(0.3)
run.Checkpointer.save = slow
test_run.run(Path(sys.argv[1]))
"""


def test_kill_9_loses_at_most_the_work_since_the_last_checkpoint(whole, tmp_path, root):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", _CHILD, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(2)]
        child.kill()
    assert [int(line) for line in lines] == [100, 200]
    assert Checkpointer(folder / "checkpoints").steps()[-1] >= 200
    assert_same_run(folder, run(folder), whole)


def test_ctrl_c_saves_and_says_how_to_go_on(whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    save = Checkpointer.save

    def save_then_interrupt(self, step, state, host):
        if step == 200:
            os.kill(os.getpid(), signal.SIGINT)
        save(self, step, state, host)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", save_then_interrupt)
        with pytest.raises(programs.Interrupted, match=r"at 200 env steps; continue with --resume"):
            run(folder)
    assert Checkpointer(folder / "checkpoints").steps() == [100, 200]
    assert_same_run(folder, run(folder), whole)


def test_second_ctrl_c_stops_at_once():
    said, before = [], signal.getsignal(signal.SIGINT)  # ignored in jobs of some shells
    with pytest.raises(programs.Interrupted), programs.interruptible(said.append) as event:
        os.kill(os.getpid(), signal.SIGINT)
        while not event.is_set():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert len(said) == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_of_the_main_thread_signals_are_left_alone():
    def enter() -> None:
        with programs.interruptible(print) as event:
            seen.append(event.is_set())

    seen: list[bool] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [False]


def test_checkpoint_of_another_optimizer_is_refused_and_nothing_changes(tmp_path):
    folder = tmp_path / "run"
    run(folder, num_epochs=2)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    config = RunConfig(folder, seed=5, num_seeds=2, eval_episodes=32, quiet=True)
    other = optax.sgd(0.1)
    with pytest.raises(ValueError, match="optimizer 'adam', not 'sgd'"):
        train(make_fake(other), ENV, other, config, {"optimizer": "sgd"})
    with pytest.raises(ValueError, match="another network, optimizer or environment"):
        train(make_fake(other), ENV, other, config, {})
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_last_seed_that_becomes_non_finite_stops_the_run_with_a_sentence(tmp_path, capsys):
    folder = tmp_path / "run"
    config = RunConfig(folder, num_seeds=1, eval_episodes=32)
    with pytest.raises(DivergedError) as caught:
        train(make_fake(OPTIMIZER, poison=2), ENV, OPTIMIZER, config)
    sentence = str(caught.value)
    assert sentence.startswith("the run stopped: seed 0: params/w after the chunk ")
    assert sentence.endswith(f"before 200 env steps is saved, continue with --resume {folder}")
    assert "5 rollbacks in a row did not help" in sentence and "\n" not in sentence
    out = capsys.readouterr().out
    scales = [0.5, 0.25, 0.125, 0.0625, 0.03125]
    assert all(f"steps times {x:g} ({i} of 5)" in out for i, x in enumerate(scales, 1))
    faults = [json.loads(line) for line in (folder / "faults.jsonl").read_text().splitlines()]
    assert [fault["step_scale"] for fault in faults] == [*scales, scales[-1]]
    assert [fault["action"] for fault in faults] == ["rolled back"] * 5 + ["stopped"]
    assert Checkpointer(folder / "checkpoints").host_record()["epoch"] == 2


def test_seed_that_stays_non_finite_is_frozen_and_the_others_do_not_notice(whole, tmp_path):
    folder = tmp_path / "run"
    fields = run(folder, poison=2, poisoned_seed=6)
    assert fields["failed"] == fields["frozen"] == [False, True]
    assert fields["rollbacks"] == [0, 6] and fields["env_steps_per_seed"] == [400, 200]
    assert fields["discarded_env_steps"] == [0, 600]
    assert fields["return_per_seed"][0] == whole[1]["return_per_seed"][0]
    for ours, theirs in zip(rows_of(folder), rows_of(whole[0]), strict=True):
        assert ours["env_steps"] == theirs["env_steps"]
        for tag in ("eval/episode_reward", "training/policy_loss"):
            assert ours.get(tag, [0])[0] == theirs.get(tag, [0])[0]
    last = rows_of(folder)[-1]
    assert last["training/policy_loss"][1] is None  # strict JSON has no NaN
    assert last["eval/episode_reward"][1] == rows_of(folder)[2]["eval/episode_reward"][1]


def test_run_resumed_after_a_rollback_takes_the_same_turns(whole, tmp_path):
    """Chunks fail at full step; how long a step is and what was told is remembered."""
    broken = tmp_path / "run"
    sick = {"poison": 1, "poisoned_seed": 6, "flaky": True}
    fields = run(broken, **sick)
    told = (broken / "faults.jsonl").read_text()
    assert fields["rollbacks"] == [0, 2] and fields["failed"] == [False, False]
    rows = rows_of(broken)
    assert [row["recovery/step_scale"][1] for row in rows[1:]] == [1.0, 0.5, 1.0, 0.5]
    assert [row["eval/episode_reward"][0] for row in rows] == [
        row["eval/episode_reward"][0] for row in rows_of(whole[0])
    ]
    resumed = shutil.copytree(broken, tmp_path / "resumed")
    for path in sorted((resumed / "checkpoints").iterdir())[-2:]:
        shutil.rmtree(path)  # back to between the two rollbacks
    assert_same_run(resumed, run(resumed, **sick), (broken, fields))
    assert (resumed / "faults.jsonl").read_text() == told


def test_failed_compares_with_the_own_peak_counted_from_random():
    def history(*returns):
        return [{"env_steps": 100 * i, "return": [r]} for i, r in enumerate(returns)]

    assert not result.failed(history(0.0, 10.0, 5.1), 0.0, [True])[0]
    assert result.failed(history(0.0, 10.0, 4.9), 0.0, [True])[0]
    assert not result.failed(history(-10.0, -2.0, -5.0), -10.0, [True])[0]
    assert result.failed(history(0.0, 10.0, 10.0), 0.0, [False])[0]


def test_final_is_the_mean_over_the_last_5_percent():
    history = [{"env_steps": step, "return": [step]} for step in range(0, 101, 1)]
    assert [entry["env_steps"] for entry in result.final(history)] == [95, 96, 97, 98, 99, 100]
    assert result.final(history[:1]) == history[:1]


def test_spread_over_episodes_equals_that_of_the_pooled_episodes():
    episodes = np.random.default_rng(0).normal(size=(3, 8))
    entry = {"episodes": 8, **result.moments("return", episodes)}
    spread = result.spread([entry], "return")
    half = 1.959964 * episodes.std() / np.sqrt(24)
    np.testing.assert_allclose(spread["mean"], episodes.mean())
    np.testing.assert_allclose(spread["std"], episodes.std())
    np.testing.assert_allclose(spread["ci95"], (episodes.mean() - half, episodes.mean() + half))


def test_too_large_a_model_is_refused_before_it_is_allocated(tmp_path):
    def init(key):
        return {"w": jax.random.normal(key, (1 << 20, 1 << 20))}

    algorithm = make_fake(OPTIMIZER)._replace(init=init)
    with pytest.raises(ValueError, match=r"training this needs about .* GiB, this machine"):
        train(algorithm, ENV, OPTIMIZER, RunConfig(tmp_path / "run", quiet=True))
    assert not (tmp_path / "run").exists()
    assert limits.memory_bytes() is None or limits.memory_bytes() > 1 << 28


def test_time_optimizer_tells_an_expensive_one_from_a_cheap_one():
    params = {"w": jax.numpy.ones((300, 300))}

    def slow(updates, params):
        return jax.tree.map(
            lambda leaf: jax.lax.fori_loop(0, 30, lambda _, x: x @ leaf, leaf), updates
        )

    costly = optax.stateless(slow)
    cheap = programs.time_optimizer(optax.sgd(1.0), params, optax.sgd(1.0).init(params))
    assert programs.time_optimizer(costly, params, costly.init(params)) > 3 * cheap > 0
