# SPDX-License-Identifier: Apache-2.0
"""Which tasks a benchmark runs on, and how thoroughly, by ``--size``."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from experiments import data, rivals
from experiments.benchmarks.options import Options
from experiments.tasks import BenchmarkTask, functions, quadratics


class Thoroughness(NamedTuple):
    """What a size means.

    Attributes:
      adam_rates: of the envelope.
      short_rates: of the further lines.
      rival_seeds: runs a rate of hand-designed rules.
      seeds: runs of whatever is not tuned.
      steps: updates of a run; ``None`` takes the task's own.
      longer: the run that estimates the floor is this many times as long.
    """

    adam_rates: tuple[float, ...]
    short_rates: tuple[float, ...]
    rival_seeds: int
    seeds: int
    steps: int | None
    longer: int


SIZES = {
    "smoke": Thoroughness((1e-3, 1e-2, 1e-1), (1e-2, 1e-1), 2, 2, 10, 20),
    "small": Thoroughness(rivals.ADAM_RATES, rivals.SHORT_RATES, 3, 8, None, 5),
    "full": Thoroughness(rivals.ADAM_RATES, rivals.ADAM_RATES, 5, 20, None, 10),
}


def thoroughness(options: Options) -> Thoroughness:
    """The size, with the seeds of the command line.

    Raises:
      ValueError: for a number of seeds below 1.
    """
    size = SIZES[options.size]
    if options.seeds is None:
        return size
    if options.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {options.seeds}.")
    return size._replace(seeds=options.seeds)


def smoke_tasks() -> list[BenchmarkTask]:
    """Two analytic tasks of a few parameters."""
    return [
        functions.HOLD_OUT["rosenbrock-2"](None),
        quadratics.HOLD_OUT["quadratic-10"](None),
    ]


def suite(options: Options) -> str:
    """Which tasks: ``"hold-out"``, ``"stress"``, ``"validation"`` or ``"smoke"``.

    Raises:
      ValueError: if two are asked for.
    """
    asked = [name for name in ("stress", "validation") if getattr(options, name)]
    if len(asked) > 1 or (asked and options.size == "smoke"):
        raise ValueError(
            "--stress, --validation and --size smoke are three sets of tasks: take one."
        )
    return asked[0] if asked else "smoke" if options.size == "smoke" else "hold-out"


def tasks(options: Options, smoke: Callable[[], list[BenchmarkTask]]) -> list[BenchmarkTask]:
    """The tasks of a suite, those whose names contain one of ``--tasks`` if it is given.

    Args:
      options: flags.
      smoke: makes the tasks of the size ``smoke``.

    Raises:
      ValueError: if no name contains any of them, or the data of a task are missing.
    """
    from experiments import splits
    from experiments.tasks import stress

    name, folder = suite(options), data.data_dir(options.data_dir)
    if name in ("hold-out", "stress"):
        # By name first: tasks that are not asked for need not have their data.
        known = splits.HOLD_OUT if name == "hold-out" else stress.STRESS
        make = splits.hold_out_tasks if name == "hold-out" else splits.stress_tasks
        return make(folder, _named(list(known), options))
    found = smoke() if name == "smoke" else splits.validation_benchmarks(folder)
    kept = _named([task.name for task in found], options)
    return [task for task in found if task.name in kept]


def _named(names: list[str], options: Options) -> list[str]:
    kept = [name for name in names if any(word in name for word in options.tasks or ("",))]
    if not kept:
        asked = " or ".join(repr(word) for word in options.tasks)
        raise ValueError(f"no task's name contains {asked}; there are {', '.join(names)}.")
    return kept
