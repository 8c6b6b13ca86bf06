# SPDX-License-Identifier: Apache-2.0
"""Throughput: turns are fair, numbers are those of the turns, and peers run or say why not."""

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import mnemosyne
from experiments import benchmarks
from experiments.benchmarks.throughput import (
    bars,
    brax_peers,
    command,
    evosax_peer,
    gym,
    parts,
    race,
    rows,
    settings,
    shares,
)
from experiments.benchmarks.throughput.handed import Handed
from experiments.benchmarks.throughput.race import Entry, Run, Turn, UnavailableError


class Scripted:
    """A contestant that says when it moved."""

    def __init__(self, name: str, log: list[str], compile_s: float | None = 1.0, fails: int = 99):
        self.name, self.log, self.compile_s, self.fails = name, log, compile_s, fails
        self.closed = False

    def turn(self) -> Turn:
        self.log.append(self.name)
        if self.log.count(self.name) > self.fails:
            raise OverflowError("too many")
        return Turn(100, 10, 2.0, float(self.log.count(self.name)))

    def close(self) -> None:
        self.log.append(f"{self.name} closed")


def entry(name: str, log: list[str], peer: bool = False, **options: Any) -> Entry:
    return Entry(lambda seed: Scripted(name, log, **options), peer)


def test_race_alternates_the_order_and_closes_everybody() -> None:
    log: list[str] = []
    found = race.race({"a": entry("a", log), "b": entry("b", log)}, 3)
    assert log == ["a", "b", "b", "a", "a", "b", "a closed", "b closed"]
    assert [len(run.turns) for run in found.values()] == [3, 3]


def test_race_reports_a_peer_that_fails_and_raises_what_ours_fails_with() -> None:
    log: list[str] = []

    def missing(seed: int) -> Any:
        raise UnavailableError("the package 'x' is not installed")

    entries = {
        "a": entry("a", log),
        "late": entry("late", log, peer=True, fails=1),
        "missing": Entry(missing, True),
    }
    found = race.race(entries, 3)
    assert found["a"].skipped is None and len(found["a"].turns) == 3
    assert found["late"].skipped is not None and "OverflowError: too many" in found["late"].skipped
    assert found["missing"].skipped == "the package 'x' is not installed"
    with pytest.raises(OverflowError):
        race.race({"a": entry("a", log := [], fails=1)}, 3)
    assert log[-1] == "a closed"


def test_compilation_inside_the_first_turn_is_told_from_its_work() -> None:
    turns = [Turn(100, 10, 25.0), Turn(100, 20, 14.0), Turn(100, 10, 5.0), Turn(100, 4, 2.0)]
    run = race.settle(None, turns)
    assert run.compile_s == 20.0 + 4.0
    assert [turn.seconds for turn in run.turns] == [5.0, 10.0, 5.0, 2.0]
    assert race.settle(3.0, turns) == Run(3.0, turns)


def test_time_to_a_return_is_that_of_the_first_evaluation_there_else_of_the_whole_run() -> None:
    turns = [Turn(10, 1, 1.0, score) for score in (1.0, 5.0, 2.0, 7.0)]
    assert rows.time_to(turns, 5.0) == (20, 2.0, True)
    assert rows.time_to(turns, 8.0) == (40, 4.0, False)
    runs = {"ours": [Run(10.0, turns), Run(0.1, turns[2:])], "peer": [Run(5.0, turns)] * 2}
    ours, peer = rows.summarize("ppo", "here", runs, 7.0)
    assert ours["seconds_to_target"] == 10.0 + 3.0 and ours["reached"] == 1.0
    assert peer["seconds_to_target"] == 5.0 + 4.0 and ours["final_returns"] == [7.0, 7.0]


