# SPDX-License-Identifier: Apache-2.0
"""Estimators on problems whose gradients are known.

The main one is influence balancing (Vicol et al. 2021), where gradients of short truncations point
the wrong way: the optimum is at -1/6, and one step alone says "go up".
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.meta import estimators
from tests.mnemosyne import problems
from tests.mnemosyne.analysis import toy

DIM = 23
SIGN = jnp.concatenate([jnp.ones(10), -jnp.ones(13)])
SIGMA = 0.1
EXACT = {10: 192.5, 50: 2408.004, 100: 3571.631}
"""The gradient of the summed loss at theta = 0.5."""


class Balance(NamedTuple):
    """State vector and time of one run."""

    s: jax.Array
    step: jax.Array


def _advance_once(theta: jax.Array, s: jax.Array) -> jax.Array:
    return 0.5 * s + 0.5 * jnp.append(s[1:], 0.0) + theta * SIGN


def _system(horizon: int = 10**6, truncation: int = 1) -> estimators.System:
    """Influence balancing; the loss is that of the last step of a truncation."""

    def reset(theta: jax.Array, key: jax.Array, fraction: jax.Array | float) -> Balance:
        del theta, key, fraction
        return Balance(jnp.ones(DIM), jnp.zeros((), jnp.int32))

    def advance(theta: jax.Array, state: Balance) -> tuple[Balance, jax.Array]:
        s, _ = jax.lax.scan(
            lambda s, _: (_advance_once(theta, s), None), state.s, None, length=truncation
        )
        return Balance(s, state.step + 1), 0.5 * jnp.square(s[0] - 1.0)

    return estimators.System(reset, advance, lambda state: state.step >= horizon)


def _init(
    estimator: estimators.Estimator, system: estimators.System, theta: Any, workers: int
) -> Any:
    keys = jax.random.split(jax.random.key(0), workers)
    return jax.vmap(lambda k: estimator.init(system, theta, k, 1.0))(keys)


def _descend(
    name: estimators.EstimatorName, workers: int, truncation: int = 1, steps: int = 3000
) -> np.ndarray:
    """Theta after each step of SGD on influence balancing, from 0.5."""
    estimator, system = estimators.make_estimator(name, SIGMA), _system(truncation=truncation)

    def step(carry: tuple[jax.Array, Any], key: jax.Array) -> tuple[tuple, jax.Array]:
        theta, states = carry
        keys = jax.random.split(key, workers)
        states, gradient, _ = estimators.estimate(
            estimator, system, theta, jnp.ones(()), states, keys
        )
        theta = theta - 1e-4 * gradient
        return (theta, states), theta

    @problems.long_jit
    def run(theta: jax.Array, keys: jax.Array) -> jax.Array:
        states = _init(estimator, system, theta, workers)
        return jax.lax.scan(step, (theta, states), keys)[1]

    return np.asarray(run(jnp.asarray(0.5), jax.random.split(jax.random.key(2), steps)))


def _contributions(
    name: estimators.EstimatorName, steps: int, pairs: int = 20_000, horizon: int = 10**6
) -> np.ndarray:
    """Estimates ``[steps, pairs]`` of each worker alone, with theta frozen at 0.5."""
    estimator, system = estimators.make_estimator(name, SIGMA), _system(horizon)
    theta = jnp.asarray(0.5)

    def step(states: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        keys = jax.random.split(key, pairs)
        states, contributions = jax.vmap(
            lambda s, k: estimator.advance(system, theta, jnp.ones(()), s, k)
        )(states, keys)
        alone = jax.tree.map(lambda x: x[:, None], contributions)
        return states, jax.vmap(estimator.gradient)(alone)

    @problems.long_jit
    def run(keys: jax.Array) -> jax.Array:
        return jax.lax.scan(step, _init(estimator, system, theta, pairs), keys)[1]

    return np.asarray(run(jax.random.split(jax.random.key(1), steps)))


def test_exact_gradients_of_the_test_problem() -> None:
    @jax.jit
    def totals(theta: jax.Array) -> jax.Array:
        def step(s: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            s = _advance_once(theta, s)
            return s, 0.5 * jnp.square(s[0] - 1.0)

        return jnp.cumsum(jax.lax.scan(step, jnp.ones(DIM), None, length=100)[1])

    gradients = jax.jit(jax.jacfwd(totals))(0.5)
    for steps, expected in EXACT.items():
        np.testing.assert_allclose(gradients[steps - 1], expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["pes", "es-single"])
def test_persistent_estimators_are_unbiased_with_the_known_spread(
    name: estimators.EstimatorName,
) -> None:
    totals = np.cumsum(_contributions(name, 100), axis=0)
    # Standard errors of the means of 20,000 pairs; ES-Single has (P + 1) |gradient|^2, P = 1.
    errors = {"pes": (1.7, 21.0, 44.0), "es-single": (1.9, 24.0, 35.7)}[name]
    for (steps, expected), error in zip(EXACT.items(), errors, strict=True):
        measured = totals[steps - 1]
        np.testing.assert_allclose(measured.std() / np.sqrt(20_000), error, rtol=0.06)
        assert abs(measured.mean() - expected) < 4 * error


@pytest.mark.parametrize("horizon", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_full_es_is_unbiased(horizon: int) -> None:
    # Two calls, so that the second one has to start anew; losses are means over the problem.
    estimates = horizon * _contributions("full-es", 2, 4000, horizon)
    error = estimates.std() / np.sqrt(estimates.size)
    assert error < 0.03 * EXACT[horizon]
    assert abs(estimates.mean() - EXACT[horizon]) < 4 * error


def test_truncated_es_estimates_what_truncated_bptt_computes() -> None:
    backward = _contributions("bptt", 50, pairs=2)
    np.testing.assert_array_equal(backward[:, 0], backward[:, 1])
    exact = backward[:, 0].sum()
    assert 0 < exact < 0.1 * EXACT[50]
    totals = _contributions("truncated-es", 50, 4000).sum(axis=0)
    error = totals.std() / np.sqrt(len(totals))
    assert error < 0.05 * abs(exact)
    assert abs(totals.mean() - exact) < 4 * error


@pytest.mark.parametrize(
    ("name", "workers", "truncation", "expected", "tolerance"),
    [
        ("bptt", 1, 1, 3.26, 5e-3),
        ("bptt", 1, 100, -1 / 6, 1e-3),
        pytest.param("truncated-es", 1000, 1, 3.26, 0.02, marks=pytest.mark.slow),
        ("pes", 1000, 1, -1 / 6, 2e-3),
        pytest.param("pes", 100, 1, -1 / 6, 2e-2, marks=pytest.mark.slow),
        ("es-single", 1000, 1, -1 / 6, 2e-3),
    ],
)
def test_influence_balancing_ends_where_the_bias_of_the_estimator_leads(
    name: estimators.EstimatorName, workers: int, truncation: int, expected: float, tolerance: float
) -> None:
    theta = _descend(name, workers, truncation)
    np.testing.assert_allclose(theta[-1], expected, atol=tolerance)


def test_influence_balancing_bptt_of_ten_steps_diverges() -> None:
    theta = _descend("bptt", 1, 10)
    assert 2530 <= np.argmax(theta > 1e6) + 1 <= 2532


@pytest.mark.slow
def test_influence_balancing_few_pairs_hurt_pes_and_slow_es_single() -> None:
    pes = _descend("pes", 10)
    assert not np.all(np.abs(pes) < 1e3)
    single = _descend("es-single", 4)
    # The problem never resets, so the one draw a pair decides the rate; it cannot blow up.
    assert np.max(np.abs(single)) <= 0.5
    assert -0.17 < single[-1] < 0.4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sigma", "low", "high"),
    [
        ("bptt", 0.3, 2400.0, 2440.0),
        ("truncated-es", 1.0, 1000.0, 2000.0),
        ("pes", 0.3, 545.0, 590.0),
        ("es-single", 0.3, 545.0, 590.0),
    ],
)
def test_learning_rate_toy_only_persistent_estimators_arrive(
    name: estimators.EstimatorName, sigma: float, low: float, high: float
) -> None:
    losses = _tune_rates(name, sigma, steps=20_000, workers=100)
    assert low < losses[-1] < high


def _tune_rates(
    name: estimators.EstimatorName, sigma: float, steps: int, workers: int
) -> np.ndarray:
    """Meta-losses at thirty points of a run of Adam on the learning-rate toy."""
    estimator, system = estimators.make_estimator(name, sigma), toy.system(10)

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        theta, moments, count, states = carry
        keys, mask = jax.random.split(key, workers), jnp.ones(2)
        states, gradient, _ = estimators.estimate(estimator, system, theta, mask, states, keys)
        first = 0.99 * moments[0] + 0.01 * gradient
        second = 0.999 * moments[1] + 0.001 * jnp.square(gradient)
        count = count + 1
        rate = 1e-2 * jnp.sqrt(1 - 0.999**count) / (1 - 0.99**count)
        theta = theta - rate * first / (jnp.sqrt(second) + 1e-8)
        return (theta, (first, second), count, states), None

    def piece(carry: Any, keys: jax.Array) -> tuple[Any, jax.Array]:
        carry, _ = jax.lax.scan(step, carry, keys)
        return carry, toy.meta_loss(carry[0])

    @problems.long_jit
    def run(theta: jax.Array, keys: jax.Array) -> jax.Array:
        states = _init(estimator, system, theta, workers)
        start = (theta, (jnp.zeros(2), jnp.zeros(2)), jnp.zeros(()), states)
        return jax.lax.scan(piece, start, keys)[1]

    keys = jax.random.split(jax.random.key(0), (20, steps // 20))
    return np.asarray(run(jnp.asarray([-4.0, -4.0]), keys))


def test_learning_rate_toy_has_the_known_losses() -> None:
    losses = jax.vmap(toy.meta_loss)(jnp.asarray([[-4.0, -4.0], [0.14, -0.78]]))
    np.testing.assert_allclose(losses, [2487.8, 2423.0], rtol=2e-3)
