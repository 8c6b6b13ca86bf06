# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints: exact resume, damage noticed, another run's checkpoint refused.

A checkpoint is one Orbax step folder (written aside, then renamed, so that a kill never leaves half
of one) with two items: ``arrays``, the leaves of the training state under numbered names, and
``record``, JSON with the structure, what the host loop needs to go on, and a SHA-256 over all of
it. Orbax alone does not notice every altered byte, and would restore another run's arrays where
shapes happen to agree; the record settles both (:mod:`robotics.checkpoint_record`). A file
``files.sha256`` (in the format of ``sha256sum``) written right after completion covers Orbax's own
files as well.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from robotics import checkpoint_orbax, checkpoint_record

_FULL_BYTES = 1 << 16  # a disk with less than that has no room for any checkpoint


class Restored(NamedTuple):
    """What :meth:`Checkpointer.restore` gives back: training state, host's record, step."""

    state: PyTree
    host: dict[str, Any]
    step: int


class Checkpointer:
    """Saves and restores training states of one run.

    Args:
      folder: where the numbered step folders live; created on the first save.
      max_to_keep: how many of the newest checkpoints stay on the disk, at least 1.
      identity: JSON-able settings that a checkpoint must agree on, such as env, algorithm and
        optimizer.

    Raises:
      ValueError: if ``max_to_keep`` is below 1.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> folder = Path(tempfile.mkdtemp())
      >>> with Checkpointer(folder) as checkpointer:
      ...     checkpointer.save(1000, {"w": jnp.ones(3)}, {"epoch": 1})
      ...     checkpointer.restore({"w": jnp.zeros(3)}).host
      {'epoch': 1}
    """

    def __init__(
        self, folder: Path, max_to_keep: int = 3, identity: Mapping[str, Any] | None = None
    ):
        if max_to_keep < 1:
            raise ValueError(
                f"max_to_keep is {max_to_keep}, but at least 1 checkpoint must be kept"
            )
        self.folder = Path(folder).absolute()
        self._max_to_keep = max_to_keep
        self._identity = dict(identity or {})
        self._manager: Any = None

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints on the disk, in rising order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.folder.iterdir() if entry.name.isdigit())

    def save(self, step: int, state: PyTree, host: Mapping[str, Any]) -> None:
        """Writes one checkpoint and returns when it is complete on the disk.

        Args:
          step: env steps so far; larger than that of every earlier checkpoint.
          state: pytree of arrays; typed PRNG keys are allowed.
          host: JSON-able record of the host loop.

        Raises:
          ValueError: if ``step`` is not larger than an earlier one.
          OSError: if the folder cannot be written; earlier checkpoints stay as they are.
        """
        known = self.steps()
        if known and step <= known[-1]:
            raise ValueError(
                f"a checkpoint at step {step} must come after that at {known[-1]} in {self.folder}"
            )
        arrays = [checkpoint_record.to_host(leaf) for leaf in jax.tree.leaves(state)]
        record = checkpoint_record.make_record(self._identity, state, host, arrays)
        try:
            self._write(step, arrays, record)
        except Exception as error:  # Orbax tells of a full disk in many ways, none an OSError
            raise OSError(f"checkpoint {self._path(step)} {_reason(self.folder, error)}") from error

    def _write(self, step: int, arrays: list[np.ndarray], record: dict[str, Any]) -> None:
        if self._manager is None:
            self._manager = checkpoint_orbax.open_writer(self.folder, self._max_to_keep)
        checkpoint_orbax.write(self._manager, step, arrays, record)
        checkpoint_record.write_manifest(self._path(step))

    def restore(self, template: PyTree, step: int | None = None) -> Restored:
        """Reads one checkpoint, or refuses it with a sentence.

        Args:
          template: pytree with the structure, shapes and dtypes of this run's state
            (``jax.eval_shape`` is enough).
          step: which checkpoint; ``None`` takes the newest complete one.

        Returns:
          The state on the default device, the host's record, and the step.

        Raises:
          FileNotFoundError: if there is no such checkpoint.
          ValueError: if it is damaged, or belongs to another network, optimizer or environment.
        """
        known = self.steps()
        if not known or (step is not None and step not in known):
            raise FileNotFoundError(
                f"{self.folder} holds no checkpoint{'' if step is None else f' at step {step}'}"
            )
        step = known[-1] if step is None else step
        path = self._path(step)
        record = self._read_record(step, path)
        checkpoint_record.check_identity(record["identity"], self._identity, path)
        wanted = checkpoint_record.structure(template)
        checkpoint_record.check_structure(record["structure"], wanted, path)
        templates, treedef = jax.tree.flatten(template)
        arrays = self._read_arrays(step, path, record, templates)
        leaves = map(checkpoint_record.to_device, arrays, templates)
        return Restored(jax.tree.unflatten(treedef, leaves), record["host"], step)

    def leaves(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The arrays of the newest checkpoint by their paths, keys left out, and its record.

        For whoever does not have the state's template, such as a run that starts from another one.

        Raises:
          FileNotFoundError: if there is no checkpoint.
          ValueError: if it is damaged.
        """
        if not self.steps():
            raise FileNotFoundError(f"{self.folder} holds no checkpoint")
        step = self.steps()[-1]
        path = self._path(step)
        record = self._read_record(step, path)
        shapes = [checkpoint_record.abstract_leaf(*entry[1:]) for entry in record["structure"]]
        arrays = self._read_arrays(step, path, record, shapes)
        del record["sha256"]  # it has been checked
        found = {
            entry[0]: array
            for entry, leaf, array in zip(record["structure"], shapes, arrays, strict=True)
            if not checkpoint_record.is_key(leaf)
        }
        return found, record

    def host_record(self) -> dict[str, Any] | None:
        """The host's record of the newest checkpoint, without its arrays; ``None`` without one."""
        known = self.steps()
        if not known:
            return None
        return self._read_record(known[-1], self._path(known[-1]))["host"]

    def close(self) -> None:
        """Waits for writes that are under way and releases the manager."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _path(self, step: int) -> Path:
        return checkpoint_orbax.step_folder(self.folder, step)

    def _read_record(self, step: int, path: Path) -> dict[str, Any]:
        altered = checkpoint_record.altered_file(path)
        if altered is not None:
            raise ValueError(self._damaged(path, f"its file {altered} was truncated or altered"))
        try:
            record = checkpoint_orbax.read_record(self.folder, step)
        except checkpoint_orbax.UnreadableError as error:
            raise ValueError(self._damaged(path, str(error))) from error
        if not checkpoint_record.is_complete(record):
            raise ValueError(self._damaged(path, "its record is incomplete"))
        checkpoint_record.check_format(record, path)
        return record

    def _read_arrays(
        self, step: int, path: Path, record: Mapping[str, Any], templates: list[Any]
    ) -> list[np.ndarray]:
        """The arrays, which must be those that the record was made of."""
        shapes = [checkpoint_record.host_shape(leaf) for leaf in templates]
        try:
            arrays = checkpoint_orbax.read_arrays(self.folder, step, shapes)
        except checkpoint_orbax.UnreadableError as error:
            raise ValueError(self._damaged(path, str(error))) from error
        if not checkpoint_record.matches(record, arrays):
            raise ValueError(self._damaged(path, "its contents do not match its hash"))
        return arrays

    def _damaged(self, path: Path, why: str) -> str:
        earlier = [step for step in self.steps() if step < int(path.name)]
        advice = (
            f"delete that folder to continue from step {earlier[-1]}"
            if earlier
            else "there is no earlier checkpoint"
        )
        return f"checkpoint {path} is damaged ({why}); {advice}"


def _reason(folder: Path, error: Exception) -> str:
    """Why a checkpoint was not written, in words."""
    text = str(error)
    try:
        full = shutil.disk_usage(folder).free < _FULL_BYTES
    except OSError:
        return "cannot be written: its folder was removed"
    full = full or "No space left" in text or getattr(error, "errno", None) == errno.ENOSPC
    if full:
        return "cannot be written: the disk is full"
    first = (text.splitlines() or [type(error).__name__])[0]
    return f"cannot be written: {first[:200]}"
