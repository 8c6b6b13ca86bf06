# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne envs`` lists what there is, its sizes, and what it takes to use it here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import envs
from envs import registry
from mnemosyne.cli.main import main


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with MuJoCo and Playground, without its robots, without Brax and Gymnasium."""

    def folders(package: str) -> list[Path]:
        return [] if package in ("", "brax", "gymnasium") else [tmp_path]

    monkeypatch.setattr(registry, "_folders", folders)


def _table(said: str) -> dict[str, list[str]]:
    """Cells of each line by its name; no cell is empty, and two spaces end one."""
    lines = [
        [cell.strip() for cell in line.split("  ") if cell.strip()] for line in said.split("\n")
    ]
    return {cells[0]: cells[1:] for cells in lines if cells}


@pytest.mark.usefixtures("here")
def test_table_has_sizes_backends_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs"]) == 0
    table = _table(capsys.readouterr().out)
    assert list(table) == ["name", *envs.list_envs(), *envs.open_families()]
    assert table["name"] == ["obs", "act", "here", "backends"]
    all_four = "spring, positional, generalized, mjx"
    assert table["brax:hopper"] == ["11", "3", "[robotics]", all_four]
    assert table["brax:swimmer"] == ["8", "2", "[robotics]", "generalized"]
    assert table["control:pendulum"] == ["3", "1", "yes", "-"]
    assert table["playground:CheetahRun"][2:] == ["yes", "mjx"]
    assert table["playground:Go1Handstand"][2:] == ["no assets", "mjx"]
    assert table["gym:<any id>"] == ["?", "?", "[robotics]", "-"]
    assert table["mujoco:path/to/model.xml"] == ["?", "?", "yes", "mjx"]


@pytest.mark.usefixtures("here")
def test_json_holds_every_row_of_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "envs.json"
    assert main(["envs", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    named = [row["name"] for row in found["envs"] + found["own"]]
    assert named == list(_table(capsys.readouterr().out))[1:]
    rows = {row["name"]: row for row in found["envs"]}
    assert rows["brax:hopper"] == {
        "name": "brax:hopper",
        "observation_size": 11,
        "action_size": 3,
        "backends": ["spring", "positional", "generalized", "mjx"],
        "extra": "robotics",
        "installed": False,
        "lacks": "package",
    }
    assert rows["playground:Go1Handstand"]["lacks"] == "assets"


@pytest.mark.usefixtures("here")
def test_installed_leaves_out_what_cannot_be_made_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "envs.json"
    assert main(["envs", "--installed", "--json", str(file)]) == 0
    table, found = _table(capsys.readouterr().out), json.loads(file.read_text())
    assert [row["name"] for row in found["own"]] == ["mujoco:path/to/model.xml"]
    assert {row["name"].partition(":")[0] for row in found["envs"]} == {
        "control",
        "playground",
        "probe",
    }
    assert all(row["installed"] for row in found["envs"] + found["own"])
    assert list(table)[1:] == [row["name"] for row in found["envs"] + found["own"]]
    assert {cells[2] for name, cells in table.items() if name != "name"} == {"yes"}
    assert "playground:CheetahRun" in table and "playground:Go1Handstand" not in table
