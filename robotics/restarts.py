# SPDX-License-Identifier: Apache-2.0
"""Fresh episodes from one program, for the first state of a run and for the restarts of its chunks.

A simulator's reset compiles for as long as its step. Inside of the programs that begin and train a
run it would be compiled twice, and the longer program is the slower one to compile.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Key, PyTree

from robotics import limits, programs, sharding
from robotics.algorithm import Algorithm, HostAlgorithm, Restarts, TrainState

MAX_BYTES = 2**28
"""Of the episodes of a chunk. Where they would take more, every rollout draws its own."""


class Episodes:
    """The compiled program; build it with :func:`make_episodes`.

    Args:
      parts: of the algorithm.
      keys: one a seed, or their shapes.
      mesh: devices of the run, every one of which holds all episodes.

    Attributes:
      compile_s: seconds that compiling took.
      shapes: of the episodes of a chunk.
    """

    def __init__(self, parts: Restarts, keys: Key[Array, " seeds"], mesh: Mesh | None):
        self._mesh, everywhere = mesh, sharding.replicated(mesh)
        self._start_keys = jax.jit(jax.vmap(parts.start_keys), out_shardings=everywhere)
        self._chunk_keys = jax.jit(jax.vmap(parts.chunk_keys), out_shardings=everywhere)
        shape = jax.eval_shape(self._chunk_keys, keys)
        self._rollouts = shape.shape[1]
        # Rollout after rollout: all at once would not fit into the cache.
        draw = jax.vmap(lambda keys: jax.lax.map(parts.draw, keys))
        self.shapes = _placed(jax.eval_shape(draw, shape), everywhere)
        self._draw, self.compile_s = programs.compile_timed(
            draw, _placed(shape, everywhere), out_shardings=everywhere
        )

    def start(self, keys: Key[Array, " seeds"]) -> PyTree:
        """What ``init`` begins with, [seeds, envs, ...], drawn as the first of many rollouts."""
        keys = self._start_keys(keys)
        shape = (keys.shape[0], self._rollouts, keys.shape[1])
        drawn = self._draw(sharding.put(self._mesh, jnp.broadcast_to(keys[:, None], shape)))
        return jax.tree.map(lambda leaf: leaf[:, 0], drawn)

    def of_chunk(self, state: TrainState) -> PyTree:
        """What the coming chunk may restart from, [seeds, rollouts, envs, ...]."""
        return self._draw(self._chunk_keys(state.key))


def make_episodes(
    algorithm: Algorithm | HostAlgorithm, keys: Key[Array, " seeds"]
) -> Episodes | None:
    """The program for an algorithm, or ``None`` where it draws its episodes itself.

    Args:
      algorithm: of a run.
      keys: one a seed, or their shapes.
    """
    if isinstance(algorithm, HostAlgorithm) or algorithm.restarts is None:
        return None
    parts = algorithm.restarts
    shape = jax.eval_shape(jax.vmap(parts.chunk_keys), keys)
    one = jax.eval_shape(parts.draw, jax.ShapeDtypeStruct(shape.shape[2:], shape.dtype))
    size = limits.tree_bytes(one) * shape.shape[0] * shape.shape[1]
    return Episodes(parts, keys, algorithm.mesh) if size <= MAX_BYTES else None


def _placed(shapes: PyTree, where: NamedSharding | None) -> PyTree:
    """The same shapes with the devices that they lie on."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes
    )