def test_bars_compare_neighbors_in_time_and_know_what_is_missing() -> None:
    slow = [Turn(10, 1, seconds, 1.0) for seconds in (9.0, 9.0, 1.0, 10.0, 1.0)]
    fast = [turn._replace(seconds=turn.seconds / 2) for turn in slow]
    learned = [turn._replace(seconds=turn.seconds / 1.7) for turn in slow]
    runs = {
        "ours": [Run(1.0, fast)],
        "brax": [Run(2.0, slow)],
        "ours, mnemosyne": [Run(1.0, learned)],
        "other": [Run(0.0, [], "not installed")],
    }
    found = {bar.name: bar for bar in bars.bars(rows.summarize("ppo", "here", runs, 1.0))}
    assert found["ppo: steps/s / brax's, here"].value == pytest.approx(2.0)
    assert found["ppo: mnemosyne's steps/s / Adam's, here"].value == pytest.approx(0.85)
    assert found["ppo: mnemosyne's steps/s / Adam's, here"].verdict == "missed"
    assert found["ppo: compile time / brax's, here"].verdict == "met"
    assert found["ppo: time to return / brax's, here"].value == pytest.approx(5.5 / 11.0)
    assert found["ppo: steps/s / other's, here"].verdict == "not measured"


def test_seeds_side_by_side_are_held_against_as_many_whole_single_runs() -> None:
    runs = {"1": Run(10.0, [Turn(100, 1, 2.0)] * 3), "all": Run(15.0, [Turn(400, 4, 4.0)] * 3)}
    row = parts.lanes_row("here", runs, 4, 1000)
    assert row["ratio"] == pytest.approx((15 + 10 * 4) / (4 * (10 + 10 * 2)))
    assert row["ratio_without_compile"] == pytest.approx(0.5)
    assert row["env_steps_per_s"] == [50.0, 100.0]
    (bar,) = bars.bars([row])
    assert bar.verdict == "met" and not bar.at_least


