# SPDX-License-Identifier: Apache-2.0
"""The accuracy row trains what it says and judges it on images that training never reads."""

import functools

import jax
import numpy as np
import optax

from experiments import data, splits, vit_accuracy


def test_accuracy_counts_right_answers_of_a_trained_network() -> None:
    task, held = splits.mlp(data.digits(0, 1400), (16,), "relu"), data.digits(1400)

    @functools.partial(jax.jit, static_argnums=0)
    def after(steps: int) -> jax.Array:
        return vit_accuracy.accuracy(task, held, optax.adam(1e-2), steps, jax.random.key(0))

    untrained, trained = float(after(0)), float(after(150))
    assert 0.0 <= untrained < 40.0
    assert 80.0 < trained <= 100.0
    # A whole number of the images is right.
    count = trained * len(held.labels) / 100.0
    np.testing.assert_allclose(count, round(count), atol=1e-2)
