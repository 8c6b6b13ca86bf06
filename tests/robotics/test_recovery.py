# SPDX-License-Identifier: Apache-2.0
"""What is not finite is located and taken back; the other seeds keep every bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from envs.api import EpisodeWrapper
from robotics import faults, run
from robotics.algorithm import Algorithm
from robotics.chunks import CompiledChunks, HostChunks
from robotics.es import ESConfig, make_es
from robotics.host import env_seeds
from robotics.networks import NetworkConfig
from robotics.ppo import PPOConfig, learn, make_host_ppo, make_ppo
from robotics.progress import Progress
from robotics.recovery import Recovery
from robotics.rollout import reset
from tests.robotics import test_run
from tests.robotics.broken_env import Break, BrokenEnv, BrokenHost
from tests.robotics.counting_env import CountingEnv

SEEDS = [0, 1, 2, 3]
OPTIMIZER = optax.adam(1e-3)
NETWORK = NetworkConfig(policy_hidden=(4,), value_hidden=(4,))
# A chunk is two rollouts of 8 steps in 4 environments.
PPO = PPOConfig(
    num_timesteps=192,
    num_evaluations=3,
    num_envs=4,
    unroll_length=8,
    num_minibatches=2,
    num_updates_per_batch=2,
    reward_scaling=0.01,
    network=NETWORK,
)


def _config(folder: Path, seeds: int = 4) -> run.RunConfig:
    return run.RunConfig(folder, num_seeds=seeds, eval_episodes=2, max_to_keep=9, quiet=True)


def _train(algorithm, folder: Path) -> dict:
    return run.train(algorithm, EpisodeWrapper(CountingEnv()), OPTIMIZER, _config(folder))


def _ppo(*breaks: Break) -> Algorithm:
    return make_ppo(EpisodeWrapper(BrokenEnv(breaks=breaks)), PPO, OPTIMIZER)


def _faults(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "faults.jsonl").read_text().splitlines()]


def _place(fault: dict, *names: str) -> tuple:
    return tuple(fault[name] for name in names)


def _columns(folder: Path, seed: int) -> list[dict]:
    rows = test_run.rows_of(folder)
    return [
        {tag: value[seed] if isinstance(value, list) else value for tag, value in row.items()}
        for row in rows
    ]


class Told(NamedTuple):
    folder: Path
    fields: dict
    algorithm: Algorithm


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Told:
    folder = tmp_path_factory.mktemp("clean") / "run"
    algorithm = _ppo()
    return Told(folder, _train(algorithm, folder), algorithm)


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Told:
    """Seed 0 breaks in its first chunk, seed 1 in its second, seed 2 in its third, seed 3 never."""
    starts = jax.vmap(_ppo().init)(run.seed_keys(_config(Path()))).env_state.obs[..., 0]
    breaks = (
        Break("obs", float(starts[0, 2]), 3),
        Break("reward", float(starts[1, 1]), 29),
        Break("physics", float(starts[2, 3]), 33),
    )
    folder = tmp_path_factory.mktemp("broken") / "run"
    algorithm = _ppo(*breaks)
    return Told(folder, _train(algorithm, folder), algorithm)


def test_nan_in_an_environment_is_located_to_its_step(broken):
    names = ("seed", "chunk", "term", "env", "round", "step")
    found = [_place(fault, *names) for fault in _faults(broken.folder)]
    assert found == [
        (0, 0, "observation", 2, 0, 2),
        (1, 1, "reward", 1, 1, 4),
        (2, 2, "env state physics", 3, 0, 0),
    ]
    assert _faults(broken.folder)[1]["what"] == (
        "reward of environment 1 at env step 4 of rollout 1 of the chunk is not finite"
    )


def test_rolled_back_seeds_go_on_with_a_smaller_step_and_have_not_failed(broken):
    fields = broken.fields
    assert fields["rollbacks"] == [1, 1, 1, 0] and fields["discarded_env_steps"] == [64, 64, 64, 0]
    assert fields["failed"] == fields["frozen"] == [False] * 4
    assert fields["env_steps_per_seed"] == [192] * 4
    rows = test_run.rows_of(broken.folder)[1:]
    assert [row["recovery/step_scale"] for row in rows] == [
        [0.5, 1.0, 1.0, 1.0],
        [1.0, 0.5, 1.0, 1.0],
        [1.0, 1.0, 0.5, 1.0],
    ]
    assert [row["recovery/rollbacks"] for row in rows] == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 0],
    ]
    assert all(np.isfinite(row["training/total_loss"]).all() for row in rows)


def test_other_seeds_keep_every_bit(clean, broken):
    assert "faults.jsonl" not in [path.name for path in clean.folder.iterdir()]
    assert _columns(broken.folder, 3) == _columns(clean.folder, 3)
    for seed, chunks_before in ((1, 1), (2, 2)):
        ours, theirs = _columns(broken.folder, seed), _columns(clean.folder, seed)
        assert ours[: 1 + chunks_before] == theirs[: 1 + chunks_before]
        assert ours[1 + chunks_before] != theirs[1 + chunks_before]


def test_run_resumed_before_a_rollback_takes_the_same_turn(broken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(broken.folder, folder)
    shutil.rmtree(folder / "checkpoints" / f"{192:012d}")
    fields = _train(broken.algorithm, folder)
    assert _faults(folder) == _faults(broken.folder)
    assert test_run.without_times(fields) == test_run.without_times(broken.fields)
    assert test_run.rows_of(folder) == test_run.rows_of(broken.folder)


@jax.custom_vjp
def _nan_gradient(value, flag):
    return 0.0 * value


_nan_gradient.defvjp(
    lambda value, flag: (0.0 * value, flag),
    lambda flag, _: (jnp.where(flag, jnp.nan, 0.0), None),
)


def _treacherous_loss(params, minibatch, config, discrete=False):
    """Its gradient is NaN where a bias of the policy is 7, the loss itself where it is 8."""
    loss, scalars = _LOSS(params, minibatch, config, discrete)
    mark = params["policy"]["mlp"]["layer_0"]["bias"][0]
    loss = loss + _nan_gradient(mark, mark == 7.0)
    return jnp.where(mark == 8.0, jnp.nan, loss), scalars


_LOSS = learn.compute_ppo_loss


def _treacherous_optimizer() -> optax.GradientTransformation:
    """SGD that adds ``state["value"]`` to the first entry of all in update number 5."""

    def init(params):
        return {"count": jnp.zeros((), jnp.int32), "value": jnp.zeros(())}

    def update(grads, state, params=None):
        steps = jax.tree.map(lambda grad: -1e-4 * grad, grads)
        wrong = jnp.where(state["count"] == 5, state["value"], 0.0)
        bias = steps["value"]["mlp"]["layer_0"]["bias"]
        steps["value"]["mlp"]["layer_0"]["bias"] = bias.at[0].add(wrong)
        return steps, state | {"count": state["count"] + 1}

    return optax.GradientTransformation(init, update)


def test_bad_loss_gradient_and_updates_are_located_and_smaller_steps_help(monkeypatch, tmp_path):
    """Five seeds: calm, NaN updates, huge updates, NaN gradient, NaN loss."""
    monkeypatch.setattr(learn, "compute_ppo_loss", _treacherous_loss)
    algorithm = make_ppo(EpisodeWrapper(CountingEnv(3)), PPO, _treacherous_optimizer())
    state = jax.vmap(algorithm.init)(run.seed_keys(_config(Path(), 5)))
    state.opt_state["value"] = jnp.array([0.0, jnp.nan, 3 * faults.HUGE, 0.0, 0.0])
    bias = state.params["policy"]["mlp"]["layer_0"]["bias"]
    state.params["policy"]["mlp"]["layer_0"]["bias"] = bias.at[3:, 0].set(jnp.array([7.0, 8.0]))
    said: list[str] = []
    chunks = CompiledChunks(algorithm, state, jax.block_until_ready, said.append)
    progress = Progress.of_seeds(5)
    recovery = Recovery(algorithm, chunks, list(range(5)), tmp_path, said.append)
    after, metrics = recovery.advance(state, progress)
    assert progress.rollbacks == [0, 6, 2, 6, 6]
    assert progress.frozen == [False, True, False, True, True]
    assert progress.step_scale[:3] == [1.0, 0.5**5, 0.25]
    terms = {
        fault["seed"]: (fault["term"], fault["round"], fault["step"]) for fault in progress.faults
    }
    assert terms == {
        (1, "parameters value/mlp/layer_0/bias", 1, 1),
        (2, "parameters value/mlp/layer_0/bias", 1, 1),
        (3, "gradient policy/mlp/layer_0/bias", 0, 0),
        (4, "loss", 0, 0),
    }
    assert len([line for line in said if line.startswith("seed 4: loss at update 0 of roll")]) == 6
    alone = chunks.run(state, np.ones(5, np.float32), None)
    for i, wanted in ((0, alone.state), (1, state), (3, state), (4, state)):
        for ours, theirs in zip(jax.tree.leaves(after), jax.tree.leaves(wanted), strict=True):
            if not jax.dtypes.issubdtype(ours.dtype, jax.dtypes.prng_key):
                np.testing.assert_array_equal(ours[i], theirs[i])
    largest = jnp.max(jnp.abs(after.params["value"]["mlp"]["layer_0"]["bias"]), axis=1)
    assert 0.7 * faults.HUGE < largest[2] < faults.HUGE
    assert np.isnan(metrics["training/total_loss"]).tolist() == progress.frozen


def test_es_locates_what_breaks_in_an_episode(tmp_path):
    config = ESConfig(
        num_timesteps=400,
        num_evaluations=2,
        population_size=8,
        network=NetworkConfig(policy_hidden=(4,), noise="none"),
    )

    def make(*breaks: Break) -> Algorithm:
        return make_es(EpisodeWrapper(BrokenEnv(breaks=breaks), 5), config, OPTIMIZER)

    state = jax.vmap(make().init)(run.seed_keys(_config(Path())))
    keys = jax.vmap(lambda key: jax.random.split(key, 3)[2])(state.key)
    starts = jax.vmap(lambda key: reset(EpisodeWrapper(CountingEnv()), key, 4).obs[:, 0])(keys)
    breaks = (
        Break("obs", float(starts[0, 2]), 3),
        Break("reward", float(starts[1, 1]), 5),
        Break("physics", float(starts[2, 3]), 1),
    )
    outcomes = []
    for algorithm in (make(), make(*breaks)):
        chunks = CompiledChunks(algorithm, state, jax.block_until_ready, print)
        progress = Progress.of_seeds(4)
        recovery = Recovery(algorithm, chunks, SEEDS, tmp_path, print)
        outcomes.append(recovery.advance(state, progress))
    assert progress.rollbacks == [1, 1, 1, 0] and not any(progress.frozen)
    places = [
        (fault["term"], fault["env"], fault["round"], fault["step"]) for fault in progress.faults
    ]
    assert places == [
        ("observation", 2, 0, 2),
        ("reward", 1, 0, 4),
        ("env state physics", 3, 0, 0),
    ]
    clean, broken = (jax.device_get(state.params) for state, _ in outcomes)
    for theirs, ours in zip(jax.tree.leaves(clean), jax.tree.leaves(broken), strict=True):
        np.testing.assert_array_equal(ours[3], theirs[3])
        assert np.isfinite(ours).all()
    assert np.isfinite(outcomes[1][1]["training/fitness_mean"]).all()


def test_host_environments_of_the_other_seeds_stay_as_they_are(tmp_path):
    config = PPOConfig(**(PPO.__dict__ | {"num_timesteps": 128, "num_evaluations": 2}))

    def rows_of(*breaks: Break) -> tuple[list[dict], Progress]:
        algorithm = make_host_ppo(BrokenHost(breaks), config, OPTIMIZER)
        state = jax.vmap(algorithm.init)(run.seed_keys(_config(Path(), 3)))
        chunks = HostChunks(algorithm, state, lambda: None)
        progress, rows = Progress.of_seeds(3), []
        recovery = Recovery(algorithm, chunks, [0, 1, 2], tmp_path, print)
        for _ in range(2):
            state, metrics = recovery.advance(state, progress)
            rows.append(metrics)
        return rows, progress

    algorithm = make_host_ppo(BrokenHost(), config, OPTIMIZER)
    state = jax.vmap(algorithm.init)(run.seed_keys(_config(Path(), 3)))
    seeds = env_seeds(state.key, 4)
    clean, _ = rows_of()
    broken, progress = rows_of(
        Break("reward", int(seeds[0, 3]), 2), Break("obs", int(seeds[2, 1]), 13)
    )
    assert progress.rollbacks == [1, 0, 1]
    places = [
        (fault["seed"], fault["term"], fault["env"], fault["round"]) for fault in progress.faults
    ]
    assert places == [(0, "reward", 3, 0), (2, "observation", 1, 1)]
    assert [fault["step"] for fault in progress.faults] == [1, 4]
    for theirs, ours in zip(clean, broken, strict=True):
        for tag in theirs:
            assert ours[tag][1] == theirs[tag][1], tag
            assert np.isfinite(ours[tag]).all()
    assert not np.array_equal(broken[0]["training/v_loss"], clean[0]["training/v_loss"])


def test_health_knows_what_is_meant_to_be_infinite_and_what_is_telemetry():
    class State(NamedTuple):
        params: dict
        opt_state: dict

    before = State({"w": jnp.ones(2)}, {"best": jnp.array([jnp.inf, 1.0]), "count": jnp.array(1)})
    well = {"training/loss": jnp.ones(()), "optimizer/cosine": jnp.array(jnp.nan)}

    def code(state, metrics=well):
        return int(faults.health(state, before, metrics))

    names = faults.health_names(before, well)
    assert code(before) == -1
    worse = before.opt_state | {"best": jnp.array([jnp.inf, jnp.nan])}
    assert names[code(before._replace(opt_state=worse))] == "opt_state/best"
    large = before._replace(params={"w": jnp.array([1.0, -2 * faults.HUGE])})
    assert names[code(large)] == "params/w"
    assert names[code(before, {"training/loss": jnp.array(jnp.inf)})] == "training/loss"
    half = before._replace(params={"w": jnp.array([1.0, jnp.inf], jnp.bfloat16)})
    assert names[code(half)] == "params/w"


def test_scaled_updates_leave_the_state_alone_and_one_adds_nothing():
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    grads = {"w": jnp.full(3, 0.5, jnp.bfloat16)}
    whole, state = OPTIMIZER.update(grads, OPTIMIZER.init(params), params)
    half, other = faults.scaled(OPTIMIZER, jnp.float32(0.5)).update(grads, OPTIMIZER.init(params))
    np.testing.assert_array_equal(half["w"], 0.5 * whole["w"])
    assert half["w"].dtype == jnp.bfloat16
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), state, other))
    jaxpr = jax.make_jaxpr(faults.scaled(optax.sgd(1.0), 1.0).update)(
        grads, optax.sgd(1.0).init(params)
    )
    assert str(jaxpr) == str(
        jax.make_jaxpr(optax.sgd(1.0).update)(grads, optax.sgd(1.0).init(params))
    )
