# SPDX-License-Identifier: Apache-2.0
"""Update rules and training runs of the policy benchmark, on environments that take a moment."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.benchmarks.policies import rules, runs
from experiments.benchmarks.policies.cells import make_cell
from experiments.benchmarks.policies.rules import AdamSettings
from robotics.networks import NetworkConfig

TINY = {
    "num_evaluations": 2,
    "num_envs": 2,
    "unroll_length": 4,
    "num_minibatches": 2,
    "num_updates_per_batch": 2,
    "network": NetworkConfig(policy_hidden=(4,), value_hidden=(4,)),
}


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
    assert es == ["adam", "sgd"]


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


def test_a_cell_scales_rewards_before_they_are_normalized_and_halves_gradients() -> None:
    seen: list[float] = []

    def update(grads: Any, state: Any, params: Any = None, **extras: Any) -> Any:
        error = [jnp.sum(jnp.abs(g - g.astype(jnp.bfloat16))) for g in jax.tree.leaves(grads)]
        return jax.tree.map(jnp.zeros_like, params), state + sum(error)

    spy = optax.GradientTransformationExtraArgs(lambda _: jnp.zeros(()), update)
    cell = make_cell("probe:value", "ppo", 1, **TINY)
    found = {}
    for one in (cell, cell._replace(reward_factor=1e3), cell._replace(halved=True)):
        algorithm = one.algorithm(one.env(), spy)
        state, metrics = jax.jit(algorithm.epoch)(algorithm.init(jax.random.key(0)))
        seen.append(float(state.opt_state))
        found[one.reward_factor, one.halved] = float(metrics["episode/sum_reward"])
    assert found[1e3, False] == pytest.approx(1e3 * found[1.0, False])
    assert found[1.0, True] == found[1.0, False] != 0.0
    assert seen[0] > 0.0 and seen[-1] == 0.0


def test_fingerprint_tells_another_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    from robotics.ppo import samples

    before = runs.fingerprint()
    # What it has been since results are recorded: another one makes all of them another trainer's.
    assert before == pytest.approx((-0.001665, 0.1596, 0.5878, 22.19), rel=5e-3)
    gae = samples.compute_gae
    monkeypatch.setattr(samples, "compute_gae", lambda *a: gae(*a[:-1], 0.9 * a[-1]))
    assert runs.fingerprint.__wrapped__() != before
