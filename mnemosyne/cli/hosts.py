# SPDX-License-Identifier: Apache-2.0
"""One run in several processes, usually one a machine: joining, and who writes.

All processes do the same, on the same numbers. The first one owns the run folder and the console;
what the others write goes into a folder that is removed when they end.
"""

from __future__ import annotations

import atexit
import dataclasses
import shutil
import tempfile
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Hosts:
    """Which process this is, of a run in several."""

    coordinator: str | None = None
    """ADDRESS:PORT of the first process, the same in all; auto asks the cluster's scheduler."""
    count: int | None = None
    """Number of processes, at least 1; not needed with auto."""
    index: int | None = None
    """Number of this process, from 0; not needed with auto."""


def connect(hosts: Hosts) -> None:
    """Joins the other processes; waits until all are there. Without a coordinator, does nothing.

    Raises:
      ValueError: settings that cannot be, or others that do not answer.
    """
    _check(hosts)
    if hosts.coordinator is None:
        return
    import jax

    if jax.distributed.is_initialized():
        return
    places = {} if hosts.coordinator == "auto" else _places(hosts)
    try:
        jax.distributed.initialize(**places)
    except (RuntimeError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"could not join the processes at {hosts.coordinator}: {first}") from error


def _places(hosts: Hosts) -> dict:
    return {
        "coordinator_address": hosts.coordinator,
        "num_processes": hosts.count,
        "process_id": hosts.index,
    }


def _check(hosts: Hosts) -> None:
    """Refuses settings that cannot be, in one sentence."""
    if hosts.coordinator == "auto":
        return
    given = {name: getattr(hosts, name) for name in ("coordinator", "count", "index")}
    missing = [f"--hosts.{name}" for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return
    if missing:
        raise ValueError(f"a run in several processes also needs {' and '.join(missing)}")
    count, index = hosts.count or 0, hosts.index or 0
    if count < 1:
        raise ValueError(f"--hosts.count is {count}, but it must be at least 1")
    if not 0 <= index < count:
        raise ValueError(f"--hosts.index is {index}, but it must lie between 0 and {count - 1}")


def is_first() -> bool:
    """Whether this process owns the run folder and the console."""
    import jax

    return jax.process_index() == 0


def scratch(resumed: Path | None) -> Path:
    """A run folder for a process that is not the first, removed when it ends.

    Args:
      resumed: run folder to go on with; its checkpoints are copied, so that all processes go on
        from the same one.
    """
    folder = Path(tempfile.mkdtemp(prefix="mnemosyne-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if resumed is not None:
        from robotics.run_folder import CHECKPOINTS

        shutil.copytree(resumed / CHECKPOINTS, folder / CHECKPOINTS)
    return folder
