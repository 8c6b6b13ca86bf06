# SPDX-License-Identifier: Apache-2.0
"""What the starts of meta-training are, before any of it."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mnemosyne
from experiments import base_start, policy_start, recipes
from mnemosyne import baselines, features
from mnemosyne.learned import mnemosyne_rule
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
    plain = base_start.anneal(mnemosyne.init_meta_params(jax.random.key(0), CONFIG))
    # The size of the weights alone would tell the units; what is tested is the path.
    adaptive = base_start.adaptive(plain)
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


@pytest.mark.parametrize(
    ("rule", "estimator", "expected"),
    [
        ("mnemosyne", None, "full-es"),
        ("mnemosyne", "bptt", "bptt"),
        ("star", None, "bptt"),
        ("star", "pes", "pes"),
    ],
)
def test_base_trains_ours_on_whole_runs_and_the_others_by_windows(
    rule: str, estimator: Any, expected: str
) -> None:
    chosen = mnemosyne_rule(CONFIG) if rule == "mnemosyne" else baselines.make(rule)
    recipe = recipes.base(chosen, None, estimator)
    assert recipe.config.estimator == expected
    assert (recipe.units is not None) == (expected == "full-es")


def test_only_features_of_supervised_runs_are_trained() -> None:
    theta = base_start.write(mnemosyne.init_meta_params(jax.random.key(0), CONFIG))
    units = base_start.readout_units(theta)
    trained = {
        name
        for name, part in units.items()
        if jax.tree.reduce(np.maximum, jax.tree.map(np.max, part)) > 0
    }
    assert trained == {"skip"}
    of_policies = [mnemosyne.features.input_row(name, 0) for name in ("kl", "epoch", "action_size")]
    for row in of_policies:
        assert not np.any(units["skip"][row : row + 3])
    # What the start has written can be changed.
    written = np.asarray(theta["skip"] != 0)
    assert np.all(np.asarray(units["skip"])[written] > 0)


def test_rl_is_for_our_own_network() -> None:
    with pytest.raises(ValueError, match="leave out --rule star"):
        recipes.rl(baselines.make("star"), None)


def test_shipped_policy_weights_are_the_start_of_their_recipe(tmp_path: Path) -> None:
    recipes.save_start("rl", tmp_path / "rl.safetensors")
    shipped, written = (
        mnemosyne.load(name) for name in ("mnemosyne-rl", tmp_path / "rl.safetensors")
    )
    assert (shipped.config, shipped.tasks) == (written.config, written.tasks)
    # Directions are products of matrices, which machines round differently.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        shipped.meta_params,
        written.meta_params,
    )


def test_rl_trains_what_the_controller_consists_of() -> None:
    fresh = mnemosyne.init_meta_params(jax.random.key(0), policy_start.NETWORK)
    units = policy_start.readout_units(fresh)
    numbers = policy_start.Numbers()
    start = policy_start.controller(fresh, numbers)
    for name in ("policy", "value", "anneal", "passes", "target", "noise", "actions", "nesterov"):
        number = getattr(numbers, name)
        moved = policy_start.controller(fresh, numbers._replace(**{name: 1.1 * number + 0.01}))
        reached = [
            np.any(
                (np.abs(np.asarray(moved[part] - start[part])) > 1e-6) & np.asarray(units[part] > 0)
            )
            for part in ("skip", "heads")
        ]
        assert any(reached), name
    silent = {
        name
        for name, part in units.items()
        if not jax.tree.reduce(np.maximum, jax.tree.map(np.max, part))
    }
    assert set(units) - silent == {"skip", "heads"}


def test_rows_that_base_trains_hold_what_their_names_say() -> None:
    shapes = [(8, 4), (16,)]
    rows = jax.random.normal(jax.random.key(0), (2, 64)) * jnp.asarray([[0.5], [0.02]])
    sample = features.Sample(rows, rows, jnp.square(rows), rows)
    static = np.concatenate([features.shape_features(shape, 1) for shape in shapes])
    counts = jnp.asarray([32.0, 16.0])
    found, _ = features.token_features(sample, counts, jnp.asarray(static))
    size = features.rms(rows)
    overall = jnp.sqrt(jnp.sum(counts * size**2) / 48.0)
    expected = {
        base_start._USUAL_SIZE: jnp.log(size / features.USUAL_RMS) / 8.0,
        base_start._RELATIVE_SIZE: jnp.log(size / overall) / 4.0,
        base_start._NUMBER: jnp.log10(counts) / 4.0 - 0.5,
        base_start._FAN_IN: jnp.log10(jnp.asarray([8.0, 1.0])) / 3.0,
        base_start._IS_VECTOR: jnp.asarray([0.0, 1.0]),
    }
    for row, values in expected.items():
        np.testing.assert_allclose(found[:, row], values, rtol=1e-4, atol=1e-6)
    # The path's three features of a token follow.
    own = found.shape[1]
    assert (own, own + 1) == (base_start._OWN_TURN, base_start._OWN_STRAIGHTNESS)
