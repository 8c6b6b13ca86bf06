# SPDX-License-Identifier: Apache-2.0
"""The numbers of a benchmark mean what they say: formulas, runs, caches, measured costs."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib
from safetensors.numpy import save_file

import mnemosyne
from experiments import benchmarks, cache, plots, rivals
from experiments.benchmarks import (
    optimizers,
    records,
    report,
    runs,
    scores,
    selection,
    summary,
)
from experiments.tasks import BenchmarkTask
from tests.experiments.bowl import Bowl, bench

STEPS = np.asarray([0, 10, 20, 30, 40])
CURVE = np.asarray([8.0, 4.0, 2.0, 1.0, 0.5])


def _sgd(theta: Any, rate: Any, steps: int) -> optax.GradientTransformation:
    del theta, steps
    return optax.sgd(lambda _: rate)


SGD = rivals.Line("sgd", _sgd, (0.1, 0.2, 0.3), {"rule": "sgd"})


@pytest.mark.parametrize(
    ("ours", "expected"),
    [(0.6, 0.8), (0.1, 4.0), (0.05, 4.0), (9.0, 0.25), (math.inf, 0.25), (math.nan, 0.25)],
)
def test_final_ratio_is_of_the_excess_over_the_floor_and_clipped(
    ours: float, expected: float
) -> None:
    assert scores.final_ratio(0.5, ours, 0.1, 8.0) == pytest.approx(expected)


def test_final_loss_is_the_mean_of_the_last_twentieth() -> None:
    curve = np.arange(101.0)
    assert scores.final_loss(np.arange(101), curve) == pytest.approx(98.0)  # 96 ... 100
    assert scores.final_loss(STEPS, np.asarray([CURVE, CURVE * np.nan])).tolist() == [0.5, np.inf]


def _reference() -> scores.Reference:
    grid = np.stack([CURVE + 1.0, CURVE, CURVE * np.nan])
    finals = np.asarray([[1.5, 1.5], [0.4, 0.6], [np.nan, 0.1]])
    return scores.reference(np.asarray([1e-3, 1e-2, 1e-1]), STEPS, grid, finals, 0.0)


def test_envelope_is_the_lowest_mean_over_rates_and_a_diverged_seed_disqualifies() -> None:
    found = _reference()
    assert (found.final, found.rate, found.at_edge) == (0.5, 1e-2, False)
    np.testing.assert_array_equal(found.curve, CURVE)
    only = scores.reference(np.asarray([1e-3, 1e-2]), STEPS, *([[8, 1.0]] * 2,) * 2, 0.0)
    assert only.at_edge


def test_speed_up_counts_updates_to_the_other_ones_final_loss() -> None:
    adam = _reference()
    twice = np.asarray([8.0, 2.0, 0.5, 0.25, 0.2])  # reaches 0.5 at update 20 of 40
    assert scores.speed_up(twice, 0.2, adam) == pytest.approx(2.0)
    # Never reaches 0.5; Adam passes our 3.0 half-way between updates 10 and 20.
    assert scores.speed_up(np.full(5, 3.0), 3.0, adam) == pytest.approx(15.0 / 40.0)
    assert scores.speed_up(CURVE, 0.5, adam) == pytest.approx(1.0)
    diverged = np.asarray([8.0, np.nan, np.nan, np.nan, np.nan])
    assert scores.speed_up(diverged, math.inf, adam) == pytest.approx(1.0 / 40.0)


def test_failure_is_no_descent_or_no_number() -> None:
    found = scores.failed([1.0, 1.0, 1.0], [0.9, 1.0, np.nan])
    assert found.tolist() == [False, True, True]


def test_learning_curve_equals_a_plain_loop_judged_on_one_fixed_batch() -> None:
    task, key = Bowl(), runs.seeds(3)[2]
    curve = runs.learning_curve(task, optax.sgd(0.1), key, 7)
    key_init, key_data = jax.random.split(key)
    x = task.init(key_init)["x"]
    keys = jax.random.split(jax.random.key(runs.EVALUATION_SEED), 32)
    fixed = np.asarray(jax.vmap(task.sample)(keys))
    batches = [jax.random.fold_in(key_data, index) for index in range(8)]
    x, seen, expected = np.asarray(x), np.asarray(jax.vmap(task.sample)(jnp.stack(batches))), []
    for batch in seen:
        expected.append(np.mean(0.5 * np.sum((x - fixed) ** 2, axis=1)))
        x = x - 0.1 * (x - batch)
    np.testing.assert_allclose(curve, expected, rtol=1e-5)


def test_learning_curve_tells_loss_and_progress() -> None:
    def update(grads: Any, state: Any, params: Any = None, **extras: Any) -> Any:
        # Moves to where the evaluation shows what was told.
        del grads
        moved = jax.tree.map(lambda p: extras["progress"] + 0.0 * extras["value"] - p, params)
        return moved, state

    told = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    task = Bowl(center=np.zeros(2, np.float32), noise=0.0)
    curve = runs.learning_curve(task, told, runs.seeds(1)[0], 4)
    np.testing.assert_allclose(curve[1:], [0.0, 0.0625, 0.25, 0.5625], atol=1e-6)


def test_runner_gives_the_same_curves_however_many_run_side_by_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = runs.Runner(Bowl(), 5)(SGD, 2)
    assert runs.lanes(3, 6) == 6 and whole.shape == (3, 2, 6)
    # Seeds are paired over rates: they start alike.
    np.testing.assert_array_equal(whole[0, :, 0], whole[2, :, 0])
    assert not np.allclose(whole[0, 0, 0], whole[0, 1, 0])
    monkeypatch.setattr(runs, "LANES_BUDGET", {"cpu": 12, "accelerator": 12})
    assert runs.lanes(3, 6) == 3  # two portions of equal size, not four and two
    monkeypatch.setattr(runs, "LANES_BUDGET", {"cpu": 1, "accelerator": 1})
    assert runs.lanes(3, 6) == 1
    np.testing.assert_allclose(runs.Runner(Bowl(), 5)(SGD, 2), whole, rtol=1e-5)


def test_portions_cover_every_run_once_and_pad_the_last() -> None:
    rows = list(runs._portions(7, 3))
    assert [r.tolist() for r in rows] == [[0, 1, 2], [3, 4, 5], [6, 6, 6]]
    assert list(runs._portions(2, 1)) == [0, 1]


def test_seeds_of_few_are_the_first_of_many() -> None:
    few, many = (jax.random.key_data(runs.seeds(n)) for n in (2, 5))
    np.testing.assert_array_equal(few, many[:2])


def test_schedule_free_is_judged_by_its_average() -> None:
    lines = {line.name: line for line in rivals.hand_designed((0.1,), (0.1,))}
    assert list(lines) == ["adam", "adam-cosine", "schedule-free", "muon-cosine"]
    free = lines["schedule-free"]
    optimizer = free.make(None, jnp.asarray(0.1), 30)
    params = {"x": jnp.ones(3)}

    @jax.jit
    def two_updates(params: Any) -> tuple[Any, Any]:
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(params, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    params, state = two_updates(params)
    average = free.read(state, params)["x"]
    np.testing.assert_allclose(average, contrib.schedule_free_eval_params(state, params)["x"])
    assert not np.allclose(average, params["x"], rtol=1e-4)
    assert lines["adam"].read(state, params) is params


def test_adam_envelope_has_fifteen_rates_over_six_decades() -> None:
    assert len(rivals.ADAM_RATES) == 15
    assert (rivals.ADAM_RATES[0], rivals.ADAM_RATES[-1]) == (1e-5, 10.0)


def test_records_are_computed_once_and_again_only_for_another_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = records.measure(runs.Runner(Bowl(), 8), SGD, 8, 2)
    assert real["curves"].shape == (3, 9) and "seed_curves" not in real
    np.testing.assert_allclose(real["finals"].mean(axis=1), real["curves"][:, -1], rtol=1e-6)
    calls: list[str] = []

    def counted(*_: Any) -> dict[str, Any]:
        calls.append("measured")
        return real

    monkeypatch.setattr(records, "measure", counted)

    def get(task: BenchmarkTask, line: rivals.Line = SGD) -> records.Record:
        return records.record(task, line, runs.Runner(task.task, 8), 8, 2, tmp_path)

    first = get(bench())
    again = get(bench())
    assert len(calls) == 1
    for one, other in zip(first[:5], again[:5], strict=True):
        np.testing.assert_array_equal(one, other)
    get(bench(Bowl(center=np.full(3, 2.0, np.float32))))
    get(bench(), SGD._replace(rates=(0.1,)))
    get(bench(), SGD._replace(description={"rule": "sgd", "momentum": 0.9}))
    assert len(calls) == 4


def test_cache_keeps_six_digits_and_says_when_a_run_diverged(tmp_path: Path) -> None:
    stored = cache.cached("x", {"a": 1}, lambda: {"c": np.asarray([1 / 3, np.inf])}, tmp_path)
    assert stored == {"c": [0.333333, None]}
    (file,) = tmp_path.glob("*.json")
    assert json.loads(file.read_text()) == {"description": {"a": 1}, "result": stored}
    assert cache.cached("x", {"a": 1}, lambda: pytest.fail("computed twice"), tmp_path) == stored
    assert scores.finite(stored["c"]).tolist() == [0.333333, np.inf]


def test_task_description_ignores_last_bits_and_sees_other_data() -> None:
    data = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    near, far = data * np.float32(1.0 + 2e-7), data * np.float32(1.1)
    described = [cache.describe(Bowl(center=x)) for x in (data, near, far)]
    assert described[0] == described[1] != described[2]


def _record(initial: float) -> records.Record:
    ones = np.ones((1, 2))
    return records.Record(np.ones(1), STEPS, ones, ones, np.full(2, initial), None)


def test_stored_results_of_another_task_are_refused() -> None:
    records.check_same_task("bowl", {"a": _record(2.0), "b": _record(2.001)})
    with pytest.raises(ValueError, match="another version of that task"):
        records.check_same_task("bowl", {"a": _record(2.0), "b": _record(2.2)})


def test_floor_is_the_lowest_loss_by_hand_and_known_where_the_task_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = selection.SIZES["small"]._replace(longer=4)
    options = benchmarks.Options(cache=tmp_path)
    cosine = _record(8.0)._replace(
        rates=np.asarray([0.1, 0.2, 0.4]),
        finals=np.asarray([[0.6], [0.5], [0.7]]),
        curves=np.full((3, 5), 0.5),
    )

    def longer(runner: runs.Runner, line: rivals.Line, steps: int, num_seeds: int) -> Any:
        assert (line.rates, steps, num_seeds) == ((0.2, 0.1), 32, 1)
        stored = {"rates": line.rates, "steps": [0, 32], "initials": [8.0]}
        return stored | {"curves": [[8.0, 0.3], [8.0, 0.4]], "finals": [[0.3], [0.4]]}

    monkeypatch.setattr(records, "measure", longer)

    def floor(known: dict[str, records.Record], bound: float) -> float:
        return optimizers.floor(bench(floor=bound), known, size, 8, options)

    assert floor({"adam-cosine": cosine}, 0.0) == 0.3
    best = cosine._replace(curves=np.full((3, 5), 0.2))
    assert floor({"adam-cosine": cosine, "adam": best}, 0.0) == 0.2
    assert floor({"adam-cosine": cosine}, 1e-3) == 1e-3
    exact = BenchmarkTask(Bowl("other"), 8, "function", 0.125)
    assert optimizers.floor(exact, {}, size, 8, options) == 0.125


def _row(task: str, optimizer: str, finals: list[float], **more: Any) -> dict[str, Any]:
    record = records.Record(
        np.ones(1),
        STEPS,
        CURVE[None],
        np.asarray([finals]),
        np.full(len(finals), 8.0),
        np.stack([CURVE] * len(finals)),
    )
    return optimizers.row(bench(Bowl(task)), optimizer, record, _reference()) | more


def test_summary_aggregates_tasks_and_names_what_falls_short() -> None:
    rows = []
    for task, ours in (("a", 0.25), ("b", 0.4), ("c", 1.0), ("d", 0.3125)):
        rows += [_row(task, "adam", [0.5, 0.5]), _row(task, "untrained", [0.9, 0.9])]
        rows.append(_row(task, "ours", [ours, ours]))
    found = summary.summarize(rows)["ours"]
    # Ratios 2, 1.25, 0.5 and 1.6: the middle two count.
    assert found["ratio_iqm"] == pytest.approx((1.25 + 1.6) / 2)
    assert found["tasks_below_0.9"] == ["c"] == found["tasks_not_above_untrained"]
    assert (found["worst_task"], found["failure_rate"]) == ("c", 0.0)
    assert found["ratio_ci95"][0] == pytest.approx(found["ratio_ci95"][1])
    assert summary.comparisons(rows, "ours")["untrained"]["wins"] == 3


def test_ledger_rows_fit_their_header_and_pictures_are_drawn(tmp_path: Path) -> None:
    rows = [_row("a", name, [0.5, 0.4]) for name in ("adam", "ours", "untrained", "lstm")]
    result = {
        "size": "small",
        "suite": "hold-out",
        "horizon": 10.0,
        "weights": "w",
        "tensor_sha256": "0" * 64,
        "config_hash": "1" * 16,
        "command": "mnemosyne benchmark optimizers",
        "machine": "a machine",
        "versions": {"commit": "2" * 40},
        "summary": summary.summarize(rows),
        "comparisons": summary.comparisons(rows, "ours"),
    }
    lines = report.ledger_rows(result, "2026-01-01")
    assert len(lines) == 3
    assert {line.count("|") for line in lines} == {report.LEDGER_HEADER.count("|")}
    assert "hold-out, small x10" in lines[0] and "ours matches" in lines[1]
    picture = plots.learning_curves(cache.rounded(rows), tmp_path / "curves.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_learned_rival_is_read_from_named_tensors(tmp_path: Path) -> None:
    from mnemosyne.baselines import BASELINES

    theta = BASELINES["nn-adam"]().init(jax.random.key(3))
    flat = mnemosyne.artifacts.flatten(jax.device_get(theta))
    save_file(flat, tmp_path / "best.safetensors")
    line = rivals.learned(f"nn-adam={tmp_path}")
    assert jax.tree.all(jax.tree.map(np.array_equal, line.theta, theta))
    with pytest.raises(ValueError, match="another rule"):
        rivals.learned(f"lstm={tmp_path}")
    with pytest.raises(ValueError, match="NAME=PATH"):
        rivals.learned("lstm")
    with pytest.raises(ValueError, match="there is no file"):
        rivals.learned(f"lstm={tmp_path / 'none.safetensors'}")
    (tmp_path / "broken.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="damaged"):
        rivals.learned(f"lstm={tmp_path / 'broken.safetensors'}")
