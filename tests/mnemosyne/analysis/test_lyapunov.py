# SPDX-License-Identifier: Apache-2.0
"""Lyapunov exponents that are known in closed form, and what they say about gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.analysis import lyapunov
from mnemosyne.meta import estimators
from tests.mnemosyne.analysis import toy

# theta; exponent; spread of the exact d(meta-loss)/d(theta_0) over thetas with a standard deviation
# of 0.05; mean and spread of the ES estimate with sigma 0.3 and 100 evaluations.
TOY = {
    (-4.0, -4.0): (0.001, 0.158, -4.1, 0.95),
    (-1.0, -1.0): (-0.092, 0.324, -8.6, 1.7),
    (0.0, 0.0): (-0.085, 30.0, -69.0, 37.0),
    (1.0, 0.0): (0.386, 1e23, -897.0, 161.0),
    (2.0, 1.0): (0.356, 6e26, -751.0, 139.0),
    (2.72, -4.2): (0.134, 6e11, -95.0, 32.0),
}


@pytest.mark.usefixtures("x64")
def test_ftle_logistic_map_is_the_logarithm_of_two() -> None:
    exponent = jax.jit(
        lambda x: lyapunov.ftle(lambda x: 4.0 * x * (1.0 - x), x, jax.random.key(0), 200_000)
    )(0.3)
    np.testing.assert_allclose(exponent, np.log(2), atol=5e-4)


class HeavyBall(NamedTuple):
    """Weight and momentum on ``x^2 / 2``."""

    x: jax.Array
    momentum: jax.Array


@pytest.mark.parametrize(
    ("rate", "beta", "expected"),
    [
        (0.1, 0.9, -0.05268),
        (0.01, 0.9, -0.05268),
        (2.1, 0.0, 0.0953),
        (0.5, 0.0, -0.6931),
    ],
)
def test_ftle_heavy_ball_is_the_log_spectral_radius(
    rate: float, beta: float, expected: float
) -> None:
    def step(state: HeavyBall) -> HeavyBall:
        momentum = beta * state.momentum + state.x
        return HeavyBall(state.x - rate * momentum, momentum)

    start = HeavyBall(jnp.ones(()), jnp.zeros(()))
    exponent = lyapunov.ftle(step, start, jax.random.key(0), 10_000)
    np.testing.assert_allclose(exponent, expected, atol=5e-4)


class Mixed(NamedTuple):
    """A shrinking vector beside leaves that cannot be perturbed, or never move."""

    x: jax.Array
    kept: jax.Array
    count: jax.Array
    flag: jax.Array
    key: jax.Array


def _mixed_step(state: Mixed) -> Mixed:
    x = jnp.where(state.flag, 0.5 * state.x * state.kept, state.x)
    return state._replace(x=x, count=state.count + 1, key=jax.random.fold_in(state.key, 1))


def _mixed() -> Mixed:
    return Mixed(
        jnp.ones(3), jnp.ones(()), jnp.zeros((), jnp.int32), jnp.asarray(True), jax.random.key(0)
    )


def test_log_growth_other_leaves_are_constants() -> None:
    # With ``kept`` perturbed, the exponent would be near 0 instead.
    state, growth = lyapunov.log_growth(_mixed_step, _mixed(), jax.random.key(1), 20)
    np.testing.assert_allclose(growth, np.log(0.5), rtol=1e-5)
    assert int(state.count) == 20
    np.testing.assert_allclose(state.x, 0.5**20, rtol=1e-5)


def test_log_growth_nothing_to_perturb_is_refused() -> None:
    with pytest.raises(ValueError, match="no floating-point leaf"):
        lyapunov.log_growth(lambda n: n + 1, jnp.zeros((), jnp.int32), jax.random.key(0), 2)


def test_log_growth_dead_perturbation_is_minus_infinity_not_nan() -> None:
    growth = lyapunov.log_growth(lambda x: 0.0 * x, jnp.ones(2), jax.random.key(0), 3)[1]
    assert np.all(np.isneginf(growth))


class Decay(NamedTuple):
    """A vector that is multiplied by theta, and its age."""

    x: jax.Array
    age: jax.Array


def _decay(horizon: int) -> estimators.System:
    def advance(theta: jax.Array, state: Decay) -> tuple[Decay, jax.Array]:
        # Past the horizon the factor is another one, so that counting it would show.
        factor = jnp.where(state.age < horizon, theta, 100.0)
        moved = Decay(factor**2 * state.x, state.age + 1)
        return moved, jnp.sum(moved.x)

    def reset(theta: jax.Array, key: jax.Array, fraction: jax.Array | float) -> Decay:
        del theta, fraction
        return Decay(jax.random.normal(key, (4,)), jnp.zeros((), jnp.int32))

    return estimators.System(reset, advance, lambda state: state.age >= horizon)


@pytest.mark.parametrize("horizon", [2, 4, 50])
def test_unroll_ftle_is_per_inner_step_and_ends_with_the_problem(horizon: int) -> None:
    keys = jax.random.split(jax.random.key(0), 2)
    exponents = jax.jit(
        jax.vmap(lambda k: lyapunov.unroll_ftle(_decay(horizon), jnp.asarray(0.9), k, 6, steps=2))
    )(keys)
    np.testing.assert_allclose(exponents, np.log(0.9), rtol=1e-4)


@pytest.mark.usefixtures("x64")
def test_ftle_toy_separates_useful_from_useless_gradients() -> None:
    noise = 0.05 * np.random.default_rng(0).standard_normal((4000, 2))

    @jax.jit
    @jax.vmap
    def measure(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(jax.random.key(0), 3)
        exponents = jax.vmap(
            lambda k: lyapunov.ftle(lambda s: toy.step(theta, s), toy.start(), k, toy.LENGTH)
        )(keys)
        direction = jnp.asarray([1.0, 0.0])
        return jnp.max(exponents), jax.jvp(toy.meta_loss, (theta,), (direction,))[1]

    for theta, (exponent, spread, _, es_spread) in TOY.items():
        exponents, gradients = map(np.asarray, measure(np.asarray(theta) + noise))
        # 5 sigma of the mean, as rounding alone leads chaotic runs elsewhere, and three digits.
        np.testing.assert_allclose(exponents.mean(), exponent, atol=5e-3)
        # At (0, 0), the transition, the exponent is mild but the tails are heavy.
        if theta != (0.0, 0.0):
            assert (gradients.std() > 1e6 * es_spread) == (exponent > 0.1)
        if spread < 1:
            np.testing.assert_allclose(gradients.std(), spread, rtol=0.05)
        assert lyapunov.recommend(exponents.mean()) == ("es" if exponent > 0.1 else "bptt")


def test_es_toy_sees_the_descent_that_gradients_miss() -> None:
    estimator = estimators.make_estimator("full-es", sigma=0.3)
    system, mask = toy.system(toy.LENGTH), jnp.asarray([1.0, 1.0])

    @jax.jit
    def repeat(theta: jax.Array) -> jax.Array:
        def once(key: jax.Array) -> jax.Array:
            keys = jax.random.split(key, 50)
            states = jax.vmap(lambda k: estimator.init(system, theta, k, 1.0))(keys)
            return estimators.estimate(estimator, system, theta, mask, states, keys)[1][0]

        return jax.vmap(once)(jax.random.split(jax.random.key(0), 500))

    for theta, (_, _, mean, spread) in TOY.items():
        estimates = np.asarray(repeat(jnp.asarray(theta)))
        np.testing.assert_allclose(estimates.mean(), mean, rtol=0.05, atol=0.1)
        np.testing.assert_allclose(estimates.std(), spread, rtol=0.15)


def test_recommend_uses_the_threshold() -> None:
    assert [lyapunov.recommend(x) for x in (-1.0, 0.05, 0.06, np.inf)] == [
        "bptt",
        "bptt",
        "es",
        "es",
    ]
    assert lyapunov.recommend(0.06, threshold=0.1) == "bptt"
    # Through 2,000 steps hardly any expansion is affordable, and more pairs make ES cheaper.
    assert lyapunov.variance_threshold(2000, 4701, 8) == pytest.approx(0.0016, abs=1e-4)
    assert lyapunov.variance_threshold(50, 100, 200) < 0
