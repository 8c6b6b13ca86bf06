# SPDX-License-Identifier: Apache-2.0
"""Conditions that break optimizers: other units of the weights, estimated gradients, long runs.

They are reported apart from the hold-out aggregate.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from experiments.tasks import conv, mlp_variants, quadratics
from experiments.tasks.base import BenchmarkTask, Builder
from mnemosyne.meta.augment import EvolutionGradient, Reparametrized

_HOLD_OUT = mlp_variants.HOLD_OUT | conv.HOLD_OUT | quadratics.HOLD_OUT


def _reparametrized(base: str, scale: float, name: str, folder: Path | None) -> BenchmarkTask:
    """A hold-out task in other units of its weights."""
    plain = _HOLD_OUT[base](folder)
    return BenchmarkTask(Reparametrized(name, plain.task, scale), plain.steps, "stress")


def _evolution(num_pairs: int, name: str, folder: Path | None) -> BenchmarkTask:
    """A small perceptron that sees only estimated gradients."""
    plain = mlp_variants.classify(name, mlp_variants.MLPVariant((32,)), 64, 1000, folder)
    return BenchmarkTask(EvolutionGradient(name, plain.task, num_pairs), plain.steps, "stress")


def _longer(base: str, factor: int, name: str, folder: Path | None) -> BenchmarkTask:
    """A hold-out task for many more steps; state that drifts or freezes shows."""
    plain = _HOLD_OUT[base](folder)
    task: Any = plain.task
    renamed = dataclasses.replace(task, name=name)
    return BenchmarkTask(renamed, factor * plain.steps, "stress", plain.floor)


STRESS: dict[str, Builder] = {
    name: partial(build, *arguments, name)
    for name, build, *arguments in (
        ("mlp-deep/cifar10-8/x0.01", _reparametrized, "mlp-deep/cifar10-8", 0.01),
        ("mlp-deep/cifar10-8/x100", _reparametrized, "mlp-deep/cifar10-8", 100.0),
        ("conv/cifar10-16/x0.01", _reparametrized, "conv/cifar10-16", 0.01),
        ("conv/cifar10-16/x100", _reparametrized, "conv/cifar10-16", 100.0),
        ("mlp-es-1pair/cifar10-8", _evolution, 1),
        ("mlp-es-8pairs/cifar10-8", _evolution, 8),
        ("mlp-deep/cifar10-8/10x", _longer, "mlp-deep/cifar10-8", 10),
        ("quadratic-100/10x", _longer, "quadratic-100", 10),
    )
}
