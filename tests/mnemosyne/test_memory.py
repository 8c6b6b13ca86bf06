# SPDX-License-Identifier: Apache-2.0
"""The compact associative memory: streaming equals the masked form, and its known special cases."""

from typing import Any

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
LENGTH = 50
"""Shorter streams start with keys of zero features, so that one program serves all."""

_features = jax.jit(lambda x, w: kernels.cosh_features(bound_norm(x), w))
_read = jax.jit(memory.read)


def _patterns(steps: int = LENGTH, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of random keys and queries, and random values."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((WIDTH // 2, KEY_DIM), np.float32)
    keys, queries = rng.standard_normal((2, steps, KEY_DIM), np.float32)
    values = rng.standard_normal((steps, DIM), np.float32)
    return np.array(_features(keys, directions)), np.array(_features(queries, directions)), values


@jax.jit
def _stream(keys: Any, values: Any, taus: Any) -> memory.MemoryState:
    """Writes one pattern after the other to an empty slot with a head for every decay rate."""
    decay = jnp.exp(-taus)

    def step(state: memory.MemoryState, pattern: tuple[jax.Array, jax.Array]) -> tuple:
        key, value = pattern
        return memory.write(state, key[None], value[None], decay), None

    empty = memory.init(1, len(taus), keys.shape[1], values.shape[1])
    return jax.lax.scan(step, empty, (keys, values))[0]


@jax.jit
def _batch(query: Any, keys: Any, values: Any) -> jax.Array:
    return jnp.stack([memory.batch_read(query, keys, values, tau) for tau in TAUS])


@hypothesis.given(steps=st.integers(1, LENGTH), seed=st.integers(0, 100))
@hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
def test_read_streaming_equals_batch_form(steps: int, seed: int) -> None:
    keys, queries, values = _patterns(seed=seed)
    keys[: LENGTH - steps] = 0.0
    streamed = _read(_stream(keys, values, np.float32(TAUS)), queries[-1:])[0]
    batch = _batch(queries[-1], keys, values)
    np.testing.assert_allclose(streamed, batch, rtol=2e-4, atol=2e-5)


def test_batch_read_is_the_masked_form() -> None:
    # Equation (3) with a double loop over features and time.
    keys, queries, values = _patterns()
    for head, tau in enumerate(TAUS):
        ages = np.arange(LENGTH)[::-1]
        weights = [
            np.exp(-tau * age) * float(k @ queries[-1]) for age, k in zip(ages, keys, strict=True)
        ]
        expected = np.average(values, axis=0, weights=weights)
        np.testing.assert_allclose(
            _batch(queries[-1], keys, values)[head], expected, rtol=1e-4, atol=1e-5
        )


def test_read_equal_keys_is_bias_corrected_moving_average() -> None:
    _, queries, values = _patterns()
    keys = np.tile(queries[0], (LENGTH, 1))
    streamed = _read(_stream(keys, values, np.float32(TAUS)), queries[3:4])[0]
    for head, tau in enumerate(TAUS):
        beta, average = np.exp(-tau), np.zeros(DIM)
        for value in values:
            average = beta * average + (1 - beta) * value
        np.testing.assert_allclose(streamed[head], average / (1 - beta**LENGTH), rtol=1e-4)


def test_read_ignores_the_scale_of_the_query() -> None:
    keys, queries, values = _patterns()
    state = _stream(keys, values, np.float32(TAUS))
    np.testing.assert_allclose(_read(state, queries[:1]), _read(state, 7 * queries[:1]), rtol=1e-5)


def test_read_is_a_convex_combination_of_the_values() -> None:
    keys, queries, values = _patterns()
    recalled = np.asarray(_read(_stream(keys, values, np.float32((0.0, 0.1))), queries[:1])[0])
    assert np.all(recalled <= values.max(axis=0) + 1e-5)
    assert np.all(recalled >= values.min(axis=0) - 1e-5)


def test_read_recalls_by_content() -> None:
    # Two patterns alternate; asking with the key of one must lean towards its value.
    directions = np.random.default_rng(5).standard_normal((64, KEY_DIM), np.float32)
    points = np.asarray([[1.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]], np.float32)
    pair = np.asarray(jax.jit(kernels.cosh_features)(points, directions))
    values = np.tile(np.float32([[1.0], [-1.0]]), (20, 1))
    state = _stream(np.tile(pair, (20, 1)), values, np.float32([0.01]))
    # K(a, a) / (K(a, a) + K(a, b)) = e / (e + 1/e) = 0.881, so the answer is near 0.76.
    np.testing.assert_allclose(_read(state, pair[:1])[0, 0, 0], 0.76, atol=0.15)


def test_read_empty_memory_is_zero() -> None:
    recalled = _read(memory.init(3, 2, WIDTH, DIM), np.ones((3, WIDTH), np.float32))
    assert recalled.shape == (3, 2, DIM)
    assert np.all(np.asarray(recalled) == 0)


@pytest.mark.parametrize("tau", [0.003, 0.2])
def test_write_state_stays_bounded_over_long_runs(tau: float) -> None:
    keys, _, values = _patterns(20_000)
    matrix = np.asarray(_stream(keys, values, np.float32([tau])).matrix)
    bound = np.max(np.abs(values)) * keys.max() / (1 - np.exp(-tau))
    assert np.all(np.isfinite(matrix))
    assert np.max(np.abs(matrix)) <= bound
