# SPDX-License-Identifier: Apache-2.0
"""The features of AdafacMLP, STAR and Celo2."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mnemosyne.baselines import adafac_mlp, adafactor, celo2

G = np.asarray([[1.0, 2.0, 0.0], [3.0, 4.0, -6.0]], np.float32)


@functools.cache
def _after_one_gradient() -> tuple[Any, list[Any], list[Any]]:
    """Signals and both lists of features for ``G`` and parameters of 0.5, from a fresh state."""
    params, g = jnp.full((2, 3), 0.5), jnp.asarray(G)

    @jax.jit
    def compute() -> Any:
        decays = adafac_mlp.decays_of(adafac_mlp.init(jax.random.key(0)))
        state = adafactor.accumulate(adafactor.init_state(params), g, decays)
        signals = adafactor._signals(g, params, *state[1:])
        return signals, adafac_mlp.features(signals), celo2.features(signals)

    return jax.device_get(compute())


def test_features_after_one_gradient_by_hand() -> None:
    # Rows of g**2 have the means 5/3 and 61/3, columns 5, 10 and 18; looked at in place (1, 0).
    _, x, _ = _after_one_gradient()
    rates = np.asarray([0.1, 0.01, 0.001])
    row, col, inverse = rates * 61 / 3, rates * 5, 1 / np.sqrt(0.001 * 9 + 1e-6)
    scale = 1 / np.sqrt((61 / 3) / 11) / np.sqrt(col)
    roots = [*(1 / np.sqrt(row + 1e-8)), *(1 / np.sqrt(col + 1e-8))]
    expected = [3.0, 0.5, *(3 * rates), 0.009, *(3 * rates * inverse), inverse]
    expected += [*(3 * scale), *row, *col, *roots, *(3 * rates * scale)]
    ours = [np.broadcast_to(f, (2, 3))[1, 0] for f in x]
    assert len(x) == adafac_mlp.NUM_SIGNALS == 28
    np.testing.assert_allclose(ours, expected, rtol=2e-4)


def test_celo2_features_add_clipped_and_normalised_gradients() -> None:
    signals, shorter, x = _after_one_gradient()
    assert len(x) == celo2.NUM_SIGNALS == 30
    np.testing.assert_allclose(x[1], np.clip(G, -0.1, 0.1))
    np.testing.assert_allclose(x[14], G / np.sqrt(signals.v + 1e-8), rtol=1e-5)
    # Without these two it is the list of AdafacMLP, up to the epsilon under the second moment.
    others = [f for i, f in enumerate(x) if i not in (1, 14)]
    for index in set(range(28)) - {6, 7, 8, 9}:
        np.testing.assert_allclose(others[index], shorter[index], rtol=1e-6)


def test_step_features_subtract_one() -> None:
    taus = np.asarray(adafac_mlp.TIMESCALES)
    for t in (0, 1, 1000):
        ours = adafac_mlp.step_features(jnp.asarray(t))
        np.testing.assert_allclose(ours, np.tanh(t / taus - 1), rtol=1e-5, atol=1e-7)
    assert len(taus) == 11


def test_factored_axes_are_the_two_largest() -> None:
    assert adafactor.factored_axes((784, 128)) == (1, 0)
    assert adafactor.factored_axes((3, 5, 7, 2)) == (1, 2)
    assert adafactor.factored_axes((4, 4)) == (0, 1)
    assert adafactor.factored_axes((9,)) is None
