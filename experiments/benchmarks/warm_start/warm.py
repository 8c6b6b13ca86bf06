# SPDX-License-Identifier: Apache-2.0
"""Runs of the policy benchmark that begin where runs in another environment have ended.

Lane ``i`` takes over what lane ``i`` of the source has learned, so that the luck of the source is
part of the spread over seeds. What is taken over is what ``mnemosyne train --warm-start`` takes,
unless it is told otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import mnemosyne
from experiments.benchmarks.policies import records, runs
from experiments.benchmarks.policies.cells import Cell
from experiments.benchmarks.policies.records import Store
from experiments.benchmarks.policies.rules import Rule
from robotics import warmstart

VERSION = 2
"""Raised when the meaning of a warm start changes."""


class Source:
    """Runs to start from: those of Mnemosyne, for only they have a memory.

    Args:
      store: of runs with a new start.
      cell: where they were trained.
      rule: Mnemosyne with its weights.
      config: of its network.
      parts: what is taken over.
    """

    def __init__(
        self,
        store: Store,
        cell: Cell,
        rule: Rule,
        config: mnemosyne.MnemosyneConfig,
        parts: Sequence[str] = warmstart.default_parts(same_env=False),
    ):
        self.store, self.cell, self.rule, self.config = store, cell, rule, config
        self.parts = tuple(parts)

    @property
    def description(self) -> dict[str, Any]:
        """Everything that a warm start depends on besides seeds."""
        return {
            "cell": self.cell.description(),
            "rule": self.rule.description,
            "parts": list(self.parts),
            "version": VERSION,
        }

    def states(self, seeds: Sequence[int]) -> Any:
        """Training states at the end of the source's runs.

        The store has curves only: where it has them already, the runs are repeated.
        """
        self.store.record(self.cell, self.rule, seeds)
        runner = self.store.runner(self.cell)
        if runner.state is None:
            runner([self.rule], seeds, len(seeds))
        state: Any = runner.state
        return jax.device_get(state._replace(env_state=None, key=None))

    def begin(self, target: Cell, rule: Rule, state: Any, old: Any) -> Any:
        """The first states of runs in another cell, with what they take over.

        Args:
          target: where the runs go on.
          rule: their optimizer.
          state: of all lanes, as new runs have it.
          old: of :meth:`states`.
        """
        template = jax.eval_shape(lambda s: jax.tree.map(lambda leaf: leaf[0], s), state)
        leaves = stacked_leaves(old, template, target.config.num_timesteps, self.parts)
        start: Callable[[Any, Any], Any] = lambda memory, params: None  # noqa: E731
        ours = rule.description["rule"] == "mnemosyne" and "memory" in self.parts
        if ours:
            optimizer = rule.make(rule.theta, {}, target)
            start = mnemosyne.make_warm_start(optimizer, self.config)

        def one(state: Any, leaves: Any, memory: Any) -> Any:
            remember = functools.partial(start, memory) if ours else None
            return warmstart.transfer(state, leaves, remember)

        return jax.jit(jax.vmap(one))(state, leaves, old.opt_state)


def stacked_leaves(
    old: Any, template: Any, budget: int, parts: Sequence[str]
) -> dict[str, np.ndarray]:
    """What each lane takes over from the same lane of the source, a leading axis of lanes.

    Args:
      old: training states of the source.
      template: shapes of the training state of one lane.
      budget: of the new run, env steps.
      parts: what to take over.
    """
    paths = jax.tree_util.tree_leaves_with_path(old)
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in paths
    }
    lanes = len(found["updates"])
    plans = [
        warmstart.make_plan(
            warmstart.Source(Path(), {}, 0, lane, found), template, parts, budget
        ).leaves
        for lane in range(lanes)
    ]
    return {name: np.stack([plan[name] for plan in plans]) for name in plans[0]}


class WarmRunner(runs.Runner):
    """Trains lanes of one cell that begin warm.

    Args:
      base: trains the same cell from new starts; programs are shared with it.
      source: where to start from.
    """

    def __init__(self, base: runs.Runner, source: Source):
        super().__init__(base.cell)
        self._source, self._programs = source, base._programs
        self._old: Any = None

    def __call__(self, rules: Sequence[Rule], seeds: Sequence[int], lanes: int) -> list[runs.Runs]:
        """See :class:`runs.Runner`; one rule at a time, so that lanes are seeds."""
        assert len(rules) == 1 and lanes == len(seeds)
        self._old = self._source.states(seeds)
        return super().__call__(rules, seeds, lanes)

    def _start(self, programs: Any, rule: Rule, hyper: Any, keys: Any) -> Any:
        state = super()._start(programs, rule, hyper, keys)
        return self._source.begin(self.cell, rule, state, self._old)


class WarmStore(Store):
    """Stored runs with a warm start; those of two sources have nothing in common.

    Args:
      store: of runs with a new start.
      source: where to start from.
    """

    def __init__(self, store: Store, source: Source):
        super().__init__(store.folder, store.lanes)
        self._store, self._source = store, source

    def key(self, cell: Cell, rule: Rule, seeds: Sequence[int]) -> dict[str, Any]:
        """See :meth:`Store.key`."""
        plain = records.description(cell, rule, seeds)
        return plain | {"warm start": self._source.description}

    def runner(self, cell: Cell) -> runs.Runner:
        """See :meth:`Store.runner`."""
        if self._runner is None or self._runner.cell != cell:
            self._runner = WarmRunner(self._store.runner(cell), self._source)
        return self._runner
