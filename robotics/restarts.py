# SPDX-License-Identifier: Apache-2.0
"""Fresh episodes from one program, for the first state of a run and for the restarts of its chunks.

A simulator's reset compiles for as long as its step. Inside of the programs that begin and train a
run it would be compiled twice, and the longer program is the slower one to compile.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from robotics import limits, programs, sharding
from robotics.algorithm import Algorithm, TrainState

MAX_BYTES = 2**28
"""Of the episodes of a chunk. Where they would take more, every rollout draws its own."""


class Episodes:
    """The compiled program; build it with :func:`make_episodes`.

    Args:
      algorithm: with ``restarts``.
      keys: one a seed.

    Attributes:
      compile_s: seconds that compiling took.
    """

    def __init__(self, algorithm: Algorithm, keys: Key[Array, " seeds"]):
        assert algorithm.restarts is not None
        parts, self._mesh = algorithm.restarts, algorithm.mesh
        shape = _chunk_keys(algorithm, keys)
        self._rollouts = shape.shape[1]
        self._start_keys = jax.jit(jax.vmap(parts.start_keys))
        self._chunk_keys = jax.jit(jax.vmap(parts.chunk_keys))
        # Rollout after rollout: all at once would not fit into the cache.
        self._draw, self.compile_s = programs.compile_timed(
            jax.vmap(lambda keys: jax.lax.map(parts.draw, keys)),
            shape,
            out_shardings=sharding.replicated(self._mesh),
        )

    def start(self, keys: Key[Array, " seeds"]) -> PyTree:
        """What ``init`` begins with, [seeds, envs, ...]."""
        keys = self._start_keys(keys)
        shape = (keys.shape[0], self._rollouts, keys.shape[1])
        drawn = self._draw(self._placed(jnp.broadcast_to(keys[:, None], shape)))
        return jax.tree.map(lambda leaf: leaf[:, 0], drawn)

    def of_chunk(self, state: TrainState) -> PyTree:
        """What the coming chunk may restart from, [seeds, rollouts, envs, ...]."""
        return self._draw(self._chunk_keys(state))

    def _placed(self, keys: Array) -> Array:
        return sharding.put(self._mesh, keys)


def make_episodes(algorithm: Any, keys: Key[Array, " seeds"]) -> Episodes | None:
    """The program for an algorithm, or ``None`` where it draws its episodes itself.

    Args:
      algorithm: of a run.
      keys: one a seed, or their shapes.
    """
    if getattr(algorithm, "restarts", None) is None:
        return None
    draw = jax.vmap(jax.vmap(algorithm.restarts.draw))
    size = limits.tree_bytes(jax.eval_shape(draw, _chunk_keys(algorithm, keys)))
    return Episodes(algorithm, keys) if size <= MAX_BYTES else None


def _chunk_keys(algorithm: Algorithm, keys: Key[Array, " seeds"]) -> jax.ShapeDtypeStruct:
    """The keys of a chunk of all seeds, [seeds, rollouts, envs]."""
    assert algorithm.restarts is not None
    chunk_keys = algorithm.restarts.chunk_keys
    return jax.eval_shape(jax.vmap(lambda key: chunk_keys(algorithm.init(key))), keys)
