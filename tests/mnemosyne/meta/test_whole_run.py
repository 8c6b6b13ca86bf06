# SPDX-License-Identifier: Apache-2.0
"""Whole runs: judged once, at their end, by the loss of the run and of its last window."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnemosyne.learned import LearnedOptimizer
from mnemosyne.meta import estimators, train, unroll, whole_run
from mnemosyne.meta.tasks import ClassifyTask, Teacher, mlp_task

HORIZON = unroll.Horizon(shortest=12, longest=12, truncation=4)
PLAIN = unroll.Augmentation(0.0, 0.0, 0.0, 1.0, 1.0)


def _sgd(theta: Any) -> optax.GradientTransformationExtraArgs:
    return optax.with_extra_args_support(optax.sgd(lambda _: jnp.exp(theta["log_rate"])))


SGD = LearnedOptimizer(
    "sgd", lambda _: {"log_rate": jnp.asarray(-4.0), "unused": jnp.asarray(0.0)}, _sgd
)


@pytest.fixture(scope="module")
def task() -> ClassifyTask:
    inputs, labels = Teacher(6, 3, hidden=4).table(jax.random.key(0), 64)
    return mlp_task("tiny", inputs, labels, hidden=(4,), batch_size=8)


@pytest.fixture(scope="module")
def system(task: ClassifyTask) -> estimators.System:
    return whole_run.make_system(task, SGD, HORIZON, PLAIN)


def _theta(rate: float) -> dict[str, Any]:
    return {"log_rate": jnp.log(rate), "unused": jnp.asarray(0.0)}


def test_score_is_the_mean_logarithm_of_what_is_left() -> None:
    half, tenth = (np.log(x + 1e-3) for x in (0.5, 0.1))
    found = whole_run.score(jnp.asarray(1.5), jnp.asarray(0.3), jnp.asarray(3.0))
    np.testing.assert_allclose(found, (half + tenth) / 2, rtol=1e-5)


@pytest.mark.parametrize("last", [np.inf, np.nan, 1e30])
def test_score_of_a_diverged_run_is_bounded(last: float) -> None:
    found = whole_run.score(jnp.asarray(1.0), jnp.asarray(last), jnp.asarray(1.0))
    np.testing.assert_allclose(found, (np.log(1.001) + np.log(10.001)) / 2, rtol=1e-5)


def test_only_the_last_window_tells_a_loss_and_it_is_that_of_the_run(
    task: ClassifyTask, system: estimators.System
) -> None:
    theta, key = _theta(0.3), jax.random.key(3)
    state, told = system.reset(theta, key, 1.0), []
    for _ in range(3):
        assert not system.finished(state)
        state, loss = jax.jit(system.advance)(theta, state)
        told.append(float(loss))
    assert system.finished(state)
    trial = unroll.draw_trial(key, task, HORIZON, PLAIN)
    inner = unroll.start(task, trial, SGD, theta)
    _, losses = unroll.unroll(task, SGD, theta, inner, trial, jnp.asarray(0), 12, averaged=False)
    expected = whole_run.score(jnp.mean(losses), jnp.mean(losses[8:]), losses[0])
    # Full ES averages over windows, of which there are three.
    np.testing.assert_allclose(told, [0.0, 0.0, 3 * expected], rtol=1e-5)


def test_a_problem_is_cut_to_whole_windows(system: estimators.System) -> None:
    reset = jax.jit(lambda fraction: system.reset(_theta(0.3), jax.random.key(0), fraction))
    lengths = [int(reset(fraction).trial.horizon) for fraction in (0.01, 0.34, 0.5, 1.0)]
    assert lengths == [4, 8, 8, 12]


CONFIG = train.MetaTrainConfig(
    outer_steps=30, estimator="full-es", num_workers=8, sigma=0.3, shortest_fraction=0.3
)


@pytest.fixture(scope="module")
def trained(system: estimators.System) -> train.OuterState:
    units = {"log_rate": jnp.asarray(2.0), "unused": jnp.asarray(0.0)}
    outer_step = train.make_outer_step({"tiny": system}, CONFIG, units)
    state = train.init({"tiny": system}, SGD.init(jax.random.key(0)), CONFIG)
    for _ in range(CONFIG.outer_steps):
        state, _ = outer_step(state, 0.1)
    return state


def test_training_on_whole_runs_finds_a_rate(trained: train.OuterState) -> None:
    # From 0.02, which learns next to nothing in twelve updates.
    assert float(trained.theta["log_rate"]) > -2.0


def test_what_has_no_unit_stays(trained: train.OuterState) -> None:
    assert float(trained.theta["unused"]) == 0.0


@pytest.mark.parametrize("unit", [0.5, 2.0])
def test_an_outer_step_moves_theta_by_the_rate_in_its_unit(
    system: estimators.System, unit: float
) -> None:
    units = {"log_rate": jnp.asarray(unit), "unused": jnp.asarray(0.0)}
    state = train.init({"tiny": system}, SGD.init(jax.random.key(0)), CONFIG)
    moved, _ = train.make_outer_step({"tiny": system}, CONFIG, units)(state, 0.1)
    # The first step of Adam is its rate.
    change = abs(float(moved.theta["log_rate"] - state.theta["log_rate"]))
    np.testing.assert_allclose(change, 0.1 * unit, rtol=1e-3)


@pytest.mark.parametrize("fraction", [0.0, 1.5, float("nan")])
def test_a_fraction_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="shortest_fraction must be in"):
        dataclasses.replace(CONFIG, shortest_fraction=fraction)
