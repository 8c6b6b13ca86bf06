# SPDX-License-Identifier: Apache-2.0
"""The host side of meta-training: budget, validation, best-on-validation artifact, exact resume.

Tasks, checkpointer and monitor come in as arguments; this module knows no data set and no logging
library.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from mnemosyne import artifacts
from mnemosyne.config import MnemosyneConfig
from mnemosyne.meta import train, validate
from mnemosyne.meta.task import Task
from mnemosyne.optimizer import scale_by_mnemosyne

VALIDATION_STEPS = (200, 1000)
"""Horizons of the validation runs, updates."""
VALIDATION_SEEDS = 8
CHUNK = 10
"""Outer steps between two looks at the clock."""


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
        """The newest good checkpoint, with ``state`` and ``host``."""
        ...


Monitor = Callable[[int, dict[str, float]], None]
"""``monitor(outer_step, scalars)``."""
Advance = Callable[[train.OuterState, Any], tuple[train.OuterState, dict[str, Any]]]
"""``advance(state, rates)`` makes ``len(rates)`` outer steps."""


@dataclasses.dataclass(frozen=True)
class Session:
    """Everything that stays the same while a session runs.

    Attributes:
      tasks: what theta is trained on.
      validation: tasks that choose the best theta; never trained on.
      envelopes: the tuned Adam to compare with, by task name and horizon.
      network: the optimizer network.
      config: of the outer loop; its ``outer_steps`` is the length of the schedule.
      folder: receives ``best.safetensors`` and ``last.safetensors``.
      trained_with: goes into the artifact's header.
      validate_every: outer steps between validations, a multiple of :data:`CHUNK`.
    """

    tasks: Sequence[Task]
    validation: Sequence[Task]
    envelopes: Mapping[str, Mapping[int, validate.Envelope]]
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
        start: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Trains to the end of the schedule, from the newest checkpoint if there is one.

        Args:
          advance: from :func:`make_advance`.
          checkpointer: for exact resume.
          monitor: receives scalars.
          start: meta-parameters to begin with; ``None`` means Adam.

        Returns:
          The validation numbers of the best theta, its hash, and that of the last one.
        """
        state = train.init(self.tasks, self.network, self.config, start)
        best: dict[str, Any] = {"score": math.inf}
        if checkpointer.steps():
            restored = checkpointer.restore(state)
            state, best = restored.state, dict(restored.host["best"])
        check = make_check(self.validation, self.network)
        began = time.monotonic()
        while (done := int(state.step)) < self.config.outer_steps:
            length = min(CHUNK, self.config.outer_steps - done)
            state, metrics = advance(state, train.outer_rates(self.config, done, length))
            done += length
            monitor(done, {name: float(np.mean(value)) for name, value in metrics.items()})
            if done % self.validate_every == 0 or done == self.config.outer_steps:
                best = self._consider(state, check, best, done, monitor)
                checkpointer.save(done, state, {"best": best})
        return {
            "best": best,
            "outer_steps": self.config.outer_steps,
            "meta_params_sha256": best["sha256"],
            "last_meta_params_sha256": artifacts.tensor_sha256(jax.device_get(state.average)),
            "walltime_s": time.monotonic() - began,
        }

    def _consider(
        self,
        state: train.OuterState,
        check: Callable[[Any], dict[str, dict[int, tuple[float, float]]]],
        best: dict[str, Any],
        step: int,
        monitor: Monitor,
    ) -> dict[str, Any]:
        """Validates the averaged theta; saves it as last and, if it is, as best."""
        rows = compare(check(state.average), self.envelopes)
        score = float(np.mean([row["log_mean_ratio"] for row in rows]))
        monitor(step, {"meta/validation": score} | _scalars(rows))
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
            tuple(task.name for task in self.tasks),
        )
        return artifacts.save_artifact(self.folder / f"{name}.safetensors", artifact)


def make_advance(
    tasks: Sequence[Task], network: MnemosyneConfig, config: train.MetaTrainConfig
) -> Advance:
    """A jitted function that makes several outer steps; nothing but scalars returns to the host."""
    outer_step = train.make_outer_step(tasks, network, config)
    return jax.jit(lambda state, rates: jax.lax.scan(outer_step, state, rates), donate_argnums=0)


