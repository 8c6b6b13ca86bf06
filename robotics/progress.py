# SPDX-License-Identifier: Apache-2.0
"""What the host knows about a run besides its arrays, and what the live panel shows of it."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from robotics.monitor import Monitor, duration
from robotics.panel import sparkline


@dataclasses.dataclass
class Progress:
    """The host's record of a run; saved with every checkpoint as JSON, lists have one entry a seed.

    Attributes:
      epoch: chunks so far.
      env_steps: env steps that the present policies have learned from; Python ints never overflow.
      walltime_s: seconds so far, of resumed parts too.
      compile_s: seconds spent compiling.
      train_s: seconds spent in chunks.
      finite: whether everything of a seed has stayed finite, or was rolled back in time.
      history: evaluations.
      random: evaluation of uniform random actions.
      best: return, seed and env steps of the best policy.
      step_scale: factor on the optimizer's updates in the next chunk.
      rollbacks: chunks that were taken back.
      discarded_env_steps: env steps of those chunks.
      frozen: seeds that have stopped for good.
      faults: what was not finite, in the order in which it happened.
    """

    epoch: int = 0
    env_steps: list[int] = dataclasses.field(default_factory=list)
    walltime_s: float = 0.0
    compile_s: float = 0.0
    train_s: float = 0.0
    finite: list[bool] = dataclasses.field(default_factory=list)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    random: dict[str, Any] = dataclasses.field(default_factory=dict)
    best: dict[str, Any] = dataclasses.field(default_factory=dict)
    step_scale: list[float] = dataclasses.field(default_factory=list)
    rollbacks: list[int] = dataclasses.field(default_factory=list)
    discarded_env_steps: list[int] = dataclasses.field(default_factory=list)
    frozen: list[bool] = dataclasses.field(default_factory=list)
    faults: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @classmethod
    def of_seeds(cls, count: int, **known: Any) -> Progress:
        """The record of ``count`` seeds; what is not known yet is as at the start."""
        start = {
            "env_steps": [0] * count,
            "finite": [True] * count,
            "step_scale": [1.0] * count,
            "rollbacks": [0] * count,
            "discarded_env_steps": [0] * count,
            "frozen": [False] * count,
        }
        return cls(**(start | known))

    @property
    def steps(self) -> int:
        """Env steps of one seed; the mean of those that still train where they differ."""
        rows = zip(self.env_steps, self.frozen, strict=True)
        training = [steps for steps, frozen in rows if not frozen] or self.env_steps
        return round(sum(training) / len(training))


class Display:
    """The live panel of a run.

    Args:
      title: headline.
      num_epochs: chunks in the run.
      monitor: draws it.
    """

    def __init__(self, title: str, num_epochs: int, monitor: Monitor):
        self._title, self._num_epochs, self._monitor = title, num_epochs, monitor
        self._started, self._first_epoch = time.perf_counter(), 0

    def begin(self, progress: Progress) -> None:
        """Training begins in this process."""
        self._started, self._first_epoch = time.perf_counter(), progress.epoch

    def say(self, now: str) -> None:
        """Shows what is going on where there is no bar to be moved."""
        self._monitor.live(self._title, None, {"now": now})

    def update(self, progress: Progress, started: float) -> None:
        """Moves the panel during a chunk that began at ``started``."""
        seconds = time.perf_counter() - started
        number = f"{progress.epoch + 1} of {self._num_epochs}"
        fields = _curve(progress) | {
            "chunk": f"{number}, running for {duration(seconds)}",
            "time left": self.eta(progress, seconds),
        }
        usual = self._pace(progress, seconds) or float("inf")
        done = (progress.epoch + min(seconds / usual, 1.0)) / self._num_epochs
        self._monitor.live(self._title, done, fields)

    def _pace(self, progress: Progress, running_s: float = 0.0) -> float | None:
        """Seconds that a chunk with its evaluation has taken on average in this process.

        Args:
          progress: so far.
          running_s: how long the chunk has been running that is not complete.

        Returns:
          ``None`` before the first chunk is complete.
        """
        done = progress.epoch - self._first_epoch
        return (time.perf_counter() - self._started - running_s) / done if done > 0 else None

    def eta(self, progress: Progress, running_s: float = 0.0) -> str:
        """Time left, from the time of the chunks so far."""
        pace = self._pace(progress, running_s)
        if pace is None:
            return "?"
        return duration((self._num_epochs - progress.epoch) * pace - running_s)


def _curve(progress: Progress) -> dict[str, str]:
    """What the live panel shows of the evaluations so far."""
    means = [float(np.mean(entry["return"])) for entry in progress.history]
    fields = {
        "env steps": f"{progress.steps:,}",
        "return": f"{means[-1]:.4g}   best {max(means):.4g}   "
        f"random {np.mean(progress.random['return']):.4g}",
        "": sparkline(means),
    }
    if progress.train_s:
        fields["speed"] = f"{sum(progress.env_steps) / progress.train_s:,.0f} env steps/s"
    return fields
