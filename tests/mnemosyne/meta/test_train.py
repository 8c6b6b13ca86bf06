# SPDX-License-Identifier: Apache-2.0
"""Meta-training: pairs share everything but theta, and a run is a pure function of its seed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mnemosyne
from mnemosyne.meta import train, unroll, validate
from mnemosyne.meta.tasks import MLPTask, teacher_data

NETWORK = mnemosyne.MnemosyneConfig(sample=16, chunk=(2, 2), residual_hidden=2)
CONFIG = train.MetaTrainConfig(
    outer_steps=4, num_pairs=2, truncation=2, shortest=2, longest=6, seed=1
)


@pytest.fixture(scope="module")
def task() -> MLPTask:
    inputs, labels = teacher_data(jax.random.key(0), rows=64, inputs=6, classes=3, hidden=4)
    return MLPTask("tiny", inputs, labels, hidden=(4,), batch_size=8)


@pytest.fixture(scope="module")
def outer_step(task: MLPTask):
    return jax.jit(train.make_outer_step([task], NETWORK, CONFIG))


def test_outer_step_is_a_pure_function_of_its_state(task: MLPTask, outer_step) -> None:
    state = train.init([task], NETWORK, CONFIG)
    for _ in range(2):
        state, _ = outer_step(state, 1e-3)
    first, _ = outer_step(state, 1e-3)
    second, _ = outer_step(state, 1e-3)
    jax.tree.map(np.testing.assert_array_equal, first.theta, second.theta)
    assert int(first.step) == 3


def test_outer_step_leaves_fixed_and_unseen_weights_alone(task: MLPTask, outer_step) -> None:
    state = train.init([task], NETWORK, CONFIG)
    before = state.theta
    for _ in range(2):
        state, _ = outer_step(state, 1e-3)
    np.testing.assert_array_equal(before["directions"], state.theta["directions"])
    for name in train.UNSEEN_EXTRAS:
        np.testing.assert_array_equal(state.theta["extras"][name], 0.0)
    assert float(jnp.max(jnp.abs(state.theta["skip"]))) > 0


def test_init_pairs_are_out_of_step(task: MLPTask) -> None:
    config = dataclasses.replace(CONFIG, num_pairs=4, shortest=40, longest=40, truncation=10)
    state = train.init([task], NETWORK, config)
    assert state.pairs[0].plus.trial.horizon.tolist() == [10, 20, 30, 40]


def test_unroll_reparametrised_problem_starts_at_the_same_loss(task: MLPTask) -> None:
    theta = mnemosyne.init_meta_params(jax.random.key(0), NETWORK)
    trial = unroll.draw_trial(jax.random.key(3), CONFIG.horizon, 0.0)
    losses = []
    for log_scale in (0.0, 3.0):
        scaled = trial._replace(log_scale=jnp.asarray(log_scale))
        inner = unroll.start(task, scaled, NETWORK, theta)
        _, loss = unroll.unroll(task, NETWORK, theta, inner, scaled, jnp.asarray(0), 1)
        losses.append(float(loss[0]))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_unroll_in_two_pieces_equals_one(task: MLPTask) -> None:
    theta = mnemosyne.init_meta_params(jax.random.key(0), NETWORK)
    trial = unroll.draw_trial(jax.random.key(3), CONFIG.horizon, 0.0)
    start = unroll.start(task, trial, NETWORK, theta)

    def piece(inner: object, first: int, steps: int) -> tuple:
        return unroll.unroll(task, NETWORK, theta, inner, trial, jnp.asarray(first), steps)

    _, whole = piece(start, 0, 6)
    middle, first = piece(start, 0, 4)
    _, second = piece(middle, 4, 2)
    np.testing.assert_allclose(whole, jnp.concatenate([first, second]), rtol=1e-5)


def test_draw_trial_horizons_are_multiples_within_the_range() -> None:
    horizon = unroll.Horizon(shortest=100, longest=2000, truncation=50)
    draw = jax.vmap(lambda key: unroll.draw_trial(key, horizon, 3.0))
    trials = draw(jax.random.split(jax.random.key(0), 500))
    assert trials.horizon.min() == 100
    assert trials.horizon.max() == 2000
    assert jnp.all(trials.horizon % 50 == 0)
    assert 0.4 < jnp.mean(trials.tells_progress) < 0.6
    assert 0.4 < jnp.mean(trials.log_scale == 0) < 0.6


def test_outer_rates_follow_a_cosine_whatever_the_pieces() -> None:
    config = dataclasses.replace(CONFIG, outer_steps=100, learning_rate=2e-3)
    whole = train.outer_rates(config, 0, 100)
    np.testing.assert_allclose(whole[[0, 50]], [2e-3, 2e-3 * 0.55], rtol=1e-5)
    np.testing.assert_allclose(whole[-1], 2e-4, rtol=1e-2)
    np.testing.assert_array_equal(whole[30:40], train.outer_rates(config, 30, 10))


@pytest.mark.parametrize(
    "change", [{"outer_steps": 0}, {"sigma": 0.0}, {"shortest": 1}, {"num_pairs": -1}]
)
def test_config_impossible_sizes_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match="must be|need"):
        dataclasses.replace(CONFIG, **change)


def test_envelope_picks_the_best_rate_and_survives_divergence(task: MLPTask) -> None:
    keys = validate.seeds(0, 2)
    rates = (1e-6, 3e-2, 1e12)
    grid = validate.adam_grid(task, keys, 30, rates)
    best = validate.envelope(grid, rates)
    assert best.mean_rate == best.final_rate == 3e-2
    alone = validate.curves(task, lambda: __import__("optax").adam(3e-2), keys, 30)
    np.testing.assert_allclose(best.mean_loss, float(alone.mean.mean()), rtol=1e-4)


def test_normalize_is_monotone_clipped_and_finite(task: MLPTask) -> None:
    losses = jnp.asarray([0.0, 1e-3, 0.5, 1.0, 2.0, 1e9, jnp.nan, jnp.inf])
    values = jax.vmap(task.normalize)(losses)
    assert jnp.all(jnp.isfinite(values))
    assert jnp.all(jnp.diff(values) >= 0)
    assert float(values[-1]) == float(values[5])
