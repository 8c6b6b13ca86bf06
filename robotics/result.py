# SPDX-License-Identifier: Apache-2.0
"""The numbers that a finished run reports, computed from its evaluations.

Definitions are those of the evaluation rules: an evaluation plays fresh episodes with the
deterministic policy; *final* is the mean of the evaluations in the last 5 % of the env steps; a
seed has *failed* if anything became non-finite or if its final return fell below half of its own
peak, both counted from the random policy's return.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

Z95 = 1.959964  # two-sided 95 % quantile of the normal distribution; 64 episodes are enough for it
FINAL_FRACTION = 0.05


def moments(prefix: str, values: Float[np.ndarray, "*seeds episodes"]) -> dict[str, Any]:
    """Mean and variance over episodes, one a seed, ready for JSON.

    Example:
      >>> moments("return", np.array([[1.0, 3.0]]))
      {'return': [2.0], 'return_var': [1.0]}
    """
    values = np.atleast_2d(np.asarray(values, np.float64))
    return {prefix: values.mean(axis=-1).tolist(), f"{prefix}_var": values.var(axis=-1).tolist()}


def evaluation(env_steps: int, episodes: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """One entry of a run's history, from an evaluation's arrays [seeds, episodes]."""
    entry: dict[str, Any] = {
        "env_steps": int(env_steps),
        "episodes": int(episodes["episode_return"].shape[-1]),
    }
    names = {"return": "episode_return", "length": "episode_length", "distance": "distance"}
    for prefix, name in names.items():
        if name in episodes:
            entry |= moments(prefix, episodes[name])
    return entry


def final(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The evaluations in the last 5 % of the env steps; at least the last one."""
    last = history[-1]["env_steps"]
    return [entry for entry in history if entry["env_steps"] >= (1.0 - FINAL_FRACTION) * last]


def spread(entries: Sequence[Mapping[str, Any]], prefix: str) -> dict[str, Any]:
    """Mean, standard deviation and 95 % interval over ALL episodes of some evaluations.

    The interval speaks about these very policies (what would other episodes give?), not about other
    seeds.

    Returns:
      ``mean``, ``std`` and ``ci95`` = (lower, upper).

    Example:
      >>> spread([{"episodes": 4, "return": [1.0, 3.0], "return_var": [0.0, 0.0]}], "return")["std"]
      1.0
    """
    means = np.array([entry[prefix] for entry in entries], np.float64)
    variances = np.array([entry[f"{prefix}_var"] for entry in entries], np.float64)
    mean = float(means.mean())
    std = float(np.sqrt(variances.mean() + means.var()))
    half = Z95 * std / math.sqrt(sum(entry["episodes"] for entry in entries) * means.shape[1])
    return {"mean": mean, "std": std, "ci95": (mean - half, mean + half)}


def failed(
    history: Sequence[Mapping[str, Any]], random_return: float, finite: Sequence[bool]
) -> Bool[np.ndarray, " seeds"]:
    """Which seeds have failed, as the module docstring defines it.

    Args:
      history: evaluations, oldest first.
      random_return: mean return of uniform random actions.
      finite: whether everything of a seed stayed finite.
    """
    returns = np.array([entry["return"] for entry in history], np.float64)
    last = np.array([entry["return"] for entry in final(history)], np.float64).mean(axis=0)
    with np.errstate(invalid="ignore"):
        collapsed = last - random_return < 0.5 * (returns.max(axis=0) - random_return)
    return collapsed | ~np.isfinite(last) | ~np.asarray(finite, bool)


def summarize(
    history: Sequence[Mapping[str, Any]], random: Mapping[str, Any], finite: Sequence[bool]
) -> dict[str, Any]:
    """The fields of ``result.json`` that come from evaluations.

    Args:
      history: evaluations of the run, oldest first.
      random: evaluation of uniform random actions.
      finite: whether everything of a seed stayed finite.
    """
    entries = final(history)
    trained, baseline = spread(entries, "return"), spread([random], "return")
    per_seed = np.array([entry["return"] for entry in entries], np.float64).mean(axis=0)
    fields = {
        "return_mean": trained["mean"],
        "return_std": trained["std"],
        "return_ci95": trained["ci95"],
        "return_per_seed": per_seed,
        "return_random": baseline["mean"],
        "return_random_std": baseline["std"],
        "return_random_ci95": baseline["ci95"],
        "episode_length": spread(entries, "length")["mean"],
        "eval_episodes": history[-1]["episodes"],
        "failed": failed(history, baseline["mean"], finite),
    }
    if "distance" in random:
        fields["distance_m"] = spread(entries, "distance")["mean"]
        fields["distance_random_m"] = spread([random], "distance")["mean"]
    return fields
