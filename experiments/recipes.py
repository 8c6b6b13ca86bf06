# SPDX-License-Identifier: Apache-2.0
"""Meta-training recipes: what each shipped artifact is trained on, and how it is chosen."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments import cache, policies, splits
from mnemosyne import Artifact, MnemosyneConfig, features, save_artifact
from mnemosyne.controller import MetaParams
from mnemosyne.meta import train, unroll, validate
from mnemosyne.meta.tasks import MLPTask

HORIZON = unroll.Horizon(shortest=100, longest=2000, truncation=50)
MAX_LOG_SCALE = 3.4
"""Weights are reparametrised by up to ``exp(3.4) = 30`` either way."""


class Recipe(NamedTuple):
    """One way to train the optimizer.

    Attributes:
      families: inner problems, by name.
      make_check: builds the validation; called once, may take a while.
      config: of the outer loop; the caller sets length, pairs and seed.
      start: the first theta, from the run's configuration.
    """

    families: train.Families
    make_check: Callable[[Path], Callable[[MetaParams], list[dict[str, Any]]]]
    config: train.MetaTrainConfig
    start: Callable[[train.MetaTrainConfig], MetaParams]


def base(network: MnemosyneConfig, data_folder: Path | None) -> Recipe:
    """Supervised: small classifiers, starting from Adam."""
    tasks, held = splits.meta_train_tasks(data_folder), splits.validation_tasks(data_folder)
    families = {
        task.name: unroll.make_system(task, network, HORIZON, MAX_LOG_SCALE) for task in tasks
    }

    def make_check(folder: Path) -> Callable[[MetaParams], list[dict[str, Any]]]:
        envelopes = validate.make_envelopes(held, _cache_for(held, folder / "envelopes"))
        return validate.make_check(held, network, envelopes)

    def start(config: train.MetaTrainConfig) -> MetaParams:
        return train.init_theta(config, network)

    return Recipe(families, make_check, train.MetaTrainConfig(), start)


def rl(network: MnemosyneConfig, data_folder: Path | None) -> Recipe:
    """Policies: PPO on cheap control tasks, starting from a cautious Adam.

    Weights that were trained on classifiers take steps 60 times too large for a policy, and a
    smaller step does not mend their direction; so policies start from the identity, at half its
    step and with a quarter Nesterov weight (the best of nine settings on inverted_pendulum).
    """
    del data_folder
    problems = splits.meta_train_problems()
    families = {problem.name: policies.make_system(problem, network) for problem in problems}
    config = train.MetaTrainConfig(num_pairs=8, learning_rate=2e-3, sigma=0.02, frozen=())

    def make_check(folder: Path) -> Callable[[MetaParams], list[dict[str, Any]]]:
        del folder
        return policies.make_check(problems, network)

    def start(config: train.MetaTrainConfig) -> MetaParams:
        theta = train.init_theta(config, network)
        # The first time feature, t / (t + 3), is 1 after a few updates: it serves as a constant.
        row = features.NUM_TOKEN_FEATURES + features.NUM_GLOBAL_FEATURES - 4
        skip = theta["skip"].at[row, 0].add(-0.7).at[row, 1].add(0.25)
        # The third feature of progress is log(1.01 - progress) / 4.7: steps shrink linearly.
        anneal = theta["extras_skip"]["progress"].at[2, 0].add(4.7)
        return theta | {"skip": skip, "extras_skip": theta["extras_skip"] | {"progress": anneal}}

    return Recipe(families, make_check, config, start)


RECIPES: dict[str, Callable[[MnemosyneConfig, Path | None], Recipe]] = {"base": base, "rl": rl}


def _cache_for(tasks: list[MLPTask], folder: Path) -> Callable[[str, Callable[[], Any]], Any]:
    def stored(name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        task = next(task for task in tasks if name.startswith(task.name))
        description = {"name": name, "data": cache.array_hash(task.inputs, task.labels)}
        return cache.cached("adam9", description, compute, folder)

    return stored


def save_start(name: str, path: Path) -> str:
    """Writes a recipe's first theta as an artifact, before any outer step; returns its hash."""
    network, config = MnemosyneConfig(), train.MetaTrainConfig()
    theta = jax.device_get(RECIPES[name](network, None).start(config))
    command = f"python -m experiments.recipes {name} {path.name}"
    trained_with = {"command": command, "outer_step": 0}
    return save_artifact(path, Artifact(theta, network, trained_with, ("brax:inverted_pendulum",)))


if __name__ == "__main__":
    print(save_start(sys.argv[1], Path(sys.argv[2])))
