# SPDX-License-Identifier: Apache-2.0
"""How Orbax keeps a checkpoint: a step folder with the items ``arrays`` and ``record``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

_DIGITS = 12  # zero-padded folder names sort as integers


class UnreadableError(ValueError):
    """An item of a checkpoint is missing, damaged or of other shapes; the message names it."""


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"{step:0{_DIGITS}d}"


def open_writer(folder: Path, max_to_keep: int) -> Any:
    """A manager that writes into ``folder`` and removes what is too old or was left half done."""
    import orbax.checkpoint as ocp

    folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=max_to_keep,
        step_format_fixed_length=_DIGITS,
        create=False,
        multiprocessing_options=_alone(),
        cleanup_tmp_directories=True,
        enable_async_checkpointing=False,
    )
    return ocp.CheckpointManager(folder, options=options)


def write(manager: Any, step: int, arrays: list[np.ndarray], record: dict[str, Any]) -> None:
    """Writes one checkpoint and returns when Orbax calls it complete."""
    import orbax.checkpoint as ocp

    # Orbax cannot store empty arrays (simulators have some); the structure alone brings them back.
    stored = {_leaf_name(i): array for i, array in enumerate(arrays) if array.size}
    items = ocp.args.Composite(
        arrays=ocp.args.StandardSave(stored), record=ocp.args.JsonSave(record)
    )
    manager.save(step, args=items)
    manager.wait_until_finished()


def read_record(folder: Path, step: int) -> Any:
    """The record of a step, whatever it holds."""
    import orbax.checkpoint as ocp

    return _read(folder, step, "record", ocp.args.JsonRestore())


def read_arrays(folder: Path, step: int, shapes: list[Any]) -> list[np.ndarray]:
    """The arrays of a step, which must have these shapes and dtypes."""
    import orbax.checkpoint as ocp

    arrays = {_leaf_name(i): np.empty(leaf.shape, leaf.dtype) for i, leaf in enumerate(shapes)}
    stored = {name: array for name, array in arrays.items() if array.size}
    arrays |= _read(folder, step, "arrays", ocp.args.StandardRestore(stored))
    return [np.asarray(array) for array in arrays.values()]


def _read(folder: Path, step: int, item: str, args: Any) -> Any:
    """One item, by a manager of its own: reading must neither create folders nor clean up."""
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(
        step_format_fixed_length=_DIGITS, create=False, multiprocessing_options=_alone()
    )
    try:
        with ocp.CheckpointManager(folder, options=options) as manager:
            return manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]
    except Exception as error:  # Orbax raises many kinds, all of which mean the same here
        raise UnreadableError(f"{item} cannot be read") from error


def _alone() -> Any:
    """Has Orbax wait for no other process: in a run of several, each has a folder of its own."""
    import orbax.checkpoint as ocp

    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process-{index}"
    )


def _leaf_name(index: int) -> str:
    return f"leaf_{index:05d}"
