# SPDX-License-Identifier: Apache-2.0
"""The host side of meta-training: budget, validation, best-on-validation artifact, exact resume.

Inner problems, validation, checkpointer and monitor come in as arguments; this module knows no data
set and no logging library.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from mnemosyne import artifacts
from mnemosyne.config import MnemosyneConfig
from mnemosyne.learned import Theta
from mnemosyne.meta import train

CHUNK = 10
"""Outer steps between two looks at the clock."""
_MOST_WARM_STEPS = 4 * CHUNK
_FEWEST_TIMED, _ENOUGH_S = 3, 60.0


@runtime_checkable
class Checkpointer(Protocol):
    """What a session needs in order to resume; ``robotics.checkpoint.Checkpointer`` is one."""

    def steps(self) -> list[int]:
        """Steps of the checkpoints on the disk, rising."""
        ...

    def save(self, step: int, state: Any, host: Mapping[str, Any]) -> None:
        """Writes one checkpoint atomically."""
        ...

    def restore(self, like: Any) -> Any:
        """The newest checkpoint, with ``state`` and ``host``."""
        ...


Monitor = Callable[[int, dict[str, float]], None]
"""``monitor(outer_step, scalars)``."""
Advance = Callable[[train.OuterState, Any], tuple[train.OuterState, dict[str, Any]]]
"""``advance(state, rates)`` makes ``len(rates)`` outer steps."""


Check = Callable[[Theta], list[dict[str, Any]]]
"""``check(theta)`` gives validation rows; the mean of their ``"score"``, finite, is to be low."""


@dataclasses.dataclass(frozen=True)
class Session:
    """Everything that stays the same while a session runs.

    Attributes:
      families: inner problems that theta is trained on, by name.
      check: validation, on data or seeds that theta is never trained on.
      network: configuration of the optimizer network, if it is ours; goes into the artifact.
      config: of the outer loop; its ``outer_steps`` is the length of the schedule.
      folder: receives ``best.safetensors`` and ``last.safetensors``.
      trained_with: goes into the artifact's header.
      validate_every: outer steps between validations, a multiple of :data:`CHUNK`.
    """

    families: train.Families
    check: Check
    network: MnemosyneConfig
    config: train.MetaTrainConfig
    folder: Path
    trained_with: Mapping[str, Any]
    validate_every: int = 200

    def run(
        self,
        advance: Advance,
        checkpointer: Checkpointer,
        monitor: Monitor,
        start: Theta,
    ) -> dict[str, Any]:
        """Trains to the end of the schedule, from the newest checkpoint if there is one.

        Args:
          advance: from :func:`make_advance`.
          checkpointer: for exact resume.
          monitor: receives scalars.
          start: meta-parameters to begin with.

        Returns:
          The validation numbers of the best theta as ``best``, its hash, that of the last theta,
          ``outer_steps``, and ``walltime_s``, which has those of resumed parts too.

        Raises:
          ValueError: if a validation is not finite.
        """
        state = train.init(self.families, start, self.config)
        best: dict[str, Any] = {"score": math.inf}
        spent = 0.0
        if checkpointer.steps():
            restored = checkpointer.restore(state)
            state, best = restored.state, dict(restored.host["best"])
            spent = restored.host["walltime_s"]
        began = time.monotonic() - spent
        while (done := int(state.step)) < self.config.outer_steps:
            length = min(CHUNK, self.config.outer_steps - done)
            state, metrics = advance(state, train.outer_rates(self.config, done, length))
            done += length
            monitor(done, _means(metrics))
            if done % self.validate_every == 0 or done == self.config.outer_steps:
                best = self._consider(state, best, done, monitor)
                spent = time.monotonic() - began
                checkpointer.save(done, state, {"best": best, "walltime_s": spent})
        return {
            "best": best,
            "outer_steps": self.config.outer_steps,
            "meta_params_sha256": best["sha256"],
            "last_meta_params_sha256": artifacts.tensor_sha256(jax.device_get(state.average)),
            "walltime_s": spent,
        }

    def _consider(
        self,
        state: train.OuterState,
        best: dict[str, Any],
        step: int,
        monitor: Monitor,
    ) -> dict[str, Any]:
        """Validates the averaged theta; saves it as last and, if it is, as best."""
        rows = self.check(state.average)
        score = float(np.mean([row["score"] for row in rows]))
        if not math.isfinite(score):
            raise ValueError(f"the validation at outer step {step} is {score}.")
        scalars = {f"meta/validation/{row['task']}": row["score"] for row in rows}
        monitor(step, {"meta/validation": score} | scalars)
        record = {"outer_step": step, "score": score, "rows": rows}
        record["sha256"] = self._save("last", state, record)
        if score < best["score"]:
            self._save("best", state, record)
            return record
        return best

    def _save(self, name: str, state: train.OuterState, record: Mapping[str, Any]) -> str:
        trained_with = {
            **self.trained_with,
            "meta_train": dataclasses.asdict(self.config),
            "outer_step": record["outer_step"],
            "validation": record["rows"],
        }
        artifact = artifacts.Artifact(
            jax.device_get(state.average),
            self.network,
            trained_with,
            tuple(self.families),
        )
        return artifacts.save_artifact(self.folder / f"{name}.safetensors", artifact)


def _means(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Means over the steps of a chunk, leaving out what no step has measured."""
    arrays = {name: np.asarray(values) for name, values in metrics.items()}
    return {
        name: float(np.nanmean(values))
        for name, values in arrays.items()
        if not np.isnan(values).all()
    }


