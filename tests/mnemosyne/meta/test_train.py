# SPDX-License-Identifier: Apache-2.0
"""Meta-training: pairs share everything but theta, and a run is a pure function of its seed."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnemosyne.meta import train, unroll, validate
from mnemosyne.meta.tasks import MLPTask, teacher_data
from tests.mnemosyne import problems

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = train.MetaTrainConfig(outer_steps=4, num_pairs=2, seed=1)
HORIZON = unroll.Horizon(shortest=2, longest=6, truncation=2)


@pytest.fixture(scope="module")
def task() -> MLPTask:
    inputs, labels = teacher_data(jax.random.key(0), rows=64, inputs=6, classes=3, hidden=4)
    return MLPTask("tiny", inputs, labels, hidden=(4,), batch_size=8)


@pytest.fixture(scope="module")
def families(task: MLPTask) -> train.Families:
    return {"tiny": unroll.make_system(task, problems.SMALL, HORIZON, 3.4)}


@pytest.fixture(scope="module")
def states(families: train.Families) -> list[train.OuterState]:
    """The state before the first outer step and after each of three; the last one made twice."""
    outer_step = jax.jit(train.make_outer_step(families, CONFIG))
    states = [train.init(families, problems.untrained(problems.SMALL), CONFIG)]
    for previous in (0, 1, 2, 2):
        states.append(outer_step(states[previous], 1e-3)[0])
    return states


def test_outer_step_is_a_pure_function_of_its_state(states: list[train.OuterState]) -> None:
    first, second = states[3:]
    jax.tree.map(np.testing.assert_array_equal, first.theta, second.theta)
    assert int(first.step) == 3
    assert problems.gap(first.theta, states[2].theta) > 0


def test_outer_step_leaves_fixed_and_unseen_weights_alone(states: list[train.OuterState]) -> None:
    before, after = states[0].theta, states[2].theta
    np.testing.assert_array_equal(before["directions"], after["directions"])
    for name in train.UNSEEN_EXTRAS:
        np.testing.assert_array_equal(after["extras"][name], 0.0)
    assert problems.norm(after["skip"]) > 0


def test_init_pairs_are_out_of_step(task: MLPTask) -> None:
    horizon = unroll.Horizon(shortest=40, longest=40, truncation=10)
    families = {"tiny": unroll.make_system(task, problems.SMALL, horizon, 3.4)}
    config = dataclasses.replace(CONFIG, num_pairs=4)
    state = train.init(families, problems.untrained(problems.SMALL), config)
    assert state.pairs[0].plus.trial.horizon.tolist() == [10, 20, 30, 40]


@pytest.fixture(scope="module")
def trial() -> unroll.Trial:
    return jax.jit(lambda key: unroll.draw_trial(key, HORIZON, 0.0))(jax.random.key(3))


@pytest.fixture(scope="module")
def start(task: MLPTask) -> Callable[..., Any]:
    """``start(trial)``: the inner problem before its first update."""
    theta = problems.untrained(problems.SMALL)
    return jax.jit(lambda trial: unroll.start(task, trial, problems.SMALL, theta))


@pytest.fixture(scope="module")
def piece(task: MLPTask) -> Callable[..., Any]:
    """``piece(inner, trial, first, steps)``: some updates of the inner problem."""
    theta = problems.meta_params(problems.SMALL)

    def run(inner: Any, trial: unroll.Trial, first: Any, steps: int) -> Any:
        return unroll.unroll(task, problems.SMALL, theta, inner, trial, first, steps)

    return jax.jit(run, static_argnums=3)


def test_unroll_reparametrised_problem_starts_at_the_same_loss(
    trial: unroll.Trial, start: Callable[..., Any], piece: Callable[..., Any]
) -> None:
    scaled = trial._replace(log_scale=jnp.asarray(3.0))
    runs = [piece(start(t), t, jnp.asarray(0), 2) for t in (trial, scaled)]
    (_, plain), (_, reparametrised) = runs
    np.testing.assert_allclose(plain[0], reparametrised[0], rtol=1e-5)
    # The same steps mean more to smaller weights.
    assert abs(float(plain[1] - reparametrised[1])) > 1e-4


def test_unroll_in_two_pieces_equals_one(
    trial: unroll.Trial, start: Callable[..., Any], piece: Callable[..., Any]
) -> None:
    _, whole = piece(start(trial), trial, jnp.asarray(0), 4)
    middle, first = piece(start(trial), trial, jnp.asarray(0), 2)
    _, second = piece(middle, trial, jnp.asarray(2), 2)
    np.testing.assert_allclose(whole, jnp.concatenate([first, second]), rtol=1e-5)


def test_draw_trial_horizons_are_multiples_within_the_range() -> None:
    horizon = unroll.Horizon(shortest=100, longest=2000, truncation=50)
    draw = jax.jit(jax.vmap(lambda key: unroll.draw_trial(key, horizon, 3.0)))
    trials = jax.device_get(draw(jax.random.split(jax.random.key(0), 500)))
    assert trials.horizon.min() == 100
    assert trials.horizon.max() == 2000
    assert np.all(trials.horizon % 50 == 0)
    assert 0.4 < np.mean(trials.tells_progress) < 0.6
    assert 0.4 < np.mean(trials.log_scale == 0) < 0.6


def test_outer_rates_follow_a_cosine_whatever_the_pieces() -> None:
    config = dataclasses.replace(CONFIG, outer_steps=100, learning_rate=2e-3)
    whole = train.outer_rates(config, 0, 100)
    np.testing.assert_allclose(whole[[0, 50]], [2e-3, 2e-3 * 0.55], rtol=1e-5)
    np.testing.assert_allclose(whole[-1], 2e-4, rtol=1e-2)
    np.testing.assert_array_equal(whole[30:40], train.outer_rates(config, 30, 10))


@pytest.mark.parametrize("change", [{"outer_steps": 0}, {"sigma": 0.0}, {"num_pairs": -1}])
def test_config_impossible_sizes_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        dataclasses.replace(CONFIG, **change)


def test_envelope_picks_the_best_rate_and_survives_divergence(task: MLPTask) -> None:
    keys = validate.seeds(0, 2)
    rates = (1e-6, 3e-2, 1e12)
    grid = validate.adam_grid(task, keys, 30, rates)
    best = validate.envelope(grid, rates)
    assert best.mean_rate == best.final_rate == 3e-2
    alone = validate.curves(task, lambda: optax.adam(3e-2), keys, 30)
    np.testing.assert_allclose(best.mean_loss, float(np.mean(alone.mean)), rtol=1e-4)


def test_normalize_is_monotone_clipped_and_finite(task: MLPTask) -> None:
    losses = np.asarray([0.0, 1e-3, 0.5, 1.0, 2.0, 1e9, np.nan, np.inf], np.float32)
    values = np.asarray(jax.jit(jax.vmap(task.normalize))(losses))
    assert np.all(np.isfinite(values))
    assert np.all(np.diff(values) >= 0)
    assert float(values[-1]) == float(values[5])
