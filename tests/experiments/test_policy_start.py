# SPDX-License-Identifier: Apache-2.0
"""What is written into the weights for policies does what it says."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mnemosyne
from experiments import policy_start
from experiments.policy_start import MAX_GAIN_CHANGE, NETWORK, Numbers
from mnemosyne.telemetry import find_state

PARAMS = {"policy": jnp.ones(16), "value": jnp.ones(16)}
ROLES = {"policy": True, "value": False}
NUMBERS = Numbers()


@pytest.fixture(scope="module")
def optimizer() -> Any:
    fresh = mnemosyne.init_meta_params(jax.random.key(0), NETWORK)
    return mnemosyne.from_meta_params(policy_start.controller(fresh), NETWORK)


@pytest.fixture(scope="module")
def step(optimizer: Any) -> Any:
    """``step(state, sign, **extras)``; what is told changes the program, numbers do not."""

    @jax.jit
    def known(state: Any, sign: Any, extras: Any) -> Any:
        grads = jax.tree.map(lambda p: sign * p, PARAMS)
        roles = {"policy": ROLES} if extras else {}
        updates, state = optimizer.update(grads, state, PARAMS, **extras, **roles)
        return jax.tree.map(lambda u: float_of(u), updates), state

    def float_of(update: jax.Array) -> jax.Array:
        return jnp.abs(update[0])

    def stepped(state: Any, sign: float = 1.0, **extras: float) -> Any:
        return known(state, sign, extras)

    return stepped


def _found(state: Any) -> Any:
    """Without the bases around it."""
    return find_state(state)


def _gains(state: Any) -> list[float]:
    return np.asarray(_found(state).path.log_gain).round(4).tolist()


def test_first_steps_are_those_of_the_roles(optimizer: Any, step: Any) -> None:
    state = optimizer.init(PARAMS)
    told, _ = step(state, kl=0.0, progress=0.0, epoch=0.0)
    assert told["policy"] == pytest.approx(1e-3, rel=0.02)
    first = NUMBERS.value + NUMBERS.passes / 2.0
    assert told["value"] == pytest.approx(1e-3 * np.exp(first), rel=0.03 + NUMBERS.nesterov)
    untold, after = step(state)
    for update in untold.values():
        assert 1.2e-3 < update < 1.5e-3
    assert _gains(after) == [0.0, 0.0]


def test_policy_follows_the_divergence_and_the_value_network_does_not(
    optimizer: Any, step: Any
) -> None:
    state = optimizer.init(PARAMS)
    changes = {kl: _gains(step(state, kl=kl)[1]) for kl in (0.0, 2e-4, 1e-3, 0.3, 5.0)}
    assert changes[1e-3] == pytest.approx([MAX_GAIN_CHANGE, 0.0], abs=0.01)
    assert changes[2e-4] == pytest.approx([MAX_GAIN_CHANGE, 0.0], abs=0.02)
    assert changes[0.3] == pytest.approx([-MAX_GAIN_CHANGE, 0.0], abs=0.01)
    assert changes[5.0] == pytest.approx([-MAX_GAIN_CHANGE, 0.0], abs=0.01)
    # The first update from a rollout says nothing.
    assert changes[0.0] == pytest.approx([0.0, 0.0], abs=0.005)


def test_any_divergence_counts_once_the_step_is_lost(optimizer: Any, step: Any) -> None:
    state = optimizer.init(PARAMS)
    # Hosts that make one update from a rollout have a divergence of 0 for ever.
    for _ in range(200):
        state = step(state, kl=0.0)[1]
    assert _gains(state) == pytest.approx([0.0, 0.0], abs=0.001)
    gains = []
    for kl in [0.3] * 20 + [0.0] * 20:
        state = step(state, kl=kl)[1]
        gains.append(_gains(state)[0])
    assert gains[19] < NUMBERS.lost - 2.0
    assert gains[-1] == pytest.approx(NUMBERS.lost, abs=MAX_GAIN_CHANGE)


@pytest.mark.parametrize("updates", [4, 16, 128])
def test_divergence_of_a_rollout_is_held_however_many_updates_are_made_from_it(
    optimizer: Any, step: Any, updates: int
) -> None:
    state, curvature = optimizer.init(PARAMS), 400.0
    ends = []
    for _ in range(12):
        moved = divergence = 0.0
        for index in range(updates):
            divergence = curvature * moved**2
            extras = {"kl": divergence, "epoch": index / updates, "progress": 0.0}
            steps, state = step(state, **extras)
            moved += float(steps["policy"])
        ends.append(divergence)
    # A steady gradient: the target is e times that of the numbers. It is met on average over the
    # logarithms of a rollout, at whose end the divergence is larger; large and small rollouts may
    # take turns.
    assert 0.3 < np.mean(ends[-6:]) / (np.e * NUMBERS.target) < 6.0


def _equilibrium(step: Any, state: Any, **extras: float) -> float:
    """The divergence that leaves the policy's step as it is, by bisection."""
    low, high = 1e-4, 0.3
    before = _gains(state)[0]
    for _ in range(25):
        middle = float(np.sqrt(low * high))
        rises = _gains(step(state, kl=middle, **extras)[1])[0] > before
        low, high = (middle, high) if rises else (low, middle)
    return middle


def test_noisier_gradients_have_a_smaller_target(optimizer: Any, step: Any) -> None:
    targets = {}
    for name, flip in (("steady", 1.0), ("noisy", -1.0)):
        state = optimizer.init(PARAMS)
        for index in range(60):
            state = step(state, flip**index, kl=0.0)[1]
        targets[name] = _equilibrium(step, state)
    # A steady gradient has a ratio of momentum to gradients of 1, one that flips about 1 / 19.
    assert targets["steady"] == pytest.approx(NUMBERS.target * np.e, rel=0.1)
    assert targets["noisy"] < targets["steady"] / 10.0


def test_more_actions_have_a_larger_target(optimizer: Any, step: Any) -> None:
    state = optimizer.init(PARAMS)
    unsaid, usual, many = (
        _equilibrium(step, state, **extras)
        for extras in ({}, {"action_size": 3.0}, {"action_size": 12.0})
    )
    assert usual == pytest.approx(unsaid, rel=0.01)
    assert many == pytest.approx(4.0**NUMBERS.actions * usual, rel=0.02)


def test_gain_has_a_largest_value(optimizer: Any, step: Any) -> None:
    state = optimizer.init(PARAMS)
    for _ in range(40):
        state = step(state, kl=1e-3)[1]
    assert NUMBERS.largest < _gains(state)[0] < NUMBERS.largest + 2 * MAX_GAIN_CHANGE


def test_value_network_slows_down_over_passes_and_over_the_run(optimizer: Any, step: Any) -> None:
    state = optimizer.init(PARAMS)

    def ratio(role: str, **changed: float) -> float:
        base = {"kl": 0.0, "progress": 0.0, "epoch": 0.0}
        return float(step(state, **base | changed)[0][role] / step(state, **base)[0][role])

    assert ratio("value", epoch=1.0) == pytest.approx(np.exp(-NUMBERS.passes), rel=0.03)
    assert ratio("value", progress=0.9) == pytest.approx(0.11**NUMBERS.anneal, rel=0.06)
    assert ratio("policy", progress=0.9) == pytest.approx(1.0, rel=0.06)
