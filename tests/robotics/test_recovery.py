# SPDX-License-Identifier: Apache-2.0
"""What is not finite is located and taken back; the other seeds keep every bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from envs.api import EpisodeWrapper
from robotics import faults
from robotics.chunks import CompiledChunks, HostChunks, Mask
from robotics.es import ESConfig, make_es
from robotics.es.strategy import gradient_strategy
from robotics.es.train import make_evolution
from robotics.host import env_seeds
from robotics.networks import NetworkConfig
from robotics.ppo import PPOConfig, learn, make_host_ppo, make_ppo
from robotics.progress import Progress
from robotics.recovery import Recovery
from robotics.rollout import reset
from tests.robotics.broken_env import Break, BrokenEnv, BrokenHost

HUGE = faults.HUGE
OPTIMIZER = optax.adam(1e-3)
# A chunk is two rollouts of 8 steps in 4 environments, with 2 updates after each.
PPO: dict[str, Any] = {
    "num_timesteps": 128,
    "num_evaluations": 2,
    "num_envs": 4,
    "unroll_length": 8,
    "num_minibatches": 2,
    "num_updates_per_batch": 1,
    "reward_scaling": 0.01,
    "network": NetworkConfig(policy_hidden=(4,), value_hidden=(4,)),
}


def _starts(algorithm, *groups: list[int]) -> list[Any]:
    """The first states of groups of seeds, all of one size."""
    init = jax.jit(jax.vmap(algorithm.init))
    return [init(jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))) for seeds in groups]


def _place(fault: dict, *names: str) -> tuple:
    return tuple(fault[name] for name in names)


def _assert_rows_equal(ours: Any, theirs: Any, row: int) -> None:
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a[row], b[row])


class Told(NamedTuple):
    """A chunk that was recovered, and what the same program makes of it without breaks."""

    before: Any
    after: Any
    metrics: dict[str, np.ndarray]
    progress: Progress
    said: list[str]
    clean: Any
    folder: Path


def _recover(algorithm, before: Any, others: Any, folder: Path) -> Told:
    """One chunk from ``before``, and from ``others``, where only the first seed is the same."""
    said: list[str] = []
    chunks = CompiledChunks(algorithm, before, jax.block_until_ready, said.append)
    count = len(before.updates)
    progress = Progress.of_seeds(count)
    recovery = Recovery(algorithm, chunks, list(range(10, 10 + count)), folder, said.append)
    after, metrics = recovery.advance(before, progress)
    clean = chunks.run(others, np.ones(count, np.float32), None)
    assert not clean.bad[0]
    return Told(before, after, metrics, progress, said, clean.state, folder)


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
    """SGD that adds ``state["value"]`` to the first entry of all in update number 3."""

    def init(params):
        return {"count": jnp.zeros((), jnp.int32), "value": jnp.zeros(())}

    def update(grads, state, params=None):
        steps = jax.tree.map(lambda grad: -1e-4 * grad, grads)
        wrong = jnp.where(state["count"] == 3, state["value"], 0.0)
        bias = steps["value"]["mlp"]["layer_0"]["bias"]
        steps["value"]["mlp"]["layer_0"]["bias"] = bias.at[0].add(wrong)
        return steps, state | {"count": state["count"] + 1}

    return optax.GradientTransformation(init, update)


@pytest.fixture(scope="module")
def ppo(tmp_path_factory) -> Told:
    """Eight seeds: a calm one, and one for each thing that can go wrong in the first chunk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learn, "compute_ppo_loss", _treacherous_loss)
        optimizer = _treacherous_optimizer()
        config = PPOConfig(**PPO)
        plain = make_ppo(EpisodeWrapper(BrokenEnv()), config, optimizer)
        before, others = _starts(plain, list(range(8)), [0, *range(20, 27)])
        starts = before.env_state.obs[..., 0]
        breaks = (
            Break("obs", float(starts[1, 2]), 3),
            Break("reward", float(starts[2, 1]), 13),
            Break("physics", float(starts[3, 3]), 9),
        )
        before.opt_state["value"] = jnp.zeros(8).at[4:6].set(jnp.array([jnp.nan, 3 * HUGE]))
        bias = before.params["policy"]["mlp"]["layer_0"]["bias"]
        marked = bias.at[6:, 0].set(jnp.array([7.0, 8.0]))
        before.params["policy"]["mlp"]["layer_0"]["bias"] = marked
        algorithm = make_ppo(EpisodeWrapper(BrokenEnv(breaks=breaks)), config, optimizer)
        return _recover(algorithm, before, others, tmp_path_factory.mktemp("ppo"))


