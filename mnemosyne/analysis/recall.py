# SPDX-License-Identifier: Apache-2.0
"""How exactly the memory recalls: kernel noise, error of a read, streaming against batch form.

All of it runs the shipped code of :mod:`mnemosyne.kernels` and :mod:`mnemosyne.memory` and compares
it with what the equations say.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mnemosyne import kernels, memory

Variant = Literal["exp", "cosh", "cosh, orthogonal"]
VARIANTS: tuple[Variant, ...] = ("exp", "cosh", "cosh, orthogonal")
WIDTHS = (16, 32, 64, 128, 256)


def kernel_spread(
    seed: int, norm: float, aligned: bool, variant: Variant, dim: int = 8, draws: int = 2000
) -> Float[np.ndarray, " widths"]:
    """Relative standard deviation of the estimated ``exp(q . k)`` at each of :data:`WIDTHS`.

    Beyond norms of about 1 the distribution has tails that no affordable number of draws sees.

    Args:
      seed: of the directions.
      norm: ``|q| = |k|``.
      aligned: whether ``q = k``; else they are orthogonal.
      variant: features, and whether directions are orthogonal in blocks of ``dim``.
      dim: width of keys, a divisor of 8 and of every number of directions.
      draws: sets of directions.
    """
    kernel: kernels.KernelName = "exp" if variant == "exp" else "cosh"
    num = kernels.num_directions(kernel, WIDTHS[-1])
    rows = draws * num
    key = jax.random.key(seed)
    directions = (
        kernels.orthogonal_directions(key, rows, dim)
        if variant == "cosh, orthogonal"
        else jax.random.normal(key, (rows, dim))
    )
    q = norm * np.eye(1, dim, dtype=np.float32)[0]
    k = q if aligned else np.roll(q, 1)
    terms = np.asarray(_terms(kernel, q, k, directions.reshape(draws, num, dim)), np.float64)
    exact = np.exp(float(q @ k))
    counts = [kernels.num_directions(kernel, width) for width in WIDTHS]
    return np.asarray([terms[:, :count].mean(axis=1).std() / exact for count in counts])


@functools.partial(jax.jit, static_argnums=0)
def _terms(
    kernel: kernels.KernelName, q: Any, k: Any, directions: Float[Array, "draws m d"]
) -> Float[Array, "draws m"]:
    """What each direction adds to the estimate, times their number."""
    features = kernels.FEATURE_MAPS[kernel]
    products = jax.vmap(lambda w: features(q, w) * features(k, w))(directions)
    num = directions.shape[1]
    return num * jnp.sum(products.reshape(products.shape[0], -1, num), axis=1)


def predicted_spread(norm: float, aligned: bool, variant: Variant, width: int) -> float:
    """The closed form for independent directions (an upper estimate for orthogonal ones).

    ``2 sinh(s / 2) / sqrt(r)`` for cosh and ``sqrt((e^s - 1) / r)`` for exp, ``s = |q + k|^2``.
    """
    total = norm**2 * (4.0 if aligned else 2.0)
    if variant == "exp":
        return float(np.sqrt(np.expm1(total) / width))
    return float(2.0 * np.sinh(0.5 * total) / np.sqrt(width))


def read_error(
    seed: int,
    norm: float,
    width: int,
    tau: float = 0.05,
    steps: int = 50,
    dim: int = 16,
    memories: int = 100,
) -> tuple[float, float]:
    """Error of a read against the exact, discounted softmax attention over the same patterns.

    Args:
      seed: of keys, values and directions.
      norm: of keys and query; the query is near the last key.
      width: cosh features with orthogonal directions; 0 asks for the moving average (kernel
        ``ema``), which ignores the keys.
      tau: decay rate.
      steps: patterns stored.
      dim: width of keys and values.
      memories: independent ones, a multiple of 10.

    Returns:
      The root-mean-square of the difference over that of the exact answer, and its
      standard error over ten groups of them.
    """
    rng = np.random.default_rng(seed)
    keys = _sphere(rng, norm, (memories, steps, dim))
    near = keys[:, -1] + 0.3 * norm / np.sqrt(dim) * rng.standard_normal((memories, dim))
    queries = (norm * near / np.linalg.norm(near, axis=-1, keepdims=True)).astype(np.float32)
    values = rng.standard_normal((memories, steps, dim), np.float32)
    kernel: kernels.KernelName = "cosh" if width else "ema"
    num = kernels.num_directions(kernel, width or WIDTHS[0])
    blocks = memories * -(-num // dim)
    drawn = kernels.orthogonal_directions(jax.random.key(seed), blocks * dim, dim)
    directions = drawn.reshape(memories, -1, dim)[:, :num]
    recalled = np.asarray(_recall(kernel, queries, keys, values, directions, tau))
    weights = np.exp(-tau * np.arange(steps)[::-1] + np.einsum("btd,bd->bt", keys, queries))
    exact = np.einsum("bt,btd->bd", weights / weights.sum(axis=1, keepdims=True), values)
    gaps, sizes = (np.mean(np.square(x).reshape(10, -1), axis=1) for x in (recalled - exact, exact))
    ratios = np.sqrt(gaps / sizes)
    return float(np.sqrt(gaps.mean() / sizes.mean())), float(ratios.std() / np.sqrt(10))


@functools.partial(jax.jit, static_argnums=(0, 5))
def _recall(
    kernel: kernels.KernelName, queries: Any, keys: Any, values: Any, directions: Any, tau: float
) -> Float[Array, "memories dim"]:
    features = kernels.FEATURE_MAPS[kernel]

    def one(q: Any, k: Any, v: Any, w: Any) -> Any:
        return memory.batch_read(features(q, w), features(k, w), v, tau)

    return jax.vmap(one)(queries, keys, values, directions)


def _sphere(
    rng: np.random.Generator, norm: float, shape: tuple[int, ...]
) -> Float[np.ndarray, "*batch dim"]:
    x = rng.standard_normal(shape)
    return (norm * x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def streaming_gap(
    seed: int, taus: tuple[float, ...], steps: int = 200, width: int = 16, dim: int = 16
) -> Float[np.ndarray, "heads steps"]:
    """Largest difference, relative to the largest value stored, of streaming and batch reads.

    Args:
      seed: of keys, values and directions.
      taus: decay rate of each head.
      steps: patterns written one after the other, with a read after each write.
      width: cosh features.
      dim: width of keys and values.
    """
    streamed, batch, values = _both_forms(seed, taus, steps, width, dim)
    return np.max(np.abs(streamed - batch), axis=-1).T / np.max(np.abs(values))


def moving_average_gap(seed: int, tau: float, steps: int = 200) -> float:
    """Largest difference of the kernel ``ema`` and the bias-corrected average of Adam."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((steps, 4), np.float32)
    features = kernels.ema_features(jnp.zeros((steps, 4)), jnp.ones((8, 4)))
    streamed = np.asarray(_stream(features, features, values, np.asarray([tau], np.float32)))[:, 0]
    beta, average, worst = np.exp(-tau), np.zeros(4), 0.0
    for index, value in enumerate(values):
        average = beta * average + (1.0 - beta) * value
        corrected = average / (1.0 - beta ** (index + 1))
        worst = max(worst, float(np.max(np.abs(streamed[index] - corrected))))
    return worst


