# SPDX-License-Identifier: Apache-2.0
"""What a training algorithm is to the host loop: pure functions of one seed."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PyTree

Metrics = dict[str, Float[Array, ""]]
PolicyParams = PyTree
Action = Float[Array, "*batch action"] | Int[Array, "*batch"]
"""Entries in [-1, 1], or the number of a choice."""
Telemetry = Callable[[Any, PyTree, PyTree], Metrics]

_LIMB = 1 << 20  # env steps are counted in two int32 limbs, so that 2^31 steps are nothing special


class TrainState(NamedTuple):
    """Everything that the rest of a run depends on: one seed, arrays of a fixed structure.

    Attributes:
      params: network parameters, nested dicts.
      opt_state: state of the optimizer in the slot.
      normalizer: running statistics.
      env_state: states of the training environments (``None`` where episodes do not outlive an
        update).
      key: typed PRNG key.
      env_steps: env steps so far, ``env_steps[0] * 2**20 + env_steps[1]``; read it with
        :func:`count_env_steps`.
      updates: optimizer updates so far.
      epoch: chunks so far.
      carried: metrics that keep their last value while nothing new is known, such as the return of
        finished episodes.
    """

    params: PyTree
    opt_state: PyTree
    normalizer: PyTree
    env_state: PyTree
    key: Key[Array, ""]
    env_steps: Int[Array, " 2"]
    updates: Int[Array, ""]
    epoch: Int[Array, ""]
    carried: Metrics


class Policy(NamedTuple):
    """A policy as a pure function, and what has to be known to rebuild it elsewhere.

    Attributes:
      act: ``act(params, obs, key, deterministic)`` gives actions in [-1, 1], or whole numbers where
        they are choices; ``obs`` may have any leading axes. The key is not used if
        ``deterministic``.
      spec: JSON-able description, see :func:`robotics.networks.policy_spec`.
    """

    act: Callable[
        [PolicyParams, Float[Array, "*batch obs"], Key[Array, ""], bool],
        Action,
    ]
    spec: dict[str, Any]


HostEpoch = Callable[[TrainState, Callable[[], None]], tuple[TrainState, dict[str, Array]]]
"""``epoch(state, tick)``: a chunk and its metrics, of all seeds (a leading axis); calls ``tick``
now and then while it lasts."""


class Algorithm(NamedTuple):
    """A training algorithm for one seed.

    Attributes:
      init: builds networks, optimizer state, environments and statistics. No matrix factorization
        inside: two of them in one vmapped program deadlock on the CPU.
      epoch: one chunk of training; float32 scalar metrics, means over the chunk, plus ``env_steps``
        (int32): the steps actually taken in it.
      inference_params: what acting needs.
      policy: how to act with them.
      env_steps_per_epoch: env steps of a chunk; exact for PPO, an upper bound of their mean for ES.
      num_epochs: chunks in a run.
      mesh: devices that share the work; ``None`` if it is one.
    """

    init: Callable[[Key[Array, ""]], TrainState]
    epoch: Callable[[TrainState], tuple[TrainState, Metrics]]
    inference_params: Callable[[TrainState], PolicyParams]
    policy: Policy
    env_steps_per_epoch: int
    num_epochs: int
    mesh: Mesh | None = None


class HostAlgorithm(NamedTuple):
    """A training algorithm whose environments JAX cannot trace, an :class:`envs.api.HostEnv`.

    ``init``, ``inference_params``, ``policy`` and the counts are those of :class:`Algorithm`.

    Attributes:
      open: ``open(state)``, with the state of all seeds (a leading axis), starts the environments
        and compiles; returns the chunk function and the seconds that compiling took. Episodes begin
        anew: they are no part of the state.
    """

    init: Callable[[Key[Array, ""]], TrainState]
    open: Callable[[TrainState], tuple[HostEpoch, float]]
    inference_params: Callable[[TrainState], PolicyParams]
    policy: Policy
    env_steps_per_epoch: int
    num_epochs: int


def zero_env_steps() -> Int[Array, " 2"]:
    """A counter at zero."""
    return jnp.zeros(2, jnp.int32)


def add_env_steps(env_steps: Int[Array, " 2"], more: Int[Array, ""] | int) -> Int[Array, " 2"]:
    """``env_steps + more`` with ``0 <= more < 2**30``."""
    low = env_steps[1] + more
    return jnp.stack([env_steps[0] + low // _LIMB, low % _LIMB])


def split_env_steps(count: int) -> tuple[int, int]:
    """A Python count as the two limbs of a counter."""
    return divmod(count, _LIMB)


def count_env_steps(env_steps: Int[Array, "*seeds 2"]) -> Any:
    """The counter as NumPy int64, on the host.

    Example:
      >>> int(count_env_steps(add_env_steps(zero_env_steps(), 3_000_000)))
      3000000
    """
    limbs = np.asarray(env_steps).astype(np.int64)
    return limbs[..., 0] * _LIMB + limbs[..., 1]


def nearest(value: str, valid: Sequence[str]) -> str:
    """The entry of ``valid`` that looks most like ``value``."""
    return max(
        valid, key=lambda name: difflib.SequenceMatcher(None, value.lower(), name.lower()).ratio()
    )


def check_positive(owner: str, **values: int | float) -> None:
    """Raises ValueError for the first value that is not above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{owner} {name} is {value}, but it must be above 0.")


def check_unit(owner: str, **values: int | float) -> None:
    """Raises ValueError for the first value outside [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{owner} {name} is {value}, but it must lie in [0, 1].")
