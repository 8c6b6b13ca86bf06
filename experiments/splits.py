# SPDX-License-Identifier: Apache-2.0
"""Which tasks may train, choose or judge the optimizer. The single source; guarded by tests.

M trains, V chooses the best theta, H judges once. Nothing is ever selected, tuned or stopped on H.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from pathlib import Path

import envs
from experiments import data, policies
from experiments.tasks import (
    BenchmarkTask,
    Builder,
    autoencoder,
    content_hash,
    conv,
    functions,
    mlp_variants,
    quadratics,
    rnn_lm,
    stress,
    transformer_lm,
    validation,
    vit,
)
from experiments.together import Together
from mnemosyne.meta.task import Family, Task
from mnemosyne.meta.tasks import ClassifyTask, Mixture, Rows, Symbols, Teacher, VariedMLP, mlp_task

META_TRAIN_ENVS = (
    "control:*",
    "brax:inverted_pendulum",
    "brax:inverted_double_pendulum",
    "brax:reacher",
    "brax:pusher",
)
VALIDATION_ENVS = ("brax:hopper", "brax:halfcheetah", "gym:Hopper-v5", "gym:HalfCheetah-v5")
HOLD_OUT_ENVS = (
    "brax:walker2d",
    "brax:ant",
    "brax:humanoid",
    "brax:humanoidstandup",
    "brax:swimmer",
    "gym:Walker2d-v5",
    "gym:Ant-v5",
)
HOLD_OUT_DATA = (
    "cifar10",
    "shakespeare",
    "quadratic",
    "rosenbrock",
    "ackley",
    "levy",
)
"""Substrings that no name of a meta-training or validation task may contain."""
HOLD_OUT: dict[str, Builder] = (
    mlp_variants.HOLD_OUT
    | conv.HOLD_OUT
    | vit.HOLD_OUT
    | autoencoder.HOLD_OUT
    | rnn_lm.HOLD_OUT
    | transformer_lm.HOLD_OUT
    | quadratics.HOLD_OUT
    | functions.HOLD_OUT
)
"""H: builders by name."""


def mlp(
    images: data.Images, hidden: tuple[int, ...], activation: str, batch: int = 64
) -> ClassifyTask:
    """An MLP on a data set, under its canonical name."""
    widths = "-".join(str(w) for w in (images.inputs.shape[1], *hidden, images.labels.max() + 1))
    name = f"mlp-{widths}-{activation}-b{batch}/{images.name}"
    return mlp_task(name, images.inputs, images.labels, hidden, activation, batch)


def meta_train_families(folder: Path | None) -> list[Family]:
    """M: families of MLPs, on images, random teachers and symbols.

    They differ in what costs a compilation, shapes and kind of target; all else differs from draw
    to draw. The symbols stand for texts, whose embeddings seldom see a gradient; the tiny network
    for functions of few variables, the single layer for functions of one vector.

    Args:
      folder: holds ``mnist.npz``; ``None`` means scikit-learn's digits.
    """
    small, medium = _training_images(folder)
    return [
        _varied(small, (32,)),
        _varied(small, (96, 64, 48), batch=32),
        _varied(small, (128, 128), batch=16),
        _varied(medium, (64, 48, 32), batch=32),
        _teacher(16, (64, 64), 4, batch=32),
        _teacher(3, (8, 8), 1, batch=16),
        _teacher(48, (), 1, batch=16),
    ]


def _training_images(folder: Path | None) -> tuple[data.Images, data.Images]:
    if folder is None:
        return data.digits(0, 1400), data.digits(0, 1400)
    return data.mnist(folder, 8), data.mnist(folder, 14)


def _varied(images: data.Images, hidden: tuple[int, ...], batch: int = 64) -> VariedMLP:
    """A varied MLP on images, teachers or symbols, under its canonical name."""
    inputs, classes = images.inputs.shape[1], int(images.labels.max()) + 1
    widths = (inputs, *hidden, classes)
    name = f"varied-{'-'.join(map(str, widths))}-b{batch}/{images.name},teacher,symbols"
    sources = (
        Rows(images.inputs, images.labels),
        Teacher(inputs, classes),
        Symbols(inputs, classes),
    )
    return VariedMLP(name, Mixture(sources), widths, batch)


def _teacher(inputs: int, hidden: tuple[int, ...], outputs: int, batch: int) -> VariedMLP:
    """A varied MLP that imitates a teacher's values, under its canonical name."""
    widths = (inputs, *hidden, outputs)
    name = f"varied-{'-'.join(map(str, widths))}-b{batch}-values/teacher"
    return VariedMLP(name, Teacher(inputs, outputs, classify=False), widths, batch, "values")


