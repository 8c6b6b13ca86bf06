# SPDX-License-Identifier: Apache-2.0
"""Settings of a run on several devices or in several processes that cannot be."""

from __future__ import annotations

import pytest

from mnemosyne.cli.main import main

_RUN = ["--env", "control:pendulum", "--optimizer", "adam", "--no-video", "--quiet"]


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
