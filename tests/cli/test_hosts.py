# SPDX-License-Identifier: Apache-2.0
"""A run in two processes on the loopback, gone on with from a checkpoint of one."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

from mnemosyne.cli.main import main

_RUN = ["--env", "control:pendulum", "--optimizer", "adam", "--no-video", "--quiet"]
_RUN += ["--episode-length", "9", "--num-timesteps", "512", "--num-evaluations", "4"]
_RUN += ["--eval-episodes", "4", "--max-to-keep", "9", "--ppo.num-envs", "8"]
_RUN += ["--ppo.unroll-length", "16", "--ppo.network.policy-hidden", "8"]
_RUN += ["--ppo.network.value-hidden", "8"]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _start(root, folder, port, index):
    flags = ["--resume", str(folder), "--json", str(folder.parent / f"{index}.json")]
    flags += ["--hosts.coordinator", f"127.0.0.1:{port}", "--hosts.count", "2"]
    return subprocess.Popen(
        [sys.executable, "-m", "mnemosyne.cli.main", "train", *flags, "--hosts.index", str(index)],
        cwd=root,
        env=os.environ
        | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu", "TMPDIR": str(folder.parent)}
        | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_go_on_with_the_numbers_of_one(tmp_path, root):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert main(["train", *_RUN, "--logdir", str(alone)]) == 0
    shutil.copytree(alone, shared)
    (shared / "result.json").unlink()
    for later in sorted((shared / "checkpoints").iterdir())[1:]:
        shutil.rmtree(later)
    port = _free_port()
    processes = [_start(root, shared, port, index) for index in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=220)
        assert process.returncode == 0, err
    result = json.loads((shared / "result.json").read_text())
    reference = json.loads((alone / "result.json").read_text())
    assert result["devices"] == 2 and result["env_steps"] == reference["env_steps"] == 512
    np.testing.assert_allclose(result["return_mean"], reference["return_mean"], rtol=1e-2)
    rows, wanted = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (shared, alone)
    )
    assert len(rows) == len(wanted) == 5
    for name in ("training/v_loss", "training/kl_mean", "episode/sum_reward"):
        for row, other in zip(rows[1:], wanted[1:], strict=True):
            np.testing.assert_allclose(row[name], other[name], rtol=1e-2, err_msg=name)
    # Only the first process writes, and what the other one kept meanwhile is gone.
    assert {path.name for path in tmp_path.iterdir()} == {"alone", "shared", "0.json"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--hosts.count", "2"], "also needs --hosts.coordinator and --hosts.index"),
        (
            ["--hosts.coordinator", "127.0.0.1:1", "--hosts.count", "2", "--hosts.index", "2"],
            "--hosts.index is 2, but it must lie between 0 and 1",
        ),
        (["--devices", "64"], "64 devices were asked for"),
        (["--optimizer", "evosax:CMA_ES"], "add --algo es"),
    ],
)
def test_impossible_settings_are_refused(flags, words, tmp_path, capsys):
    assert main(["train", *_RUN, "--logdir", str(tmp_path / "run"), *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