def make_advance(
    families: train.Families, config: train.MetaTrainConfig, units: Theta | None = None
) -> Advance:
    """Several outer steps in a row; nothing but scalars returns to the host."""
    outer_step = train.make_outer_step(families, config, units)

    def advance(state: train.OuterState, rates: Any) -> tuple[train.OuterState, dict[str, Any]]:
        rows = []
        for rate in rates:
            state, metrics = outer_step(state, rate)
            rows.append(metrics)
        return state, jax.tree.map(lambda *column: np.asarray(column), *rows)

    return advance


def measure_pace(advance: Advance, state: train.OuterState) -> tuple[float, float]:
    """Seconds to compile, and seconds an outer step.

    The first steps go on until every family was visited, and with that compiled; rules that need a
    minute a step are then timed by few of them.
    """
    rates = np.zeros(1, np.float32)

    def step(state: train.OuterState) -> tuple[train.OuterState, dict[str, Any]]:
        state, metrics = advance(state, rates)
        return jax.block_until_ready(state), metrics

    began, measured, warm = time.monotonic(), set[str](), 0
    while warm < _MOST_WARM_STEPS:
        state, metrics = step(state)
        # The loss of a family that a step leaves out is nan.
        measured |= {name for name, values in metrics.items() if not np.isnan(values).all()}
        warm += 1
        if measured == set(metrics):
            break
    middle, timed = time.monotonic(), 0
    while timed < CHUNK and (timed < _FEWEST_TIMED or time.monotonic() - middle < _ENOUGH_S):
        state, _ = step(state)
        timed += 1
    pace = (time.monotonic() - middle) / timed
    return max(middle - began - warm * pace, 0.0), pace


def validation_interval(outer_steps: int) -> int:
    """Outer steps between two validations of a run of so many; a multiple of :data:`CHUNK`."""
    return max(CHUNK, min(100, outer_steps // 20 // CHUNK * CHUNK))


def outer_steps_for(budget_s: float, pace: float, validation_s: float) -> int:
    """Outer steps that fit a wall-clock budget with validations; a multiple of :data:`CHUNK`.

    Args:
      budget_s: seconds for training and validation.
      pace: seconds an outer step.
      validation_s: seconds a validation.

    Raises:
      ValueError: if not even one chunk fits.
    """

    def takes(steps: int) -> float:
        return steps * pace + -(-steps // validation_interval(steps)) * validation_s

    steps = int(budget_s / pace) // CHUNK * CHUNK
    while steps and takes(steps) > budget_s:
        steps -= CHUNK
    if not steps:
        raise ValueError(
            f"a budget of {budget_s:.0f} s is too short here: {CHUNK} outer steps and a validation "
            f"take {takes(CHUNK):.0f} s."
        )
    return steps


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Writes JSON atomically."""
    artifacts.write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())
