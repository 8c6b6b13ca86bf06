# SPDX-License-Identifier: Apache-2.0
"""The policy benchmark: splits, searches, scores, resuming, and the runs themselves."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import benchmarks, cache, splits, statistics
from experiments.benchmarks.policies import (
    command,
    figures,
    records,
    report,
    rules,
    runs,
    scores,
    suites,
    summary,
    sweep,
    tuning,
)
from experiments.benchmarks.policies.cells import make_cell
from experiments.benchmarks.policies.rules import AdamSettings
from experiments.benchmarks.policies.scores import Scale
from robotics.networks import NetworkConfig
from tests.experiments.fake_runner import FakeRunner

STEPS = np.asarray([0.0, 10.0, 20.0, 30.0, 40.0])
TINY = {
    "num_evaluations": 2,
    "num_envs": 2,
    "unroll_length": 4,
    "num_minibatches": 2,
    "num_updates_per_batch": 2,
    "network": NetworkConfig(policy_hidden=(4,), value_hidden=(4,)),
}


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


# Splits.


@pytest.mark.parametrize("size", ["smoke", "small", "full"])
@pytest.mark.parametrize("algo", ["ppo", "es"])
def test_searches_for_one_adam_stay_on_meta_training_environments(size: Any, algo: Any) -> None:
    for split in (None,) if size == "smoke" else (None, "validation", "hold-out"):
        options = benchmarks.Options(size=size, algo=algo, split=split)
        names = [cell.env_name for cell in suites.search_cells(options)]
        assert names and {splits.env_split(name) for name in names} == {"meta-train"}


def test_a_hold_out_environment_in_the_suite_of_the_search_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(suites._SMALL, ("ppo", "meta-train"), {"brax:ant": 1})
    with pytest.raises(ValueError, match="brax:ant is not in M"):
        suites.search_cells(benchmarks.Options(size="small"))


@pytest.mark.parametrize("split", ["meta-train", "validation", "hold-out"])
@pytest.mark.parametrize("algo", ["ppo", "es"])
@pytest.mark.parametrize("size", ["small", "full"])
def test_judged_cells_belong_to_their_split(split: Any, algo: Any, size: Any) -> None:
    options = benchmarks.Options(size=size, algo=algo, split=split)
    cells = suites.judged_cells(options)
    assert {splits.env_split(cell.env_name) for cell in cells} == {split}
    assert {cell.algo for cell in cells} == {algo}


def test_small_hold_out_has_three_unseen_bodies_at_the_steps_that_are_told() -> None:
    cells = suites.judged_cells(benchmarks.Options(size="small"))
    assert {cell.env_name: cell.config.num_timesteps for cell in cells} == {
        "brax:walker2d": 1_024_000, "brax:ant": 512_000, "brax:swimmer": 512_000,
    }  # fmt: skip
    assert [cell.backend for cell in cells] == ["spring", "spring", "generalized"]
    for cell in cells:  # exactly, so that every rule gets the same
        assert cell.config.total_env_steps == cell.config.num_timesteps
        assert cell.config.num_epochs == 25


def test_seeds_of_searches_and_of_judged_runs_are_disjoint() -> None:
    judged = set(suites.judged_seeds(100))
    assert not judged & set(range(tuning.TRIAL_SEED, tuning.TRIAL_SEED + 100))


def test_environments_can_be_named_within_their_split_only() -> None:
    def names(**changes: Any) -> list[str]:
        options = benchmarks.Options(**{"size": "small", **changes})
        return [cell.env_name for cell in suites.judged_cells(options)]

    assert names(envs=("ant", "walker")) == ["brax:walker2d", "brax:ant"]
    assert names(envs=("brax:humanoid",)) == ["brax:humanoid"]
    for changes in ({"envs": ("brax:hopper",)}, {"envs": ("cheetah",)}):
        with pytest.raises(ValueError, match="hold-out split's suite"):
            names(**changes)
    with pytest.raises(ValueError, match="belongs to no split"):
        names(envs=("probe:value",))
    with pytest.raises(ValueError, match="run inside JAX; there are brax:hopper"):
        names(split="validation", envs=("gym:Hopper-v5",))
    with pytest.raises(ValueError, match="--size smoke only runs"):
        names(size="smoke", split="hold-out")


# What is searched, and what stored numbers depend on.


@pytest.mark.parametrize("algo", ["ppo", "es"])
def test_trials_leave_no_gap_in_the_range_of_rates(algo: Any) -> None:
    found = tuning.trials(12, algo)
    assert found == tuning.trials(12, algo)
    low, high = np.log10(tuning.RATES[algo])
    parts = [(math.log10(s.rate) - low) / (high - low) * 12 for s in found]
    assert sorted(int(part) for part in parts) == list(range(12))
    assert {(s.b1, s.b2) for s in found} <= set(tuning.BETAS)
    assert {s.anneal for s in found} == {True, False}
    assert {s.clip for s in found} == set(tuning.CLIPS)


def test_keys_of_stored_rows_are_those_of_the_rows_that_were_filled() -> None:
    """Hours of training are found again by these; whoever changes them has to repeat the runs."""
    drawn = [[s.rate, s.b1, s.b2, s.anneal, math.isfinite(s.clip)] for s in tuning.trials(12)]
    assert cache.key_hash(drawn) == "3fd8a9822202e414"
    cells = suites.judged_cells(benchmarks.Options(size="small"))
    seeds = suites.judged_seeds(8)
    adam = rules.hand_designed("ppo")[0]
    found = [cache.key_hash(records.description(cell, adam, seeds)) for cell in cells]
    assert found == ["47c613391ac10e07", "88f8d8c8bf944d5b", "23ff4446d84a2aee"]
    names = {rule.name: cache.key_hash(rule.description) for rule in rules.hand_designed("ppo")}
    assert names == {
        "adam": "11569acce8eb97a8",
        "adam-rel": "edac82fd67d5a151",
        "sgd": "87eed92adae29d85",
        "rmsprop": "864db2caca674b73",
        "lion": "aec7a8f26a876373",
        "muon": "033907523fbdd7a2",
        "adam-kl": "7c8d3cb4f8c25850",
    }


def test_a_new_field_with_its_default_leaves_the_key_alone_and_a_changed_one_does_not() -> None:
    cell = make_cell("control:pendulum", "ppo", 2)
    assert cell.description()["config"]["num_envs"] == 16
    other = make_cell("control:pendulum", "ppo", 2, discount=0.9)
    assert cell.description() != other.description()
    assert cell.description() == make_cell("control:pendulum", "ppo", 2, label="x").description()
    assert cell.description() != cell._replace(withheld=True).description()


# Scores.


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


def test_fingerprint_tells_another_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    from robotics.ppo import learn

    before = runs.fingerprint()
    gae = learn.compute_gae
    monkeypatch.setattr(learn, "compute_gae", lambda *a: gae(*a[:-1], 0.9 * a[-1]))
    assert runs.fingerprint.__wrapped__() != before


# Rules.


def test_traced_adam_is_optax_adam_with_its_extras() -> None:
    params, grads = {"w": jnp.asarray([1.0, -2.0])}, {"w": jnp.asarray([3.0, -4.0])}
    cell = make_cell("control:pendulum", "ppo", 1)

    def walk(optimizer: Any, told: tuple[float, ...]) -> np.ndarray:
        state, found = optimizer.init(params), []
        for progress in told:
            updates, state = optimizer.update(grads, state, params, progress=progress)
            found.append(updates["w"])
        return np.asarray(found)

    def ours(settings: AdamSettings) -> np.ndarray:
        rule = rules.adam("x", settings)
        hyper = {name: jnp.asarray(value) for name, value in rule.hyper.items()}
        return walk(rule.make(None, hyper, cell), (0.0, 0.5, 1.0))

    plain = walk(optax.with_extra_args_support(optax.adam(1e-3, 0.9, 0.99)), (0.0,) * 3)
    np.testing.assert_allclose(ours(AdamSettings(1e-3, 0.9, 0.99)), plain, rtol=1e-5)
    fallen = plain * np.asarray([[1.0], [0.5], [0.0]])
    np.testing.assert_allclose(ours(AdamSettings(1e-3, 0.9, 0.99, True)), fallen, rtol=1e-5)
    clip = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-3, 0.9, 0.99, eps=1e-8))
    clipped = walk(optax.with_extra_args_support(clip), (0.0,) * 3)
    np.testing.assert_allclose(ours(AdamSettings(1e-3, 0.9, 0.99, False, 0.5)), clipped, rtol=1e-5)


def test_names_of_rivals_are_taken_once() -> None:
    for spec in ("adam=x", "oracle=x"):
        with pytest.raises(ValueError, match="that name is taken"):
            rules.judged("mnemosyne-rl", (spec,))
    es, ppo = ([rule.name for rule in rules.hand_designed(algo)] for algo in ("es", "ppo"))
    assert ppo == ["adam", "adam-rel", "sgd", "rmsprop", "lion", "muon", "adam-kl"]
    assert es == ["adam", "sgd", "rmsprop", "lion", "muon"]


# Runs.


CELL = make_cell("probe:observation-action", "ppo", 2, **TINY)


@pytest.fixture(scope="module")
def found() -> list[runs.Runs]:
    """Two seeds under two settings of Adam and one that is none, in one program."""
    settings = [AdamSettings(1e-2), AdamSettings(3e-2, 0.9, 0.99), AdamSettings(math.nan)]
    tried = [rules.adam(str(i), s) for i, s in enumerate(settings)]
    runner = runs.Runner(CELL)
    found = runner(tried, [3, 4], 8)  # two lanes are there to fill up
    assert len(runner._programs) == 1
    return found


def test_runner_is_a_plain_loop_for_every_lane(found: list[runs.Runs]) -> None:
    from robotics.evaluate import make_evaluate
    from robotics.run import evaluation_keys

    cell, env, keys = CELL, CELL.env(), runs.seed_keys([4])
    algorithm = cell.algorithm(env, optax.adam(3e-2, 0.9, 0.99))
    state = jax.jit(jax.vmap(algorithm.init))(keys)
    epoch = jax.jit(jax.vmap(algorithm.epoch))
    play = jax.jit(jax.vmap(make_evaluate(env, algorithm.policy, cell.episodes)))
    for i in range(3):
        episodes = play(algorithm.inference_params(state), evaluation_keys(keys, i))
        expected = float(jnp.mean(episodes["episode_return"]))
        assert found[1].returns[1, i] == pytest.approx(expected, rel=1e-4)
        state, _ = epoch(state)
    assert not np.allclose(found[0].returns[1, 1:], found[1].returns[1, 1:])
    assert found[0].env_steps.tolist() == [0.0, 16.0, 32.0] and found[0].updates == 16
    assert found[0].finite.tolist() == [True, True] and found[0].kl.shape == (2, 2)


def test_runner_marks_diverged_runs_and_lets_the_others_be(found: list[runs.Runs]) -> None:
    assert [one.finite.tolist() for one in found] == [[True] * 2, [True] * 2, [False] * 2]


def test_withheld_extras_do_not_reach_the_optimizer() -> None:
    told: list[set[str]] = []

    def update(grads: Any, state: Any, params: Any = None, **extras: Any) -> Any:
        told.append(set(extras))
        return grads, state

    spy = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    cell = make_cell("probe:value", "ppo", 1, **TINY)
    for one in (cell, cell._replace(withheld=True)):
        algorithm = one.algorithm(one.env(), spy)
        jax.eval_shape(lambda key, a=algorithm: a.epoch(a.init(key)), jax.random.key(0))
    assert {"kl", "progress", "epoch"} <= told[0] and told[-1] == set()


# The whole command, without training.


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
    assert len(kept) == 2 * 10
    assert kept["rewards x 1e3", "ours"] == 1.0
    assert kept["rewards x 1e3", "adam"] == pytest.approx(0.5, rel=0.02)
    shorter = next(r for r in result["rows"] if r["variation"] == sweep.SHORTER)
    # A run of the same shape, so four times as far as the base was after a quarter.
    assert shorter["kept_at_equal_steps"] == pytest.approx(4 * 0.98, rel=0.03)
    assert "rewards x 1e3" in (tmp_path / "out" / "table.md").read_text()


def test_sweep_varies_one_thing_at_a_time() -> None:
    base = make_cell("brax:hopper", "ppo", 8)
    cells = sweep.variations(base)
    told = {label: cell.description() for label, cell in cells.items()}
    for label, cell in told.items():
        differing = [
            name
            for part in ("config", "network")
            for name in cell[part]
            if cell[part][name] != told[sweep.BASE][part][name]
        ]
        # Both networks change their width together.
        expected = 0 if label == sweep.BASE else 1 + label.startswith("networks")
        assert len(differing) + cell["withheld"] == expected
    config: Any = cells["horizon x 4"].config
    assert config.total_env_steps == 4 * base.config.total_env_steps
    assert cells["minibatches / 8"].config.num_minibatches == 32
    assert cells["networks 4x wider"].config.network.policy_hidden == (256, 256)
    with pytest.raises(ValueError, match="varies the settings of PPO"):
        sweep.variations(make_cell("brax:hopper", "es", 2))


def test_kept_share_has_known_numbers() -> None:
    base, half = np.full(4, 300.0), np.full(4, 200.0)
    assert sweep.kept(half, base, 100.0) == (0.5, (0.5, 0.5))
    assert sweep.kept(half, np.full(4, 50.0), 100.0)[0] == sweep.MOST
    found = sweep.at_steps(_record([80.0, 40.0]), 15.0)
    np.testing.assert_allclose(found, [30.0, 15.0])


def test_figures_survive_diverged_runs(tmp_path: Path) -> None:
    row = {
        "cell": "a", "optimizer": "ours", "random": 1.0, "curve_steps": [0, 1],
        "curves": [[1.0, None], [1.0, 2.0]], "normalized": [-1.0, 1.0],
    }  # fmt: skip
    assert [path.stat().st_size > 1000 for path in figures.draw({"rows": [row]}, tmp_path)]
