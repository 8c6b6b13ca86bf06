# SPDX-License-Identifier: Apache-2.0
"""How the chunks of a run are done: on the device, or with environments on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from robotics import faults, programs, sharding
from robotics.algorithm import Algorithm, HostAlgorithm
from robotics.faults import Found
from robotics.restarts import Episodes

Mask = Bool[np.ndarray, " seeds"]
Wait = Callable[[Mapping[str, Array]], None]


class Outcome(NamedTuple):
    """A chunk of all seeds.

    Attributes:
      state: after it.
      metrics: one value a seed.
      health: codes of :func:`robotics.faults.health`, -1 where all is well.
      fault: where it went wrong, if the chunk itself has found out.
    """

    state: PyTree
    metrics: dict[str, np.ndarray]
    health: Int[np.ndarray, " seeds"]
    fault: Int[np.ndarray, "seeds 5"] | None = None

    @property
    def bad(self) -> Mask:
        """Which seeds are not well."""
        bad = self.health >= 0
        return bad if self.fault is None else bad | (self.fault[:, 0] >= 0)


@runtime_checkable
class Chunks(Protocol):
    """How the chunks of a run are done; ``compile_s`` are the seconds that compiling them took."""

    compile_s: float

    def run(self, state: PyTree, scale: Float[np.ndarray, " seeds"], again: Mask | None) -> Outcome:
        """One chunk; ``again`` are the seeds that do it once more."""
        ...

    def locate(
        self, state: PyTree, scale: Float[np.ndarray, " seeds"], outcome: Outcome
    ) -> list[Found | None]:
        """Where the chunk that began with ``state`` went wrong, one entry a seed."""
        ...


class CompiledChunks:
    """Chunks of an algorithm that runs on the device from start to end.

    Args:
      algorithm: for one seed.
      state: of all seeds, or its shapes.
      wait: waits for a chunk's metrics.
      say: prints a line.
      episodes: draws what chunks restart from; ``None`` leaves it to the chunks.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        state: PyTree,
        wait: Wait,
        say: Callable[[str], None],
        episodes: Episodes | None = None,
    ):
        self._algorithm, self._wait, self._say = algorithm, wait, say
        self._find: Callable[..., Any] | None = None
        self._episodes = episodes
        self._mesh = algorithm.mesh
        scale = self._placed(np.ones(jax.tree.leaves(state.params)[0].shape[0], np.float32))

        def checked(
            state: PyTree, scale: Array, restarts: PyTree
        ) -> tuple[PyTree, dict[str, Array], Array]:
            after, metrics = algorithm.epoch(state, scale, restarts)
            return after, metrics, faults.health(after, state, metrics)

        # The state before a chunk is what a rollback returns to, so it is not donated.
        everywhere = sharding.replicated(self._mesh)
        outputs = (sharding.state_shardings(self._mesh, state), everywhere, everywhere)
        restarts = None if episodes is None else episodes.shapes
        self._program, self.compile_s = programs.compile_timed(
            jax.vmap(checked), state, scale, restarts, out_shardings=outputs
        )

    def _placed(self, scale: Float[np.ndarray, " seeds"]) -> Array:
        """The scales on the devices of the run."""
        return sharding.put(self._mesh, jnp.asarray(scale))

    def run(self, state: PyTree, scale: Float[np.ndarray, " seeds"], again: Mask | None) -> Outcome:
        """See :class:`Chunks`; the seeds that need not do it do it too, in the same program."""
        restarts = None if self._episodes is None else self._episodes.of_chunk(state)
        state, metrics, health = self._program(state, self._placed(scale), restarts)
        self._wait(metrics)
        return Outcome(state, _on_host(metrics), np.asarray(health))

    def locate(
        self, state: PyTree, scale: Float[np.ndarray, " seeds"], outcome: Outcome
    ) -> list[Found | None]:
        """See :class:`Chunks`."""
        locator = self._algorithm.locator
        if locator is None:
            return [None] * len(scale)
        if self._find is None:
            self._say("doing that chunk again step by step, to find where it went wrong ...")
            everywhere = sharding.replicated(self._mesh)
            self._find = jax.jit(jax.vmap(locator.find), out_shardings=everywhere)
        rows, names = np.asarray(self._find(state, self._placed(scale))), locator.names()
        return [faults.describe(row, names, locator.rounds) for row in rows]


class HostChunks:
    """Chunks of an algorithm whose environments run on the host.

    Args:
      algorithm: of all seeds.
      state: of all seeds.
      tick: called now and then during a chunk.
    """

    def __init__(self, algorithm: HostAlgorithm, state: PyTree, tick: Callable[[], None]):
        self._algorithm, self._tick = algorithm, tick
        self._epoch, self.compile_s = algorithm.open(state)
        self._health = jax.jit(jax.vmap(faults.health))

    def run(self, state: PyTree, scale: Float[np.ndarray, " seeds"], again: Mask | None) -> Outcome:
        """See :class:`Chunks`."""
        after, metrics = self._epoch(state, self._tick, scale, again)
        fault = metrics.pop("fault")
        health = self._health(after, state, metrics)
        return Outcome(after, _on_host(metrics), np.asarray(health), np.asarray(fault))

    def locate(
        self, state: PyTree, scale: Float[np.ndarray, " seeds"], outcome: Outcome
    ) -> list[Found | None]:
        """See :class:`Chunks`; the chunk has looked for it already."""
        assert outcome.fault is not None
        names = self._algorithm.fault_names()
        return [faults.describe(row, names, "rollout") for row in outcome.fault]


def _on_host(metrics: Mapping[str, Array]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in metrics.items()}
