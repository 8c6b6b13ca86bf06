# SPDX-License-Identifier: Apache-2.0
"""Harder versions of a task change what they say they change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.meta import augment
from mnemosyne.meta.tasks import MLP, RegressTask, Teacher


@pytest.fixture(scope="module")
def task() -> RegressTask:
    inputs, targets = Teacher(3, 1, hidden=4, classify=False).table(jax.random.key(0), 64)
    return RegressTask("tiny", inputs, targets, MLP((3, 4, 1), "tanh"), batch_size=16)


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_reparametrized_starts_as_the_same_function(task: RegressTask, scale: float) -> None:
    wrapped = augment.Reparametrized("x", task, scale)
    key, batch = jax.random.key(1), task.sample(jax.random.key(2))
    inner, outer = task.init(key), wrapped.init(key)
    value, grads = jax.jit(jax.value_and_grad(wrapped.loss))(outer, batch)
    expected, inner_grads = jax.jit(jax.value_and_grad(task.loss))(inner, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for g, h, x, w in zip(
        *(jax.tree.leaves(t) for t in (grads, inner_grads, inner, outer)), strict=True
    ):
        np.testing.assert_allclose(g, scale * h, rtol=1e-3, atol=1e-6 * scale)
        np.testing.assert_allclose(x, scale * w, rtol=1e-6)


def test_with_gradient_passes_value_and_slope_through() -> None:
    params, given = {"a": jnp.ones(2)}, {"a": jnp.array([3.0, -1.0])}

    def f(params: dict, value: jax.Array) -> jax.Array:
        return 2.0 * augment.with_gradient(params, value, given)

    value, (slope, other) = jax.value_and_grad(f, (0, 1))(params, jnp.float32(5.0))
    assert value == 10.0 and other == 0.0
    np.testing.assert_array_equal(slope["a"], [6.0, -2.0])


def test_evolution_gradient_approaches_the_gradient(task: RegressTask) -> None:
    many = augment.EvolutionGradient("x", task, num_pairs=1024, sigma=0.01)
    params, batch = task.init(jax.random.key(1)), many.sample(jax.random.key(2))
    value, estimate = jax.jit(jax.value_and_grad(many.loss))(params, batch)
    expected, exact = jax.jit(jax.value_and_grad(task.loss))(params, batch[0])
    np.testing.assert_allclose(value, expected, rtol=1e-2)
    a, b = (jnp.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (estimate, exact))
    # Each entry of a pair's estimate has variance |g|^2 + g_i^2, the entry's own square on top.
    deviation = jnp.sqrt((jnp.sum(b**2) + b**2) / 1024)
    assert (jnp.abs(a - b) < 5 * deviation).all()
    assert (jnp.abs(a - b) > 0.01 * deviation).any()


def test_evolution_gradient_one_pair_is_unbiased_for_a_linear_loss() -> None:
    slope = jnp.array([1.0, -2.0, 0.5])

    class Linear:
        name = "linear"

        def init(self, key: jax.Array) -> jax.Array:
            return jnp.zeros(3)

        def sample(self, key: jax.Array) -> jax.Array:
            return slope

        def loss(self, params: jax.Array, batch: jax.Array) -> jax.Array:
            return params @ batch

        def normalize(self, loss: jax.Array) -> jax.Array:
            return loss

    wrapped = augment.EvolutionGradient("x", Linear(), num_pairs=1, sigma=0.1)
    batches = jax.jit(jax.vmap(wrapped.sample))(jax.random.split(jax.random.key(0), 4000))
    draws = jax.jit(jax.vmap(jax.grad(wrapped.loss), (None, 0)))(jnp.ones(3), batches)
    variance = jnp.sum(slope**2) + slope**2
    np.testing.assert_allclose(jnp.var(draws, axis=0), variance, rtol=0.15)
    error = jnp.abs(jnp.mean(draws, axis=0) - slope) / jnp.sqrt(variance / 4000)
    assert (error < 4).all()