def stored_rank(seed: int, steps: int = 200, width: int = 16, dim: int = 32) -> int:
    """Rank of the matrix after more writes than it has features; never above ``width``."""
    keys, _, values = _patterns(seed, steps, width, dim)
    matrix = np.einsum("tr,td->rd", np.asarray(keys), values)
    return int(np.linalg.matrix_rank(matrix))


def _patterns(
    seed: int, steps: int, width: int, dim: int
) -> tuple[Any, Any, Float[np.ndarray, "steps dim"]]:
    """Features of keys and queries of norm 0.7, and values."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((width // 2, dim), np.float32)
    keys, queries = _sphere(rng, 0.7, (2, steps, dim))
    values = rng.standard_normal((steps, dim), np.float32)
    features = jax.jit(kernels.cosh_features)
    return features(keys, directions), features(queries, directions), values


def _both_forms(
    seed: int, taus: tuple[float, ...], steps: int, width: int, dim: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    keys, queries, values = _patterns(seed, steps, width, dim)
    streamed = _stream(keys, queries, values, np.asarray(taus, np.float32))
    # The masked form as one matrix product, in double precision.
    age = np.arange(steps)[:, None] - np.arange(steps)
    kernel = np.asarray(queries, np.float64) @ np.asarray(keys, np.float64).T
    batch = []
    for tau in taus:
        weights = np.where(age >= 0, np.exp(-tau * np.maximum(age, 0)) * kernel, 0.0)
        batch.append(weights @ values / weights.sum(axis=1, keepdims=True))
    return np.asarray(streamed), np.stack(batch, axis=1), values


@jax.jit
def _stream(keys: Any, queries: Any, values: Any, taus: Any) -> Float[Array, "steps heads dim"]:
    """Write, then read, one pattern at a time."""

    def step(state: memory.MemoryState, pattern: Any) -> tuple[memory.MemoryState, Array]:
        key, query, value = pattern
        state = memory.write(state, key[None], value[None], jnp.exp(-taus))
        return state, memory.read(state, query[None])[0]

    empty = memory.init(1, taus.shape[0], keys.shape[1], values.shape[1])
    return jax.lax.scan(step, empty, (keys, queries, values))[1]
