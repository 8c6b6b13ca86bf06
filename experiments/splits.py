# SPDX-License-Identifier: Apache-2.0
"""Which tasks may train, choose or judge the optimizer. The single source; guarded by tests.

M trains, V chooses the best theta, H judges once. Nothing is ever selected, tuned or stopped on H.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax

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
from mnemosyne.meta.task import Task
from mnemosyne.meta.tasks import (
    MLP,
    ClassifyTask,
    RegressTask,
    mlp_task,
    teacher_data,
    teacher_targets,
)

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
    """An MLP family on a data set, under its canonical name."""
    widths = "-".join(str(w) for w in (images.inputs.shape[1], *hidden, images.labels.max() + 1))
    name = f"mlp-{widths}-{activation}-b{batch}/{images.name}"
    return mlp_task(name, images.inputs, images.labels, hidden, activation, batch)


@functools.lru_cache(maxsize=4)
def _teacher(seed: int, inputs: int, classes: int) -> data.Images:
    arrays = teacher_data(jax.random.key(seed), inputs=inputs, classes=classes)
    return data.Images(f"teacher{seed}", *arrays)


@functools.lru_cache(maxsize=4)
def _regression(seed: int, hidden: tuple[int, ...], activation: str, batch: int) -> RegressTask:
    """An MLP that imitates a teacher's noisy outputs, by squared error."""
    inputs, targets = teacher_targets(jax.random.key(seed))
    model = MLP((inputs.shape[1], *hidden, targets.shape[1]), activation)
    widths = "-".join(str(width) for width in model.widths)
    name = f"mlp-{widths}-{activation}-b{batch}-mse/teacher{seed}"
    return RegressTask(name, inputs, targets, model, batch)


def meta_train_tasks(folder: Path | None, extended: bool = False) -> list[Task]:
    """M: small MLPs on the bundled digits and synthetic teachers, and on MNIST where it is given.

    Args:
      folder: holds ``mnist.npz``; ``None`` means digits and teachers alone.
      extended: five more families after the first four: a wide layer with large batches, a tiny
        one, three layers, batches of 8, regression.
    """
    if folder is None:
        small, medium = data.digits(0, 1400), data.digits(0, 1400)
    else:
        small, medium = data.mnist(folder, 8), data.mnist(folder, 14)
    first: list[Task] = [
        mlp(small, (32,), "relu"),
        mlp(medium, (64, 32), "gelu"),
        mlp(small, (16, 16, 16), "tanh", 32),
        mlp(_teacher(1, 32, 5), (32,), "sigmoid", 16),
    ]
    if not extended:
        return first
    return [
        *first,
        mlp(small, (128,), "relu", 128),
        mlp(small, (8,), "tanh", 32),
        mlp(medium, (32, 32, 32), "relu", 16),
        mlp(_teacher(2, 16, 10), (64,), "gelu", 8),
        _regression(3, (32, 32), "tanh", 32),
    ]


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


def record(tasks: Iterable[Task]) -> dict[str, str]:
    """Content hashes by name, for the header of what was trained on these tasks."""
    return {task.name: content_hash(task) for task in tasks}


def meta_train_problems() -> list[policies.PolicyProblem]:
    """M: PPO on cheap control tasks; 640 to 1,536 updates, several batch sizes and widths."""
    narrow = {"width": 32, "unroll_length": 32}
    return [
        policies.make_problem("control:cartpole", 500, 96, 4, 500.0, num_envs=16, unroll_length=32),
        policies.make_problem(
            "control:pendulum", 100, 80, 4, 100.0, num_envs=16, normalize_rewards=True, **narrow
        ),
        policies.make_problem(
            "control:pointmass",
            100,
            40,
            4,
            100.0,
            num_envs=8,
            num_minibatches=2,
            num_updates_per_batch=8,
            reward_scaling=0.1,
            **narrow,
        ),
    ]
