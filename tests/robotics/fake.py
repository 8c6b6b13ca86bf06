# SPDX-License-Identifier: Apache-2.0
"""A training algorithm of a few lines, so that tests of the host loop take a second, not a minute.

The policy acts with ``tanh(w)``, whatever it observes; training moves ``w`` towards ``atanh(0.5)``,
the answer of ``probe:action``, along a noisy gradient, so that the key, the optimizer state and the
parameters all matter.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from robotics.algorithm import Algorithm, Policy
from robotics.faults import scaled

STEPS_PER_EPOCH = 100
UPDATES_PER_EPOCH = 5
TARGET = float(np.arctanh(0.5))


class FakeState(NamedTuple):
    """What the host loop looks for in a training state, and a key."""

    params: dict[str, jax.Array]
    opt_state: Any
    key: jax.Array
    updates: jax.Array
    seed: jax.Array


def make_fake(
    optimizer: optax.GradientTransformation,
    num_epochs: int = 4,
    action_size: int = 1,
    poison: int = -1,
    poisoned_seed: int | None = None,
    flaky: bool = False,
) -> Algorithm:
    """The algorithm of the module docstring; parameters become NaN in chunk number ``poison``.

    That happens to one seed or, without a number, to all of them; ``flaky``: only at full step.
    """

    def init(key: jax.Array) -> FakeState:
        seed = jax.random.key_data(key)[-1]
        key_params, key = jax.random.split(key)
        params = {"w": 0.1 * jax.random.normal(key_params, (1,))}
        return FakeState(params, optimizer.init(params), key, jnp.int32(0), seed)

    def update(slot: Any, state: FakeState, _: None) -> tuple[FakeState, jax.Array]:
        key, key_noise = jax.random.split(state.key)
        noise = 0.01 * jax.random.normal(key_noise, (1,))
        grads = {"w": state.params["w"] - TARGET + noise}
        updates, opt_state = slot.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state._replace(
            params=params, opt_state=opt_state, key=key, updates=state.updates + 1
        ), jnp.abs(grads["w"][0])

    def epoch(
        state: FakeState, step_scale=1.0, restarts=None
    ) -> tuple[FakeState, dict[str, jax.Array]]:
        slot = scaled(optimizer, step_scale)
        state, losses = jax.lax.scan(
            functools.partial(update, slot), state, None, length=UPDATES_PER_EPOCH
        )
        sick = state.updates > poison * UPDATES_PER_EPOCH if poison >= 0 else False
        sick = sick & ((poisoned_seed is None) | (state.seed == (poisoned_seed or 0)))
        sick = sick & (not flaky or step_scale == 1.0)
        params = jax.tree.map(lambda leaf: jnp.where(sick, jnp.nan, leaf), state.params)
        metrics = {"training/policy_loss": losses.mean(), "env_steps": jnp.int32(STEPS_PER_EPOCH)}
        return state._replace(params=params), metrics

    def act(params: Any, obs: jax.Array, key: Any, deterministic: bool) -> jax.Array:
        return jnp.broadcast_to(jnp.tanh(params["w"]), (*obs.shape[:-1], action_size))

    return Algorithm(
        init=init,
        epoch=epoch,
        inference_params=lambda state: state.params,
        policy=Policy(act, {"kind": "constant", "action_size": action_size}),
        env_steps_per_epoch=STEPS_PER_EPOCH,
        num_epochs=num_epochs,
    )
