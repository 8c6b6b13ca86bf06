# SPDX-License-Identifier: Apache-2.0
"""What holds for every estimator: shared data, resets, masks, robustness, names."""

from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.meta import estimators
from mnemosyne.meta.estimators import evolution

SIGMA, ALL = 0.1, get_args(estimators.EstimatorName)


def _init(
    estimator: estimators.Estimator, system: estimators.System, theta: Any, workers: int
) -> Any:
    keys = jax.random.split(jax.random.key(0), workers)
    return jax.vmap(lambda k: estimator.init(system, theta, k, 1.0))(keys)


class Walk(NamedTuple):
    """A position that theta is added to, and the number of additions."""

    x: jax.Array
    step: jax.Array


def _walk(horizon: int) -> estimators.System:
    def reset(theta: jax.Array, key: jax.Array, fraction: jax.Array | float) -> Walk:
        del theta, key, fraction
        return Walk(jnp.zeros(()), jnp.zeros((), jnp.int32))

    def advance(theta: jax.Array, state: Walk) -> tuple[Walk, jax.Array]:
        moved = Walk(state.x + theta, state.step + 1)
        return moved, moved.x

    return estimators.System(reset, advance, lambda state: state.step >= horizon)


class Noisy(NamedTuple):
    """The data and the age of a problem without memory."""

    key: jax.Array
    age: jax.Array
    horizon: jax.Array


THETA = {"a": np.float32([0.5, -1.0]), "b": np.float32([[2.0]]), "c": np.float32(1.5)}
MASK = {"a": np.ones(2, np.float32), "b": np.ones((1, 1), np.float32), "c": np.float32(0.0)}


def _noisy() -> estimators.System:
    """Loss ``(|a|^2 + |b|^2 + |c|^2) / 2`` plus noise; problems last one to three truncations."""

    def reset(theta: Any, key: jax.Array, fraction: jax.Array | float) -> Noisy:
        del theta, fraction
        # Draws from the generator would be most of the time of compilation.
        horizon = 1 + jax.random.key_data(key)[0] % 3
        return Noisy(key, jnp.zeros((), jnp.int32), horizon.astype(jnp.int32))

    def advance(theta: Any, state: Noisy) -> tuple[Noisy, jax.Array]:
        noise = 100.0 * jnp.sin((jax.random.key_data(state.key)[1] % 1000 + state.age) * 1.0)
        loss = sum(0.5 * jnp.sum(jnp.square(x)) for x in jax.tree.leaves(theta)) + noise
        return state._replace(age=state.age + 1), loss

    return estimators.System(reset, advance, lambda state: state.age >= state.horizon)


@pytest.mark.parametrize("name", ALL)
def test_estimators_agree_where_a_truncation_is_all(name: estimators.EstimatorName) -> None:
    estimator, system, workers = estimators.make_estimator(name, 0.1), _noisy(), 4000
    mask = jax.tree.map(jnp.asarray, MASK)

    def step(states: Any, key: jax.Array) -> tuple[Any, Any]:
        keys = jax.random.split(key, workers)
        states, gradient, losses = estimators.estimate(estimator, system, THETA, mask, states, keys)
        return states, (gradient, losses)

    @jax.jit
    def run(keys: jax.Array) -> Any:
        return jax.lax.scan(step, _init(estimator, system, THETA, workers), keys)[1]

    gradients, losses = run(jax.random.split(jax.random.key(4), 7))
    assert losses.shape == (7, workers, 1 if name == "bptt" else 2)
    # Pairs that did not share their data would bury the gradient under the noise of 100.
    jax.tree.map(
        lambda g, x, m: np.testing.assert_allclose(np.mean(g, axis=0), x * m, atol=0.15),
        gradients,
        THETA,
        MASK,
    )


def _follow(name: str, horizon: int, steps: int) -> tuple[list[float], list[float], list[int]]:
    """Positions relative to theta's, directions and ages of one worker's plus member."""
    estimator, system, theta = (
        estimators.make_estimator(name, SIGMA),
        _walk(horizon),
        jnp.asarray(0.5),
    )
    state = estimator.init(system, theta, jax.random.key(0), 1.0)
    advance = jax.jit(lambda s, k: estimator.advance(system, theta, jnp.ones(()), s, k))
    offsets, directions, ages = [], [], []
    for index in range(steps):
        state, contribution = advance(state, jax.random.key(index))
        ages.append(int(state.plus.step))
        offsets.append(float(state.plus.x) - 0.5 * ages[-1])
        directions.append(float(contribution.direction))
        np.testing.assert_allclose(state.plus.x + state.minus.x, ages[-1], rtol=1e-6)
    return offsets, directions, ages


def test_pes_accumulates_perturbations_until_the_problem_ends() -> None:
    offsets, directions, ages = _follow("pes", horizon=3, steps=5)
    assert ages == [1, 2, 3, 1, 2]
    # The position sums the perturbations too, so it shows what the accumulator has to be.
    np.testing.assert_allclose(directions, offsets, atol=1e-6)
    assert len(set(directions)) == 5


