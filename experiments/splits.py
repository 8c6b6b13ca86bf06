# SPDX-License-Identifier: Apache-2.0
"""Which tasks may train, choose or judge the optimizer. The single source; guarded by tests.

M trains, V chooses the best theta, H judges once. Nothing is ever selected, tuned or stopped on H.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from experiments import data, policies
from experiments.tasks import BenchmarkTask, Builder, functions, quadratics
from mnemosyne.meta.task import Task
from mnemosyne.meta.tasks import MLPTask, teacher_data

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
    "rastrigin",
)
"""Substrings that no name of a meta-training or validation task may contain."""
HOLD_OUT = quadratics.HOLD_OUT | functions.HOLD_OUT
"""H: builders by name."""


def mlp(images: data.Images, hidden: tuple[int, ...], activation: str, batch: int = 64) -> MLPTask:
    """An MLP family on a data set, under its canonical name."""
    widths = "-".join(str(w) for w in (images.inputs.shape[1], *hidden, images.labels.max() + 1))
    name = f"mlp-{widths}-{activation}-b{batch}/{images.name}"
    return MLPTask(name, images.inputs, images.labels, hidden, activation, batch)


def _teacher(seed: int, inputs: int, classes: int) -> data.Images:
    arrays = teacher_data(jax.random.key(seed), inputs=inputs, classes=classes)
    return data.Images(f"teacher{seed}", *arrays)


def meta_train_tasks(folder: Path | None) -> list[MLPTask]:
    """M: small MLPs on the bundled digits and synthetic teachers, and on MNIST where it is given.

    Args:
      folder: holds ``mnist.npz``; ``None`` means digits and teachers alone.
    """
    if folder is None:
        small, medium = data.digits(0, 1400), data.digits(0, 1400)
    else:
        small, medium = data.mnist(folder, 8), data.mnist(folder, 14)
    return [
        mlp(small, (32,), "relu"),
        mlp(medium, (64, 32), "gelu"),
        mlp(small, (16, 16, 16), "tanh", 32),
        mlp(_teacher(1, 32, 5), (32,), "sigmoid", 16),
    ]


def validation_tasks(folder: Path | None) -> list[MLPTask]:
    """V: the 64-32-10 network and a deeper one, on rows that meta-training never reads."""
    images = data.digits(1400) if folder is None else data.mnist(folder, 8, 40_000, 60_000)
    return [mlp(images, (32,), "relu"), mlp(images, (64, 64, 64), "relu")]


def validation_benchmarks(folder: Path | None) -> list[BenchmarkTask]:
    """V with the length of its runs."""
    return [BenchmarkTask(task, 1000, "validation") for task in validation_tasks(folder)]


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
    return [_builder(name)(folder) for name in names]


def _builder(name: str) -> Builder:
    if name in HOLD_OUT:
        return HOLD_OUT[name]
    nearest = difflib.get_close_matches(name, HOLD_OUT, 1, 0.0)[0]
    raise ValueError(f"no hold-out task {name!r}; the nearest is {nearest!r}.")


def stress_tasks(folder: Path | None) -> list[BenchmarkTask]:
    """Conditions outside the H aggregate."""
    long = [_builder(name)(folder) for name in ("rosenbrock-100", "quadratic-100")]
    return [
        BenchmarkTask(_renamed(b.task, f"{b.name}/10x"), 10 * b.steps, "stress", b.floor)
        for b in long
    ]


def _renamed(task: Any, name: str) -> Task:
    return dataclasses.replace(task, name=name)


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
