# SPDX-License-Identifier: Apache-2.0
"""Draws of a family differ in what they say they differ, and in nothing else."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.meta.task import Family, Task, draw_task
from mnemosyne.meta.tasks import Mixture, Rows, Symbols, Teacher, VariedMLP, mlp_task
from mnemosyne.meta.tasks.mlp import ACTIVATIONS
from mnemosyne.meta.tasks.varied import DrawnMLP

KEYS = jax.random.split(jax.random.key(0), 64)


@pytest.fixture(scope="module")
def rows() -> Rows:
    return Rows(*Teacher(6, 3).table(jax.random.key(1), 50))


@pytest.fixture(scope="module")
def family(rows: Rows) -> VariedMLP:
    return VariedMLP("tiny", Mixture((rows, Teacher(6, 3), Symbols(6, 3))), (6, 4, 3), 16)


def plain(family: VariedMLP, key: jax.Array, activation: str) -> DrawnMLP:
    """A draw without multiplier, noise, offset, scales or left-out examples."""
    chosen = np.asarray([name == activation for name in ACTIVATIONS], np.float32)
    variation = jax.jit(lambda key: family.draw(key).variation)(key)._replace(
        activation=jnp.asarray(chosen),
        multiplier=jnp.float32(1.0),
        scales=jnp.asarray(np.ones(family.widths[0], np.float32)),
        offset=jnp.float32(0.0),
        noise=jnp.float32(0.0),
        batch=jnp.float32(family.batch_size),
    )
    return DrawnMLP(family, variation)


def sample(task: DrawnMLP, key: jax.Array) -> Any:
    """``task.sample(key)`` in one program."""
    return jax.device_get(jax.jit(task.sample)(key))


def test_a_family_draws_tasks_and_a_task_is_a_family_of_one(family: VariedMLP, rows: Rows) -> None:
    task = draw_task(family, KEYS[0])
    assert isinstance(family, Family) and isinstance(task, Task)
    assert task.name == family.name
    alone = mlp_task("alone", rows.inputs, rows.labels)
    assert draw_task(alone, KEYS[0]) is alone


def test_draws_are_functions_of_the_key(family: VariedMLP) -> None:
    draw = jax.jit(lambda key: family.draw(key).variation)
    first, again, other = (draw(KEYS[i]) for i in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert float(first.gain) != float(other.gain)


def test_variations_stay_in_their_ranges(family: VariedMLP) -> None:
    drawn = jax.jit(jax.vmap(lambda key: family.draw(key).variation))(KEYS)
    np.testing.assert_array_equal(drawn.activation.sum(axis=-1), 1.0)
    assert (drawn.activation.sum(axis=0) > 1).all()
    assert 1.0 <= drawn.multiplier.min() < 2.0 and 8.0 < drawn.multiplier.max() <= 16.0
    np.testing.assert_allclose(jnp.mean(drawn.scales**2, axis=-1), 1.0, rtol=1e-5)
    assert 0.3 < np.mean(drawn.scales.std(axis=-1) < 1e-6) < 0.7
    assert 0.3 < np.mean(drawn.offset == 0) < 0.7 and drawn.offset.max() <= 1.0
    assert 0.3 < np.mean(drawn.noise == 0) < 0.7 and drawn.noise.max() <= 0.3
    assert set(np.asarray(drawn.batch)) <= set(range(4, 17)) and drawn.batch.min() < 6


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_a_plain_draw_is_the_plain_task(rows: Rows, activation: str) -> None:
    drawn = plain(VariedMLP("tiny", rows, (6, 4, 3), 16), KEYS[2], activation)
    task = mlp_task("alone", rows.inputs, rows.labels, (4,), activation, 16)
    params, batch = jax.jit(drawn.init)(KEYS[3]), sample(drawn, KEYS[4])
    losses = (jax.jit(drawn.loss)(params, batch), jax.jit(task.loss)(params, batch[:2]))
    np.testing.assert_allclose(*losses, rtol=1e-5)
    np.testing.assert_allclose(drawn.normalize(jnp.ones(())), task.normalize(jnp.ones(())))


def test_left_out_examples_do_not_count(family: VariedMLP) -> None:
    drawn = plain(family, KEYS[5], "relu")
    drawn = DrawnMLP(family, drawn.variation._replace(batch=jnp.asarray(5.0)))
    params, (inputs, labels, weights) = jax.jit(drawn.init)(KEYS[6]), sample(drawn, KEYS[7])
    np.testing.assert_allclose(weights[:5], 0.2)
    np.testing.assert_array_equal(weights[5:], 0.0)
    spoiled, loss = inputs.copy(), jax.jit(drawn.loss)
    spoiled[5:] = 1e3
    np.testing.assert_array_equal(
        loss(params, (inputs, labels, weights)), loss(params, (spoiled, labels, weights))
    )


def test_noise_is_a_share_of_classes_or_a_deviation_of_values() -> None:
    classes = VariedMLP("classes", Teacher(6, 3), (6, 4, 3), 4096)
    drawn = plain(classes, KEYS[8], "relu")
    noisy = DrawnMLP(classes, drawn.variation._replace(noise=jnp.asarray(0.3)))
    changed = np.mean(sample(drawn, KEYS[9])[1] != sample(noisy, KEYS[9])[1])
    np.testing.assert_allclose(changed, 0.3 * 2 / 3, atol=0.03)
    source = Teacher(6, 2, classify=False)
    values = VariedMLP("values", source, (6, 4, 2), 4096, "values")
    drawn = plain(values, KEYS[8], "relu")
    noisy = DrawnMLP(values, drawn.variation._replace(noise=jnp.asarray(0.3)))
    difference = sample(drawn, KEYS[9])[1] - sample(noisy, KEYS[9])[1]
    np.testing.assert_allclose(difference.std(), 0.3, rtol=0.05)
    # Chance is counted as one.
    variance = jax.jit(lambda key: plain(values, key, "relu").sample(key)[1].var())
    variances = [float(variance(key)) for key in KEYS[:8]]
    assert 0.3 < np.mean(variances) < 1.5


def test_symbols_are_pairs_of_indicators_of_falling_frequency() -> None:
    source = Symbols(16, 4)
    draw = jax.jit(lambda of, key: source.sample(source.draw(of), key, 8192))
    inputs, classes = jax.device_get(draw(KEYS[10], KEYS[11]))
    np.testing.assert_allclose(np.mean(inputs**2), 1.0, rtol=1e-5)
    np.testing.assert_array_equal((inputs.reshape(-1, 2, 8) > 0).sum(axis=-1), 1)
    frequencies = np.sort(np.mean(inputs[:, :8] > 0, axis=0))[::-1]
    expected = 1.0 / np.arange(1, 9)
    np.testing.assert_allclose(frequencies, expected / expected.sum(), atol=0.02)
    assert set(np.asarray(classes)) == set(range(4))


def test_a_mixture_is_one_of_its_sources(rows: Rows) -> None:
    sources = (rows, Teacher(6, 3), Symbols(6, 3))
    mixture = Mixture(sources)
    draw, sampled = jax.jit(mixture.draw), jax.jit(lambda drawn: mixture.sample(drawn, KEYS[12], 8))
    chosen = {int(draw(key)[0]) for key in KEYS}
    assert chosen == {0, 1, 2}
    for key in KEYS[:4]:
        which, each = draw(key)
        found = sampled((which, each))
        source = sources[int(which)]
        expected = jax.jit(lambda of, s=source: s.sample(of, KEYS[12], 8))(each[int(which)])
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_gradients_reach_all_weights_under_vmap(family: VariedMLP) -> None:
    def gradient(key: jax.Array) -> jax.Array:
        task = family.draw(key)
        grads = jax.grad(task.loss)(task.init(key), task.sample(key))
        return jnp.stack([jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(grads)])

    found = jax.jit(jax.vmap(gradient))(KEYS[:16])
    assert np.isfinite(found).all() and (np.mean(found > 0, axis=0) > 0.8).all()
