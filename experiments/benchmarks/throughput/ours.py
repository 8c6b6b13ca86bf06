# SPDX-License-Identifier: Apache-2.0
"""Our algorithms as contestants: the programs that ``mnemosyne train`` runs, telemetry included."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

import mnemosyne
from experiments.benchmarks.throughput.race import Turn
from experiments.benchmarks.throughput.settings import Course
from robotics.algorithm import Algorithm
from robotics.chunks import CompiledChunks
from robotics.es import ESConfig, make_es
from robotics.evaluate import make_player
from robotics.ppo import make_ppo
from robotics.restarts import make_episodes


class Ours:
    """Seeds side by side; see :class:`race.Contestant`.

    Args:
      course: where.
      algorithm: of one seed.
      seeds: to train.
      judged: whether to evaluate after each turn.
    """

    def __init__(self, course: Course, algorithm: Algorithm, seeds: Sequence[int], judged: bool):
        self._keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
        episodes = make_episodes(algorithm, self._keys)
        start = () if episodes is None else (episodes.start(self._keys),)
        self._state = jax.jit(jax.vmap(algorithm.init))(self._keys, *start)
        self._chunks = CompiledChunks(algorithm, self._state, _wait, print, episodes)
        self._scale = np.ones(len(seeds), np.float32)
        self.compile_s: float | None = self._chunks.compile_s
        self._params = jax.jit(jax.vmap(algorithm.inference_params))
        self._play: Any = None
        if judged:
            play = make_player(course.wrapped, algorithm.policy, course.eval_episodes)
            self._play = jax.jit(play).lower(self._params(self._state), self._keys).compile()

    def turn(self) -> Turn:
        """One chunk."""
        before = int(self._state.updates.sum())
        began = time.perf_counter()
        outcome = self._chunks.run(self._state, self._scale, None)
        seconds = time.perf_counter() - began
        self._state = outcome.state
        updates = int(self._state.updates.sum()) - before
        steps = int(outcome.metrics["env_steps"].sum())
        return Turn(steps, updates, seconds, self._score())

    def _score(self) -> float | None:
        if self._play is None:
            return None
        found = self._play(self._params(self._state), self._keys)
        return float(np.mean(found["episode_return"]))

    def close(self) -> None:
        """Nothing is left open."""


def _wait(metrics: Mapping[str, Array]) -> None:
    jax.block_until_ready(metrics)


def adam(course: Course) -> Algorithm:
    """With ``optax.adam``."""
    make: Any = make_es if isinstance(course.config, ESConfig) else make_ppo
    optimizer = optax.adam(course.learning_rate)
    return make(course.wrapped, course.config, optimizer, mnemosyne.telemetry)


def learned(course: Course, weights: str) -> Algorithm:
    """PPO with Mnemosyne, as ``mnemosyne train`` builds it."""
    optimizer = mnemosyne.mnemosyne(weights, total_steps=course.config.num_updates)
    return make_ppo(course.wrapped, course.config, optimizer, mnemosyne.telemetry)
