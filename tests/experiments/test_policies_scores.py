# SPDX-License-Identifier: Apache-2.0
"""The numbers of the policy benchmark: scores, times, failures, summaries."""

import numpy as np
import pytest

from experiments.benchmarks.policies import records, scores, summary, sweep, tuning
from experiments.benchmarks.policies.cells import make_cell
from experiments.benchmarks.policies.rules import AdamSettings
from experiments.benchmarks.policies.scores import Scale

STEPS = np.asarray([0.0, 10.0, 20.0, 30.0, 40.0])


def test_normalized_scores_count_from_random_actions_to_the_oracle() -> None:
    scale = Scale(random=-100.0, oracle=300.0)
    found = scale.normalize(np.asarray([-100.0, 300.0, 500.0, -1000.0, -np.inf]))
    np.testing.assert_allclose(found, [0.0, 1.0, 1.5, -1.0, -1.0])
    assert scale.level(0.75) == 200.0
    with pytest.raises(ValueError, match="not above that of random"):
        Scale(10.0, 10.0).normalize(np.ones(1))


def test_times_are_interpolated_and_censored_runs_count_as_whole_runs() -> None:
    curves = np.asarray([[0.0, 2, 4, 8, 8], [0.0, 1, 2, 3, 4], [6.0, 0, 0, 0, 0]])
    found = scores.times(STEPS, curves, 6.0)
    np.testing.assert_allclose(found, [25.0, np.inf, 0.0])
    np.testing.assert_allclose(scores.restricted(found, 40.0), [25.0, 40.0, 0.0])
    diverged = np.asarray([0.0, -np.inf, 8.0, 0.0, 0.0])
    assert scores.first_reached(STEPS, diverged, 6.0) == 20.0


def test_failure_is_divergence_no_gain_or_collapse() -> None:
    steps = np.arange(26.0)  # two evaluations in the last 5 %
    rising = np.linspace(0.0, 100.0, 26)
    flat, lucky = np.full(26, -5.0), rising.copy()
    lucky[10] = 300.0  # one evaluation: its window has a mean of 170, so 98 is still above half
    collapsed = np.where(steps < 20, rising, 20.0)
    returns = np.stack([rising, flat, lucky, collapsed, np.where(steps < 25, rising, -np.inf)])
    finite = np.asarray([True, True, True, True, False])
    found = scores.failed(steps, returns, finite, random=0.0)
    assert found.tolist() == [False, True, False, True, True]
    assert scores.failed(steps, rising[None], np.asarray([False]), 0.0).tolist() == [True]


def test_profile_is_the_share_of_runs_above_each_level() -> None:
    found = scores.profile(np.asarray([0.0, 0.5, 1.0, 2.0]), np.asarray([0.0, 0.6, 1.0, 3.0]))
    np.testing.assert_allclose(found, [1.0, 0.5, 0.5, 0.0])


def _record(finals: list[float], trainer: float = 1.0, points: int = 5) -> records.Record:
    """Runs that rise linearly from 0."""
    values = np.asarray(finals, np.float64)
    steps = np.linspace(0.0, 40.0, points)
    returns = values[:, None] * steps / 40.0
    chunks = np.zeros((len(finals), points - 1))
    finite, seeds = np.ones(len(finals), bool), tuple(range(len(finals)))
    return records.Record(
        seeds, steps, returns, values, finite, chunks, None, None, 1, 1.0, (trainer,), "x"
    )


def _results(cell: str, **found: records.Record) -> summary.CellResults:
    made = make_cell("control:pendulum", "ppo", 1, label=cell)
    search = tuning.Search([AdamSettings(1e-3)], np.ones(1), AdamSettings(1e-3), 1000)
    pace = records.TimeRatio(2.0, 0.5)
    return summary.CellResults(made, 0.0, search, found, {"ours": pace})


def test_summary_has_known_numbers() -> None:
    oracle = _record([100.0] * 4)
    results = [
        _results(name, oracle=oracle, adam=_record([80.0] * 4), ours=_record([ours] * 4))
        for name, ours in (("first", 100.0), ("second", 120.0))
    ]
    rows = [summary.row(one, name) for one in results for name in one.records]
    found = summary.summarize(rows, {"oracle": 5})
    assert found["oracle"]["score_iqm"] == 1.0 and found["oracle"]["tuning_env_steps"] == 5
    assert found["ours"]["score_iqm"] == pytest.approx(1.1)
    assert found["adam"]["score_ci95"] == pytest.approx((0.8, 0.8))
    assert (found["ours"]["worst_cell"], found["ours"]["failure_rate"]) == ("first", 0.0)
    # To 75: ours after 3/4 and 5/8 of the run, Adam after 15/16 of it; to 90 Adam never comes.
    at_75, at_90 = found["ours"]["times"]["0.75"], found["ours"]["times"]["0.9"]
    assert at_75["fraction_of_run"] == pytest.approx((3 / 4 + 5 / 8) / 2)
    assert at_75["ratio_to_adam"] == pytest.approx((3 / 4 + 5 / 8) / (2 * 15 / 16))
    assert at_75["seconds_ratio_to_adam"] == pytest.approx(2 * at_75["ratio_to_adam"])
    assert found["adam"]["times"]["0.9"]["reached"] == 0.0
    assert at_90["ratio_to_adam"] == pytest.approx((0.9 + 0.75) / 2)
    # 30 env steps of each of four runs, at half a second times two.
    assert rows[2]["times"]["0.75"]["seconds"] == pytest.approx(30 * 4 * 0.5 * 2)
    assert summary.comparisons(rows)["adam"]["verdict"] == "beats"
    assert summary.comparisons(rows, "adam")["ours"]["verdict"] == "not better"


def test_cells_whose_oracle_learned_nothing_are_left_out_and_named() -> None:
    good = _results("good", oracle=_record([1.0] * 2), adam=_record([1.0] * 2))
    bad = _results("bad", oracle=_record([-1.0] * 2), adam=_record([1.0] * 2))
    rows = [summary.row(one, name) for one in (good, bad) for name in one.records]
    found = summary.summarize(rows, {})
    assert found["adam"]["cells"] == 1 and found["adam"]["left_out"] == ["bad"]
    with pytest.raises(ValueError, match="train for longer"):
        summary.summarize([row for row in rows if row["cell"] == "bad"], {})


def test_rows_of_another_trainer_or_another_start_are_doubted() -> None:
    adam = _record([80.0] * 4)
    other_start = adam._replace(returns=adam.returns + 7.0)
    results = _results("cell", adam=adam, ours=_record([80.0] * 4, 1.1), oracle=other_start)
    first, second = summary.doubts([results])
    assert "ours was trained by another version" in first
    assert "oracle did not start from the same policies" in second
    assert not summary.doubts([_results("cell", adam=adam, oracle=adam)])


def test_kept_share_has_known_numbers() -> None:
    base, half = np.full(4, 300.0), np.full(4, 200.0)
    assert sweep.kept(half, base, 100.0) == (0.5, (0.5, 0.5))
    assert sweep.kept(half, np.full(4, 50.0), 100.0)[0] == sweep.MOST
    found = sweep.at_steps(_record([80.0, 40.0]), 15.0)
    np.testing.assert_allclose(found, [30.0, 15.0])
