# SPDX-License-Identifier: Apache-2.0
"""What the starts of meta-training are, before any of it."""

from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import mnemosyne
from experiments import recipes
from mnemosyne.meta.tasks import ClassifyTask, mlp_task
from mnemosyne.meta.validate import train_curve

CONFIG = mnemosyne.MnemosyneConfig(residual=False, polar=False, sample=64, chunk=(2, 2))


class InUnits(NamedTuple):
    """A task whose model reads ``scale`` times the trained weights; the scale may be traced."""

    task: ClassifyTask
    scale: jax.Array

    @property
    def name(self) -> str:
        return self.task.name

    def init(self, key: jax.Array) -> Any:
        return jax.tree.map(lambda x: x / self.scale, self.task.init(key))

    def sample(self, key: jax.Array) -> Any:
        return self.task.sample(key)

    def loss(self, params: Any, batch: Any) -> jax.Array:
        return self.task.loss(jax.tree.map(lambda x: x * self.scale, params), batch)

    def normalize(self, loss: jax.Array) -> jax.Array:
        return self.task.normalize(loss)


@pytest.fixture(scope="module")
def thetas() -> dict[str, Any]:
    plain = recipes.anneal(mnemosyne.init_meta_params(jax.random.key(0), CONFIG))
    # The size of the weights alone would tell the units; what is tested is the path.
    adaptive = recipes.adaptive(plain)
    size = mnemosyne.features.NUM_TOKEN_FEATURES
    return {"plain": plain, "adaptive": adaptive | {"skip": adaptive["skip"].at[size, 0].set(0.0)}}


def test_adaptive_steps_are_found_in_units_a_hundred_times_off(thetas: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((512, 16)).astype(np.float32)
    labels = np.argmax(
        np.tanh(inputs @ rng.standard_normal((16, 8))) @ rng.standard_normal((8, 4)), 1
    )
    task = mlp_task("teacher", inputs, labels.astype(np.int32), (16,), "relu", 32)

    @jax.jit
    def final(theta: Any, scale: Any) -> jax.Array:
        optimizer = mnemosyne.from_meta_params(theta, CONFIG)
        return train_curve(InUnits(task, scale), optimizer, jax.random.key(1), 400, True).final

    found = {n: [float(final(t, s)) for s in (0.01, 1.0, 100.0)] for n, t in thetas.items()}
    # Where the weights are a hundred times as large, Adam's steps are too small to learn anything.
    assert found["plain"][0] > 1.2
    assert max(found["adaptive"]) < 0.75
