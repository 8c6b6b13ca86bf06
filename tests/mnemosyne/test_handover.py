# SPDX-License-Identifier: Apache-2.0
"""Handing over: whoever takes over goes on exactly where the other one was."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mnemosyne
from mnemosyne import handover, plus
from tests.mnemosyne import problems

RATE, STEPS, SWITCH, BETAS = 1e-3, 10, 5, (0.9, 0.99)
CONFIG = mnemosyne.MnemosyneConfig(
    sample=16,
    token_size=4,
    taus=(0.1,),
    encoder=False,
    cross_token=False,
    residual=False,
    polar=False,
)
PARAMS = problems.pair()  # its matrix is cut into three tokens
ALONG = [0.0] * SWITCH + [1.0] * (STEPS - SWITCH)
"""Progress of a run that hands over in the middle."""


def _make(theta: Any, adam_first: bool = False, **options: Any) -> Any:
    ours = mnemosyne.scale_by_mnemosyne(theta, CONFIG)
    options = {"share": 0.5, "learning_rate": RATE, "betas": BETAS} | options
    return mnemosyne.hand_over(ours, CONFIG, adam_first=adam_first, **options)


def _theta(trained: bool) -> Any:
    return problems.meta_params(CONFIG) if trained else problems.untrained(CONFIG)


@functools.partial(jax.jit, static_argnames="adam_first")
def _update(theta: Any, adam_first: bool, grads: Any, state: Any, params: Any, told: Any) -> Any:
    """Compiled twice for all runs of this module."""
    return _make(theta, adam_first).update(grads, state, params, progress=told)


def _walk(step: Any, state: Any, scale: float = 1.0, steps: int = STEPS) -> tuple[list, list]:
    """Updates and states along a run; ``step(index, grads, state, params)``."""
    params, moved, states = jax.tree.map(jnp.asarray, PARAMS), [], [state]
    for index in range(steps):
        grads = problems.noisy_gradient(params, index, scale)
        updates, state = step(index, grads, state, params)
        params = optax.apply_updates(params, updates)
        moved.append(jax.device_get(updates))
        states.append(state)
    return moved, states


def _run(
    trained: bool, adam_first: bool, progress: list[float] = ALONG, scale: float = 1.0
) -> tuple[list[Any], list[Any]]:
    """A run with a hand-over."""
    theta = _theta(trained)

    def step(index: int, *parts: Any) -> Any:
        return _update(theta, adam_first, *parts, progress[index])

    return _walk(step, _make(theta, adam_first).init(PARAMS), scale, len(progress))


def _alone(optimizer: Any, scale: float = 1.0, steps: int = STEPS) -> list[Any]:
    """Updates of an optimizer for itself, told that it is at its beginning all the way."""
    update = jax.jit(optax.with_extra_args_support(optimizer).update)

    def step(_: int, *parts: Any) -> Any:
        return update(*parts, progress=0.0)

    return _walk(step, optimizer.init(PARAMS), scale, steps)[0]


def _assert_close(ours: list[Any], theirs: list[Any], rtol: float) -> None:
    for one, other in zip(ours, theirs, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, 1e-9), one, other)


@pytest.mark.parametrize("adam_first", [False, True])
@pytest.mark.parametrize("scale", [0.1, 300.0])
def test_hand_over_between_adam_and_its_equal_is_adam_throughout(
    adam_first: bool, scale: float
) -> None:
    """Untrained weights are Adam, so that no hand-over may be seen in the updates."""
    moved, states = _run(False, adam_first, scale=scale)
    assert [bool(state.handed_over) for state in states] == [False, *map(bool, ALONG)]
    _assert_close(moved, _alone(optax.adam(RATE, *BETAS), scale), 1e-4)


def test_updates_are_those_of_mnemosyne_and_then_of_adam_from_the_same_moments() -> None:
    moved, states = _run(True, False)
    alone = _alone(mnemosyne.scale_by_mnemosyne(_theta(True), CONFIG), steps=SWITCH)
    _assert_close(moved[:SWITCH], alone, 1e-5)
    ours = states[SWITCH].ours
    tokens = plus.layout_of(ours.mu, CONFIG).tokens
    assert max(tokens) > 1 and len(set(np.asarray(ours.mu_mass).tolist())) > 1
    scale = float(ours.units.scale)
    mass = {"mu": np.asarray(ours.mu_mass), "nu": np.asarray(ours.nu_mass)}

    def corrected(name: str, power: int, beta: float) -> Any:
        """Bias-corrected by token, times Adam's own correction; these tensors are not cut by rows,
        so that a token is a stretch of the flattened tensor."""
        leaves, treedef = jax.tree.flatten(getattr(ours, name))
        ends, found = np.cumsum([0, *tokens]), []
        for i, leaf in enumerate(leaves):
            rows = np.asarray(leaf, np.float64).reshape(tokens[i], -1)
            weights = mass[name][ends[i] : ends[i + 1], None]
            value = rows / weights * scale**power * (1 - beta**SWITCH)
            found.append(jnp.asarray(value.reshape(leaf.shape), jnp.float32))
        return treedef.unflatten(found)

    adam, count = optax.adam(RATE, *BETAS), jnp.asarray(SWITCH, jnp.int32)
    start = optax.ScaleByAdamState(
        count, corrected("mu", 1, BETAS[0]), corrected("nu", 2, BETAS[1])
    )
    state: Any = (start, *adam.init(PARAMS)[1:])
    params = jax.tree.map(jnp.asarray, PARAMS)
    for index in range(STEPS):
        grads = problems.noisy_gradient(params, index)
        if index >= SWITCH:
            expected, state = adam.update(grads, state, params)
            _assert_close([moved[index]], [expected], 1e-4)
        params = optax.apply_updates(params, moved[index])


def test_mnemosyne_takes_over_with_the_moments_of_adam_and_goes_on_learning() -> None:
    _, states = _run(True, True)
    before, after = states[SWITCH], states[SWITCH + 1].ours
    assert float(jnp.max(before.ours.mu_mass)) == 0.0
    adam = before.adam[0]
    received = handover.to_mnemosyne(before.adam, before.ours, BETAS)
    scale = float(received.units.scale)
    assert np.log2(scale) == int(np.log2(scale))
    jax.tree.map(lambda m, a: np.testing.assert_array_equal(m * scale, a), received.mu, adam.mu)
    np.testing.assert_allclose(received.mu_mass, 1 - 0.9**SWITCH, rtol=1e-6)
    assert max(float(jnp.max(leaf)) for leaf in jax.tree.leaves(received.nu)) <= 1.0
    assert int(received.count) == SWITCH and int(after.count) == SWITCH + 1
    assert float(jnp.max(after.memory.mass)) > 0.0


def test_state_is_legal_in_scan_cond_and_vmap_and_once_is_for_ever() -> None:
    optimizer, params = _make(_theta(False)), PARAMS

    def step(state: Any, told: Any) -> tuple[Any, Any]:
        state = optimizer.update(params, state, params, progress=told, kl=0.01)[1]
        return state, state.handed_over

    start = optimizer.init(params)
    jax.eval_shape(
        lambda s, yes: jax.lax.cond(yes, lambda s: step(s, 0.0)[0], lambda s: s, s), start, True
    )
    progress = jnp.asarray([[0.0, 0.3, 0.9, 0.0], [0.0, jnp.nan, 0.1, 0.3]])
    _, handed = jax.jit(jax.vmap(lambda told: jax.lax.scan(step, start, told)))(progress)
    # A lane does not wait for the others, and what is no number hands nothing over.
    assert handed.tolist() == [[False, False, True, True], [False] * 4]


def test_a_hand_over_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"is 1\.5, not in \[0, 1\]"):
        _make(_theta(True), share=1.5)
    with pytest.raises(ValueError, match="has no moments to hand over"):
        config = mnemosyne.paper_config()
        mnemosyne.hand_over(optax.identity(), config, share=0.5, learning_rate=RATE)
    optimizer = _make(_theta(True))
    with pytest.raises(ValueError, match="needs progress="):
        optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