def test_fault_is_located_to_env_step_and_term(ppo):
    names = ("seed", "term", "env", "round", "step")
    assert {_place(fault, *names) for fault in ppo.progress.faults} == {
        (11, "observation", 2, 0, 2),
        (12, "reward", 1, 1, 4),
        (13, "env state physics", 3, 1, 0),
        (14, "parameters value/mlp/layer_0/bias", None, 1, 1),
        (15, "parameters value/mlp/layer_0/bias", None, 1, 1),
        (16, "gradient policy/mlp/layer_0/bias", None, 0, 0),
        (17, "loss", None, 0, 0),
    }
    assert (
        "seed 12: reward of environment 1 at env step 4 of rollout 1 of the chunk is not finite; "
        "rolled back to 0 env steps, steps times 0.5 (1 of 5)" in ppo.said
    )
    lines = (ppo.folder / "faults.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ppo.progress.faults


def test_fault_that_goes_away_costs_a_rollback_and_one_that_stays_the_seed(ppo):
    """Other episodes help against environments, smaller steps against huge updates."""
    progress = ppo.progress
    assert progress.rollbacks == [0, 1, 1, 1, 6, 2, 6, 6]
    assert progress.discarded_env_steps == [64 * count for count in progress.rollbacks]
    assert progress.frozen == [False] * 4 + [True, False, True, True]
    assert progress.step_scale == [1.0, 0.5, 0.5, 0.5, 0.5**5, 0.25, 0.5**5, 0.5**5]
    assert np.isnan(ppo.metrics["training/total_loss"]).tolist() == progress.frozen
    largest = jnp.max(jnp.abs(ppo.after.params["value"]["mlp"]["layer_0"]["bias"]), axis=1)
    assert 0.7 * HUGE < largest[5] < HUGE
    assert (ppo.after.updates == jnp.where(jnp.asarray(progress.frozen), 0, 4)).all()


def test_calm_seed_keeps_every_bit_and_a_frozen_one_its_last_good_state(ppo):
    _assert_rows_equal(ppo.after, ppo.clean, 0)
    for row in (4, 6, 7):
        _assert_rows_equal(ppo.after, ppo.before, row)
    for row in (1, 2, 3):
        assert jax.tree.all(
            jax.tree.map(lambda x, i=row: jnp.isfinite(x[i]).all(), ppo.after.params)
        )


def test_es_locates_what_breaks_in_an_episode(tmp_path):
    network = NetworkConfig(policy_hidden=(4,), noise="none")
    config = ESConfig(num_timesteps=200, num_evaluations=2, population_size=8, network=network)

    def make(*breaks: Break):
        return make_es(EpisodeWrapper(BrokenEnv(breaks=breaks), 5), config, OPTIMIZER)

    before, others = _starts(make(), [0, 1, 2, 3], [0, 21, 22, 23])
    keys = jax.vmap(lambda key: jax.random.split(key, 3)[2])(before.key)
    env = EpisodeWrapper(BrokenEnv())
    starts = jax.jit(jax.vmap(lambda key: reset(env, key, 4).obs[:, 0]))(keys)
    breaks = (
        Break("obs", float(starts[1, 2]), 3),
        Break("reward", float(starts[2, 1]), 5),
        Break("physics", float(starts[3, 3]), 1),
    )
    told = _recover(make(*breaks), before, others, tmp_path)
    assert told.progress.rollbacks == [0, 1, 1, 1] and not any(told.progress.frozen)
    names = ("seed", "term", "env", "round", "step")
    assert [_place(fault, *names) for fault in told.progress.faults] == [
        (11, "observation", 2, 0, 2),
        (12, "reward", 1, 0, 4),
        (13, "env state physics", 3, 0, 0),
    ]
    _assert_rows_equal(told.after, told.clean, 0)
    assert np.isfinite(told.metrics["training/fitness_mean"]).all()
    assert jax.tree.all(jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), told.after.params))


def test_strategy_without_an_optimizer_gets_other_numbers_and_no_other_step(tmp_path):
    network = NetworkConfig(policy_hidden=(4,), noise="none")
    config = ESConfig(num_timesteps=200, num_evaluations=2, population_size=8, network=network)
    slot = gradient_strategy(config, OPTIMIZER, None)

    def tell(*given):
        return slot.tell(*given)._replace(gradient=None)

    rival = slot._replace(tell=tell, scale=None)

    def make(*breaks: Break):
        return make_evolution(EpisodeWrapper(BrokenEnv(breaks=breaks), 5), config, rival)

    before, others = _starts(make(), [0, 1], [0, 21])
    key = jax.random.split(before.key[1], 3)[2]
    start = reset(EpisodeWrapper(BrokenEnv()), key, 4).obs[2, 0]
    told = _recover(make(Break("reward", float(start), 3)), before, others, tmp_path)
    assert told.progress.rollbacks == [0, 1] and told.progress.step_scale == [1.0, 1.0]
    assert [_place(fault, "term", "env", "step") for fault in told.progress.faults] == [
        ("reward", 2, 2)
    ]
    assert told.said[-1].endswith("rolled back to 0 env steps, other random numbers (1 of 5)")
    _assert_rows_equal(told.after, told.clean, 0)


def test_host_environments_of_the_other_seeds_stay_as_they_are(tmp_path):
    env = BrokenHost()
    algorithm = make_host_ppo(env, PPOConfig(**PPO), OPTIMIZER)
    (before,) = _starts(algorithm, [0, 1, 2])
    seeds = env_seeds(before.key, 4)
    env.breaks.append(Break("reward", int(seeds[0, 3]), 2))
    env.breaks.append(Break("obs", int(seeds[2, 1]), 13))
    chunks = HostChunks(algorithm, before, lambda: None)
    progress, state, broken = Progress.of_seeds(3), before, []
    recovery = Recovery(algorithm, chunks, [0, 1, 2], tmp_path, print)
    for _ in range(2):
        state, metrics = recovery.advance(state, progress)
        broken.append(metrics)
    names = ("seed", "term", "env", "round", "step")
    assert [_place(fault, *names) for fault in progress.faults] == [
        (0, "reward", 3, 0, 1),
        (2, "observation", 1, 1, 4),
    ]
    assert progress.rollbacks == [1, 0, 1]
    env.breaks.clear()
    again: Mask | None = np.ones(3, bool)
    state = before
    for rows in broken:
        outcome = chunks.run(state, np.ones(3, np.float32), again)
        state, again = outcome.state, None
        for tag, values in rows.items():
            assert np.isfinite(values).all()
            assert values[1] == outcome.metrics[tag][1], tag
        assert rows["training/v_loss"][0] != outcome.metrics["training/v_loss"][0]


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
