# SPDX-License-Identifier: Apache-2.0
"""Meta-training recipes: what each shipped artifact is trained on, and how it is chosen."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments import base_start, cache, policies, policy_start, splits
from experiments.variety import Variety
from mnemosyne import Artifact, MnemosyneConfig, save_artifact
from mnemosyne.learned import LearnedOptimizer, Theta, mnemosyne_rule
from mnemosyne.meta import train, unroll, validate, whole_run
from mnemosyne.meta.estimators import EstimatorName, System
from mnemosyne.meta.task import Family, Task

WINDOWS = unroll.Horizon(shortest=200, longest=2000, truncation=200)
"""Inner problems of the base recipe where an outer step sees a window of a run: the baselines."""
WHOLE_RUNS = unroll.Horizon(shortest=1500, longest=1500, truncation=50)
"""Its inner problems under evolution strategies over whole runs."""
SHORTEST_FRACTION = 0.3
"""All runs of an outer step are cut to one share of their length, from this to 1."""


class Recipe(NamedTuple):
    """One way to train an optimizer.

    Attributes:
      families: inner problems, by name.
      make_check: builds the validation; called once, may take a while.
      config: of the outer loop; the caller sets length, workers and seed.
      start: the first theta, from the run's configuration.
      content: hashes of what is trained on, for the artifact's header.
      units: in which theta is changed, from the first one, see
        :func:`mnemosyne.meta.train.trainable`; ``None`` for 1 everywhere.
    """

    families: train.Families
    make_check: Callable[[Path], Callable[[Theta], list[dict[str, Any]]]]
    config: train.MetaTrainConfig
    start: Callable[[train.MetaTrainConfig], Theta]
    content: Mapping[str, str]
    units: Callable[[Theta], Theta] | None = None


NETWORKS = {"base": MnemosyneConfig(residual=False), "rl": policy_start.NETWORK}
"""What each recipe trains if nothing else is asked for."""


def check_start(rule: LearnedOptimizer, network: MnemosyneConfig) -> None:
    """Refuses networks that the recipes have no first theta for.

    Raises:
      ValueError: for a mode other than ``plus``.
    """
    if rule.name == "mnemosyne" and network.mode != "plus":
        raise ValueError(
            f"the recipes start from weights of mode plus, not of mode {network.mode}: leave out "
            "--network mode=..., or give --init."
        )


def base_systems(rule: LearnedOptimizer, families: Iterable[Family]) -> dict[str, System]:
    """Inner problems of the base recipe, by name."""
    # An LSTM in every coordinate costs hundreds of times ours: 20 updates are what its authors
    # take, and what leaves it some hundred outer steps in a quarter of an hour.
    horizon = WINDOWS._replace(truncation=20) if rule.name.startswith("lstm") else WINDOWS
    augmentation = unroll.Augmentation()
    return {
        family.name: unroll.make_system(family, rule, horizon, augmentation) for family in families
    }


def base(
    rule: LearnedOptimizer,
    data_folder: Path | None,
    estimator: EstimatorName | None = None,
    network: MnemosyneConfig = NETWORKS["base"],
) -> Recipe:
    """Supervised: small networks.

    Ours starts from :mod:`experiments.base_start` and is trained by evolution strategies over whole
    runs; the baselines by BPTT through windows of 200 updates (LSTMs: 20).

    Args:
      rule: the learned optimizer.
      data_folder: holds ``mnist.npz``; ``None`` means scikit-learn's digits.
      estimator: another one than that.
      network: of our rule.
    """
    families = splits.meta_train_families(data_folder)
    held = [held.task for held in splits.validation_benchmarks(data_folder)]
    ours = rule.name == "mnemosyne"
    estimator = estimator or ("full-es" if ours else "bptt")
    whole = estimator == "full-es"
    config = _BY_WHOLE_RUNS if whole else train.MetaTrainConfig(learning_rate=1e-3, clip=1.0)
    config = dataclasses.replace(config, estimator=estimator, frozen=rule.fixed)

    def make_check(folder: Path) -> Callable[[Theta], list[dict[str, Any]]]:
        envelopes = validate.make_envelopes(held, _cache_in(folder / "envelopes"))
        return validate.make_check(held, rule, envelopes)

    def start(config: train.MetaTrainConfig) -> Theta:
        theta = train.init_theta(config, rule)
        return base_start.write(theta, network.adaptive) if ours else theta

    systems = whole_systems(rule, families) if whole else base_systems(rule, families)
    units = base_start.readout_units if ours and whole else None
    return Recipe(systems, make_check, config, start, splits.record(families), units)


_BY_WHOLE_RUNS = train.MetaTrainConfig(
    num_workers=10,
    families_per_step=3,
    sigma=0.08,
    learning_rate=0.03,
    average=0.95,
    shortest_fraction=SHORTEST_FRACTION,
)
"""Thirty pairs of runs an outer step."""


def whole_systems(rule: LearnedOptimizer, families: Iterable[Family]) -> dict[str, System]:
    """Inner problems of the base recipe, by name, that are judged at their end."""
    make = functools.partial(
        whole_run.make_system, rule=rule, horizon=WHOLE_RUNS, augmentation=unroll.Augmentation()
    )
    return {family.name: make(family) for family in families}


def rl(
    rule: LearnedOptimizer,
    data_folder: Path | None,
    estimator: EstimatorName | None = None,
    network: MnemosyneConfig = NETWORKS["rl"],
) -> Recipe:
    """Policies: PPO on cheap control tasks, by evolution strategies over whole runs.

    It starts from :mod:`experiments.policy_start`. Weights that were trained on classifiers take
    steps 60 times too large for a policy, and a smaller step does not mend their direction.

    Args:
      rule: ours.
      data_folder: not needed.
      estimator: another one than ``full-es``.
      network: of our rule.

    Raises:
      ValueError: for a baseline.
    """
    del data_folder, network
    if rule.name != "mnemosyne":
        raise ValueError(f"--recipe rl starts from weights of ours: leave out --rule {rule.name}.")
    problems, varied = splits.meta_train_problems(), Variety()
    families = {p.name: policies.make_system(p, rule, varied) for p in problems}
    config = dataclasses.replace(
        _BY_WHOLE_RUNS,
        estimator=estimator or "full-es",
        num_workers=8,
        sigma=0.2,
        learning_rate=0.05,
        shortest_fraction=0.5,
        frozen=rule.fixed,
    )

    def make_check(folder: Path) -> Callable[[Theta], list[dict[str, Any]]]:
        del folder
        return policies.make_check(splits.validation_problems(), rule)

    def start(config: train.MetaTrainConfig) -> Theta:
        return policy_start.controller(train.init_theta(config, rule))

    return Recipe(families, make_check, config, start, {}, policy_start.readout_units)


RECIPES: dict[str, Callable[..., Recipe]] = {"base": base, "rl": rl}


def _cache_in(folder: Path) -> Callable[[str, Task, Callable[[], dict[str, Any]]], Any]:
    def stored(name: str, task: Task, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        description = {"name": name, "task": cache.describe(task)}
        return cache.cached("adam9", description, compute, folder)

    return stored


def save_start(name: str, path: Path) -> str:
    """Writes a recipe's first theta as an artifact, before any outer step; returns its hash.

    Its tasks are the families of the recipe, which it was made for.
    """
    network = NETWORKS[name]
    recipe = RECIPES[name](mnemosyne_rule(network), None)
    theta = jax.device_get(recipe.start(train.MetaTrainConfig()))
    command = f"python -m experiments.recipes {name} {path.name}"
    trained_with = {"command": command, "outer_step": 0}
    return save_artifact(path, Artifact(theta, network, trained_with, tuple(recipe.families)))


if __name__ == "__main__":
    print(save_start(sys.argv[1], Path(sys.argv[2])))
