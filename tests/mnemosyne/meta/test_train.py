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

from mnemosyne import MnemosyneConfig, features
from mnemosyne.learned import LearnedOptimizer, mnemosyne_rule
from mnemosyne.meta import train, unroll, validate
from mnemosyne.meta.tasks import ClassifyTask, Teacher, mlp_task
from tests.mnemosyne import problems

RULE = mnemosyne_rule(problems.LEAN)


def _sgd(theta: Any) -> optax.GradientTransformationExtraArgs:
    return optax.with_extra_args_support(optax.sgd(lambda _: theta["rate"], theta["momentum"]))


SGD = LearnedOptimizer(
    "sgd", lambda _: {"rate": jnp.asarray(0.1), "momentum": jnp.asarray(0.9)}, _sgd
)
"""For what holds of any rule; compiles in a moment."""

CONFIG = train.MetaTrainConfig(
    outer_steps=4,
    estimator="pes",
    num_workers=2,
    frozen=RULE.fixed,
    seed=1,
)
HORIZON = unroll.Horizon(shortest=2, longest=6, truncation=2)
PLAIN = unroll.Augmentation(0.0, 0.0, 0.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def task() -> ClassifyTask:
    inputs, labels = Teacher(6, 3, hidden=4).table(jax.random.key(0), 64)
    inputs = np.where(np.arange(6) == 0, 0.0, inputs)  # a dead input: no gradient, ever
    return mlp_task("tiny", inputs, labels, hidden=(4,), batch_size=8)


@pytest.fixture(scope="module")
def families(task: ClassifyTask) -> train.Families:
    system = unroll.make_system(task, RULE, HORIZON, unroll.Augmentation())
    return {"tiny": system}


@pytest.fixture(scope="module")
def states(families: train.Families) -> list[train.OuterState]:
    """The state before the first outer step and after each of three; the last one made twice."""
    outer_step = train.make_outer_step(families, CONFIG)
    states = [train.init(families, problems.untrained(problems.LEAN), CONFIG)]
    for previous in (0, 1, 2, 2):
        states.append(outer_step(states[previous], 1e-3)[0])
    return states


def test_outer_step_is_a_pure_function_of_its_state(states: list[train.OuterState]) -> None:
    first, second = states[3:]
    jax.tree.map(np.testing.assert_array_equal, first.theta, second.theta)
    assert int(first.step) == 3
    assert problems.gap(first.theta, states[2].theta) > 0


def test_outer_step_leaves_fixed_weights_alone(states: list[train.OuterState]) -> None:
    before, after = states[0].theta, states[2].theta
    np.testing.assert_array_equal(before["directions"], after["directions"])
    assert problems.norm(after["skip"]) > 0


def test_outer_step_works_on_as_many_families_as_asked(task: ClassifyTask) -> None:
    system = unroll.make_system(task, SGD, HORIZON, unroll.Augmentation())
    twins = {"one": system, "two": system}
    config = dataclasses.replace(CONFIG, families_per_step=1, frozen=())
    state = train.init(twins, SGD.init(jax.random.key(0)), config)
    moved, metrics = train.make_outer_step(twins, config)(state, 1e-3)
    left_out = [bool(np.isnan(metrics[f"meta/loss/{name}"])) for name in twins]
    assert sorted(left_out) == [False, True]
    assert np.isfinite(metrics["meta/outer_loss"])
    for index, out in enumerate(left_out):
        assert int(moved.workers[index].plus.step[0]) == (0 if out else 2)


def test_init_workers_are_out_of_step(task: ClassifyTask) -> None:
    horizon = unroll.Horizon(shortest=40, longest=40, truncation=10)
    system = unroll.make_system(task, RULE, horizon, PLAIN)
    config = dataclasses.replace(CONFIG, num_workers=4)
    families = {"tiny": system}
    state = train.init(families, problems.untrained(problems.LEAN), config)
    assert state.workers[0].plus.trial.horizon.tolist() == [10, 20, 30, 40]


def _value_and_gradient(task: ClassifyTask, rule: LearnedOptimizer) -> Callable[..., Any]:
    """``f(theta)``: the loss of a problem of one truncation and its gradient by theta."""
    horizon = unroll.Horizon(shortest=6, longest=6, truncation=6)
    system = unroll.make_system(task, rule, horizon, PLAIN)

    def value(theta: Any) -> Any:
        return system.advance(theta, system.reset(theta, jax.random.key(7), 1.0))[1]

    return jax.jit(jax.value_and_grad(value))


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(problems.LEAN, id="lean"),
        pytest.param(problems.SMALL, id="whole", marks=pytest.mark.slow),
    ],
)
def test_gradient_of_a_whole_problem_is_exact(network: MnemosyneConfig, task: ClassifyTask) -> None:
    """Its norm is the slope of the loss along itself, dead inputs or not."""
    whole = _value_and_gradient(task, mnemosyne_rule(network))
    theta = problems.meta_params(network)
    unseen = features.input_row("kl", 0)
    value, gradient = whole(theta)
    length = problems.norm(gradient)
    assert np.isfinite(value)
    assert problems.norm(gradient["embed"][unseen]) == 0 < problems.norm(gradient["embed"])
    step, at = 3e-3, jax.device_get((theta, gradient))
    ahead, behind = (
        float(whole(jax.tree.map(lambda x, g, h=h: x + np.float32(h / length) * g, *at))[0])
        for h in (step, -step)
    )
    np.testing.assert_allclose(length, (ahead - behind) / (2 * step), rtol=0.02)


