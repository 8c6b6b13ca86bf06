# SPDX-License-Identifier: Apache-2.0
"""Notes on every update, and what is made of them; rules of which every number is known."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.benchmarks.policies.cells import make_cell
from experiments.understanding import figures, study
from experiments.understanding.watch import KL_EDGES, watched
from mnemosyne.cli.main import main
from robotics.networks import NetworkConfig

PARAMS = {"policy": jnp.asarray([1.0, -2.0, 0.5]), "value": jnp.asarray([[0.3, 0.1]])}


def _gradient(i: int) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(i), 2)
    return {
        "policy": jax.random.normal(keys[0], (3,)),
        "value": 100.0 * jax.random.normal(keys[1], (1, 2)),
    }


def test_notes_of_adam_are_its_learning_rate_everywhere() -> None:
    transform = watched(optax.adam(3e-3), places=2)
    state: Any = transform.init(PARAMS)
    for i in range(5):
        _, state = transform.update(_gradient(i), state, PARAMS, kl=0.0 if i == 0 else 0.02)
    notes = state.notes
    np.testing.assert_array_equal(notes.place_count, [3, 2])
    np.testing.assert_allclose(
        jnp.exp(notes.by_place / notes.place_count[:, None]), 3e-3, rtol=1e-4
    )
    np.testing.assert_allclose(notes.to_adam / 5, 1.0, rtol=1e-5)
    assert float(notes.kl_count[0]) == 1
    assert float(notes.kl_count[np.searchsorted(KL_EDGES, 0.02)]) == 4
    assert float(notes.kl_count.sum()) == 5


def test_notes_of_gradient_descent_point_down_the_gradient() -> None:
    transform = watched(optax.sgd(0.1), places=1)
    state: Any = transform.init(PARAMS)
    for i in range(3):
        updates, state = transform.update(_gradient(i), state, PARAMS)
        for mine, gradient in zip(
            jax.tree.leaves(updates), jax.tree.leaves(_gradient(i)), strict=True
        ):
            np.testing.assert_array_equal(mine, jnp.float32(-0.1) * gradient)
    np.testing.assert_allclose(state.notes.to_gradient / 3, 1.0, rtol=1e-5)
    assert float(state.notes.kl_count.sum()) == 0  # a host that tells no KL divergence


@pytest.fixture(scope="module")
def seen() -> study.Watched:
    network = NetworkConfig(policy_hidden=(4,), value_hidden=(4,))
    cell = make_cell(
        "control:pointmass",
        "ppo",
        1,
        num_evaluations=3,
        num_envs=2,
        unroll_length=4,
        num_minibatches=2,
        num_updates_per_batch=2,
        network=network,
    )
    return study.watch("Adam", cell, optax.adam(2e-3), range(2))


def test_study_sums_up_what_was_noted(seen: study.Watched) -> None:
    np.testing.assert_array_equal(seen.env_steps, [8, 16, 24])
    assert seen.returns.shape == (2, 3)
    assert seen.by_place.shape == (4, len(seen.tensors))
    np.testing.assert_allclose(seen.step, 2e-3, rtol=1e-3)
    np.testing.assert_allclose(seen.by_kl[seen.kl_share > 0], 2e-3, rtol=1e-3)
    # The first update from a rollout is made where the policy is still the one that acted.
    assert seen.kl_share[0] >= 0.25
    assert seen.kl_share.sum() == pytest.approx(1.0)


def test_study_is_told_drawn_and_stored(seen: study.Watched, tmp_path: Path) -> None:
    text = study.table([seen])
    assert all(name in text for name in seen.tensors)
    assert "2.00e-03" in text
    stored = json.loads(json.dumps(study.rows([seen]), allow_nan=False))
    assert stored[0]["tensors"] == seen.tensors
    picture = figures.draw([seen], "title", tmp_path / "new" / "seen.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--env", "brax:ant"], "hold-out"),
        (["--env", "gym:Hopper-v5"], "run inside JAX"),
        (["--env", "brax:hoper"], "belongs to no split"),
        (["--num-seeds", "0"], "--num-seeds must be at least 1"),
        (["--without", "heart"], "no part 'heart'"),
    ],
)
def test_analyze_policy_refuses_what_cannot_be(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", "policy", *arguments]) == 2
    assert sentence in capsys.readouterr().err
