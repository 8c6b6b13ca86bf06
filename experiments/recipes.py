# SPDX-License-Identifier: Apache-2.0
"""Meta-training recipes: what each shipped artifact is trained on, and how it is chosen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments import cache, policies, policy_start, splits
from mnemosyne import Artifact, MnemosyneConfig, features, save_artifact
from mnemosyne.learned import LearnedOptimizer, Theta, mnemosyne_rule
from mnemosyne.meta import train, unroll, validate
from mnemosyne.meta.estimators import System
from mnemosyne.meta.task import Family, Task

HORIZON = unroll.Horizon(shortest=200, longest=2000, truncation=200)
"""Inner problems of the base recipe."""


class Recipe(NamedTuple):
    """One way to train an optimizer.

    Attributes:
      families: inner problems, by name.
      make_check: builds the validation; called once, may take a while.
      config: of the outer loop; the caller sets length, workers and seed.
      start: the first theta, from the run's configuration.
      content: hashes of what is trained on, for the artifact's header.
    """

    families: train.Families
    make_check: Callable[[Path], Callable[[Theta], list[dict[str, Any]]]]
    config: train.MetaTrainConfig
    start: Callable[[train.MetaTrainConfig], Theta]
    content: Mapping[str, str]


def base_systems(rule: LearnedOptimizer, families: Iterable[Family]) -> dict[str, System]:
    """Inner problems of the base recipe, by name."""
    # An LSTM in every coordinate costs hundreds of times ours: 20 updates are what its authors
    # take, and what leaves it some hundred outer steps in a quarter of an hour.
    horizon = HORIZON._replace(truncation=20) if rule.name.startswith("lstm") else HORIZON
    augmentation = unroll.Augmentation()
    return {
        family.name: unroll.make_system(family, rule, horizon, augmentation) for family in families
    }


def base(rule: LearnedOptimizer, data_folder: Path | None) -> Recipe:
    """Supervised: small networks, starting from annealed Adam, by BPTT through 200 updates."""
    families = splits.meta_train_families(data_folder)
    held = [held.task for held in splits.validation_benchmarks(data_folder)]
    config = train.MetaTrainConfig(learning_rate=1e-3, clip=1.0, frozen=rule.fixed)

    def make_check(folder: Path) -> Callable[[Theta], list[dict[str, Any]]]:
        envelopes = validate.make_envelopes(held, _cache_for(held, folder / "envelopes"))
        return validate.make_check(held, rule, envelopes)

    def start(config: train.MetaTrainConfig) -> Theta:
        theta = train.init_theta(config, rule)
        return adaptive(orthogonal(anneal(theta))) if rule.name == "mnemosyne" else theta

    systems = base_systems(rule, families)
    return Recipe(systems, make_check, config, start, splits.record(families))


def anneal(theta: Theta, power: float = 1.0) -> Theta:
    """Makes steps shrink like ``(1 - progress) ** power`` where ``progress`` is told.

    Its last feature is ``log(1.01 - progress) / 4.7``. The outer Adam would need hundreds of steps
    to move a weight so far.
    """
    skip = theta["skip"].at[features.input_row("progress", 2), 0].add(4.7 * power)
    return theta | {"skip": skip}


def orthogonal(theta: Theta) -> Theta:
    """Makes matrices follow their orthogonalised momentum, at six times Adam's first step.

    With the annealing of :func:`anneal` this is what Muon does, tile by tile, but for the half of
    the fresh gradient that is added to the momentum. From Adam 1e-3 meta-training would have to
    find the way there first.
    """
    # The first time feature, t / (t + 3), is 1 after a few updates: it serves as a constant.
    constant = features.input_row("time", 0)
    skip = theta["skip"].at[constant, 0].add(1.8).at[constant, 1].add(0.5)
    return theta | {"skip": skip.at[constant, 4].add(1.2)}


def adaptive(theta: Theta) -> Theta:
    """Makes all step sizes follow the turn of the path, and start from the size of the weights.

    An update changes the gain by up to a tenth, by less the longer a run lasts: in proportion to
    ``1 / (1 + t / 50)``. Up where the gradient points along the path, down where it points back;
    the threshold is a turn of +0.003, because a run pays for large first steps later.
    """
    turn, size = features.input_row("path", 0), features.NUM_TOKEN_FEATURES
    times = [features.input_row("time", index) for index in range(4)]
    skip = theta["skip"].at[turn, 5].set(3.3).at[times[0], 5].set(-0.1)
    for row, weight in zip(times[1:], (-1.0, -2.6, -3.0), strict=True):
        skip = skip.at[row, 6].set(weight)
    # The first feature of the network is the size of its weights, in eights of a logarithm.
    return theta | {"skip": skip.at[size, 0].set(8.0 * 0.7)}


def rl(rule: LearnedOptimizer, data_folder: Path | None) -> Recipe:
    """Policies: PPO on cheap control tasks by PES, starting from :mod:`experiments.policy_start`.

    Weights that were trained on classifiers take steps 60 times too large for a policy, and a
    smaller step does not mend their direction.
    """
    del data_folder
    problems = splits.meta_train_problems()
    families = {problem.name: policies.make_system(problem, rule) for problem in problems}
    config = train.MetaTrainConfig(
        estimator="pes", learning_rate=2e-3, sigma=0.02, average=0.99, frozen=rule.fixed
    )

    def make_check(folder: Path) -> Callable[[Theta], list[dict[str, Any]]]:
        del folder
        return policies.make_check(problems, rule)

    def start(config: train.MetaTrainConfig) -> Theta:
        return policy_start.controller(train.init_theta(config, rule))

    return Recipe(families, make_check, config, start, {})


RECIPES: dict[str, Callable[[LearnedOptimizer, Path | None], Recipe]] = {"base": base, "rl": rl}
NETWORKS = {"base": MnemosyneConfig(), "rl": policy_start.NETWORK}
"""What each recipe trains if nothing else is asked for."""


def _cache_for(tasks: list[Task], folder: Path) -> Callable[[str, Callable[[], Any]], Any]:
    def stored(name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        task: Any = next(task for task in tasks if name.startswith(task.name))
        description = {"name": name, "data": cache.array_hash(task.inputs, task.targets)}
        return cache.cached("adam9", description, compute, folder)

    return stored


def save_start(name: str, path: Path) -> str:
    """Writes a recipe's first theta as an artifact, before any outer step; returns its hash."""
    network = NETWORKS[name]
    recipe = RECIPES[name](mnemosyne_rule(network), None)
    theta = jax.device_get(recipe.start(train.MetaTrainConfig()))
    command = f"python -m experiments.recipes {name} {path.name}"
    trained_with = {"command": command, "outer_step": 0}
    return save_artifact(path, Artifact(theta, network, trained_with, ("brax:inverted_pendulum",)))


if __name__ == "__main__":
    print(save_start(sys.argv[1], Path(sys.argv[2])))