def test_gradient_is_the_same_whatever_the_backward_pass_keeps(
    task: ClassifyTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    theta = SGD.init(jax.random.key(0))
    _, gradient = _value_and_gradient(task, SGD)(theta)
    monkeypatch.setattr(unroll, "KEPT", 0)
    monkeypatch.setattr(unroll, "BLOCK", 2)
    _, again = _value_and_gradient(task, SGD)(theta)
    assert problems.norm(gradient) > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, again)


@pytest.fixture(scope="module")
def trial(task: ClassifyTask) -> unroll.Trial:
    draw = jax.jit(lambda key: unroll.draw_trial(key, task, HORIZON, PLAIN))
    return draw(jax.random.key(3))


@pytest.fixture(scope="module")
def start(task: ClassifyTask) -> Callable[..., Any]:
    """``start(trial)``: the inner problem before its first update."""
    theta = SGD.init(jax.random.key(0))
    return jax.jit(lambda trial: unroll.start(task, trial, SGD, theta))


@pytest.fixture(scope="module")
def piece(task: ClassifyTask) -> Callable[..., Any]:
    """``piece(inner, trial, first, steps)``: some updates of the inner problem."""
    theta = SGD.init(jax.random.key(0))

    def run(inner: Any, trial: unroll.Trial, first: Any, steps: int) -> Any:
        return unroll.unroll(task, SGD, theta, inner, trial, first, steps)

    return jax.jit(run, static_argnums=3)


def test_unroll_reparametrised_problem_starts_at_the_same_loss(
    trial: unroll.Trial, start: Callable[..., Any], piece: Callable[..., Any]
) -> None:
    scaled = trial._replace(log_scales=jnp.asarray([3.0, -1.0, 0.5, 2.0]))
    runs = [piece(start(t), t, jnp.asarray(0), 2) for t in (trial, scaled)]
    (_, plain), (_, reparametrised) = runs
    np.testing.assert_allclose(plain[0], reparametrised[0], rtol=1e-5)
    # The same steps mean more to smaller weights.
    assert abs(float(plain[1] - reparametrised[1])) > 1e-4


def test_unroll_fixed_batch_repeats_one_minibatch(
    trial: unroll.Trial, start: Callable[..., Any], piece: Callable[..., Any]
) -> None:
    fixed = trial._replace(fixed_batch=jnp.asarray(True))
    inner = start(fixed)
    losses = [
        float(piece(inner, t, jnp.asarray(i), 2)[1][0]) for t in (fixed, trial) for i in (0, 5)
    ]
    assert losses[0] == losses[1] == losses[2] != losses[3]


