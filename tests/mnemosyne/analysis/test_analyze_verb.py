# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne analyze``: both subjects from the command line, and what it refuses."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from mnemosyne.cli import analyze, capacity_report
from mnemosyne.cli.main import main
from mnemosyne.meta import estimators

SMALL = {
    "NORMS": (0.5, 0.7),
    "READ_NORMS": (0.7,),
    "READ_WIDTHS": (),
    "FLIP_WIDTHS": (32, 128),
    "LOADS": (0.1, 0.2),
}


def test_capacity_writes_report_numbers_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(capacity_report, name, value)
    file, out = tmp_path / "capacity.json", tmp_path / "figures"
    arguments = ["capacity", "--draws", "100", "--json", str(file), "--out", str(out)]
    assert main(["analyze", *arguments]) == 0
    found = json.loads(file.read_text())
    for name in ("storage theorem", "its sharp constant", "streaming equals batch"):
        assert found["verdicts"][name]
    assert len(found["figures"]) == 4
    for figure in found["figures"]:
        assert Path(figure).read_bytes().startswith(b"\x89PNG")
        assert Path(figure).stat().st_size > 20_000
    printed = capsys.readouterr().out
    assert "what the theory does not give" in printed
    assert "53 features at beta N = 1, 2,979 at 2" in printed


class Grow(NamedTuple):
    """A number and its age."""

    x: jax.Array
    age: jax.Array


def _growing(factor: float) -> estimators.System:
    def reset(theta: Any, key: jax.Array, fraction: jax.Array | float) -> Grow:
        del theta, fraction
        return Grow(jax.random.normal(key, ()), jnp.zeros((), jnp.int32))

    def advance(theta: Any, state: Grow) -> tuple[Grow, jax.Array]:
        del theta
        return Grow(factor**5 * state.x, state.age + 1), state.x

    return estimators.System(reset, advance, lambda state: state.age >= 100)


def test_lyapunov_recommends_by_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    systems = {"calm": (_growing(0.9), 5), "wild": (_growing(1.2), 5)}
    monkeypatch.setattr(analyze, "_families", lambda *_: systems)
    file = tmp_path / "lyapunov.json"
    assert main(["analyze", "lyapunov", "--truncations", "3", "--json", str(file)]) == 0
    calm, wild = json.loads(file.read_text())["families"]
    assert (calm["recommended"], wild["recommended"]) == ("bptt", "es")
    assert calm["median"] == pytest.approx(-0.10536, abs=1e-4)
    assert wild["median"] == pytest.approx(0.18232, abs=1e-4)
    assert len(wild["exponents"]) == 4
    assert "+0.1823" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name what to analyze"),
        (["capacitor"], "did you mean 'capacity'"),
        (["capacity", "--draws", "1"], "--draws must be at least 100"),
        (["lyapunov", "mnemosyne-bass"], "did you mean 'mnemosyne-base'"),
        (["lyapunov", "--truncations", "1"], "--truncations must be at least 2"),
    ],
)
def test_analyze_impossible_questions_are_answered_with_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", *arguments]) == 2
    assert sentence in capsys.readouterr().err
