# SPDX-License-Identifier: Apache-2.0
"""What is known of a run before it begins: how it is carried out, its keys, its state's shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from robotics import limits, programs
from robotics.algorithm import Algorithm, HostAlgorithm

_EVAL_STREAM = (
    0x6576616C  # keeps evaluation episodes apart from what training draws from the same seed
)
_WORK_COPIES = 3  # state, gradient and temporary copies: a lower bound on what a step needs


WarmUp = Callable[[PyTree, Callable[[str], None]], tuple[PyTree, int]]
"""``warm_up(state, say)``: the state of all seeds before their first update as something else has
prepared it, and the env steps that this took of each."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How a run is carried out; nothing in here changes what is learned, seeds aside."""

    folder: Path
    """Run folder."""
    seed: int = 0
    """First seed."""
    num_seeds: int = 1
    """Number of seeds trained side by side, at least 1."""
    eval_episodes: int = 64
    """Fresh episodes per evaluation and seed, at least 1."""
    max_to_keep: int = 3
    """Checkpoints kept on the disk, at least 1."""
    quiet: bool = False
    """Say nothing on the console."""

    @property
    def seeds(self) -> list[int]:
        """The seed numbers, in the order of the leading axis of all arrays."""
        return list(range(self.seed, self.seed + self.num_seeds))


def seed_keys(config: RunConfig) -> Key[Array, " seeds"]:
    """One typed key a seed; a seed's key does not depend on how many others run beside it."""
    return jax.vmap(jax.random.key)(jnp.asarray(config.seeds, jnp.uint32))


def evaluation_keys(keys: Key[Array, " seeds"], epoch: int) -> Key[Array, " seeds"]:
    """Keys of the fresh episodes that are played after ``epoch`` chunks."""
    return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, _EVAL_STREAM), epoch))(
        keys
    )


def state_template(algorithm: Algorithm | HostAlgorithm, config: RunConfig) -> PyTree:
    """Shapes of the training state of all seeds; refuses a state that cannot fit into memory.

    Raises:
      ValueError: if it cannot fit.
    """
    key = jax.eval_shape(jax.random.key, 0)
    one = limits.tree_bytes(jax.eval_shape(algorithm.init, key))
    limits.check_memory(_WORK_COPIES * one * config.num_seeds, "training this", programs.SMALLER)
    keys = jax.ShapeDtypeStruct((config.num_seeds,), key.dtype)
    return jax.eval_shape(jax.vmap(algorithm.init), keys)
