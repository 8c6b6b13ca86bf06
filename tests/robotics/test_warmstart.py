# SPDX-License-Identifier: Apache-2.0
"""What a run takes over from an earlier one, and what a probe costs and leaves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import envs
from envs.api import EpisodeWrapper
from robotics import probe, warmstart
from robotics.algorithm import count_env_steps
from robotics.checkpoint import Checkpointer
from robotics.monitor import read_metrics
from robotics.networks import NetworkConfig
from robotics.ppo import PPOConfig, make_ppo
from robotics.run import RunConfig, train
from tests.robotics import test_run
from tests.robotics.counting_env import HiddenCountingEnv
from tests.robotics.fake import make_fake

ENV = EpisodeWrapper(envs.make("probe:observation-action"))


def _config(hidden: int = 4, **changes: Any) -> PPOConfig:
    fields = {"num_timesteps": 12_800, "num_evaluations": 2, "num_envs": 8, "unroll_length": 8}
    network = NetworkConfig(policy_hidden=(hidden, 4), value_hidden=(4,))
    fields |= {"num_minibatches": 2, "normalize_rewards": True, "network": network}
    return PPOConfig(**fields | changes)


def _template(config: PPOConfig, env: Any = None) -> Any:
    key, env = jax.eval_shape(jax.random.key, 0), ENV if env is None else EpisodeWrapper(env)
    return jax.eval_shape(make_ppo(env, config, optax.adam(1e-3)).init, key)


def _filled(template: Any, seeds: int, value: float) -> Any:
    """A training state of several seeds; seed ``i`` holds ``value + i`` everywhere."""

    def fill(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(1), (seeds, *leaf.shape))
        each = value + np.arange(seeds).reshape(seeds, *[1] * len(leaf.shape))
        return jnp.asarray(np.broadcast_to(each, (seeds, *leaf.shape)), leaf.dtype)

    return jax.tree.map(fill, template)


def _write(folder: Path, state: Any, returns: list[float]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with Checkpointer(folder / "checkpoints", identity={"algo": "ppo"}) as checkpointer:
        checkpointer.save(640, state, {"history": [{"return": returns}]})
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> warmstart.Source:
    """Three seeds, the best of which (not the diverged one) is the second."""
    state = _filled(_template(_config()), 3, 500.0)
    kernel = state.params["policy"]["mlp"]["layer_0"]["kernel"].at[2].set(jnp.nan)
    state.params["policy"]["mlp"]["layer_0"]["kernel"] = kernel
    folder = tmp_path_factory.mktemp("source") / "run"
    return warmstart.read_source(_write(folder, state, [1.0, 2.0, 3.0]))


def _transfer(
    source: warmstart.Source, config: PPOConfig, parts: Any = warmstart.PARTS, env: Any = None
) -> Any:
    template = _template(config, env)
    plan = warmstart.make_plan(source, template, parts, config.num_timesteps)
    fresh = jax.tree.map(lambda leaf: leaf[0], _filled(template, 1, 7.0))
    return plan, warmstart.transfer(fresh, plan.leaves)


def _values(tree: Any) -> set[float]:
    return {float(value) for leaf in jax.tree.leaves(tree) for value in np.ravel(leaf)}


def test_alike_runs_take_everything_of_the_best_finite_seed(source: warmstart.Source) -> None:
    assert (source.seed, source.env_steps) == (1, 640)
    plan, state = _transfer(source, _config())
    assert _values(state.params) == {501.0}
    assert _values(state.normalizer["observation"]._replace(count=())) == {501.0}
    assert plan.taken == ("policy", "value", "normalizer", "heads")
    assert plan.lines["policy"] == "7 of 7 arrays taken over"
    # The rest begins as ever: optimizer, running returns, counters.
    assert _values((state.opt_state, state.normalizer["running_return"], state.updates)) == {7.0}


def test_old_statistics_weigh_a_tenth_of_the_budget_at_most(source: warmstart.Source) -> None:
    assert _transfer(source, _config())[1].normalizer["return"].count == 501.0
    _, state = _transfer(source, _config(num_timesteps=640))
    assert {float(state.normalizer[name].count) for name in ("observation", "return")} == {64.0}


def test_only_what_has_the_same_role_and_shape_is_taken(source: warmstart.Source) -> None:
    plan, state = _transfer(source, _config(hidden=6))
    layers = state.params["policy"]["mlp"]
    assert _values(layers["layer_0"]) == {7.0} and _values(layers["layer_2"]) == {501.0}
    assert _values(layers["layer_1"]["bias"]) == {501.0}
    assert plan.lines["policy"] == (
        "4 of 7 arrays taken over, anew: mlp/layer_0/bias (6, there 4); "
        "mlp/layer_0/kernel (1x6, there 1x4); mlp/layer_1/kernel (6x4, there 4x4)"
    )


def test_parts_are_taken_alone(source: warmstart.Source) -> None:
    plan, state = _transfer(source, _config(), ("value", "heads"))
    assert _values(state.params["policy"]) == {7.0} == _values(state.normalizer["observation"])
    assert _values(state.params["value"]) == {501.0} == _values(state.normalizer["return"])
    assert plan.taken == ("value", "heads")


def test_heads_begin_anew_unless_they_are_wanted(source: warmstart.Source) -> None:
    parts = warmstart.default_parts(same_env=False)
    plan, state = _transfer(source, _config(), parts)
    policy, value = state.params["policy"], state.params["value"]["mlp"]
    for fresh in (policy["log_std"], policy["mlp"]["layer_2"], value["layer_1"]):
        assert _values(fresh) == {7.0}
    for old in (policy["mlp"]["layer_0"], policy["mlp"]["layer_1"], value["layer_0"]):
        assert _values(old) == {501.0}
    assert plan.taken == ("policy", "value", "normalizer")
    assert (
        warmstart.default_parts(same_env=True)
        == warmstart.PARTS
        == (*parts[:2], "heads", *parts[2:])
    )


def test_what_was_a_head_in_the_source_is_one(source: warmstart.Source) -> None:
    deeper = NetworkConfig(policy_hidden=(4, 4, 1), value_hidden=(4,))
    parts = warmstart.default_parts(same_env=False)
    _, state = _transfer(source, _config(network=deeper), parts)
    layers = state.params["policy"]["mlp"]
    assert [_values(layers[f"layer_{i}"]) for i in range(4)] == [{501.0}, {501.0}, {7.0}, {7.0}]


def test_heads_alone_are_of_no_network(source: warmstart.Source) -> None:
    plan, state = _transfer(source, _config(), ("heads", "normalizer"))
    assert _values(state.params) == {7.0} and plan.taken == ("normalizer",)
    assert plan.lines["heads"] == "begin anew, none fits what is taken over"


def test_values_of_other_rewards_are_left_alone(source: warmstart.Source) -> None:
    plan, state = _transfer(source, _config(normalize_rewards=False))
    assert _values(state.params["value"]) == {7.0} and "value" not in plan.taken
    assert "rewards are normalized in one of the runs only" in plan.lines["value"]


def test_value_network_comes_with_the_privileged_observation_it_reads(tmp_path: Path) -> None:
    shown, other = (HiddenCountingEnv(privileged_observation_size=n) for n in (2, 0))
    state = _filled(_template(_config(), shown), 1, 500.0)
    source = warmstart.read_source(_write(tmp_path / "run", state, [1.0]))
    plan, state = _transfer(source, _config(), env=shown)
    taken = (state.params, state.normalizer["privileged"], state.normalizer["observation"])
    assert _values(taken) == {500.0} and "value" in plan.taken
    plan, state = _transfer(source, _config(), env=other)
    assert _values(state.params["policy"]) == {500.0} and _values(state.params["value"]) == {7.0}
    assert plan.lines["value"] == "begins anew, it reads another privileged observation"


def test_warm_start_of_the_optimizer_gets_the_new_parameters(source: warmstart.Source) -> None:
    template = _template(_config())
    plan = warmstart.make_plan(source, template, warmstart.PARTS, 12_800)
    fresh = _filled(template, 2, 7.0)
    start = lambda params: (params["value"]["mlp"]["layer_0"]["bias"], ())  # noqa: E731
    state = jax.jit(jax.vmap(lambda s: warmstart.transfer(s, plan.leaves, start)))(fresh)
    assert _values(state.opt_state) == {501.0} and state.opt_state[0].shape == (2, 4)


def test_sources_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        warmstart.read_source(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        warmstart.read_source(tmp_path / "empty")
    lost = _filled({"params": {"w": jnp.zeros(2)}}, 2, np.nan)
    folder = _write(tmp_path / "lost", lost, [1.0, 2.0])
    with pytest.raises(ValueError, match=r"no seed of .* has finite parameters"):
        warmstart.read_source(folder)
    files = [path for path in (folder / "checkpoints").rglob("*") if path.is_file()]
    file = max((p for p in files if p.suffix != ".sha256"), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is damaged"):
        warmstart.read_source(folder)


@pytest.mark.parametrize("budget", [800, 12_800, 100_000, 1_000_000])
@pytest.mark.parametrize("share", [0.01, 0.004])
def test_probe_and_run_together_keep_to_the_budget(budget: int, share: float) -> None:
    config = _config(num_timesteps=budget)
    if share * budget < config.num_envs:
        with pytest.raises(ValueError, match="use --num-timesteps 2000 or more, or no probe"):
            probe.probe_config(config, share)
        return
    found = probe.probe_config(config, share)
    assert 0 < found.total_env_steps <= share * budget
    assert found.total_env_steps > share * budget / 2 - config.num_envs
    after = probe.after_probe(config, share)
    assert found.total_env_steps + after.total_env_steps <= budget
    assert after.num_envs == found.num_envs == 8


@pytest.mark.parametrize("share", [0.0, 0.02, -0.01, float("nan")])
def test_share_of_a_probe_is_at_most_a_hundredth(share: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \(0, 0\.01\]"):
        probe.probe_config(_config(), share)


def test_probe_fills_normalizer_and_optimizer_and_moves_no_parameter() -> None:
    told: list[set[str]] = []
    adam = optax.with_extra_args_support(optax.adam(1e-1))

    def update(grads: Any, state: Any, params: Any = None, **extras: Any) -> Any:
        told.append(set(extras))
        # Were the run's progress that of the probe, it would not be 0 at its end.
        moved, state = adam.update(grads, state, params)
        return moved, (state[0]._replace(count=state[0].count + (extras["progress"] > 0)), state[1])

    spy = optax.GradientTransformationExtraArgs(adam.init, update)
    config = probe.probe_config(_config(), 0.01)
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    before = jax.jit(jax.vmap(make_ppo(ENV, _config(), spy).init))(keys)
    after = probe.run_probe(make_ppo(ENV, config, probe.standing_still(spy)), before)
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    assert after.normalizer["observation"].count.tolist() == [128.0, 128.0]
    assert count_env_steps(after.env_steps).tolist() == [128, 128] and 128 <= 0.01 * 12_800
    assert after.updates.tolist() == after.epoch.tolist() == [0, 0]
    # Two rollouts of two minibatches, each read once.
    assert after.opt_state[0].count.tolist() == [4, 4] and {"kl", "progress"} <= told[0]
    assert min(float(jnp.abs(x).max()) for x in jax.tree.leaves(after.opt_state[0].nu)) > 0


# In the host loop.


class _WarmUp:
    """Puts the one parameter of the fake algorithm somewhere, for 40 env steps; counts calls."""

    calls = 0

    def __call__(self, state: Any, say: Any) -> tuple[Any, int]:
        self.calls += 1
        say("warm")
        return state._replace(params=jax.tree.map(lambda w: w + 0.3, state.params)), 40


def _run(folder: Path, warm_up: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Numbers and rows of a run, times aside."""
    optimizer, config = optax.adam(0.1), RunConfig(folder, num_seeds=2, eval_episodes=4, quiet=True)
    actions = EpisodeWrapper(envs.make("probe:action"))
    fields = train(make_fake(optimizer), actions, optimizer, config, warm_up=warm_up)
    rows = read_metrics(folder / "metrics.jsonl")
    return test_run.without_times(fields), [test_run.without_times(row) for row in rows]


def test_warm_started_run_resumes_to_the_bit_and_is_warmed_up_once(tmp_path: Path) -> None:
    warm_up = _WarmUp()
    whole = _run(tmp_path / "whole", warm_up)
    assert warm_up.calls == 1
    assert [row["env_steps"] for row in whole[1]] == [40, 140, 240, 340, 440]
    assert whole[0]["env_steps_per_seed"] == [440, 440]
    # The answer of the task is atanh(0.5), and a cold start is near 0.
    assert np.mean(whole[1][0]["eval/episode_reward"]) > -0.15
    # Stopped after the second checkpoint, and before the first one.
    for kept, calls in ((2, 1), (0, 2)):
        folder = tmp_path / f"kept{kept}"
        shutil.copytree(tmp_path / "whole", folder)
        for path in folder.glob("checkpoints/*"):
            if int(path.name) > 40 + 100 * kept:
                shutil.rmtree(path)
        assert _run(folder, warm_up) == whole
        assert warm_up.calls == calls
