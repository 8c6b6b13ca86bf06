# SPDX-License-Identifier: Apache-2.0
"""Which numbers of :mod:`experiments.policy_start` matter, and where: a two-level experiment.

    python -m experiments.policy_search --env brax:hopper [--seeds 6] [--vary target noise] --json F

Every number is moved to the ends of its range in :data:`RANGES` by a Hadamard design, in 32
candidates that train side by side in one compiled program. Each number then has 16 candidates at
either end, whatever the others are: its main effect is measured by all runs at once, where moving
one number at a time would need as many runs for each. Only M and V: nothing may be searched on H.
``experiments/gpu/policy_search.sh`` runs all environments side by side on one accelerator.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

import mnemosyne
from experiments.benchmarks.options import Options
from experiments.benchmarks.policies.cells import Cell
from experiments.benchmarks.policies.runs import seed_keys
from experiments.benchmarks.policies.suites import cell_of
from experiments.policy_start import NETWORK, Numbers, controller
from mnemosyne.meta.session import write_json
from robotics.evaluate import make_evaluate

CANDIDATES = 32
RANGES: dict[str, tuple[float, float]] = {
    "policy": (-0.7, 0.0),
    "value": (1.0, 1.7),
    "anneal": (0.4, 0.9),
    "passes": (0.0, 0.5),
    "target": (0.009, 0.014),
    "actions": (0.0, 0.75),
    "noise": (0.5, 1.5),
    "slope": (1.0, 2.5),
    "nesterov": (0.0, 0.3),
    "largest": (1.6, 2.3),
}
"""Ends that were about equally good in earlier searches; others would only be found bad again."""
SEED = 2000
"""First seed: apart from those of judged runs and of the benchmark's searches."""
EPISODES = 4
"""Of the deterministic evaluation at the end of a run."""
BACKEND = "spring"
"""Of Brax's bodies, on every device: what is searched has to be comparable."""


class Outcome(NamedTuple):
    """What the runs of every candidate came to, means over seeds.

    Attributes:
      final: return of the deterministic policy at the end.
      area: mean training return of all chunks.
      error: standard error of an effect on ``final``, from the spread between seeds.
    """

    final: Float[np.ndarray, " candidates"]
    area: Float[np.ndarray, " candidates"]
    error: float


def design(names: Sequence[str]) -> Int[np.ndarray, "candidates names"]:
    """Ends, 0 or 1, of every number in every candidate; any two columns are orthogonal.

    Raises:
      ValueError: for a number without a range, or more of them than the design can hold.

    Example:
      >>> design(["value", "target"]).mean(axis=0).tolist()
      [0.5, 0.5]
    """
    if unknown := sorted(set(names) - set(RANGES)):
        raise ValueError(f"--vary {unknown[0]}: there is no such number; take {', '.join(RANGES)}.")
    from scipy.linalg import hadamard

    # Powers of two first: as long as they last, effects are free of those of pairs.
    order = [1, 2, 4, 8, 16, 31, 7, 11, 13, 14, 19, 21, 22, 25, 26, 28]
    if len(names) > len(order):
        raise ValueError(f"--vary takes at most {len(order)} numbers, got {len(names)}.")
    return (hadamard(CANDIDATES)[:, order[: len(names)]] < 0).astype(int)


def candidates(names: Sequence[str]) -> Numbers:
    """All candidates, an array in each field; what does not vary is as shipped."""
    ends = design(names)
    fields: dict[str, Any] = {
        name: np.full(CANDIDATES, value) for name, value in Numbers()._asdict().items()
    }
    for column, name in enumerate(names):
        fields[name] = np.asarray(RANGES[name])[ends[:, column]]
    return Numbers(**fields)