def test_handed_work_moves_only_when_asked_and_stops_where_it_stands() -> None:
    done: list[int] = []

    def work(report: Any) -> None:
        for index in range(3):
            done.append(index)
            report(index)

    one = Handed(work)
    assert done == [] and one.next() == 0 and done == [0]
    assert one.next() == 1 and done == [0, 1]
    one.stop()
    assert done == [0, 1]
    whole = Handed(work)
    assert [whole.next() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="before its last report"):
        whole.next()
    with pytest.raises(ZeroDivisionError):
        Handed(lambda report: report(1 // 0)).next()


def test_plans_divide_their_budgets_into_their_turns() -> None:
    for size in ("smoke", "small", "full"):
        plan = settings.plan(size)
        for course in (plan.ppo, plan.scaling, plan.lanes):
            config = course.config
            assert config.total_env_steps == config.num_timesteps
            assert config.num_envs % config.num_minibatches == 0
            assert config.num_epochs == config.num_evaluations
        for course in plan.es:
            assert course.config.num_epochs(course.episode_length) == course.config.num_evaluations
        assert plan.gym.num_epochs == plan.gym.num_evaluations


def test_peers_that_cannot_run_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = settings.plan("smoke")
    with pytest.raises(UnavailableError, match="Brax's environments only"):
        evosax_peer.EvosaxRun(plan.es[0], 0)
    monkeypatch.setitem(sys.modules, "evosax.problems.networks", None)
    with pytest.raises(UnavailableError, match="evosax"):
        evosax_peer._problem("reacher", plan.es[0])
    config = dataclasses.replace(plan.ppo.config, num_envs=3, num_minibatches=2)
    with pytest.raises(UnavailableError, match="3 environments among 2 minibatches"):
        brax_peers.ppo(dataclasses.replace(plan.ppo, config=config), False, 0)


def test_brax_ppo_takes_turns_of_our_size_and_leaves_its_module_as_it_was() -> None:
    import brax.training.agents.ppo.train as module

    course = settings.plan("smoke").ppo
    found = race.race({"brax": Entry(lambda seed: brax_peers.ppo(course, True, seed), False)}, 3)
    turns = found["brax"].turns
    assert [turn.env_steps for turn in turns] == [course.config.env_steps_per_epoch] * 3
    assert [turn.updates for turn in turns] == [course.config.updates_per_rollout] * 3
    assert all(turn.seconds > 0 and turn.score is not None for turn in turns)
    assert module.jax is jax


def test_stepping_by_hand_keeps_what_a_step_led_to() -> None:
    after = np.zeros((3, 2), np.float32)
    last = np.asarray([None, np.ones(2), None], object)
    info = {"final_obs": last, "_final_obs": np.asarray([False, True, False])}
    np.testing.assert_array_equal(gym._led_to(after, info)[:, 0], [0.0, 1.0, 0.0])
    assert gym._led_to(after, {}) is after


def test_shares_add_up_to_one_and_compilation_is_told_of_a_whole_run() -> None:
    import optax

    course = settings.plan("smoke").ppo
    (row,) = shares.measure(course, {"adam": optax.adam(1e-3)}, 2)
    assert sum(row["shares"].values()) == pytest.approx(1.0)
    assert list(row["shares"]) == ["env", "acting", "optimizer", "other learning"]
    assert min(row["shares"].values()) >= 0.0 and row["optimizer_us"] > 0
    assert row["compile_s"] > 0 and row["env_steps"] == 3 * 4 * 8  # turns, environments, length
    whole = row["compile_s"] + 3 * row["seconds_per_rollout"]
    assert row["compile_share"] == pytest.approx(row["compile_s"] / whole)


def test_shares_table_prints_compilation_beside_the_parts_of_training() -> None:
    row = {"where": "here", "who": "adam", "seconds_per_rollout": 0.25, "optimizer_us": 30.0}
    row |= {"shares": {"env": 0.75, "acting": 0.25}, "compile_s": 12.5, "env_steps": 2_000}
    header, _, cells, *_ = bars.shares_table([row | {"compile_share": 0.4}]).splitlines()
    named = zip(
        *([c.strip() for c in line.split("|")[1:-1]] for line in (header, cells)), strict=True
    )
    assert dict(named) == {
        "shares: here": "adam",
        "ms a rollout": "250.0",
        "env": "75.0%",
        "acting": "25.0%",
        "optimizer us an update": "30",
        "compile s": "12.5",
        "compilation, of 2,000 env steps": "40.0%",
    }


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """A small network that compiles quickly, untrained."""
    config = mnemosyne.MnemosyneConfig(sample=16, chunk=(2, 2), cross_token=False, taus=(0.1,))
    init = jax.jit(mnemosyne.init_meta_params, static_argnums=1)
    theta = jax.device_get(init(jax.random.key(0), config))
    path = tmp_path / "small.safetensors"
    mnemosyne.save_artifact(path, mnemosyne.Artifact(theta, config, {}, ()))
    return str(path)


def test_parts_are_measured_printed_and_found_again(
    tmp_path: Path,
    weights: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = benchmarks.Options(only=("gym",), weights=weights, cache=tmp_path / "cache")
    result = json.loads(json.dumps(benchmarks.run("throughput", options), allow_nan=False))
    assert [row["who"] for row in result["rows"]] == ["ours", "plain loop", "stepping alone"]
    assert {row["skipped"] for row in result["rows"]} == {None}
    assert [bar["name"] for bar in result["bars"]] == [
        "gym: steps/s / plain loop's, gym:Pendulum-v1, 4 envs"
    ]
    assert "not measured" not in capsys.readouterr().out
    monkeypatch.setattr(command, "PARTS", {"gym": lambda *_: pytest.fail("ran again")})
    again = command.run(options)
    assert again["rows"] == result["rows"] and "stored in" in capsys.readouterr().out


def test_a_part_that_there_is_not_is_refused_in_a_sentence(weights: str) -> None:
    run = functools.partial(benchmarks.run, "throughput")
    with pytest.raises(ValueError, match=r"--only takes names of ppo, es.*got 'pp'"):
        run(benchmarks.Options(only=("pp",), weights=weights))
    with pytest.raises(ValueError, match="--seeds means nothing"):
        run(benchmarks.Options(seeds=3, weights=weights))


@pytest.mark.slow
def test_smoke_measures_every_part(tmp_path: Path, weights: str) -> None:
    options = benchmarks.Options(weights=weights, cache=tmp_path)
    result = json.loads(json.dumps(benchmarks.run("throughput", options), allow_nan=False))
    assert {row["part"] for row in result["rows"]} == set(parts.PARTS)
    skipped = {(row["part"], row["who"]) for row in result["rows"] if row["skipped"]}
    assert skipped == {("es", "evosax")}
    for bar in result["bars"]:
        assert (bar["verdict"] == "not measured") == ("evosax" in bar["name"])
