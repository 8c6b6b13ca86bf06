# SPDX-License-Identifier: Apache-2.0
"""PES on influence balancing (Vicol et al. 2021), where truncated gradients point the wrong way."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.meta import estimators

DIM = 23
SIGN = jnp.concatenate([jnp.ones(10), -jnp.ones(13)])


class Balance(NamedTuple):
    """State vector and time of one run."""

    s: jax.Array
    step: jax.Array


def _advance_once(theta: jax.Array, s: jax.Array) -> jax.Array:
    return 0.5 * s + 0.5 * jnp.append(s[1:], 0.0) + theta * SIGN


def _system(horizon: int) -> estimators.System:
    def reset(theta: jax.Array, key: jax.Array, fraction: jax.Array | float) -> Balance:
        del theta, key, fraction
        return Balance(jnp.ones(DIM), jnp.zeros((), jnp.int32))

    def advance(theta: jax.Array, state: Balance) -> tuple[Balance, jax.Array]:
        s = _advance_once(theta, state.s)
        return Balance(s, state.step + 1), 0.5 * jnp.square(s[0] - 1.0)

    return estimators.System(reset, advance, lambda state: state.step >= horizon)


SIGMA = 0.1
FOREVER = _system(10**6)


def _init(system: estimators.System, theta: jax.Array, pairs: int) -> estimators.PESState:
    keys = jax.random.split(jax.random.key(0), pairs)
    return jax.vmap(lambda k: estimators.pes_init(system, theta, k))(keys)


def _step(
    system: estimators.System, theta: jax.Array, state: estimators.PESState, key: jax.Array
) -> tuple[estimators.PESState, jax.Array]:
    pairs, mask = state.accumulated.shape[0], jnp.ones(())
    return jax.vmap(lambda s, k: estimators.pes_advance(system, theta, mask, SIGMA, s, k))(
        state, jax.random.split(key, pairs)
    )


def test_exact_gradients_of_the_test_problem() -> None:
    @jax.jit
    def totals(theta: jax.Array) -> jax.Array:
        def step(s: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            s = _advance_once(theta, s)
            return s, 0.5 * jnp.square(s[0] - 1.0)

        return jnp.cumsum(jax.lax.scan(step, jnp.ones(DIM), None, length=100)[1])

    gradients = jax.jit(jax.jacfwd(totals))(0.5)
    for steps, expected in {10: 192.5, 50: 2408.004, 100: 3571.631}.items():
        np.testing.assert_allclose(gradients[steps - 1], expected, rtol=1e-4)


@pytest.mark.parametrize(("horizon", "expected"), [(10, 192.5), (50, 2408.004)])
def test_pes_frozen_theta_is_unbiased(horizon: int, expected: float) -> None:
    theta, pairs = jnp.asarray(0.5), 20_000

    def step(state: estimators.PESState, key: jax.Array) -> tuple[estimators.PESState, jax.Array]:
        state, losses = _step(FOREVER, theta, state, key)
        difference = losses[:, 0] - losses[:, 1]
        return state, state.accumulated * difference / (2 * SIGMA**2)

    @jax.jit
    def run(keys: jax.Array) -> jax.Array:
        return jnp.sum(jax.lax.scan(step, _init(FOREVER, theta, pairs), keys)[1], axis=0)

    totals = np.asarray(run(jax.random.split(jax.random.key(1), horizon)))
    error = totals.std() / np.sqrt(pairs)
    assert abs(totals.mean() - expected) < 4 * error
    assert error < 0.02 * expected


def test_pes_influence_balancing_converges_to_minus_a_sixth() -> None:
    def step(carry: tuple, key: jax.Array) -> tuple:
        theta, state = carry
        state, losses = _step(FOREVER, theta, state, key)
        gradient = estimators.pes_gradient(state.accumulated, losses, SIGMA)
        return (theta - 1e-4 * gradient, state), None

    @jax.jit
    def run(theta: jax.Array, keys: jax.Array) -> jax.Array:
        return jax.lax.scan(step, (theta, _init(FOREVER, theta, 1000)), keys)[0][0]

    theta = run(jnp.asarray(0.5), jax.random.split(jax.random.key(2), 3000))
    np.testing.assert_allclose(theta, -1 / 6, atol=2e-3)


def test_pes_resets_state_and_accumulator_at_the_horizon() -> None:
    system, theta = _system(2), jnp.asarray(0.5)
    state = _init(system, theta, 4)
    step = jax.jit(lambda state, key: _step(system, theta, state, key))
    for index in range(3):
        state, _ = step(state, jax.random.key(index))
    assert state.plus.step.tolist() == [1, 1, 1, 1]
    # One perturbation since the reset: plus and minus sit symmetrically around the mean.
    middle = 0.5 * (state.plus.s + state.minus.s)
    np.testing.assert_allclose(middle[0], _advance_once(theta, jnp.ones(DIM)), rtol=1e-5)
    np.testing.assert_allclose(
        state.plus.s[:, -1] - middle[:, -1], -state.accumulated, rtol=1e-3, atol=1e-6
    )


def test_pes_gradient_clips_tails_and_ignores_non_finite_losses() -> None:
    accumulated = jnp.ones((5, 2))
    losses = jnp.asarray([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1e9, 0.0], [jnp.nan, 0.0]])
    gradient = estimators.pes_gradient(accumulated, losses, 1.0, clip=3.0)
    np.testing.assert_allclose(gradient, (1 + 1 + 1 + 3) / (2 * 5))


def test_perturbation_respects_the_mask() -> None:
    theta = {"a": jnp.zeros(1000), "b": jnp.zeros(3)}
    mask = {"a": jnp.ones(1000), "b": jnp.zeros(3)}
    eps = estimators.perturbation(jax.random.key(0), theta, mask, 0.1)
    np.testing.assert_allclose(eps["a"].std(), 0.1, rtol=0.1)
    assert jnp.all(eps["b"] == 0)
