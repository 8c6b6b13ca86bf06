# SPDX-License-Identifier: Apache-2.0
"""The Python block of the page on meta-training runs, and its last lines hold."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

import mnemosyne
from mnemosyne.baselines import BASELINES

PAGE = Path(__file__).parent.parent / "docs" / "train-the-optimizer.md"


def test_own_task_trains_the_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = PAGE.read_text()
    (block,) = re.finditer(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    # Weights fit any setting of these; with few coordinates and no products all compiles sooner.
    shipped = mnemosyne.load("mnemosyne-base")
    lean = dataclasses.replace(shipped.config, polar=False, sample=64, chunk=(2, 2))
    small = dataclasses.replace(shipped, config=lean)
    monkeypatch.setattr(mnemosyne, "load", lambda name: small)
    source = "\n" * page[: block.start(1)].count("\n") + block[1]
    exec(compile(source, str(PAGE), "exec"), {"__name__": __name__})
    assert (tmp_path / "sines.safetensors").is_file()


def test_page_names_every_baseline() -> None:
    row = next(line for line in PAGE.read_text().splitlines() if line.startswith("| `--rule"))
    assert set(re.findall(r"`([a-z0-9-]+)`", row.rpartition("|")[0].split("|")[2])) == set(
        BASELINES
    )