def test_unroll_in_two_pieces_equals_one(
    trial: unroll.Trial, start: Callable[..., Any], piece: Callable[..., Any]
) -> None:
    _, whole = piece(start(trial), trial, jnp.asarray(0), 4)
    middle, first = piece(start(trial), trial, jnp.asarray(0), 2)
    _, second = piece(middle, trial, jnp.asarray(2), 2)
    np.testing.assert_allclose(whole, jnp.concatenate([first, second]), rtol=1e-5)


def test_unroll_counts_the_average_where_the_end_is_known_to_be_far(
    task: ClassifyTask, trial: unroll.Trial, start: Callable[..., Any], piece: Callable[..., Any]
) -> None:
    known = trial._replace(horizon=jnp.asarray(100), fixed_batch=jnp.asarray(True))
    unknown = known._replace(tells_progress=jnp.asarray(False))
    middle, _ = piece(start(known), known, jnp.asarray(0), 4)
    loss = jax.jit(lambda p: task.loss(p, task.sample(jax.random.fold_in(known.key, 1))))
    of_weights, of_average = (float(loss(p)) for p in (middle.params, middle.average))
    assert abs(of_weights - of_average) > 1e-4
    counted = {
        (name, step): float(piece(middle, t, jnp.asarray(step), 1)[1][0])
        for name, t in (("known", known), ("unknown", unknown))
        for step in (4, 85, 95)
    }
    np.testing.assert_allclose(counted["known", 4], of_average, rtol=1e-5)
    np.testing.assert_allclose(counted["known", 85], (of_average + of_weights) / 2, rtol=1e-5)
    for key in (("known", 95), ("unknown", 4), ("unknown", 95)):
        np.testing.assert_allclose(counted[key], of_weights, rtol=1e-5)


def test_draw_trial_follows_its_distributions(task: ClassifyTask) -> None:
    horizon = unroll.Horizon(shortest=100, longest=2000, truncation=50)
    augmentation = unroll.Augmentation(fixed_batch=0.3, tells_progress=0.7)
    draw = jax.jit(jax.vmap(lambda key: unroll.draw_trial(key, task, horizon, augmentation)))
    trials = jax.device_get(draw(jax.random.split(jax.random.key(0), 500)))
    assert trials.horizon.min() == 100
    assert trials.horizon.max() == 2000
    assert np.all(trials.horizon % 50 == 0)
    assert 0.6 < np.mean(trials.tells_progress) < 0.8
    assert 0.2 < np.mean(trials.fixed_batch) < 0.4
    assert 0.4 < np.mean(np.all(trials.log_scales == 0, axis=1)) < 0.6
    assert 0.15 < np.mean(np.ptp(trials.log_scales, axis=1) > 0) < 0.35


def test_outer_rates_follow_a_cosine_whatever_the_pieces() -> None:
    config = dataclasses.replace(CONFIG, outer_steps=100, learning_rate=2e-3)
    whole = train.outer_rates(config, 0, 100)
    np.testing.assert_allclose(whole[[0, 50]], [2e-3, 2e-3 * 0.55], rtol=1e-5)
    np.testing.assert_allclose(whole[-1], 2e-4, rtol=1e-2)
    np.testing.assert_array_equal(whole[30:40], train.outer_rates(config, 30, 10))


@pytest.mark.parametrize("change", [{"outer_steps": 0}, {"sigma": 0.0}, {"num_workers": -1}])
def test_config_impossible_sizes_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        dataclasses.replace(CONFIG, **change)


def test_envelope_picks_the_best_rate_and_survives_divergence(task: ClassifyTask) -> None:
    keys = validate.seeds(0, 2)
    rates = (1e-6, 3e-2, 1e12)
    grid = validate.adam_grid(task, keys, 30, rates)
    best = validate.envelope(grid, rates)
    assert best.mean_rate == best.final_rate == 3e-2
    alone = validate.curves(task, lambda: optax.adam(3e-2), keys, 30)
    np.testing.assert_allclose(best.mean_loss, float(np.mean(alone.mean)), rtol=1e-4)


