# SPDX-License-Identifier: Apache-2.0
"""Learning curves of runs as numbers: read, pooled over seeds, and with intervals.

Runs that differ in nothing but their seeds are pooled. Intervals are percentile bootstraps over
seeds (Agarwal et al. 2021, arXiv 2108.13264); with fewer than about five seeds such an interval is
too narrow, which is why every seed is drawn as well.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from robotics import run_folder
from robotics.monitor import RETURN, read_metrics
from robotics.result import Z95

Statistic = Literal["iqm", "mean"]
_DRAWS = 2000
# Settings that have no part in what a seed learns: runs that differ only here are pooled.
_FREE = ("seed", "num_seeds", "num_evaluations", "eval_episodes", "logdir", "resume", "config")
_FREE += ("json", "max_to_keep", "video", "quiet")


class Curve(NamedTuple):
    """The evaluations of one run."""

    folder: Path
    settings: dict[str, Any]
    seeds: tuple[int, ...]
    steps: Float[np.ndarray, " evaluations"]
    returns: Float[np.ndarray, "evaluations seeds"]
    episode_std: Float[np.ndarray, "evaluations seeds"]
    episodes: int
    random_return: float | None


class Pooled(NamedTuple):
    """The curve of all seeds of one setting.

    Attributes:
      env: environment.
      optimizer: name of the optimizer.
      label: what tells it from the other curves of this environment.
      seeds: seed numbers, in the order of the last axis of ``returns``.
      steps: env steps of one seed.
      returns: mean over the episodes of each evaluation.
      value: IQM or mean over seeds.
      low: lower end of its 95 % interval; over episodes if there is one seed only.
      high: upper end.
      random_return: mean return of uniform random actions, if known.
      left_out: seeds that more than one run has, as ``(seed, folder)``; only the first counts.
    """

    env: str
    optimizer: str
    label: str
    seeds: tuple[int, ...]
    steps: Float[np.ndarray, " evaluations"]
    returns: Float[np.ndarray, "evaluations seeds"]
    value: Float[np.ndarray, " evaluations"]
    low: Float[np.ndarray, " evaluations"]
    high: Float[np.ndarray, " evaluations"]
    random_return: float | None
    left_out: tuple[tuple[int, Path], ...]


def read_curve(folder: Path) -> Curve:
    """The learning curve of one run, from ``config.json``, ``metrics.jsonl``, ``result.json``.

    Raises:
      ValueError: if the folder is no run, or has no evaluation yet.
    """
    settings = run_folder.read_json(folder / run_folder.CONFIG)
    rows = [row for row in read_metrics(folder / run_folder.METRICS) if RETURN in row]
    if not rows:
        raise ValueError(f"{folder} holds no evaluation yet, so there is nothing to draw")
    result = folder / run_folder.RESULT
    random_return = run_folder.read_json(result).get("return_random") if result.is_file() else None
    returns = np.array([row[RETURN] for row in rows], np.float64)
    first = int(settings.get("seed", 0))
    return Curve(
        folder=folder,
        settings=settings,
        seeds=tuple(range(first, first + returns.shape[1])),
        steps=np.array([row["env_steps"] for row in rows], np.float64),
        returns=returns,
        episode_std=np.array([row[f"{RETURN}_std"] for row in rows], np.float64),
        episodes=int(settings.get("eval_episodes", 64)),
        random_return=random_return,
    )


def pool(curves: Sequence[Curve], statistic: Statistic = "iqm") -> list[Pooled]:
    """One curve for each setting, in the order in which settings appear.

    Args:
      curves: of runs; a run that is given twice counts once.
      statistic: over seeds.
    """
    groups: dict[str, list[Curve]] = {}
    for curve in {curve.folder.resolve(): curve for curve in curves}.values():
        kept = {name: value for name, value in curve.settings.items() if name not in _FREE}
        groups.setdefault(json.dumps(kept, sort_keys=True), []).append(curve)
    labels = _labels([group[0] for group in groups.values()])
    return [
        _pool_one(group, label, statistic)
        for group, label in zip(groups.values(), labels, strict=True)
    ]


def _labels(curves: Sequence[Curve]) -> list[str]:
    """The shortest names that tell the curves of each environment apart."""
    settings = [curve.settings for curve in curves]
    algos = {s.get("algo") for s in settings}
    labels = []
    for s in settings:
        rate = s.get("learning_rate")
        parts = [str(s.get("optimizer", "?")), "" if rate is None else f"{rate:g}"]
        parts += [str(s.get("weights") or ""), str(s.get("algo", "")) if len(algos) > 1 else ""]
        labels.append(" ".join(filter(None, parts)))
    places = [(s.get("env"), label) for s, label in zip(settings, labels, strict=True)]
    return [
        f"{label} ({curve.folder.name})" if places.count(place) > 1 else label
        for curve, place, label in zip(curves, places, labels, strict=True)
    ]


def _pool_one(group: Sequence[Curve], label: str, statistic: Statistic) -> Pooled:
    steps = _common_steps([curve.steps for curve in group])
    columns: dict[int, np.ndarray] = {}
    left_out = []
    for curve in group:
        for i, seed in enumerate(curve.seeds):
            if seed in columns:
                left_out.append((seed, curve.folder))
            else:
                columns[seed] = np.interp(steps, curve.steps, curve.returns[:, i])
    returns = np.stack(list(columns.values()), axis=1)
    value = STATISTICS[statistic](returns)
    low, high = bootstrap(returns, statistic)
    if len(columns) == 1:
        half = Z95 * np.interp(steps, group[0].steps, group[0].episode_std[:, 0])
        low, high = (value + side * half / np.sqrt(group[0].episodes) for side in (-1.0, 1.0))
    known = [curve.random_return for curve in group if curve.random_return is not None]
    settings = group[0].settings
    return Pooled(
        env=str(settings.get("env", "?")),
        optimizer=str(settings.get("optimizer", "?")),
        label=label,
        seeds=tuple(columns),
        steps=steps,
        returns=returns,
        value=value,
        low=low,
        high=high,
        random_return=float(np.mean(known)) if known else None,
        left_out=tuple(left_out),
    )


def _common_steps(grids: Sequence[np.ndarray]) -> Float[np.ndarray, " evaluations"]:
    """Every step at which any run was evaluated, as far as all runs have come."""
    end = min(grid[-1] for grid in grids)
    steps = np.unique(np.concatenate(grids))
    return steps[steps <= end]


def mean(values: Float[np.ndarray, "*batch seeds"]) -> Float[np.ndarray, "*batch"]:
    """Mean over the last axis."""
    return values.mean(axis=-1)


def iqm(values: Float[np.ndarray, "*batch seeds"]) -> Float[np.ndarray, "*batch"]:
    """Interquartile mean over the last axis: without the lowest and the highest quarter.

    Example:
      >>> iqm(np.array([0.0, 1.0, 2.0, 100.0])).item()
      1.5
    """
    return np.sort(values, axis=-1) @ _quartile_weights(values.shape[-1])


@functools.cache
def _quartile_weights(size: int) -> Float[np.ndarray, " size"]:
    """Share of each ordered value that lies between the quartiles; they sum to 1."""
    edges = np.linspace(0.0, 1.0, size + 1)
    weights = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    return weights / weights.sum()


STATISTICS = {"iqm": iqm, "mean": mean}


def bootstrap(
    values: Float[np.ndarray, "evaluations seeds"], statistic: Statistic
) -> tuple[Float[np.ndarray, " evaluations"], Float[np.ndarray, " evaluations"]]:
    """Percentile 95 % interval of a statistic over seeds, whose whole curves are drawn.

    Returns:
      Lower and upper ends.
    """
    seeds = values.shape[1]
    draws = np.random.default_rng(0).integers(0, seeds, (_DRAWS, seeds))
    resampled = np.stack([STATISTICS[statistic](row[draws]) for row in values])
    low, high = np.nanpercentile(resampled, [2.5, 97.5], axis=1)
    return low, high


def numbers(pooled: Sequence[Pooled], statistic: Statistic) -> list[dict[str, Any]]:
    """What is drawn, ready for JSON."""
    return [
        {
            "env": curve.env,
            "label": curve.label,
            "optimizer": curve.optimizer,
            "seeds": list(curve.seeds),
            "statistic": statistic,
            "interval": "seeds" if len(curve.seeds) > 1 else "episodes",
            "env_steps": curve.steps.astype(int).tolist(),
            "return": curve.value.tolist(),
            "low": curve.low.tolist(),
            "high": curve.high.tolist(),
            "return_per_seed": curve.returns.T.tolist(),
            "return_random": curve.random_return,
        }
        for curve in pooled
    ]
