# SPDX-License-Identifier: Apache-2.0
"""What AdafacMLP and STAR do before they are trained, and the hazard of dead units.

The numbers are for 10 x 10 diagonal quadratics of eigenvalues between 1e-2 and 1, 1000 updates.
"""

from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.baselines import star
from tests.mnemosyne import problems

SEEDS = 12


class Case(NamedTuple):
    """Weights of the preconditioners ``none``, ``inverse`` and ``momentum``; the nominal step."""

    preconditioners: tuple[float, float, float]
    nominal_step: float
    flat: bool
    """Whether the last row of parameters never has a gradient."""


CASES = {
    "adafac": Case((1.0, 0.0, 0.0), 0.0, False),
    "slow": Case((1.0, 0.0, 0.0), 1e-3, False),
    "fast": Case((1.0, 0.0, 0.0), 1e-2, False),
    "flat": Case((1.0, 0.0, 0.0), 1e-3, True),
    "flat, inverse": Case((0.0, 1.0, 0.0), 1e-3, True),
    "flat, momentum": Case((0.0, 0.0, 1.0), 1e-3, True),
}


class Outcome(NamedTuple):
    """Of every seed."""

    ratio: np.ndarray
    """Final over initial loss."""
    largest: np.ndarray
    """Largest update of any parameter."""
    drift: np.ndarray
    """How far the last row of parameters went."""


def _run(case: Case, key: Any) -> Outcome:
    key_theta, key_curvature, key_start = jax.random.split(key, 3)
    alive = jnp.where(jnp.arange(10) == 9, 1.0 - case.flat, 1.0)[:, None]
    log10 = jax.random.uniform(key_curvature, (10, 10), minval=-2.0, maxval=0.0)
    curvature, start = alive * 10.0**log10, jax.random.normal(key_start, (10, 10))
    # No preconditioner, no nominal term: AdafacMLP with two idle heads.
    opt = star.scale_by_star(star.init(key_theta, zero_head=False), case.nominal_step)

    def step(carry: Any, _: None) -> Any:
        x, state = carry
        updates, state = opt.update(curvature * x, state, x)
        return (x + updates, state), jnp.max(jnp.abs(updates))

    (x, _), largest = jax.lax.scan(step, (start, opt.init(start)), None, 1000)
    ratio = jnp.sum(curvature * x**2) / jnp.sum(curvature * start**2)
    return Outcome(ratio, jnp.max(largest), jnp.abs(x - start)[-1])


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    """All cases in one program: the preconditioners are mixed by weights that are data."""
    published = star._precondition

    def run(case: Case, key: Any) -> Outcome:
        def mixed(signals: Any, _: str) -> Any:
            names = ("none", "inverse", "momentum")
            each = [published(signals, name) for name in names]
            return sum(w * x for w, x in zip(case.preconditioners, each, strict=True))

        with mock.patch.object(star, "_precondition", mixed):
            return _run(case, key)

    cases = jax.tree.map(lambda *xs: np.asarray(xs, np.float32), *CASES.values())
    keys = jax.random.split(jax.random.key(0), SEEDS)
    every = problems.long_jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))
    out = jax.device_get(every(cases, keys))
    return {name: jax.tree.map(lambda x, i=i: x[i], out) for i, name in enumerate(CASES)}


def test_adafac_mlp_is_a_random_walk(outcomes: dict[str, Outcome]) -> None:
    ratio, largest, _ = outcomes["adafac"]
    assert 0.8 < np.median(ratio) < 1.25
    assert 0.2 < np.mean(ratio < 1) < 0.8
    assert 4e-4 < np.median(largest) < 1.6e-3


@pytest.mark.parametrize(("name", "expected"), [("slow", 0.12), ("fast", 2e-5)])
def test_star_descends(outcomes: dict[str, Outcome], name: str, expected: float) -> None:
    ratio = outcomes[name].ratio
    assert np.mean(ratio < 1) > 0.9
    assert expected / 2 < np.median(ratio) < expected * 2


def test_published_preconditioner_lets_dead_units_drift(outcomes: dict[str, Outcome]) -> None:
    ratio, largest, drift = outcomes["flat, inverse"]
    assert np.max(largest) > 0.5
    assert np.max(ratio) > 2
    assert np.median(drift) > 20
    assert 0.02 < np.median(outcomes["flat"].drift) < 0.5


def test_our_preconditioner_leaves_dead_units_alone(outcomes: dict[str, Outcome]) -> None:
    ratio, largest, drift = outcomes["flat, momentum"]
    assert np.max(largest) < 0.02
    assert np.median(ratio) < 0.3
    assert np.max(drift) < 1e-6
