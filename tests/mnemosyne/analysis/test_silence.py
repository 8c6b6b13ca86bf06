# SPDX-License-Identifier: Apache-2.0
"""Silenced parts no longer change an update; all others still do."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mnemosyne
from mnemosyne import MnemosyneConfig, paper_config
from mnemosyne.analysis.silence import PARTS, silence

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(4, 3), "b": jnp.ones(3)}
CONFIG = MnemosyneConfig(adaptive=False, polar=False)


def _theta() -> Any:
    """Weights of which every part speaks."""
    theta = mnemosyne.init_meta_params(jax.random.key(0), CONFIG)
    keys = iter(jax.random.split(jax.random.key(1), 4))
    for name in ("heads", "skip", "residual", "embed"):
        theta[name] = theta[name] + 0.3 * jax.random.normal(next(keys), theta[name].shape)
    return theta


@jax.jit
def _two_updates(theta: Any, extras: dict[str, float]) -> jax.Array:
    """The second of two updates: it can remember the first."""
    transform = mnemosyne.scale_by_mnemosyne(theta, CONFIG)
    state: Any = transform.init(PARAMS)
    updates: Any = None
    for i in range(2):
        gradient = jax.tree.map(lambda p, i=i: jnp.cos(3.0 * p + i), PARAMS)
        updates, state = transform.update(gradient, state, PARAMS, **extras)
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(updates)])


def _updates(theta: Any, kl: float = math.nan, progress: float = math.nan) -> jax.Array:
    """What is not finite counts as not passed: one program for all."""
    return _two_updates(theta, {"kl": kl, "progress": progress})


def test_silence_takes_away_what_is_told() -> None:
    theta = _theta()
    for part, extras in {"actions": {"kl": 0.05}, "progress": {"progress": 0.7}}.items():
        deaf = silence(theta, part)
        np.testing.assert_array_equal(_updates(deaf, **extras), _updates(deaf))
        assert float(jnp.abs(_updates(theta, **extras) - _updates(theta)).max()) > 1e-5
        other = {"progress": 0.7} if part == "actions" else {"kl": 0.05}
        np.testing.assert_array_equal(_updates(deaf, **other), _updates(theta, **other))


@pytest.mark.parametrize("part", [p for p in PARTS if p not in ("actions", "progress", "extras")])
def test_silence_changes_the_update_and_nothing_of_the_structure(part: str) -> None:
    theta = _theta()
    silenced = silence(theta, part)
    assert jax.tree.structure(silenced) == jax.tree.structure(theta)
    assert float(jnp.abs(_updates(silenced) - _updates(theta)).max()) > 1e-6
    np.testing.assert_array_equal(silence(silenced, part)["heads"], silenced["heads"])


def test_silenced_network_leaves_the_linear_rule() -> None:
    both = silence(silence(_theta(), "network"), "linear")
    untrained = mnemosyne.init_meta_params(jax.random.key(0), CONFIG)
    np.testing.assert_allclose(_updates(both), _updates(untrained), rtol=1e-6)


def test_silence_refuses_what_is_not_there() -> None:
    with pytest.raises(ValueError, match="there is no part 'heart'"):
        silence(_theta(), "heart")
    config = paper_config()
    with pytest.raises(ValueError, match="only weights of plus mode"):
        silence(mnemosyne.init_meta_params(jax.random.key(0), config), "memory")
