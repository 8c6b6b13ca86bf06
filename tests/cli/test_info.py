# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne info`` counts a real state, and the state keeps to its budget."""

import json
from pathlib import Path

import pytest

import mnemosyne
from mnemosyne.cli.main import main


@pytest.mark.parametrize("layout", ["mlp", "transformer", "many-small"])
def test_info_state_stays_within_budget(layout: str, tmp_path: Path) -> None:
    file = tmp_path / "info.json"
    arguments = ["info", "--layout", layout, "--params", "1000000", "--json", str(file)]
    assert main(arguments) == 0
    found = json.loads(file.read_text())
    assert 900_000 < found["params"] < 1_100_000
    assert 2.0 <= found["state_floats_per_param"] <= 2.1
    assert found["state_bytes"] == pytest.approx(
        4 * found["params"] * found["state_floats_per_param"]
    )
    assert found["tensor_sha256"] == mnemosyne.load("mnemosyne-base").tensor_sha256
    assert found["meta_params"] == 4957
    assert found["feature_contract"] == "5"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--params", "0"], "--params must be at least 1"),
        (["--params", "1000000000000000"], "this machine has"),
        (["mnemosyne-bass"], "did you mean 'mnemosyne-base'"),
    ],
)
def test_info_impossible_questions_are_answered_with_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", *arguments]) == 2
    assert sentence in capsys.readouterr().err