def test_normalize_is_monotone_clipped_and_finite(task: ClassifyTask) -> None:
    losses = np.asarray([0.0, 1e-3, 0.5, 1.0, 2.0, 1e9, np.nan, np.inf], np.float32)
    values = np.asarray(jax.jit(jax.vmap(task.normalize))(losses))
    assert np.all(np.isfinite(values))
    assert np.all(np.diff(values) >= 0)
    assert float(values[-1]) == float(values[5])


def test_check_scores_the_envelope_itself_as_zero(
    task: ClassifyTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate, "VALIDATION_STEPS", (20,))
    keys = validate.seeds(0, validate.VALIDATION_SEEDS)
    best = validate.envelope(validate.adam_grid(task, keys, 20, (3e-2,)), (3e-2,))

    def adam(rate: Any) -> optax.GradientTransformationExtraArgs:
        return optax.with_extra_args_support(optax.adam(lambda _: rate))

    rule = LearnedOptimizer("adam", lambda key: jnp.asarray(3e-2), adam)
    check = validate.make_check([task], rule, {task.name: {20: best}})
    same, slow, far, wild = (check(jnp.asarray(rate))[0] for rate in (3e-2, 1e-5, 1e6, jnp.inf))
    np.testing.assert_allclose(same["score"], 0.0, atol=1e-4)
    # However far a run goes astray, it is not worse than one that is lost.
    assert 1e4 < far["final_loss"] < jnp.inf
    assert 0.1 < slow["score"] < far["score"] == wild["score"] < 10
    assert same["task"] == "tiny/20"


def test_a_window_is_judged_by_its_late_losses_and_late_windows_count_more(
    task: ClassifyTask,
) -> None:
    horizon = unroll.Horizon(shortest=4, longest=4, truncation=2)
    plain = unroll.Augmentation(0.0, 0.0, 0.0, 1.0, 1.0)
    system = unroll.make_system(task, SGD, horizon, plain)
    theta = SGD.init(jax.random.key(0))
    state = system.reset(theta, jax.random.key(1), 1.0)
    found = []
    for step in (0, 2):
        _, losses = unroll.unroll(task, SGD, theta, state.inner, state.trial, jnp.asarray(step), 2)
        first, second = jax.vmap(task.normalize)(losses)
        state, loss = system.advance(theta, state)
        found.append((float(loss), float((first + 8.0 * second) / 9.0)))
    # The middles of the two windows are at a quarter and at three quarters of the run.
    np.testing.assert_allclose([a / b for a, b in found], [0.75, 1.25], rtol=1e-5)


def test_extras_are_told_or_withheld_as_drawn(task: ClassifyTask) -> None:
    heard: list[dict[str, Any]] = []

    def listening(theta: Any) -> optax.GradientTransformationExtraArgs:
        def update(updates: Any, state: Any, params: Any = None, **extras: Any) -> Any:
            jax.debug.callback(lambda **told: heard.append(told), **extras)
            return jax.tree.map(lambda g: -theta * g, updates), state

        return optax.GradientTransformationExtraArgs(lambda params: (), update)

    rule = LearnedOptimizer("listener", lambda key: jnp.asarray(0.1), listening)
    trial = unroll.draw_trial(jax.random.key(0), task, HORIZON, PLAIN)
    for told in (True, False):
        trial = trial._replace(tells_value=jnp.asarray(told), tells_progress=jnp.asarray(not told))
        inner = unroll.start(task, trial, rule, jnp.asarray(0.1))
        heard.clear()
        jax.block_until_ready(
            unroll.unroll(task, rule, jnp.asarray(0.1), inner, trial, jnp.asarray(0), 2)
        )
        jax.effects_barrier()
        assert len(heard) == 2
        assert all(np.isfinite(x["value"]) == told for x in heard)
        assert all(np.isfinite(x["progress"]) != told for x in heard)


def test_parts_to_freeze_are_known_by_name() -> None:
    theta = {"memory": {"log_tau": jnp.zeros(2)}, "skip": jnp.zeros(3)}
    mask = train.trainable(theta, ["log_tau"])
    np.testing.assert_array_equal(mask["memory"]["log_tau"], 0.0)
    np.testing.assert_array_equal(mask["skip"], 1.0)
    with pytest.raises(ValueError, match="no part 'log_tua'"):
        train.trainable(theta, ["log_tua"])
