# SPDX-License-Identifier: Apache-2.0
"""Trains policies under watch, with the weights whole and with parts of them silenced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from experiments.benchmarks.policies import runs
from experiments.benchmarks.policies.cells import Cell
from experiments.understanding.watch import Notes, watched
from mnemosyne import Artifact, from_meta_params
from mnemosyne.analysis.silence import silence
from robotics.faults import leaf_names
from robotics.ppo.config import PPOConfig

TAIL = 3
"""Chunks at the end of a run whose training return is reported."""


class Watched(NamedTuple):
    """What was seen of one optimizer, means over seeds; sizes are geometric means.

    Attributes:
      name: of the optimizer.
      tensors: names, in the order of the columns below.
      env_steps: at the end of each chunk.
      returns: training return of every seed in each chunk.
      step: size of updates in each chunk, relative to Adam's direction; a learning rate.
      by_place: the same for each place among the updates of a rollout, over the whole run.
      by_kl: the same by KL divergence; nan where none was seen.
      kl_share: of all updates, how many fell into each bin.
      to_adam: cosine of updates and Adam's direction, over the whole run.
      to_gradient: cosine of updates and negative gradient.
    """

    name: str
    tensors: list[str]
    env_steps: Float[np.ndarray, " chunks"]
    returns: Float[np.ndarray, "seeds chunks"]
    step: Float[np.ndarray, "chunks tensors"]
    by_place: Float[np.ndarray, "places tensors"]
    by_kl: Float[np.ndarray, "bins tensors"]
    kl_share: Float[np.ndarray, " bins"]
    to_adam: Float[np.ndarray, " tensors"]
    to_gradient: Float[np.ndarray, " tensors"]

    @property
    def finals(self) -> Float[np.ndarray, " seeds"]:
        """Training return at the end of every run."""
        return self.returns[:, -TAIL:].mean(axis=1)


def watch(
    name: str, cell: Cell, optimizer: optax.GradientTransformation, seeds: Sequence[int]
) -> Watched:
    """Trains with notes.

    Args:
      name: what the result is called.
      cell: of PPO.
      optimizer: what is watched.
      seeds: runs, side by side in one program.
    """
    assert isinstance(cell.config, PPOConfig)
    places = cell.config.num_updates_per_batch * cell.config.num_minibatches
    algorithm = cell.algorithm(cell.env(), watched(optimizer, places))
    state = jax.jit(jax.vmap(algorithm.init))(runs.seed_keys(seeds))
    epoch = jax.jit(jax.vmap(algorithm.epoch), donate_argnums=0)
    returns, notes = [], []
    print(f"{name} ", end="", flush=True)
    for _ in range(algorithm.num_epochs):
        state, metrics = epoch(state)
        returns.append(np.asarray(metrics["episode/sum_reward"]))
        notes.append(jax.tree.map(lambda x: np.asarray(x, np.float64).mean(0), _notes(state)))
        print(".", end="", flush=True)
    print(flush=True)
    taken = algorithm.env_steps_per_epoch * np.arange(1.0, algorithm.num_epochs + 1)
    return _sum_up(name, leaf_names(state.params), taken, np.stack(returns, axis=1), notes)


def _notes(state: Any) -> Notes:
    return state.opt_state.notes


def _sum_up(
    name: str, tensors: list[str], taken: np.ndarray, returns: np.ndarray, notes: list[Notes]
) -> Watched:
    """Means from sums; those of a chunk are what it added."""
    totals = np.stack([note.by_place.sum(0) for note in notes])
    counts = np.asarray([note.place_count.sum() for note in notes])
    added = np.diff(totals, axis=0, prepend=0.0) / np.diff(counts, prepend=0.0)[:, None]
    last = notes[-1]
    seen = np.where(last.kl_count > 0, last.kl_count, np.nan)
    return Watched(
        name=name,
        tensors=tensors,
        env_steps=taken,
        returns=returns,
        step=np.exp(added),
        by_place=np.exp(last.by_place / np.maximum(last.place_count, 1.0)[:, None]),
        by_kl=np.exp(last.by_kl / seen[:, None]),
        kl_share=last.kl_count / counts[-1],
        to_adam=last.to_adam / counts[-1],
        to_gradient=last.to_gradient / counts[-1],
    )


def study(
    name: str, artifact: Artifact, cell: Cell, without: Sequence[str], seeds: Sequence[int]
) -> list[Watched]:
    """The weights whole, then without each of some parts, then Adam 3e-4.

    Args:
      name: of the weights.
      artifact: the weights.
      cell: where, of PPO.
      without: keys of :data:`mnemosyne.analysis.silence.PARTS`.
      seeds: of every optimizer.

    Raises:
      ValueError: for an unknown part.
    """
    thetas = {name: artifact.meta_params}
    thetas |= {f"without {part}": silence(artifact.meta_params, part) for part in without}
    total = cell.num_updates
    found = []
    for label, theta in thetas.items():
        whole = jax.tree.map(jnp.asarray, theta)
        optimizer = from_meta_params(whole, artifact.config, total_steps=total)
        found.append(watch(label, cell, optimizer, seeds))
    return [*found, watch("Adam 3e-4", cell, optax.adam(3e-4), seeds)]


def standard_error(values: Float[np.ndarray, "seeds *rest"]) -> Float[np.ndarray, "*rest"]:
    """Of the mean over the first axis; nan of a single seed, which says nothing about it."""
    count = len(values)
    if count < 2:
        return np.full(values.shape[1:], np.nan)
    return values.std(axis=0, ddof=1) / np.sqrt(count)


def table(found: Sequence[Watched]) -> str:
    """Returns, and what the first optimizer does to every tensor."""
    lines = [f"{'optimizer':<24} return of the last {TAIL} chunks, {found[0].finals.size} seeds"]
    for one in found:
        error = standard_error(one.finals)
        lines.append(f"{one.name:<24} {one.finals.mean():10.1f} +- {error:.1f}")
    first = found[0]
    head = (
        f"{'tensor':<24} {'step, start':>12} {'middle':>9} {'end':>9} {'to Adam':>8} {'to -g':>6}"
    )
    lines += ["", f"{first.name}: size of updates in learning rates of Adam, and cosines", head]
    middle = len(first.step) // 2
    for i, tensor in enumerate(first.tensors):
        steps = [first.step[at, i] for at in (0, middle, -1)]
        lines.append(
            f"{tensor:<24} {steps[0]:>12.2e} {steps[1]:>9.2e} {steps[2]:>9.2e}"
            f" {first.to_adam[i]:>8.2f} {first.to_gradient[i]:>6.2f}"
        )
    return "\n".join(lines)


def rows(found: Sequence[Watched]) -> list[dict[str, Any]]:
    """All numbers for JSON, which knows no nan."""
    return [{key: _plain(value) for key, value in one._asdict().items()} for one in found]


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(part) for part in value.tolist()]
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if value != value else value  # nan is what differs from itself