def validation_tasks(folder: Path | None) -> list[ClassifyTask]:
    """V: the 64-32-10 network and a deeper one, on rows that meta-training never reads."""
    images = _validation_images(folder)
    return [mlp(images, (32,), "relu"), mlp(images, (64, 64, 64), "relu")]


def _validation_images(folder: Path | None) -> data.Images:
    return data.digits(1400) if folder is None else data.mnist(folder, 8, 40_000, 60_000)


def validation_benchmarks(folder: Path | None) -> list[BenchmarkTask]:
    """V with the length of its runs: :func:`validation_tasks`, a residual MLP and an MLP-mixer."""
    images = _validation_images(folder)
    models = (("residual", validation.ResidualMLP(), 32), ("mixer", validation.Mixer(), 16))
    others = [
        ClassifyTask(f"{name}-b{batch}/{images.name}", *images[1:], model, batch)
        for name, model, batch in models
    ]
    return [
        BenchmarkTask(task, 1000, "validation") for task in [*validation_tasks(folder), *others]
    ]


def hold_out_tasks(
    folder: Path | None, names: Sequence[str] = tuple(HOLD_OUT)
) -> list[BenchmarkTask]:
    """H, or the tasks of H that are named.

    Args:
      folder: holds ``cifar10_small.npz`` and ``shakespeare.txt``; quadratics and functions need
        none.
      names: keys of :data:`HOLD_OUT`.

    Raises:
      ValueError: if a name is not in H, or a task's file is missing.
    """
    return [_builder(name, HOLD_OUT)(folder) for name in names]


def stress_tasks(
    folder: Path | None, names: Sequence[str] = tuple(stress.STRESS)
) -> list[BenchmarkTask]:
    """Conditions outside the H aggregate, all or those named; see :func:`hold_out_tasks`."""
    return [_builder(name, stress.STRESS)(folder) for name in names]


def _builder(name: str, known: dict[str, Builder]) -> Builder:
    if name in known:
        return known[name]
    nearest = difflib.get_close_matches(name, known, 1, 0.0)[0]
    raise ValueError(f"no benchmark task {name!r}; the nearest is {nearest!r}.")


def env_split(env_name: str) -> str:
    """``"meta-train"``, ``"validation"`` or ``"hold-out"``.

    Raises:
      ValueError: for an environment that belongs to none of them.
    """
    found = {
        "meta-train": META_TRAIN_ENVS,
        "validation": VALIDATION_ENVS,
        "hold-out": HOLD_OUT_ENVS,
    }
    for split, patterns in found.items():
        if any(fnmatch.fnmatch(env_name, pattern) for pattern in patterns):
            return split
    raise ValueError(f"{env_name!r} belongs to no split of experiments/splits.py.")


def record(tasks: Iterable[Task | Family]) -> dict[str, str]:
    """Content hashes by name, for the header of what was trained on these tasks."""
    return {task.name: content_hash(task) for task in tasks}


def meta_train_problems() -> list[policies.PolicyProblem]:
    """M: PPO on cheap control tasks, one to six actions, several batch sizes and widths.

    What needs no other program is varied from run to run, see :mod:`experiments.variety`.
    """
    small = {"num_envs": 16, "unroll_length": 32, "normalize_rewards": True}
    swingup, pendulum = "control:cartpole-swingup", envs.make("control:pendulum")
    return [
        policies.make_problem(swingup, 500, 160, 8, 300.0, **small),
        policies.make_problem(swingup, 500, 96, 8, 300.0, 32, **small | {"num_minibatches": 16}),
        policies.make_problem("control:cartpole", 500, 96, 4, 500.0, **small),
        policies.make_problem(pendulum, 200, 80, 4, 180.0, 32, **small),
        policies.make_problem(
            "control:pointmass", 100, 64, 4, 85.0, 32, **small | {"num_updates_per_batch": 8}
        ),
        # The one on which runs collapse late.
        policies.make_problem(
            "brax:inverted_pendulum",
            1000,
            160,
            8,
            1000.0,
            **small | {"normalize_rewards": False, "reward_scaling": 0.1},
        ),
        policies.make_problem(Together(pendulum, 3), 200, 80, 4, 150.0, **small | {"num_envs": 32}),
        policies.make_problem(Together(pendulum, 6), 200, 80, 4, 120.0, **small | {"num_envs": 64}),
    ]


def validation_problems() -> list[policies.PolicyProblem]:
    """V: the beginning of runs of the hopper and the cheetah."""
    body = {"num_envs": 64, "unroll_length": 32, "normalize_rewards": True}
    return [
        policies.make_problem("brax:hopper", 1000, 100, 10, 500.0, **body),
        policies.make_problem("brax:halfcheetah", 1000, 50, 5, 1000.0, **body),
    ]
