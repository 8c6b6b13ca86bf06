# SPDX-License-Identifier: Apache-2.0
"""What the policy benchmark searches and judges: splits, trials, variations, and stored keys."""

import math
from typing import Any

import numpy as np
import pytest

from experiments import benchmarks, cache, splits
from experiments.benchmarks.policies import records, rules, suites, sweep, tuning
from experiments.benchmarks.policies.cells import make_cell


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
        differing += [name for name in ("withheld", "reward_factor", "halved") if cell.get(name)]
        expected = 0 if label == sweep.BASE else 1 + label.startswith("networks")
        assert len(differing) == expected, label
    config: Any = cells["horizon x 4"].config
    assert config.total_env_steps == 4 * base.config.total_env_steps
    assert cells["minibatches / 8"].config.num_minibatches == 32
    assert cells["networks 4x wider"].config.network.policy_hidden == (256, 256)
    with pytest.raises(ValueError, match="varies the settings of PPO"):
        sweep.variations(make_cell("brax:hopper", "es", 2))
