# SPDX-License-Identifier: Apache-2.0
"""Benchmark tasks start at chance, can be learned, and compute what they say they compute."""

import dataclasses
import functools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from experiments import splits
from experiments.tasks import (
    BenchmarkTask,
    base,
    content_hash,
    conv,
    functions,
    layers,
    quadratics,
    rnn_lm,
    transformer_lm,
    vit,
)
from mnemosyne.meta.task import Task

# Compiling is most of the time of these tests.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

CHANCE = {
    # Loss of who knows nothing, and the ratio to it below which fresh networks start.
    "mlp-layernorm/cifar10-8": (math.log(10), 1.5),
    "mlp-mse/cifar10-8": (0.09, 7.0),
    "conv-layernorm/cifar10-16": (math.log(10), 1.3),
    "vit/cifar10-16": (math.log(10), 1.3),
    "autoencoder/cifar10-8": (1.0, 3.0),
    "gru-lm/shakespeare": (math.log(65), 1.3),
    "transformer-lm/shakespeare": (math.log(65), 1.3),
    "quadratic-10": (10.0, 3.0),
    "rosenbrock-100": (455.0, 1.5),
}
SLOW = {name for name in CHANCE if name.startswith(("mlp", "autoencoder", "transformer"))}


def _marked(names: Iterable[Any], slow: Iterable[Any]) -> list[Any]:
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in names]


