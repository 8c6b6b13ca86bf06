# SPDX-License-Identifier: Apache-2.0
"""``kill -9`` at random moments of PPO and of ES: what goes on is the run that was never killed."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import envs
from envs.api import EpisodeWrapper
from robotics import run, run_folder
from robotics.checkpoint import Checkpointer
from robotics.es import ESConfig, make_es
from robotics.networks import NetworkConfig
from robotics.ppo import PPOConfig, make_ppo
from tests.robotics import test_run

KILLS = 10
CHUNKS = 30
ENV = EpisodeWrapper(envs.make("control:pendulum", episode_length=16))
OPTIMIZER = optax.adam(1e-2)


def _algorithm(name: str):
    if name == "es":
        network = NetworkConfig(policy_hidden=(8,), noise="none")
        budget = 16 * 8 * (CHUNKS + 1)
        return make_es(ENV, ESConfig(budget, CHUNKS, 8, network=network), OPTIMIZER)
    network = NetworkConfig(policy_hidden=(8,), value_hidden=(8,))
    config = PPOConfig(
        num_timesteps=8 * 16 * 2 * CHUNKS,
        num_evaluations=CHUNKS,
        num_envs=8,
        unroll_length=16,
        num_minibatches=2,
        network=network,
    )
    return make_ppo(ENV, config, OPTIMIZER)


def train(name: str, folder: Path) -> dict:
    """The run, from its newest checkpoint if there is one; writes ``result.json``."""
    config = run.RunConfig(folder, seed=3, num_seeds=2, eval_episodes=4, quiet=True)
    fields = run.train(_algorithm(name), ENV, OPTIMIZER, config, {"algo": name})
    run_folder.write_json(folder / run_folder.RESULT, fields)
    return fields


def _start(name: str, folder: Path, cache: Path, root: Path) -> subprocess.Popen:
    child = "import sys, pathlib\nfrom tests.robotics import test_kill\n"
    child += "test_kill.train(sys.argv[1], pathlib.Path(sys.argv[2]))"
    # What is compiled once is used by all, as by the command line.
    cached = {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    cached["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return subprocess.Popen(
        [sys.executable, "-c", child, name, str(folder)],
        cwd=root,
        env=os.environ | cached | {"PYTHONPATH": str(root)},
        stderr=subprocess.PIPE,
        text=True,
    )


def _whole(name: str, folder: Path, cache: Path, root: Path) -> tuple[float, float]:
    """A run without interruption; seconds to its first checkpoint, and in all."""
    started = time.monotonic()
    process = _start(name, folder, cache, root)
    with process:
        while process.poll() is None and not Checkpointer(folder / "checkpoints").steps():
            time.sleep(0.01)
        first = time.monotonic() - started
        _, err = process.communicate()
    assert process.returncode == 0, err
    return first, time.monotonic() - started


def _steps(folder: Path) -> int:
    return max(Checkpointer(folder / "checkpoints").steps(), default=0)


def _newest(name: str, folder: Path) -> tuple[int, list[np.ndarray]]:
    """The newest checkpoint: its step and every array of it."""
    config = run.RunConfig(folder, seed=3, num_seeds=2)
    template = run.state_template(_algorithm(name), config)
    restored = Checkpointer(folder / "checkpoints").restore(template)
    return restored.step, [_plain(leaf) for leaf in jax.tree.leaves(restored.state)]


def _plain(leaf: jax.Array) -> np.ndarray:
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def _assert_same(name: str, folder: Path, whole: Path) -> None:
    ours, theirs = _newest(name, folder), _newest(name, whole)
    assert ours[0] == theirs[0]
    for a, b in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert test_run.rows_of(folder) == test_run.rows_of(whole)
    results = [run_folder.read_json(place / run_folder.RESULT) for place in (folder, whole)]
    assert test_run.without_times(results[0]) == test_run.without_times(results[1])
    for place in ("", "best"):
        files = [each / place / "policy.safetensors" for each in (folder, whole)]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "es"])
def test_run_killed_at_random_moments_equals_the_uninterrupted_one(name, tmp_path, root, capsys):
    cache, whole, folder = (tmp_path / part for part in ("cache", "whole", "killed"))
    _whole(name, tmp_path / "warm", cache, root)  # fills the cache
    start_s, whole_s = _whole(name, whole, cache, root)
    moments, chunk_s = random.Random(name), (whole_s - start_s) / CHUNKS
    kills: list[tuple] = []
    finished = False
    while len(kills) < KILLS or not finished:
        before = _steps(folder)
        with _start(name, folder, cache, root) as process:
            moment = None
            if len(kills) < KILLS and len(kills) % 2:  # anywhere in the start of the process
                moment = moments.uniform(0.0, start_s)
            elif len(kills) < KILLS:  # anywhere in the two chunks after it has got further
                while process.poll() is None and _steps(folder) == before:
                    time.sleep(0.005)
                moment = moments.uniform(0.0, 2 * chunk_s)
            try:
                _, err = process.communicate(timeout=moment)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                left = sorted(path.name for path in (folder / "checkpoints").glob("*tmp*"))
                kills.append((moment, before, _steps(folder), left))
                finished = False
                continue
        assert process.returncode == 0, err
        _assert_same(name, folder, whole)
        finished = True
        if len(kills) < KILLS:  # the machine has become faster: the rest befalls another run
            shutil.rmtree(folder)
    with capsys.disabled():
        print(f"\n{name}: uninterrupted {whole_s:.1f} s, first checkpoint after {start_s:.1f} s")
        for number, (moment, before, saved, left) in enumerate(kills, 1):
            since = "new checkpoint" if number % 2 else "start"
            print(
                f"  kill {number:2}: {moment:5.2f} s after the {since}, env steps saved before "
                f"{before}, after {saved} {left or ''}"
            )