def run(cell: Cell, tried: Numbers, num_seeds: int) -> Outcome:
    """Trains every candidate with every seed, all of them side by side.

    Args:
      cell: what to train.
      tried: an array in each field.
      num_seeds: of each candidate.
    """
    env = cell.env()
    fresh = mnemosyne.init_meta_params(jax.random.key(0), NETWORK)
    fixed = cell.algorithm(env, optax.identity())
    play = make_evaluate(env, fixed.policy, EPISODES)

    def train(numbers: Numbers, key: Array) -> tuple[Array, Array]:
        rule = mnemosyne.from_meta_params(controller(fresh, numbers), NETWORK)
        algorithm = cell.algorithm(env, rule)

        def chunk(state: Any, _: None) -> tuple[Any, Array]:
            state, metrics = algorithm.epoch(state)
            return state, metrics["episode/sum_reward"]

        state, curve = jax.lax.scan(chunk, algorithm.init(key), None, algorithm.num_epochs)
        episodes = play(fixed.inference_params(state), key)
        return jnp.mean(episodes["episode_return"]), jnp.mean(curve)

    lanes = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x, jnp.float32), num_seeds), tried)
    count = np.size(tried.policy)
    keys = seed_keys(list(range(SEED, SEED + num_seeds)) * count)
    found = [np.asarray(x).reshape(count, num_seeds) for x in jax.jit(jax.vmap(train))(lanes, keys)]
    spread = float(np.sqrt(np.mean(found[0].var(axis=1, ddof=1)))) if num_seeds > 1 else np.nan
    error = 2.0 * spread / np.sqrt(count * num_seeds)
    return Outcome(found[0].mean(axis=1), found[1].mean(axis=1), float(error))


def effects(names: Sequence[str], values: Float[np.ndarray, " candidates"]) -> dict[str, float]:
    """By how much the second end of each number is above the first, on average over all others."""
    ends = design(names)
    return {
        name: float(values[ends[:, i] == 1].mean() - values[ends[:, i] == 0].mean())
        for i, name in enumerate(names)
    }


def search(env_name: str, names: Sequence[str], num_seeds: int) -> dict[str, Any]:
    """The experiment on one environment as JSON says it.

    Raises:
      ValueError: for an environment of the hold-out, or of no split.
    """
    cell = cell_of(Options(size="small"), env_name)
    if cell.backend:
        cell = cell._replace(backend=BACKEND)
    tried = candidates(names)
    found = run(cell, tried, num_seeds)
    return {
        "env": env_name,
        "backend": cell.backend,
        "device": jax.devices()[0].device_kind,
        "seeds": num_seeds,
        "ranges": {name: RANGES[name] for name in names},
        "mean": {"final": float(found.final.mean()), "area": float(found.area.mean())},
        "effects": {
            "final": effects(names, found.final),
            "area": effects(names, found.area),
            "standard_error_of_final": found.error,
        },
        "candidates": {name: np.asarray(x).tolist() for name, x in tried._asdict().items()},
        "final": found.final.tolist(),
        "area": found.area.tolist(),
    }


def main() -> None:
    """Prints the effects in percent of the mean; writes everything with ``--json``."""
    parser = argparse.ArgumentParser(description="Main effects of the policy weights' numbers.")
    parser.add_argument("--env", required=True)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--vary", nargs="+", default=list(RANGES))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    try:
        row = search(arguments.env, arguments.vary, arguments.seeds)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    mean = row["mean"]
    share = 100.0 * row["effects"]["standard_error_of_final"] / abs(mean["final"])
    print(f"{row['env']}: final return {mean['final']:.4g}, area {mean['area']:.4g} on average")
    print(f"effects on them in percent, standard error of the first {share:.1f}:")
    for name, ends in row["ranges"].items():
        parts = [100.0 * row["effects"][of][name] / abs(mean[of]) for of in ("final", "area")]
        print(f"  {name:9} {ends[0]:g} -> {ends[1]:g}: {parts[0]:+.1f} {parts[1]:+.1f}")
    if arguments.json:
        write_json(arguments.json, row)


if __name__ == "__main__":
    main()