def _train(task: Task, steps: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Losses under Adam, each before its step, and the first gradient."""
    flat, restore = ravel_pytree(_jit(task.init)(jax.random.key(1)))

    def objective(flat: jax.Array, key: jax.Array) -> jax.Array:
        return task.loss(restore(flat), task.sample(key))

    value_and_grad = _jit(jax.value_and_grad(objective))
    weights, mean, square = np.asarray(flat), 0.0, 0.0
    losses, gradients = [], []
    for i in range(1, steps + 1):
        loss, gradient = (np.asarray(x) for x in value_and_grad(weights, jax.random.key(1 + i)))
        losses.append(loss)
        gradients.append(gradient)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
        step = mean / (1 - 0.9**i) / (np.sqrt(square / (1 - 0.99**i)) + 1e-8)
        weights = (weights - rate * step).astype(np.float32)
    assert np.isfinite(losses).all()
    assert np.isfinite(gradients).all()
    return np.asarray(losses), gradients[0]


def _check_learning(task: Task, *rates: float) -> float:
    """The first loss of a task that learns at one of the rates at least."""
    losses = []
    for rate in rates or (0.01,):
        losses, gradient = _train(task, 40, rate)
        assert np.mean(gradient != 0) > 0.3
        if np.mean(losses[-5:]) < 0.9 * np.mean(losses[:3]):
            return float(losses[0])
    raise AssertionError(losses)


def _rate(benchmark: BenchmarkTask) -> float:
    return 0.1 if benchmark.group in ("quadratic", "function") else 0.01


@pytest.mark.parametrize("name", _marked(CHANCE, SLOW))
def test_family_starts_near_chance_and_learns(name: str, stand_ins: Path) -> None:
    benchmark = splits.hold_out_tasks(stand_ins, [name])[0]
    chance, factor = CHANCE[name]
    first = _check_learning(benchmark.task, _rate(benchmark))
    least = 0.9 if chance in (math.log(10), math.log(65)) else 0.1
    assert least * chance < first < factor * chance


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(splits.HOLD_OUT) - set(CHANCE)))
def test_every_other_hold_out_task_learns(name: str, stand_ins: Path) -> None:
    benchmark = splits.hold_out_tasks(stand_ins, [name])[0]
    _check_learning(benchmark.task, _rate(benchmark))


@pytest.mark.slow
@pytest.mark.parametrize("name", splits.stress.STRESS)
def test_every_stress_task_has_finite_gradients(name: str, stand_ins: Path) -> None:
    task = splits.stress_tasks(stand_ins, [name])[0].task
    losses, gradient = _train(task, 5, 1e-4)
    assert np.mean(gradient != 0) > 0.3
    assert losses[-1] < 2 * losses[0]


@pytest.mark.parametrize("name", _marked(["residual", "mixer"], ["residual"]))
def test_validation_networks_start_at_chance_and_learn(name: str) -> None:
    tasks = [b.task for b in splits.validation_benchmarks(None) if b.name.startswith(name)]
    first = _check_learning(tasks[0])
    assert 0.9 * math.log(10) < first < 1.5 * math.log(10)


@pytest.mark.parametrize("index", _marked(range(6), [1, 2, 3, 4]))
def test_training_families_learn(index: int) -> None:
    family = splits.meta_train_families(None)[index]
    # Draws differ in scale and slope, so no one rate suits all of them.
    _check_learning(family.draw(jax.random.key(3)), 0.03, 0.003, 0.0003)


def test_all_tasks_have_vmappable_starts_and_scalar_losses(stand_ins: Path) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    judges = splits.hold_out_tasks(stand_ins) + splits.stress_tasks(stand_ins)
    for benchmark in judges:
        task = benchmark.task
        assert isinstance(task, Task)
        params = jax.eval_shape(jax.vmap(task.init), keys)
        batch = jax.eval_shape(jax.vmap(task.sample), keys)
        value, grads = jax.eval_shape(jax.vmap(jax.value_and_grad(task.loss)), params, batch)
        assert value.shape == (3,)
        same = jax.tree.map(lambda g, p: g.shape == p.shape and g.dtype == p.dtype, grads, params)
        assert all(jax.tree.leaves(same)), benchmark.name
        assert jax.eval_shape(jax.vmap(task.normalize), value).shape == (3,)


def test_real_data_starts_at_chance(data_dir: Path) -> None:
    task = splits.hold_out_tasks(data_dir, ["rnn-lm/shakespeare"])[0].task
    params, batch = task.init(jax.random.key(0)), task.sample(jax.random.key(1))
    loss = float(_jit(task.loss)(params, batch))
    assert 0.9 < loss / math.log(65) < 1.3


@pytest.mark.parametrize("stride", [1, 2])
def test_patches_and_a_product_equal_a_convolution(stride: int) -> None:
    key_x, key_kernel = jax.random.split(jax.random.key(0))
    x = jax.random.normal(key_x, (2, 8, 8, 3))
    kernel = jax.random.normal(key_kernel, (3, 3, 3, 5))
    numbers = ("NHWC", "HWIO", "NHWC")

    @_jit
    def both(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        ones, strides = ((1, 1), (1, 1)), (stride, stride)
        theirs = jax.lax.conv_general_dilated(x, kernel, strides, ones, dimension_numbers=numbers)
        return conv.patches(x, stride) @ kernel.reshape(27, 5), theirs

    ours, theirs = both(x, kernel)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    "model", [rnn_lm.RNN(8, True), rnn_lm.RNN(8, False), transformer_lm.Decoder(8, 1, 2)]
)
def test_language_models_do_not_see_the_future(model: Any) -> None:
    params = _jit(model.init)(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 32), 0, 65)
    changed = tokens.at[:, 20].set((tokens[:, 20] + 1) % 65)
    apply = _jit(model.apply)
    before, after = apply(params, tokens), apply(params, changed)
    np.testing.assert_array_equal(before[:, :20], after[:, :20])
    assert (np.abs(before - after)[:, 20:].max(axis=-1) > 0).all()


def test_gru_keeps_its_state_behind_a_closed_gate() -> None:
    recurrent = {"kernel": jnp.zeros((2, 6)), "bias": jnp.array([0.0, 0, 50, -50, 0, 0])}
    state, drive = jnp.array([[0.3, 0.3]]), jnp.array([[0.0, 0, 0, 0, 1, 1]])
    new = rnn_lm.gru_cell(recurrent, state, drive)
    np.testing.assert_allclose(new, [[0.3, np.tanh(1.0)]], rtol=1e-6)


def test_vit_patches_are_squares() -> None:
    image = np.zeros((1, 16, 16, 3), np.float32)
    image[0, 5, 9] = 1.0  # the second row and third column of 4x4 patches
    rows = vit.ViT()._cut(jnp.asarray(image))
    assert rows.shape == (1, 16, 48)
    assert np.flatnonzero(np.asarray(rows).any(axis=-1)).tolist() == [1 * 4 + 2]


def test_layer_norm_standardises() -> None:
    x = 3.0 + 5.0 * jax.random.normal(jax.random.key(0), (4, 64))
    y = np.asarray(layers.apply_norm(layers.norm(64), x))
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(-1), 1, rtol=1e-4)


def test_accuracy_counts_the_highest_scores(stand_ins: Path) -> None:
    task, images = vit.make_task(stand_ins), vit.held_out_images(stand_ins)
    params = _jit(task.init)(jax.random.key(0))
    scores = np.asarray(_jit(task.model.apply)(params, images.inputs))
    expected = np.mean(scores.argmax(-1) == images.labels)
    accuracy = _jit(task.accuracy)(params, images.inputs, images.labels)
    np.testing.assert_allclose(accuracy, expected)
    assert 0 <= expected < 0.5


@pytest.mark.parametrize("function", functions.MINIMISER)
@pytest.mark.parametrize("dim", [2, 10])
def test_functions_have_their_known_minimum(function: Any, dim: int) -> None:
    best = jnp.full(dim, functions.MINIMISER[function])
    noise = 0.1 * jax.random.normal(jax.random.key(0), (100, dim))

    @_jit
    def look(best: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        return jax.value_and_grad(function)(best), jax.vmap(function)(best + noise)

    (value, slope), around = look(best)
    np.testing.assert_allclose(value, 0.0, atol=2e-5)
    np.testing.assert_allclose(slope, 0.0, atol=1e-4)
    assert (np.asarray(around) > value).all()


@pytest.mark.parametrize("function", functions.MINIMISER)
def test_functions_start_where_the_table_says(function: Any) -> None:
    task = functions.FunctionTask("x", function, np.ones(10, np.float32))
    keys = jax.random.split(jax.random.key(0), 500)
    losses = _jit(jax.vmap(lambda key: task.loss(task.init(key), jnp.zeros(()))))(keys)
    np.testing.assert_allclose(np.mean(losses), functions.TYPICAL[function], rtol=0.1)


def test_quadratic_expectation_matches_samples_and_floor() -> None:
    task = quadratics.make_task(6, 10.0, noise=0.5, batch_size=20_000)
    x, expected = task.init(jax.random.key(0)), _jit(jax.value_and_grad(task.expected_loss))
    sampled = _jit(lambda x, key: task.loss(x, task.sample(key)))(x, jax.random.key(1))
    np.testing.assert_allclose(sampled, expected(x)[0], rtol=0.05)
    value, slope = expected(jnp.asarray(task.minimiser))
    np.testing.assert_allclose(value, 0.5 * 0.5**2, rtol=1e-5)
    np.testing.assert_allclose(slope, 0.0, atol=1e-5)


def test_content_hash_ignores_the_name_and_nothing_else() -> None:
    task = quadratics.make_task(3, 10.0)
    same = dataclasses.replace(task, name="another")
    assert content_hash(same) == content_hash(task)
    for change in (
        {"noise": 0.2},
        {"batch_size": 8},
        {"minimiser": task.minimiser + 1},
        {"root": task.root.T.copy()},
    ):
        assert content_hash(dataclasses.replace(task, **change)) != content_hash(task), change


def test_code_hash_ignores_comments_and_docstrings_only() -> None:
    plain = base.code_hash("def f(x):\n    return x + 1\n")
    assert base.code_hash('"""M."""\n\ndef f(x):\n    """D."""\n    # C\n    return x+1') == plain
    assert base.code_hash("def f(x):\n    return x + 2\n") != plain


def test_content_of_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="got object"):
        base.describe(object())
