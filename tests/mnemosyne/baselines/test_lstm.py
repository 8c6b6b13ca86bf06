# SPDX-License-Identifier: Apache-2.0
"""The LSTM optimizer: its preprocessings, its memory, and the convergence test of its authors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnemosyne.baselines import lstm


@pytest.mark.parametrize(
    ("preprocessing", "first", "second"),
    [
        ("paper", (-0.921034, -1.0, 0.0693147, -1.0), (1.0, -0.220265, -1.0, 0.0)),
        ("code", (-1.0, -1.0, 0.1386294, -1.0), (0.0148413, -0.00148413, -1.0, 0.0)),
    ],
)
def test_preprocessing_at_given_gradients(preprocessing: Any, first: Any, second: Any) -> None:
    g = np.asarray([1e-4, -1e-5, -2.0, 0.0], np.float32)
    state = lstm.scale_by_lstm({"out": {}}, preprocessing).init(g)
    channels = lstm.preprocess(jnp.asarray(g), preprocessing, state.chunks, state.count)
    np.testing.assert_allclose(channels, [first, second], rtol=1e-5)


@jax.jit
@jax.vmap
def _slow_channels(gradients: jax.Array) -> jax.Array:
    """Slow channels after a history of gradients of one coordinate."""
    opt = lstm.scale_by_lstm({"out": {"w": jnp.zeros((11, 1)), "b": jnp.zeros(1)}}, "features")
    state, _ = jax.lax.scan(
        lambda s, g: (opt.update(g[None], s)[1], None), opt.init(jnp.zeros(1)), gradients
    )
    chunk = jax.tree.map(lambda x: x[0], state.chunks)
    return lstm.preprocess(gradients[-1:], "features", chunk, state.count)[2:, 0]


def test_slow_features_ignore_the_scale_and_tell_old_histories_apart() -> None:
    up = np.asarray([1.0] * 40 + [-1.0], np.float32)
    down, zero = np.full(41, -1.0, np.float32), np.zeros(41, np.float32)
    base, scaled, other, silent = np.asarray(_slow_channels(np.stack([up, 1e-6 * up, down, zero])))
    np.testing.assert_allclose(base, scaled, atol=1e-4)
    # Both end with the same gradient; the momenta have not forgotten what came before.
    assert base[0] == pytest.approx(other[0], abs=1e-4)
    assert np.all(np.abs(base[1:4] - other[1:4]) > 0.5)
    assert np.all(np.abs(base) <= 1)
    np.testing.assert_array_equal(silent[:5], 0.0)


def test_linear_optimizer_learns_to_solve_a_parabola() -> None:
    # No layers, zero weights, x**2 from 1, unrolls of 20 steps, outer Adam at 1e-2; five unrolls an
    # episode. The gradient of the problem is an input, not a path of differentiation.
    outer = optax.adam(1e-2)

    def unroll(theta: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        opt = lstm.scale_by_lstm(theta, "raw", output_scale=1.0)

        def step(carry: Any, _: None) -> Any:
            x, state = carry
            updates, state = opt.update(2.0 * jax.lax.stop_gradient(x), state)
            return (x + updates, state), jnp.sum(jnp.square(x))

        (x, _), losses = jax.lax.scan(step, (x, opt.init(x)), None, 20)
        return jnp.sum(losses) + jnp.sum(jnp.square(x)), x

    def train(carry: Any, index: jax.Array) -> Any:
        theta, opt_state, x = carry
        x = jnp.where(index % 5 == 0, jnp.ones(1), x)
        (_, x), gradient = jax.value_and_grad(unroll, has_aux=True)(theta, x)
        updates, opt_state = outer.update(gradient, opt_state)
        return (optax.apply_updates(theta, updates), opt_state, x), jnp.square(x[0])

    theta = jax.tree.map(jnp.zeros_like, lstm.init(jax.random.key(0), "raw", units=()))
    run = jax.jit(lambda c: jax.lax.scan(train, c, jnp.arange(1000)))
    costs = np.asarray(run((theta, outer.init(theta), jnp.ones(1)))[1])
    assert costs[4] > 1e-3
    assert costs[-1] < 1e-5
