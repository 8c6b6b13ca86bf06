# SPDX-License-Identifier: Apache-2.0
"""What a training algorithm is to the host loop: pure functions of one seed."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from robotics.faults import Fault

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


@runtime_checkable
class Epoch(Protocol):
    """A chunk of one seed."""

    def __call__(
        self,
        state: TrainState,
        step_scale: Float[Array, ""] | float = 1.0,
        restarts: PyTree = None,
    ) -> tuple[TrainState, Metrics]:
        """One chunk.

        Args:
          state: before.
          step_scale: factor on all updates of the optimizer, see :func:`robotics.faults.scaled`;
            below 1 after a rollback.
          restarts: episodes of :attr:`Restarts.chunk_keys`; ``None`` draws the same ones inside.

        Returns:
          The state after, and float32 scalars.
        """
        ...


@runtime_checkable
class HostEpoch(Protocol):
    """A chunk of all seeds, whose environments run on the host."""

    def __call__(
        self,
        state: TrainState,
        tick: Callable[[], None],
        step_scale: Float[np.ndarray, " seeds"] | None = None,
        again: Bool[np.ndarray, " seeds"] | None = None,
    ) -> tuple[TrainState, dict[str, Array]]:
        """One chunk.

        Args:
          state: of all seeds, a leading axis.
          tick: called now and then while it lasts.
          step_scale: factor on all updates of the optimizer.
          again: seeds that do the chunk once more, in new episodes; the others' environments stay
            as they are, and their results mean nothing. ``None``: all do it for the first time.

        Returns:
          The state after, and metrics, one value a seed; ``fault`` says where each one's chunk
          went wrong, [seeds, 5].
        """
        ...


class Locator(NamedTuple):
    """How an algorithm finds out where a chunk went wrong.

    Attributes:
      find: ``find(state, step_scale)`` does the chunk of one seed once more, looking at every step.
      names: names of the arrays that a fault may be in, by part.
      rounds: what a round of a chunk is, such as ``"rollout"``.
    """

    find: Callable[[TrainState, Float[Array, ""]], Fault]
    names: Callable[[], dict[str, list[str]]]
    rounds: str


class Restarts(NamedTuple):
    """How fresh episodes can be drawn outside of the programs that begin and train a run.

    Simulators compile slowly, and a reset nearly as slowly as a step; so one program of its own can
    serve both. Drawn outside or inside, the episodes are the same.

    Attributes:
      start_keys: of the episodes that ``init`` begins with, from its key.
      chunk_keys: of those that a chunk may restart from, from the ``key`` of the state before it.
      draw: the episodes of keys, one each.
    """

    start_keys: Callable[[Key[Array, ""]], Key[Array, " envs"]]
    chunk_keys: Callable[[Key[Array, ""]], Key[Array, "rollouts envs"]]
    draw: Callable[[Key[Array, " envs"]], PyTree]


class Init(Protocol):
    """The first state of one seed."""

    def __call__(self, key: Key[Array, ""], start: PyTree = None) -> TrainState:
        """The first state.

        Args:
          key: of everything that is drawn.
          start: episodes of :attr:`Restarts.start_keys`; ``None`` draws the same ones inside.
        """
        ...


class Algorithm(NamedTuple):
    """A training algorithm for one seed.

    Attributes:
      init: builds networks, optimizer state, environments and statistics. No matrix factorization
        inside: two of them in one vmapped program deadlock on the CPU.
      epoch: one chunk of training; float32 scalar metrics, means over the chunk, plus ``env_steps``
        (int32): the steps actually taken in it. What becomes non-finite must show in the state or
        in a metric under ``training/``.
      inference_params: what acting needs.
      policy: how to act with them.
      env_steps_per_epoch: env steps of a chunk; exact for PPO, an upper bound of their mean for ES.
      num_epochs: chunks in a run.
      mesh: devices that share the work; ``None`` if it is one.
      locator: finds out where a chunk went wrong; without one, faults are told by what they left.
      scales_steps: whether ``step_scale`` does anything: without an optimizer there is nothing that
        it could scale, and rollbacks only draw other random numbers.
      restarts: how episodes are drawn outside of ``init`` and ``epoch``, which else ignore them.
    """

    init: Init
    epoch: Epoch
    inference_params: Callable[[TrainState], PolicyParams]
    policy: Policy
    env_steps_per_epoch: int
    num_epochs: int
    mesh: Mesh | None = None
    locator: Locator | None = None
    scales_steps: bool = True
    restarts: Restarts | None = None


class HostAlgorithm(NamedTuple):
    """A training algorithm whose environments JAX cannot trace, an :class:`envs.api.HostEnv`.

    ``init``, ``inference_params``, ``policy`` and the counts are those of :class:`Algorithm`.

    Attributes:
      open: ``open(state)``, with the state of all seeds (a leading axis), starts the environments
        and compiles; returns the chunk function and the seconds that compiling took. Episodes begin
        anew: they are no part of the state.
      fault_names: as those of a :class:`Locator`, for the faults that the chunk function finds.
    """

    init: Callable[[Key[Array, ""]], TrainState]
    open: Callable[[TrainState], tuple[HostEpoch, float]]
    inference_params: Callable[[TrainState], PolicyParams]
    policy: Policy
    env_steps_per_epoch: int
    num_epochs: int
    fault_names: Callable[[], dict[str, list[str]]]


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