def test_es_single_keeps_its_perturbation_until_the_problem_ends() -> None:
    offsets, directions, ages = _follow("es-single", horizon=2, steps=4)
    assert ages == [1, 2, 1, 2]
    assert directions[0] == directions[1] != directions[2] == directions[3]
    np.testing.assert_allclose(offsets, np.multiply(directions, ages), atol=1e-6)


HEAVY = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1e9, 0.0], [np.nan, 0.0]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"clip": 3.0}, (1 - 1 + 1 + 3) / (2 * 5)),
        ({"sign_scale": 7.0}, 7 * (1 - 1 + 1 + 1) / (2 * 5)),
    ],
)
def test_gradient_bounds_tails_and_ignores_non_finite_losses(
    options: dict[str, float], expected: float
) -> None:
    estimator = estimators.make_estimator("pes", 1.0, **options)
    contributions = estimators.Contribution(jnp.ones((5, 2)), jnp.asarray(HEAVY))
    np.testing.assert_allclose(estimator.gradient(contributions), expected, rtol=1e-6)


def test_gradient_of_bptt_bounds_norms_and_ignores_non_finite_workers() -> None:
    directions = {
        "a": jnp.asarray([[3.0], [-3.0], [3.0], [3e9], [np.nan]]),
        "b": jnp.asarray([4.0, 4.0, 4.0, 4e9, 1.0]),
    }
    contributions = estimators.Contribution(directions, jnp.zeros((5, 1)))
    found = estimators.make_estimator("bptt", clip=2.0).gradient(contributions)
    # The median norm is 5; nan counts as a norm of 0, and as a worker.
    np.testing.assert_allclose(found["a"], [(3 - 3 + 3 + 6) / 5 / 5], rtol=1e-6)
    np.testing.assert_allclose(found["b"], (4 + 4 + 4 + 8) / 5 / 5, rtol=1e-6)


def test_gradient_of_bptt_counts_families_alike_whatever_their_scale() -> None:
    norms = jnp.asarray([[1.0], [0.5], [8.0]])
    bptt, plain = (estimators.make_estimator("bptt", clip=clip) for clip in (1.0, float("inf")))
    small, large = (
        estimators.Contribution({"a": scale * norms}, jnp.zeros((3, 1))) for scale in (1e-6, 1e6)
    )
    np.testing.assert_allclose(bptt.gradient(small)["a"], [(1 + 0.5 + 1) / 3], rtol=1e-6)
    np.testing.assert_allclose(bptt.gradient(large)["a"], [(1 + 0.5 + 1) / 3], rtol=1e-6)
    np.testing.assert_allclose(plain.gradient(large)["a"], [1e6 * 9.5 / 3], rtol=1e-6)


def test_gradient_of_pairs_counts_families_alike_whatever_their_scale() -> None:
    losses = jnp.asarray([[1.0, 0.0], [0.5, 0.0], [8.0, 0.0]])
    clipped, plain = (estimators.make_estimator("pes", 1.0, clip) for clip in (2.0, float("inf")))
    small, large = (
        estimators.Contribution(jnp.ones((3, 1)), scale * losses) for scale in (1e-6, 1e6)
    )
    np.testing.assert_allclose(clipped.gradient(small), [(1 + 0.5 + 2) / 6], rtol=1e-6)
    np.testing.assert_allclose(clipped.gradient(large), [(1 + 0.5 + 2) / 6], rtol=1e-6)
    np.testing.assert_allclose(plain.gradient(large), [1e6 * 9.5 / 6], rtol=1e-6)


def test_perturbation_is_gaussian_everywhere_but_under_the_mask() -> None:
    theta = {"a": jnp.zeros((25, 40)), "b": jnp.zeros(3), "c": jnp.zeros(())}
    mask = {"a": jnp.ones((25, 40)), "b": jnp.zeros(3), "c": jnp.ones(())}
    draw: Callable[[Any], Any] = jax.jit(lambda k: evolution.perturbation(k, theta, mask, 0.1))
    eps = jax.device_get(draw(jax.random.key(0)))
    np.testing.assert_allclose(eps["a"].std(), 0.1, rtol=0.1)
    assert np.all(eps["b"] == 0)
    assert eps["c"] not in eps["a"]
    again = jax.device_get(draw(jax.random.key(1)))
    assert abs(np.corrcoef(eps["a"].ravel(), again["a"].ravel())[0, 1]) < 0.2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "es-singel"}, "unknown estimator 'es-singel'; did you mean 'es-single'"),
        ({"name": "pes", "sigma": 0.0}, "must be positive"),
        ({"name": "pes", "clip": float("nan")}, "must be positive"),
        ({"name": "bptt", "sign_scale": 1.0}, "not for bptt"),
    ],
)
def test_make_estimator_impossible_settings_are_refused(arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        estimators.make_estimator(**arguments)
