# SPDX-License-Identifier: Apache-2.0
"""The paper modes: still until they are trained, and no tensor feels another one's padding."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mnemosyne
from tests.mnemosyne import problems


@pytest.mark.parametrize("coordinate", [False, True])
def test_paper_modes_start_still_and_then_move(coordinate: bool) -> None:
    config = mnemosyne.paper_config(coordinate)
    params = problems.tree()

    @jax.jit
    def update(theta: Any, grads: Any, state: Any, params: Any) -> Any:
        return mnemosyne.scale_by_mnemosyne(theta, config).update(grads, state, params)

    def run(theta: Any) -> tuple[Any, Any, list[Any]]:
        state = mnemosyne.scale_by_mnemosyne(theta, config).init(params)
        return problems.trajectory(lambda *a: update(theta, *a), state, params, 3)

    _, state, updates = run(problems.untrained(config))
    assert problems.norm(updates) == 0
    if coordinate:
        assert state.memory.mass.shape[0] == sum(leaf.size for leaf in params.values())
    _, _, updates = run(problems.meta_params(config))
    assert problems.all_finite(updates)
    assert problems.norm(updates) > 0


def test_paper_mode_padding_does_not_change_other_tensors() -> None:
    config = dataclasses.replace(mnemosyne.paper_config(), chunk=(4, 4))
    opt = mnemosyne.scale_by_mnemosyne(problems.meta_params(config), config)
    update = jax.jit(opt.update)
    one, two = {"a": jnp.ones(5)}, {"a": jnp.ones(5), "b": jnp.ones((7, 3))}
    alone, _ = update(one, opt.init(one))
    together, _ = update(two, opt.init(two))
    np.testing.assert_allclose(alone["a"], together["a"], rtol=1e-5)
