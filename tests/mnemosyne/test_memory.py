# SPDX-License-Identifier: Apache-2.0
"""The compact associative memory: streaming equals the masked form, and its known special cases."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne import kernels, memory
from mnemosyne.performer import bound_norm

TAUS = (0.2, 0.03)
DIM, KEY_DIM, WIDTH = 5, 4, 16


def _patterns(steps: int, seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
    key_k, key_q, key_v, key_w = jax.random.split(jax.random.key(seed), 4)
    directions = kernels.orthogonal_directions(key_w, WIDTH // 2, KEY_DIM)
    keys, queries = (
        kernels.cosh_features(bound_norm(jax.random.normal(k, (steps, KEY_DIM))), directions)
        for k in (key_k, key_q)
    )
    return keys, queries, jax.random.normal(key_v, (steps, DIM))


def _stream(
    keys: jax.Array, values: jax.Array, taus: tuple[float, ...] = TAUS
) -> memory.MemoryState:
    decay = jnp.exp(-jnp.asarray(taus))

    def step(state: memory.MemoryState, pattern: tuple[jax.Array, jax.Array]) -> tuple:
        key, value = pattern
        return memory.write(state, key[None], value[None], decay), None

    empty = memory.init(1, len(taus), WIDTH, DIM)
    return jax.lax.scan(step, empty, (keys, values))[0]


@hypothesis.given(steps=st.integers(1, 40), seed=st.integers(0, 100))
@hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
def test_read_streaming_equals_batch_form(steps: int, seed: int) -> None:
    keys, queries, values = _patterns(steps, seed)
    streamed = memory.read(_stream(keys, values), queries[-1:])[0]
    for head, tau in enumerate(TAUS):
        batch = memory.batch_read(queries[-1], keys, values, tau)
        np.testing.assert_allclose(streamed[head], batch, rtol=2e-4, atol=2e-5)


def test_read_equal_keys_is_bias_corrected_moving_average() -> None:
    _, queries, values = _patterns(30)
    keys = jnp.broadcast_to(queries[0], (30, WIDTH))
    streamed = memory.read(_stream(keys, values), queries[3:4])[0]
    for head, tau in enumerate(TAUS):
        beta, average = np.exp(-tau), np.zeros(DIM)
        for value in np.asarray(values):
            average = beta * average + (1 - beta) * value
        np.testing.assert_allclose(streamed[head], average / (1 - beta**30), rtol=1e-4)


def test_read_ignores_the_scale_of_the_query() -> None:
    keys, queries, values = _patterns(10)
    state = _stream(keys, values)
    np.testing.assert_allclose(
        memory.read(state, queries[:1]), memory.read(state, 7.0 * queries[:1]), rtol=1e-5
    )


def test_read_is_a_convex_combination_of_the_values() -> None:
    keys, queries, values = _patterns(50)
    recalled = memory.read(_stream(keys, values, (0.0, 0.1)), queries[:1])[0]
    assert jnp.all(recalled <= values.max(axis=0) + 1e-5)
    assert jnp.all(recalled >= values.min(axis=0) - 1e-5)


def test_read_recalls_by_content() -> None:
    # Two patterns alternate; asking with the key of one must lean towards its value.
    directions = kernels.orthogonal_directions(jax.random.key(5), 64, KEY_DIM)
    a = kernels.cosh_features(jnp.asarray([1.0, 0.0, 0.0, 0.0]), directions)
    b = kernels.cosh_features(jnp.asarray([-1.0, 0.0, 0.0, 0.0]), directions)
    state = memory.init(1, 1, 128, 1)
    for _ in range(20):
        state = memory.write(state, a[None], jnp.ones((1, 1)), jnp.asarray([0.99]))
        state = memory.write(state, b[None], -jnp.ones((1, 1)), jnp.asarray([0.99]))
    # K(a, a) / (K(a, a) + K(a, b)) = e / (e + 1/e) = 0.881, so the answer is near 0.76.
    np.testing.assert_allclose(memory.read(state, a[None])[0, 0, 0], 0.76, atol=0.15)


def test_read_empty_memory_is_zero() -> None:
    recalled = memory.read(memory.init(3, 2, WIDTH, DIM), jnp.ones((3, WIDTH)))
    assert recalled.shape == (3, 2, DIM)
    assert jnp.all(recalled == 0)


@pytest.mark.parametrize("tau", [0.003, 0.2])
def test_write_state_stays_bounded_over_long_runs(tau: float) -> None:
    keys, _, values = _patterns(20_000)
    state = _stream(keys, values, (tau,))
    bound = jnp.max(jnp.abs(values)) * keys.max() / (1 - np.exp(-tau))
    assert jnp.all(jnp.isfinite(state.matrix))
    assert jnp.max(jnp.abs(state.matrix)) <= bound