def measure_pace(advance: Advance, state: train.OuterState) -> tuple[float, float]:
    """Seconds to compile, and seconds an outer step; consumes the state that it is given."""
    began = time.monotonic()
    rates = np.zeros(CHUNK, np.float32)
    state, _ = advance(state, rates)
    jax.block_until_ready(state.step)
    middle = time.monotonic()
    state, _ = advance(state, rates)
    jax.block_until_ready(state.step)
    pace = (time.monotonic() - middle) / CHUNK
    return middle - began - CHUNK * pace, pace


def make_check(
    tasks: Sequence[Task], network: MnemosyneConfig
) -> Callable[[Any], dict[str, dict[int, tuple[float, float]]]]:
    """A function of theta: ``{task: {steps: (mean loss, final loss)}}``; no tuning, no progress."""
    keys = validate.seeds(0, VALIDATION_SEEDS)

    def curves(theta: Any, task: Task, steps: int) -> tuple[Any, Any]:
        optimizer = scale_by_mnemosyne(theta, network)
        run = jax.vmap(lambda key: validate.train_curve(task, optimizer, key, steps))(keys)
        return jnp.mean(run.mean), jnp.mean(run.final)

    compiled = {
        (task.name, steps): jax.jit(lambda theta, t=task, s=steps: curves(theta, t, s))
        for task in tasks
        for steps in VALIDATION_STEPS
    }

    def check(theta: Any) -> dict[str, dict[int, tuple[float, float]]]:
        results: dict[str, dict[int, tuple[float, float]]] = {}
        for (name, steps), function in compiled.items():
            mean, final = function(theta)
            results.setdefault(name, {})[steps] = (float(mean), float(final))
        return results

    return check


def make_envelopes(
    tasks: Sequence[Task], cache: Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]
) -> dict[str, dict[int, validate.Envelope]]:
    """The best of nine Adam rates on every validation task.

    Args:
      tasks: to compute envelopes for.
      cache: ``cache(key, compute)`` returns stored numbers for ``key`` or stores what ``compute``
        gives.

    Returns:
      Envelopes by task name and horizon.
    """
    keys = validate.seeds(0, VALIDATION_SEEDS)
    envelopes: dict[str, dict[int, validate.Envelope]] = {}
    for task in tasks:
        for steps in VALIDATION_STEPS:

            def compute(task: Task = task, steps: int = steps) -> dict[str, Any]:
                return validate.envelope(validate.adam_grid(task, keys, steps))._asdict()

            name = f"{task.name}/adam9/{steps}x{VALIDATION_SEEDS}"
            envelopes.setdefault(task.name, {})[steps] = validate.Envelope(**cache(name, compute))
    return envelopes


def compare(
    results: Mapping[str, Mapping[int, tuple[float, float]]],
    envelopes: Mapping[str, Mapping[int, validate.Envelope]],
) -> list[dict[str, Any]]:
    """One row a task and horizon; a ratio below 1 (logarithm below 0) beats the envelope."""
    rows = []
    for name, by_steps in results.items():
        for steps, (mean, final) in by_steps.items():
            adam = envelopes[name][steps]
            ratio = mean / adam.mean_loss if math.isfinite(mean) else 1e3
            rows.append(
                {
                    "task": name,
                    "steps": steps,
                    "mean_loss": mean,
                    "adam_mean_loss": adam.mean_loss,
                    "adam_rate": adam.mean_rate,
                    "final_loss": final,
                    "adam_final_loss": adam.final_loss,
                    "log_mean_ratio": math.log(ratio),
                }
            )
    return rows


def _scalars(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {
        f"meta/ratio/{row['task']}/{row['steps']}": row["mean_loss"] / row["adam_mean_loss"]
        for row in rows
    }


def outer_steps_for(budget_s: float, pace: float, validation_s: float, every: int) -> int:
    """Outer steps that fit a wall-clock budget with validations; a multiple of :data:`CHUNK`.

    Args:
      budget_s: seconds for training and validation.
      pace: seconds an outer step.
      validation_s: seconds a validation.
      every: outer steps between validations.

    Raises:
      ValueError: if not even one chunk fits.
    """
    steps = int(budget_s / (pace + validation_s / every)) // CHUNK * CHUNK
    if steps < CHUNK:
        raise ValueError(
            f"a budget of {budget_s:.0f} s is too short here: {CHUNK} outer steps alone take "
            f"{CHUNK * pace:.0f} s."
        )
    return steps


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Writes JSON atomically."""
    artifacts.write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())
