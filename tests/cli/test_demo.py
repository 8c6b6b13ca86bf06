# SPDX-License-Identifier: Apache-2.0
"""The two runs of the demo differ in the optimizer and in what belongs to it."""

import dataclasses
from pathlib import Path

from mnemosyne.cli import demo


def test_demo_runs_differ_in_the_optimizer_alone() -> None:
    config = demo.Demo(video=True)
    names = ("mnemosyne", "adam")
    ours, rival = (dataclasses.asdict(demo._settings(config, n, Path("runs"))) for n in names)
    differing = {name: (ours[name], rival[name]) for name in ours if ours[name] != rival[name]}
    assert differing == {
        "optimizer": names,
        "learning_rate": (None, demo.RIVAL_RATE),
        "weights": (config.weights, None),
        "video": (True, False),
    }
