# SPDX-License-Identifier: Apache-2.0
"""The two by two of warm starts: who starts from what, where, and what is counted."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mnemosyne
from experiments import benchmarks, cache, splits, statistics
from experiments.benchmarks.policies import records, rules, runs
from experiments.benchmarks.policies.cells import make_cell
from experiments.benchmarks.policies.records import Store
from experiments.benchmarks.policies.rules import AdamSettings
from experiments.benchmarks.warm_start import command, pairs, warm
from robotics import warmstart
from robotics.networks import NetworkConfig
from tests.experiments.fake_runner import FakeRunner

NETWORK = NetworkConfig(policy_hidden=(4,), value_hidden=(4,))
TINY = {"num_evaluations": 2, "num_envs": 2, "unroll_length": 4, "num_minibatches": 2}
TINY |= {"num_updates_per_batch": 2, "network": NETWORK}
SMALL = mnemosyne.MnemosyneConfig(sample=16, taus=(0.1,), token_size=8, encoder=False)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    init = jax.jit(mnemosyne.init_meta_params, static_argnums=1)
    theta = jax.device_get(init(jax.random.key(0), SMALL))
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    mnemosyne.save_artifact(path, mnemosyne.Artifact(theta, SMALL, {}, ()))
    return path


@pytest.mark.parametrize("size", ["smoke", "small", "full"])
def test_pairs_never_leave_meta_training_and_validation(size: Any) -> None:
    for split in ("meta-train",) if size == "smoke" else (None, "meta-train", "validation"):
        found = pairs.pairs(benchmarks.Options(size=size, split=split))
        names = [cell.env_name for pair in found for cell in pair]
        assert {splits.env_split(name) for name in names} == {split or "meta-train"}
    for changes, sentence in (
        ({"split": "hold-out"}, "are tried on meta-train and validation"),
        ({"envs": ("ant",)}, "no target has such a name"),
        (
            {"split": "validation"} if size == "smoke" else {"envs": ("zebra",)},
            "leave|no tar",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            pairs.pairs(benchmarks.Options(size=size, **changes))


def test_small_has_two_pairs_at_least_five_seeds_and_finds_the_committed_searches() -> None:
    from experiments.benchmarks.policies import suites, tuning

    options = benchmarks.Options(size="small")
    size, store = suites.thoroughness(options), Store(Path("nowhere"), 8)
    assert size.seeds >= 5
    found = pairs.pairs(options)
    assert [pair.target.label for pair in found] == [
        "brax:inverted_double_pendulum", "control:cartpole-swingup",
    ]  # fmt: skip
    trials = [rules.adam("trial", settings) for settings in tuning.trials(size.trials)]
    seeds = range(tuning.TRIAL_SEED, tuning.TRIAL_SEED + size.trial_seeds)
    assert all(store.find(pair.target, trial, seeds) for pair in found for trial in trials)


def test_lanes_begin_where_the_same_lanes_of_the_source_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "fingerprint", lambda: (1.0,))
    cell = make_cell("probe:observation-action", "ppo", 2, **TINY)
    adam = rules.adam("adam", AdamSettings(3e-2))
    store = Store(tmp_path, 2)
    source = warm.Source(store, cell, adam, SMALL, warmstart.default_parts(same_env=True))
    new = store.record(cell, adam, [3, 4])
    started = warm.WarmStore(store, source).record(cell, adam, [3, 4])
    assert new.returns[0, -1] != new.returns[1, -1]
    # Other episodes are played, but a policy of this probe gets nearly the same in all of them.
    np.testing.assert_allclose(started.returns[:, 0], new.returns[:, -1], atol=0.05)
    assert np.abs(new.returns[:, 0] - new.returns[:, -1]).max() > 0.1
    # Both are found again, and apart from each other.
    assert warm.WarmStore(store, source).find(cell, adam, [3, 4]) is not None
    assert len(list(tmp_path.glob("ppo-probe*"))) == 2


def test_ours_takes_memory_networks_and_statistics_of_its_lane_and_adam_all_but_memory(
    tmp_path: Path, weights: Path
) -> None:
    source = make_cell("probe:observation-action", "ppo", 2, **TINY)
    target = make_cell("control:pointmass", "ppo", 2, **TINY)
    ours = rules.judged(str(weights), ())[0]
    adam = rules.adam("adam", AdamSettings(1e-3))

    def first(cell: Any, rule: Any) -> Any:
        hyper = {name: jnp.asarray(value) for name, value in rule.hyper.items()}
        algorithm = cell.algorithm(cell.env(), rule.make(rule.theta, hyper, cell))
        return jax.jit(jax.vmap(algorithm.init))(runs.seed_keys([0, 1]))

    lanes = first(source, ours)
    memory = lanes.opt_state.memory
    each = jnp.asarray([3.0, 5.0]).reshape(2, *[1] * (memory.matrix.ndim - 1))
    memory = memory._replace(matrix=each * jnp.ones(memory.matrix.shape))
    lanes = lanes._replace(
        params=jax.tree.map(lambda x: x + 1.0, lanes.params),
        opt_state=lanes.opt_state._replace(memory=memory),
    )
    start = warm.Source(Store(tmp_path, 2), source, ours, SMALL, warmstart.PARTS)
    old = jax.device_get(lanes._replace(env_state=None, key=None))
    warm_ours = start.begin(target, ours, first(target, ours), old)
    warm_adam = start.begin(target, adam, first(target, adam), old)
    matrix = np.asarray(warm_ours.opt_state.memory.matrix)
    assert set(np.unique(matrix[0])) == {3.0} and set(np.unique(matrix[1])) == {5.0}
    for state in (warm_ours, warm_adam):
        # The last layer of the value network has the same shape everywhere, the first has not.
        value = state.params["value"]["mlp"]
        theirs = old.params["value"]["mlp"]
        np.testing.assert_array_equal(value["layer_1"]["kernel"], theirs["layer_1"]["kernel"])
        assert value["layer_0"]["kernel"].shape == (2, 4, 4)
    assert float(jnp.abs(warm_adam.opt_state[1].mu["value"]["mlp"]["layer_1"]["kernel"]).max()) == 0


# The whole command, without training.


class _WarmFake(FakeRunner):
    """Gains half as much again where it starts warm."""

    calls: list[Any] = []  # noqa: RUF012

    def runs(self, rule: Any, seeds: Any) -> Any:
        found = super().runs(rule, seeds)
        return found._replace(returns=found.returns + 0.5 * found.returns[:, -1:])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cache, "COMMITTED", tmp_path / "nothing-committed")
    for name in ("bootstrap", "stratified_bootstrap"):
        quick = functools.partial(getattr(statistics, name), draws=40)
        monkeypatch.setattr(statistics, name, quick)
    monkeypatch.setattr(runs, "Runner", FakeRunner)
    monkeypatch.setattr(runs, "fingerprint", lambda: (1.0,))
    monkeypatch.setattr(warm.WarmStore, "runner", lambda self, cell: _WarmFake(cell))
    FakeRunner.calls, FakeRunner.fail_at, _WarmFake.calls = [], None, []


@pytest.mark.usefixtures("fake")
def test_every_row_is_told_and_censored_runs_count_as_whole_runs(tmp_path: Path) -> None:
    options = benchmarks.Options(
        size="small", weights="mnemosyne-rl", cache=tmp_path / "cache", out=tmp_path / "out"
    )
    result = json.loads(json.dumps(command.run(options), allow_nan=False))
    names = ["adam", "adam-warm", "ours", "ours-warm", "oracle"]
    assert [row["optimizer"] for row in result["rows"]] == names * 2
    assert [row["start"] for row in result["rows"][:5]] == ["new", "warm", "new", "warm", "new"]
    assert {len(row["seeds"]) for row in result["rows"]} == {8}
    row = {name: result["rows"][i] for i, name in enumerate(names)}
    # Adam 3e-4 gains 330, and the best of the trials about 480: it never comes to 75 % of that.
    end = row["adam"]["env_steps"]
    assert row["adam"]["times"]["0.75"]["reached"] == 0.0
    assert row["adam"]["times"]["0.75"]["env_steps"] == end
    assert row["adam"]["times"]["0.5"]["reached"] == 1.0
    halves = [row[name]["times"]["0.5"]["env_steps"] for name in ("ours-warm", "ours")]
    assert halves[0] == 0 < halves[1]
    # An env step of ours takes twice as long in this world, with whatever start.
    for name, pace in (("adam-warm", 1e-5), ("ours", 2e-5), ("ours-warm", 2e-5)):
        time = row[name]["times"]["0.9"]
        assert time["seconds"] == pytest.approx(time["env_steps"] * 8 * pace, rel=1e-4)
    assert result["comparisons"]["ours-warm against ours"]["verdict"] == "beats"
    assert result["doubts"] == []
    text = (tmp_path / "out" / "table.md").read_text()
    assert "brax:inverted_pendulum -> brax:inverted_double_pendulum" in text and "warm" in text
    # All is stored now, starts of both kinds apart.
    FakeRunner.calls, _WarmFake.calls = [], []
    again = command.run(options)
    assert FakeRunner.calls == _WarmFake.calls == []
    assert again["summary"].keys() == result["summary"].keys()


def test_stored_runs_of_other_sources_are_not_mixed_up(tmp_path: Path, weights: Path) -> None:
    cells = [make_cell(name, "ppo", 1) for name in ("control:cartpole", "control:pendulum")]
    ours, store = rules.judged(str(weights), ())[0], Store(tmp_path, 2)
    sources = [warm.Source(store, cell, ours, SMALL) for cell in cells]
    sources += [warm.Source(store, cells[0], ours, SMALL, parts=("policy",))]
    stores = [store, *(warm.WarmStore(store, source) for source in sources)]
    keys = [cache.key_hash(one.key(cells[0], ours, [1])) for one in stores]
    assert len(set(keys)) == 4
    assert keys[0] == cache.key_hash(records.description(cells[0], ours, [1]))


def test_parts_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--only takes names of policy, value, heads"):
        command.run(benchmarks.Options(cache=tmp_path, only=("head",)))
