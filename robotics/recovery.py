# SPDX-License-Identifier: Apache-2.0
"""Keeping a run alive: a chunk that went wrong is taken back and done again with smaller steps.

After every chunk each seed is asked whether what came out is finite. A seed that is not goes back
to the state before the chunk, halves the step of its optimizer, draws other random numbers, begins
new episodes where an environment was the cause, and does the chunk again; the other seeds keep what
they have, to the last bit. A seed that fails too often in one chunk is frozen as it last was well;
the run stops when all are. A chunk that goes well at once doubles a reduced step, up to the
optimizer's own. Everything that decides this is saved with the checkpoint, so that a resumed run
takes the same turns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from robotics import faults, run_folder, sharding
from robotics.algorithm import Algorithm, HostAlgorithm
from robotics.chunks import Chunks, Mask, Outcome
from robotics.faults import HUGE, Found
from robotics.progress import Progress

ROLLBACKS = 5  # in one chunk; the step is 32 times smaller then
FACTOR = 0.5


class DivergedError(ValueError):
    """No seed of a run can go on; the message says where it ended."""


class Recovery:
    """Does the chunks of a run, and does again what went wrong.

    Args:
      algorithm: whose ``init`` gives new episodes.
      chunks: how chunks are done.
      seeds: the seed numbers.
      folder: the run's.
      say: prints a line.
    """

    def __init__(
        self,
        algorithm: Algorithm | HostAlgorithm,
        chunks: Chunks,
        seeds: list[int],
        folder: Path,
        say: Callable[[str], None],
    ):
        self._algorithm, self._chunks, self._seeds = algorithm, chunks, seeds
        self._folder, self._say = folder, say
        self._mesh = getattr(algorithm, "mesh", None)
        # What has no optimizer has no step to be made smaller; only the random numbers change.
        self._factor = FACTOR if getattr(algorithm, "scales_steps", True) else 1.0

    def advance(self, state: PyTree, progress: Progress) -> tuple[PyTree, dict[str, np.ndarray]]:
        """One chunk of every seed that still trains.

        Args:
          state: of all seeds, all of them well.
          progress: its scales, counts and faults are brought up to date.

        Returns:
          A state in which all seeds are well, and metrics; NaN for seeds that are frozen.

        Raises:
          DivergedError: if the last seed had to be frozen.
        """
        scale = np.asarray(progress.step_scale, np.float32)
        outcome = self._chunks.run(state, scale, None)
        training = ~np.asarray(progress.frozen)
        sick = training & outcome.bad
        _grow(progress, training & ~sick)
        start, result, tries = state, outcome, 0
        while sick.any():
            tries += 1
            found = self._explain(start, scale, outcome, sick)
            self._note(found, outcome, tries, progress)
            sick = sick & ~np.asarray(progress.frozen)
            if not sick.any():
                break
            scale = np.asarray(progress.step_scale, np.float32)
            start = self._elsewhere(state, sick, found, progress)
            outcome = self._chunks.run(start, scale, sick)
            result = self._select_outcome(sick, outcome, result)
            sick = sick & outcome.bad
        return self._settle(state, result, progress)

    def write_faults(self, progress: Progress) -> None:
        """Writes ``faults.jsonl`` anew; without a fault, and without an older file, nothing."""
        path = self._folder / run_folder.FAULTS
        if jax.process_index() > 0:
            return  # of several processes, all of which know the same
        if progress.faults or path.exists():
            lines = [json.dumps(run_folder.plain(entry)) + "\n" for entry in progress.faults]
            run_folder.write_atomic(path, "".join(lines))

    def _explain(
        self, start: PyTree, scale: np.ndarray, outcome: Outcome, sick: Mask
    ) -> dict[int, Found]:
        """What went wrong, for each seed that is not well."""
        found = self._chunks.locate(start, scale, outcome)
        names = faults.health_names(outcome.state, outcome.metrics)
        result = {}
        for i in np.flatnonzero(sick).tolist():
            # Compiled another way, numbers are rounded another way: it may not happen again.
            left = Found(names[outcome.health[i]], "after the chunk (at which step is not known)")
            result[i] = found[i] or left
        return result

    def _note(
        self, found: Mapping[int, Found], outcome: Outcome, tries: int, progress: Progress
    ) -> None:
        """Takes a chunk back: counts, halves the step or freezes the seed, logs and says so."""
        sentence, per_chunk = "", self._algorithm.env_steps_per_epoch
        steps = outcome.metrics.get("env_steps", np.full(len(self._seeds), per_chunk))
        for i, fault in found.items():
            frozen = tries > ROLLBACKS
            progress.frozen[i] = frozen
            progress.finite[i] = progress.finite[i] and not frozen
            progress.rollbacks[i] += 1
            progress.discarded_env_steps[i] += int(steps[i])
            if not frozen:
                progress.step_scale[i] *= self._factor
            sentence = f"seed {self._seeds[i]}: {_sentence(fault)}"
            progress.faults.append(self._entry(i, fault, progress))
            self._say(f"{sentence}; {self._action(i, tries, progress)}")
        self.write_faults(progress)
        if all(progress.frozen):
            raise DivergedError(f"{sentence}, and {ROLLBACKS} rollbacks in a row did not help")

    def _entry(self, i: int, fault: Found, progress: Progress) -> dict[str, Any]:
        """A line of ``faults.jsonl``."""
        return {
            "seed": self._seeds[i],
            "env_steps": progress.env_steps[i],
            "chunk": progress.epoch,
            "what": _sentence(fault),
            **fault._asdict(),
            "action": "stopped" if progress.frozen[i] else "rolled back",
            "step_scale": progress.step_scale[i],
        }

    def _action(self, i: int, tries: int, progress: Progress) -> str:
        """What is done about a fault."""
        if progress.frozen[i]:
            return f"stopped after {ROLLBACKS} rollbacks in a row"
        back = f"rolled back to {progress.env_steps[i]:,} env steps, "
        how = "other random numbers"
        if self._factor < 1:
            how = f"steps times {progress.step_scale[i]:g}"
        return f"{back}{how} ({tries} of {ROLLBACKS})"

    def _elsewhere(
        self, state: PyTree, sick: Mask, found: Mapping[int, Found], progress: Progress
    ) -> PyTree:
        """Where the chunk is begun again: other random numbers, and other episodes if they failed.

        Without them the same would only happen again.
        """
        counts = sharding.put(self._mesh, jnp.asarray(progress.rollbacks, jnp.uint32))
        keys = jax.vmap(jax.random.fold_in)(state.key, counts)
        shardings = sharding.state_shardings(self._mesh, state)
        state = self._select(sick, state._replace(key=keys), state)
        env_state = getattr(state, "env_state", None)
        new = [i for i, fault in found.items() if sick[i] and fault.may_be_environment]
        if env_state is not None and new:
            init = jax.jit(jax.vmap(self._algorithm.init), out_shardings=shardings)
            mask = np.isin(np.arange(len(sick)), new)
            fresh = state._replace(env_state=init(keys).env_state)
            state = self._select(mask, fresh, state)
        return state

    def _settle(
        self, before: PyTree, outcome: Outcome, progress: Progress
    ) -> tuple[PyTree, dict[str, np.ndarray]]:
        """The result of a chunk, in which frozen seeds stand still."""
        frozen = np.asarray(progress.frozen)
        metrics = outcome.metrics
        if not frozen.any():
            return outcome.state, metrics
        for name, values in metrics.items():
            nothing = 0 if np.issubdtype(values.dtype, np.integer) else np.nan
            metrics[name] = np.where(frozen, np.asarray(nothing, values.dtype), values)
        return self._select(frozen, before, outcome.state), metrics

    def _select(self, mask: Mask, chosen: PyTree, others: PyTree) -> PyTree:
        """:func:`select` of states, which stay on the devices where they were."""
        if self._mesh is None:
            return select(mask, chosen, others)
        shardings = sharding.state_shardings(self._mesh, others)
        return jax.jit(select, out_shardings=shardings)(mask, chosen, others)

    def _select_outcome(self, mask: Mask, chosen: Outcome, others: Outcome) -> Outcome:
        """The same for a chunk's results."""
        metrics = {
            name: np.where(mask, chosen.metrics[name], values)
            for name, values in others.metrics.items()
        }
        health = np.where(mask, chosen.health, others.health)
        return Outcome(self._select(mask, chosen.state, others.state), metrics, health)


def select(mask: Mask, chosen: PyTree, others: PyTree) -> PyTree:
    """Rows of ``chosen`` where the mask says so, all else from ``others``, bit for bit."""
    rows = jnp.asarray(mask)

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(rows.reshape((-1,) + (1,) * (b.ndim - 1)), a, b)

    return jax.tree.map(pick, chosen, others)


def _grow(progress: Progress, calm: Mask) -> None:
    """Doubles reduced steps of seeds whose chunk went well at once."""
    for i in np.flatnonzero(calm).tolist():
        progress.step_scale[i] = min(progress.step_scale[i] / FACTOR, 1.0)


def _sentence(fault: Found) -> str:
    """What is wrong, without its seed."""
    beyond = f" or beyond {HUGE:g}" if fault.term.startswith(("parameters ", "params/")) else ""
    return f"{fault.term} {fault.where} is not finite{beyond}"
