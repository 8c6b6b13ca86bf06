# SPDX-License-Identifier: Apache-2.0
"""The gradient's running scale, and the guard against gradients that cannot be true."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne import units


def _feed(sizes: list[float]) -> tuple[units.Verdict, units.UnitState]:
    state = units.init()
    for size in sizes:
        verdict, state = units.judge(state, [jnp.asarray([size, -size / 2]), jnp.zeros(3)])
    return verdict, state


@pytest.mark.parametrize("size", [1e-37, 1e-30, 1.0, 1e30, 3e38])
def test_judge_finite_gradient_is_brought_to_order_one(size: float) -> None:
    verdict, _ = _feed([size] * 5)
    assert bool(verdict.ok)
    assert 0.25 <= float(size * verdict.inverse) <= 4.0


@pytest.mark.parametrize("size", [np.nan, np.inf, 2e6])
def test_judge_impossible_gradient_is_skipped_and_counted(size: float) -> None:
    verdict, state = _feed([1.0, 1.0, size])
    assert not bool(verdict.ok)
    assert int(state.skipped) == 1
    np.testing.assert_allclose(state.peak, 1.0)


def test_judge_ten_skips_in_a_row_start_anew() -> None:
    verdict, state = _feed([1.0] + [1e9] * 9)
    assert not bool(verdict.restart)
    verdict, state = _feed([1.0] + [1e9] * 10)
    assert bool(verdict.restart)
    assert int(state.skipped_in_row) == 0
    verdict, state = _feed([1.0] + [1e9] * 11)
    assert bool(verdict.ok)
    assert int(state.skipped) == 10


def test_judge_zero_gradients_leave_the_scale_unset() -> None:
    verdict, state = _feed([0.0, 0.0])
    assert bool(verdict.ok)
    assert float(state.scale) == 0.0
    assert float(verdict.inverse) == 0.0


def test_judge_scale_is_a_power_of_two() -> None:
    _, state = _feed([0.37])
    mantissa, _ = np.frexp(float(state.scale))
    assert mantissa == 0.5


def test_judge_state_keeps_dtypes_under_scan() -> None:
    state = units.init()
    _, after = units.judge(state, [jnp.ones(2)])
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.weak_type), after
    )


def test_judge_vanishing_gradients_keep_the_moments_in_range() -> None:
    # The scale may not shrink faster than sqrt(nu) does: nu in units would overflow.
    _, state = _feed([1.0])
    nu = jnp.asarray(0.01)

    def step(carry: tuple, _: None) -> tuple:
        state, nu = carry
        verdict, state = units.judge(state, [jnp.zeros(2)])
        return (state, 0.999 * nu * jnp.square(verdict.ratio)), None

    (state, nu), _ = jax.lax.scan(step, (state, nu), None, length=200_000)
    assert float(nu) <= 1.0
    assert int(state.skipped) == 0
