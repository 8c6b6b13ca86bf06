# SPDX-License-Identifier: Apache-2.0
"""Curves are pooled over what differs in seeds alone; their bands are bootstraps over seeds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import statistics
from mnemosyne.cli.main import main
from robotics.curves import bootstrap, iqm, pool, read_curve
from robotics.plots import plot_runs, short


def make_run(
    folder: Path, returns: list[list[float]], every: int = 100, seed: int = 0, **settings
) -> Path:
    """A run folder with these returns [evaluations][seeds]."""
    folder.mkdir(parents=True)
    config = {"env": "probe:action", "algo": "ppo", "optimizer": "adam", "learning_rate": None}
    config |= {"seed": seed, "num_seeds": len(returns[0]), "eval_episodes": 16, **settings}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [
        {
            "env_steps": every * i,
            "eval/episode_reward": row,
            "eval/episode_reward_std": [2.0] * len(row),
        }
        for i, row in enumerate(returns)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_iqm_is_that_of_the_benchmarks():
    values = np.random.default_rng(0).normal(size=(4, 7))
    for size in range(1, 8):
        wanted = [statistics.iqm(row[:size]) for row in values]
        np.testing.assert_allclose(iqm(values[:, :size]), wanted)


def test_bootstrap_is_that_of_the_benchmarks_up_to_its_own_noise():
    values = np.random.default_rng(1).normal(size=(2, 12))
    low, high = bootstrap(values, "mean")
    for i, row in enumerate(values):
        wanted = statistics.bootstrap(row, lambda sample: float(np.mean(sample)))
        np.testing.assert_allclose((low[i], high[i]), wanted, atol=0.05)
    low, high = bootstrap(np.full((1, 4), 3.0), "iqm")
    assert low == high == 3.0


def test_runs_that_differ_in_seeds_alone_are_one_curve(tmp_path):
    a = make_run(tmp_path / "a", [[0.0, 2.0], [4.0, 6.0], [8.0, 8.0]])
    b = make_run(tmp_path / "b", [[1.0], [9.0]], every=50, seed=7)  # other grid, shorter
    (curve,) = pool([read_curve(a), read_curve(b), read_curve(a)], "mean")
    assert curve.seeds == (0, 1, 7) and curve.left_out == ()
    np.testing.assert_allclose(curve.steps, [0, 50])
    np.testing.assert_allclose(curve.returns, [[0, 2, 1], [2, 4, 9]])  # 2 and 4 lie between
    np.testing.assert_allclose(curve.value, [1, 5])
    assert (curve.low <= curve.value).all() and (curve.value <= curve.high).all()


def test_seed_of_two_runs_counts_once_and_is_told(tmp_path, capsys):
    a = make_run(tmp_path / "a", [[0.0, 1.0], [1.0, 2.0]])
    b = make_run(tmp_path / "b", [[5.0], [6.0]], seed=1)
    assert main(["plot", str(a), str(b), "--out", str(tmp_path / "p.png")]) == 0
    assert f"left out: seed 1 of {b}" in capsys.readouterr().out


def test_settings_are_told_apart_by_the_shortest_label(tmp_path):
    runs = [
        make_run(tmp_path / "a", [[0.0]], optimizer="mnemosyne"),
        make_run(tmp_path / "b", [[0.0]], learning_rate=1e-3),
        make_run(tmp_path / "c", [[0.0]]),
        make_run(tmp_path / "d", [[0.0]], ppo={"num_envs": 8}),
        make_run(tmp_path / "e", [[0.0]], env="probe:value"),
    ]
    pooled = pool([read_curve(run) for run in runs])
    assert [curve.label for curve in pooled] == [
        "mnemosyne",
        "adam 0.001",
        "adam (c)",
        "adam (d)",
        "adam",
    ]


def test_band_of_one_seed_is_over_its_episodes(tmp_path):
    (curve,) = pool([read_curve(make_run(tmp_path / "a", [[1.0], [3.0]]))])
    np.testing.assert_allclose(curve.high - curve.value, 1.959964 * 2.0 / np.sqrt(16))


def test_plot_draws_all_runs_below_a_folder_and_writes_what_it_draws(tmp_path, capsys):
    for name, env in (("a", "probe:action"), ("b", "probe:value")):
        make_run(tmp_path / "runs" / name, [[0.0, 1.0], [2.0, 5.0]], env=env)
    numbers, picture = tmp_path / "n.json", tmp_path / "p.svg"
    flags = ["--out", str(picture), "--json", str(numbers), "--statistic", "mean"]
    assert main(["plot", str(tmp_path / "runs"), *flags]) == 0
    curves = json.loads(numbers.read_text())["curves"]
    assert [curve["env"] for curve in curves] == ["probe:action", "probe:value"]
    assert curves[0]["env_steps"] == [0, 100] and curves[0]["return"] == [0.5, 3.5]
    assert curves[0]["low"][1] >= 2.0 and curves[0]["high"][1] <= 5.0
    assert "<svg" in picture.read_text()
    assert "probe:value | adam | 100 env steps | return 3.5 (95 %" in capsys.readouterr().out


def test_plot_refuses_what_it_cannot_draw(tmp_path):
    with pytest.raises(ValueError, match="at least one run"):
        plot_runs([], tmp_path / "a.png")
    run = make_run(tmp_path / "run", [[1.0]])
    with pytest.raises(ValueError, match=r"must end in \.png"):
        plot_runs([run], tmp_path / "a.doc")
    assert plot_runs([run], tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no evaluation yet"):
        read_curve(run)


def test_axis_numbers_are_short():
    assert [short(value) for value in (0, 999, 2500, 1e6)] == ["0", "999", "2.5k", "1M"]
