# SPDX-License-Identifier: Apache-2.0
"""A training run from its folder's newest checkpoint, if there is one, to its result.

All seeds run in one program (``vmap``), one chunk of env steps between two evaluations. After every
evaluation the run is saved; a run that is killed and resumed gives, on a CPU, the same numbers to
the last bit as one that was not, because a checkpoint holds everything that the next chunk depends
on and the evaluation episodes depend on seed and chunk only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optax

from envs.api import EpisodeWrapper, HostEnv
from robotics import programs, run_folder
from robotics.algorithm import Algorithm, HostAlgorithm
from robotics.checkpoint import Checkpointer
from robotics.loop import Loop
from robotics.monitor import Monitor
from robotics.recovery import DivergedError
from robotics.run_config import RunConfig, WarmUp, evaluation_keys, seed_keys, state_template

__all__ = ["RunConfig", "WarmUp", "evaluation_keys", "seed_keys", "state_template", "train"]


def train(
    algorithm: Algorithm | HostAlgorithm,
    env: EpisodeWrapper | HostEnv,
    optimizer: optax.GradientTransformation | None,
    config: RunConfig,
    identity: Mapping[str, Any] | None = None,
    policy_info: Mapping[str, Any] | None = None,
    begin: Callable[[], None] | None = None,
    warm_up: WarmUp | None = None,
) -> dict[str, Any]:
    """Trains to the algorithm's last chunk, from the newest checkpoint if there is one.

    Args:
      algorithm: what to train, as pure functions of one seed.
      env: where the policy is evaluated.
      optimizer: the transformation in the algorithm's slot, to be timed apart; ``None`` if it has
        none.
      config: how to carry the run out.
      identity: settings that checkpoints of this folder must agree on.
      policy_info: what ``policy.json`` says about the policy's world, such as env and dt.
      begin: called when nothing stands in the way any more, before the first file is written.
      warm_up: changes the first state of a run; one that goes on from a checkpoint has it there.

    Returns:
      The fields of ``result.json`` that come from the run itself, as JSON knows them.

    Raises:
      Interrupted: after Ctrl-C; the last complete chunk is saved.
      DivergedError: every seed became non-finite again and again; the message says where.
      OSError: the folder is full, unwritable or gone; the message says what is saved.
      ValueError: damaged or foreign checkpoint, or too little memory.
    """
    template = state_template(algorithm, config)
    with Checkpointer(
        config.folder / run_folder.CHECKPOINTS, config.max_to_keep, identity
    ) as checkpointer:
        restored = checkpointer.restore(template) if checkpointer.steps() else None
        resume_at = None if restored is None else restored.step
        if begin is not None:
            begin()
        config.folder.mkdir(parents=True, exist_ok=True)
        try:
            with Monitor(
                config.folder, config.seeds, resume_at, config.quiet, settings=identity
            ) as monitor:
                loop = Loop(algorithm, env, config, checkpointer, monitor, dict(policy_info or {}))
                state, progress = loop.start(restored, warm_up)
                with programs.interruptible(monitor.say) as interrupted:
                    state = loop.run(state, progress, interrupted)
                return loop.finish(state, progress, optimizer)
        except OSError as error:
            why = _why(error)
            raise OSError(_cannot_go_on(config.folder, checkpointer, why)) from error
        except DivergedError as error:
            why = str(error)
            raise DivergedError(_cannot_go_on(config.folder, checkpointer, why)) from error


def _why(error: OSError) -> str:
    """What could not be written, and where."""
    why = error.strerror or str(error)
    if error.filename and str(error.filename) not in why:
        why = f"{why}: {error.filename}"
    return why


def _cannot_go_on(folder: Path, checkpointer: Checkpointer, why: str) -> str:
    """Why a run has stopped, and what is left of it."""
    saved = checkpointer.steps()
    if not saved:
        return f"the run stopped: {why}; nothing of it was saved yet"
    return (
        f"the run stopped: {why}; all before {saved[-1]:,} env steps is saved, "
        f"continue with --resume {folder}"
    )
