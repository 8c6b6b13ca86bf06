# SPDX-License-Identifier: Apache-2.0
"""A clean loss is told from a noisy one, in any units, and only where that is asked for."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mnemosyne
from mnemosyne import foresight, path

Loss = Callable[[jax.Array, jax.Array], jax.Array]
CURVATURES = jnp.asarray([1.0, 30.0, 0.1])


def _bowl(x: jax.Array, noise: jax.Array) -> jax.Array:
    del noise
    return 0.5 * jnp.sum(CURVATURES * x * x)


def _noisy(x: jax.Array, noise: jax.Array) -> jax.Array:
    return _bowl(x, noise) + 10.0 * jnp.dot(noise, x)


def _descend(loss: Loss, steps: int = 40, unit: float = 1.0) -> foresight.ForesightState:
    state, x = foresight.init(3), jnp.ones(3)
    for seed in range(steps):
        noise = jax.random.normal(jax.random.key(seed), (3,))
        value, g = jax.value_and_grad(loss)(x, noise)
        state = foresight.compare(state, unit * g, unit * value)
        state = foresight.remember(state, unit * g, -0.01 * g, unit * value)
        x = x - 0.01 * g
    return state


def test_trapezoid_rule_is_exact_on_a_quadratic() -> None:
    state = _descend(_bowl)
    # Errors began at 1 and have been next to 0 since the second step.
    assert float(state.error) == pytest.approx(foresight.DECAY**39, rel=0.2)
    assert float(foresight.trust(state)) == 1.0


def test_noise_is_not_foreseen() -> None:
    state = _descend(_noisy)
    assert float(state.error) > foresight.UNFORESEEN
    assert float(foresight.trust(state)) == 0.0


def test_error_has_no_unit() -> None:
    expected, found = _descend(_noisy), _descend(_noisy, unit=2.0**40)
    assert float(found.error) == float(expected.error)


def test_nothing_is_foreseen_before_the_first_steps() -> None:
    assert float(foresight.trust(foresight.init(3))) == 0.0
    assert float(foresight.trust(_descend(_bowl, steps=3))) == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_impossible_loss_counts_as_unforeseen_and_is_got_over(value: float) -> None:
    state = _descend(_bowl)
    broken = foresight.compare(state, jnp.full(3, 3e38), jnp.asarray(value))
    assert float(broken.error) == pytest.approx(0.9 * float(state.error) + 0.1)
    after = foresight.remember(broken, jnp.ones(3), jnp.ones(3), jnp.asarray(value))
    assert np.isfinite(float(foresight.compare(after, jnp.ones(3), jnp.ones(())).error))


def test_nothing_flows_back_through_trust() -> None:
    def trusted(error: jax.Array) -> jax.Array:
        return foresight.trust(foresight.init(1)._replace(error=error))

    assert float(jax.grad(trusted)(jnp.asarray(0.4))) == 0.0


def _errors(size: int, told: bool) -> jax.Array:
    """Mean errors along a run of the optimizer on a bowl of ``size`` coordinates."""
    opt = mnemosyne.mnemosyne()
    x = jnp.ones(size)

    def step(carry: tuple, _: None) -> tuple:
        x, state = carry
        value, g = jax.value_and_grad(lambda x: jnp.sum(x * x))(x)
        extras = {"value": value} if told else {}
        updates, state = opt.update(g, state, x, **extras)
        return (x + updates, state), state.foresight.error

    return jax.lax.scan(step, (x, opt.init(x)), None, 30)[1]


def test_optimizer_foresees_a_loss_of_few_coordinates() -> None:
    assert float(_errors(8, told=True)[-1]) < foresight.FORESEEN


def test_optimizer_believes_nothing_without_a_loss() -> None:
    np.testing.assert_array_equal(_errors(8, told=False), 1.0)


def test_optimizer_of_many_coordinates_keeps_no_step() -> None:
    np.testing.assert_array_equal(_errors(path.TOLD_APART, told=True), 1.0)
    assert mnemosyne.mnemosyne().init(jnp.ones(path.TOLD_APART)).foresight.step.size == 0


def test_skipped_gradient_changes_nothing_that_was_foreseen() -> None:
    opt, x = mnemosyne.mnemosyne(), jnp.ones(4)
    state, update = opt.init(x), jax.jit(opt.update)
    for _ in range(3):
        updates, state = update(2.0 * x, state, x, value=jnp.sum(x * x))
        x = x + updates
    _, after = update(jnp.full(4, jnp.nan), state, x, value=jnp.sum(x * x))
    for new, old in zip(after.foresight, state.foresight, strict=True):
        np.testing.assert_array_equal(new, old)


def test_path_follows_what_is_foreseen_instead_of_the_turn() -> None:
    g, counts = jnp.ones((1, path.WIDTH)), jnp.asarray([300.0])
    state = path.advance(path.init(1), -g, jnp.zeros(1), counts)
    turns = [float(path.features(state, g, counts, -0.5, trust)[1][0]) for trust in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(turns, [1.0, 0.25, -0.5], rtol=1e-6)
