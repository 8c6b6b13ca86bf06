# SPDX-License-Identifier: Apache-2.0
"""The whole command of the policy benchmark, with runs that are not trained."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from experiments import benchmarks, cache, splits, statistics
from experiments.benchmarks.policies import command, figures, report, rules, runs, sweep, tuning
from tests.experiments.fake_runner import FakeRunner


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeRunner]:
    """Nothing is trained; calls are kept; intervals are quick instead of exact."""
    # Which results are committed must not decide how many runs a test sees.
    monkeypatch.setattr(cache, "COMMITTED", tmp_path / "nothing-committed")
    for name in ("bootstrap", "stratified_bootstrap"):
        quick = functools.partial(getattr(statistics, name), draws=40)
        monkeypatch.setattr(statistics, name, quick)
    monkeypatch.setattr(runs, "Runner", FakeRunner)
    monkeypatch.setattr(runs, "fingerprint", lambda: (1.0,))
    FakeRunner.calls, FakeRunner.fail_at = [], None
    return FakeRunner


def _options(tmp_path: Path, **changes: Any) -> benchmarks.Options:
    fields = {"weights": "mnemosyne-rl", "size": "small", "cache": tmp_path / "cache"}
    return benchmarks.Options(**{**fields, **changes})


def test_filling_resumes_after_a_kill_and_loses_one_call(
    fake: type[FakeRunner], tmp_path: Path
) -> None:
    options = _options(tmp_path, envs=("ant",), rivals_only=True)
    whole = tmp_path / "whole"
    command.run(benchmarks.Options(**{**vars(options), "cache": whole}))
    calls = list(fake.calls)
    fake.calls, fake.fail_at = [], 22
    with pytest.raises(KeyboardInterrupt):
        command.run(options)
    assert fake.calls == calls[:22]
    fake.calls, fake.fail_at = [], None
    command.run(options)
    assert fake.calls == calls[21:]
    names = [{path.name for path in folder.iterdir()} for folder in (whole, options.cache)]
    assert names[0] == names[1]
    fake.calls = []
    command.run(options)
    assert fake.calls == []


def test_rivals_search_on_meta_training_first_and_in_the_cell_for_the_oracle(
    fake: type[FakeRunner], tmp_path: Path
) -> None:
    command.run(_options(tmp_path, envs=("ant",), rivals_only=True))
    on_ant = [names for env, names in fake.calls if env == "brax:ant"]
    # Four trials of two seeds side by side, then one rule at a time.
    assert [len(names) for names in on_ant[:4]] == [4, 4, 4, 1]
    others = [env for env, _ in fake.calls if env != "brax:ant"]
    assert {splits.env_split(env) for env in others} == {"meta-train"}
    assert all(name.startswith("trial") for env, names in fake.calls for name in names
               if env != "brax:ant")  # fmt: skip


def test_small_run_judges_ours_against_all_rivals_with_known_numbers(
    fake: type[FakeRunner], tmp_path: Path
) -> None:
    options = _options(tmp_path, out=tmp_path / "out")
    result = json.loads(json.dumps(command.run(options), allow_nan=False))
    names = ["ours", "oracle", "adam-m", "adam", *rules.HAND_DESIGNED, "adam-kl", "untrained"]
    assert list(result["summary"]) == names
    assert len(result["rows"]) == 3 * len(names)
    best = min(abs(math.log10(s.rate / 1e-3)) for s in tuning.trials(12))
    search = result["searches"]["oracle"]["brax:ant"]
    assert abs(math.log10(search["rate"] / 1e-3)) == pytest.approx(best)
    assert search["env_steps"] == 24 * 512_000
    assert result["summary"]["oracle"]["tuning_env_steps"] == 24 * (2 * 512_000 + 1_024_000)
    ours, oracle = (result["summary"][name] for name in ("ours", "oracle"))
    # Final returns are means of the last two of 25 evaluations: at 0.98 of the gain.
    gains = [0.98 * (gain + 3.5) for gain in (550.0, 500.0 / (1.0 + best))]
    assert oracle["score_iqm"] == pytest.approx(1.0)
    assert ours["score_iqm"] == pytest.approx(gains[0] / gains[1], rel=1e-3)
    assert ours["failure_rate"] == 0.0 and ours["seeds"] == 8
    time = ours["times"]["0.75"]
    assert time["seconds_ratio_to_adam"] == pytest.approx(2 * time["ratio_to_adam"], rel=1e-4)
    assert {rival: c["verdict"] for rival, c in result["comparisons"].items()} == dict.fromkeys(
        names[1:], "beats"
    )
    assert result["doubts"] == []
    text = (tmp_path / "out" / "table.md").read_text()
    assert "brax:swimmer (PPO, generalized, 512,000 env steps)" in text
    for picture in ("curves.png", "profile.png"):
        assert (tmp_path / "out" / picture).stat().st_size > 1000
    assert len(report.ledger_rows(result, "2026-01-01")) == len(names)
    assert all(
        row.count("|") == report.LEDGER_HEADER.count("|")
        for row in report.ledger_rows(result, "2026-01-01")
    )


def test_more_seeds_are_of_ours_alone(fake: type[FakeRunner], tmp_path: Path) -> None:
    result = command.run(_options(tmp_path, size="smoke", seeds=3))
    seeds = {row["optimizer"]: len(row["seeds"]) for row in result["rows"]}
    assert seeds["ours"] == 3 and seeds["adam"] == 2


def test_sweep_keeps_scores_relative_to_the_own_base(
    fake: type[FakeRunner], tmp_path: Path
) -> None:
    result = command.run(_options(tmp_path, sweep=True, out=tmp_path / "out"))
    kept = {(row["variation"], row["optimizer"]): row["kept"] for row in result["rows"]}
    assert {env for env, _ in fake.calls} == {"brax:hopper"}
    assert len(kept) == 2 * 13
    assert kept["rewards x 1e3", "ours"] == 1.0
    assert kept["rewards x 1e3", "adam"] == pytest.approx(0.5, rel=0.02)
    shorter = next(r for r in result["rows"] if r["variation"] == sweep.SHORTER)
    # A run of the same shape, so four times as far as the base was after a quarter.
    assert shorter["kept_at_equal_steps"] == pytest.approx(4 * 0.98, rel=0.03)
    assert "rewards x 1e3" in (tmp_path / "out" / "table.md").read_text()


def test_figures_survive_diverged_runs(tmp_path: Path) -> None:
    row = {
        "cell": "a", "optimizer": "ours", "random": 1.0, "curve_steps": [0, 1],
        "curves": [[1.0, None], [1.0, 2.0]], "normalized": [-1.0, 1.0],
    }  # fmt: skip
    assert [path.stat().st_size > 1000 for path in figures.draw({"rows": [row]}, tmp_path)]
