# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne benchmark`` runs end to end without data, and answers mistakes in a sentence."""

import json
from pathlib import Path

import jax
import pytest

import mnemosyne
from experiments.benchmarks import records
from mnemosyne.cli.main import main


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that compiles quickly, untrained."""
    parts = {"encoder": False, "cross_token": False, "residual": False, "polar": False}
    config = mnemosyne.MnemosyneConfig(sample=16, taus=(0.1,), **parts)
    init = jax.jit(mnemosyne.init_meta_params, static_argnums=1)
    theta = jax.device_get(init(jax.random.key(0), config))
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    mnemosyne.save_artifact(path, mnemosyne.Artifact(theta, config, {}, ()))
    return path


def test_benchmark_optimizers_smoke_writes_rows_table_and_picture(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["benchmark", "optimizers", "--weights", weights, "--tasks", "rosenbrock"]
    arguments += ["--cache", tmp_path / "cache", "--out", tmp_path, "--json", tmp_path / "o.json"]
    words = [str(argument) for argument in arguments]
    assert main(words) == 0
    result = json.loads((tmp_path / "o.json").read_text())
    names = ["adam", "adam-cosine", "schedule-free", "muon-cosine", "ours", "untrained"]
    assert [row["optimizer"] for row in result["rows"]] == names == list(result["summary"])
    for row in result["rows"]:
        assert row["task"] == "rosenbrock-2" and row["steps"] == 10 and row["seeds"] == 2
        assert len(row["curve"]) == len(row["curve_steps"]) == 11
        assert 0.25 <= row["ratio"] <= 4.0 and row["failures"] == 0
    ours, untrained = result["rows"][-2:]
    assert ours["finals"] == pytest.approx(untrained["finals"], rel=1e-4)
    assert result["summary"]["adam"]["ratio_iqm"] == 1.0
    assert "rosenbrock-2" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "curves.png").stat().st_size > 1000
    # Everything is stored now, so nothing may run again.
    monkeypatch.setattr(records, "measure", lambda *_: pytest.fail("ran again"))
    assert main([*words, "--rivals-only"]) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "say what to measure: optimizers, policies, warm-start, cost, stability"),
        (["optimizer"], "did you mean 'optimizers'?"),
        (["cost", "--params", "many"], "--params takes sizes of at least 1"),
        (["cost", "--seeds", "3"], "--seeds means nothing to the benchmark 'cost'"),
        (["cost", "--only", "adamm"], "--only takes names of adam"),
        (["cost", "--rounds", "0"], "--rounds must be at least 1"),
        (["optimizers", "--seeds", "0"], "--seeds must be at least 1"),
        (["optimizers", "--horizon", "-1"], "--horizon must be positive"),
        (["optimizers", "--tasks", "nothing"], "no task's name contains 'nothing'"),
        (["optimizers", "--rival", "lstm"], "--rival takes NAME=PATH"),
        (["optimizers", "--rival", "adam=mnemosyne-base"], "that name is taken"),
        (["optimizers", "--weights", "mnemosyne-bass"], "did you mean 'mnemosyne-base'"),
        (["optimizers", "--stress"], "take one"),
        (["optimizers", "--size", "tiny"], "unknown value 'tiny' for --size"),
        (["stability", "--horizon", "0"], "--horizon must be positive"),
        (["policies", "--split", "hold-out"], "--size smoke only runs control tasks"),
        (["policies", "--size", "small", "--envs", "brax:hopper"], "there are brax:walker2d"),
        (["policies", "--size", "small", "--envs", "brax:hoper"], "no split"),
        (["policies", "--size", "small", "--seeds", "0"], "--seeds must be at least 1"),
        (["policies", "--tasks", "mlp"], "--tasks means nothing to the benchmark 'policies'"),
        (["policies", "--rival", "oracle=mnemosyne-rl"], "that name is taken"),
        (["policies", "--sweep", "--algo", "es"], "leave out --algo es"),
        (["warm-start", "--split", "hold-out"], "tried on meta-train and validation"),
        (["warm-start", "--size", "small", "--envs", "brax:ant"], "there are brax:inverted_double"),
        (["warm-start", "--algo", "es"], "--algo means nothing to the benchmark 'warm-start'"),
    ],
)
def test_benchmark_mistakes_are_answered_with_a_sentence(
    arguments: list[str], sentence: str, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments and "--weights" not in arguments:
        arguments = [*arguments, "--weights", str(weights)]
    assert main(["benchmark", *arguments]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err and captured.err.count("\n") == 1
