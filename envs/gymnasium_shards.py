# SPDX-License-Identifier: Apache-2.0
"""Parts of a batch of Gymnasium environments, in this process or in one of their own.

A shard is made of an environment's name, for sentences, and of the settings of
:class:`envs.gymnasium_worker.Shard`. It is asked first and answers later, so that all shards of a
batch work at the same time.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import weakref
from typing import Any

import numpy as np

from envs import gymnasium_worker as worker


class LocalShard:
    """A shard in this process."""

    def __init__(self, name: str, settings: dict[str, Any]):
        self._name, self._shard = name, worker.Shard(**settings)

    def begin(self) -> None:
        """Nothing to wait for."""

    def ask(self, what: str, part: np.ndarray) -> None:
        """Does ``"reset"`` with seeds, or ``"step"`` with actions."""
        try:
            self._rows = getattr(self._shard, what)(part)
        except Exception as error:  # whatever a broken environment raises
            raise ValueError(f"{self._name!r} failed: {worker.brief(error)}") from error

    def answer(self) -> np.ndarray:
        """Rows [envs, entries] of the last request."""
        return self._rows

    def qpos(self) -> np.ndarray:
        """Generalized positions [envs, nq] of MuJoCo environments."""
        return self._shard.qpos()

    def close(self) -> None:
        """Closes the environments."""
        self._shard.close()


class ProcessShard:
    """A shard in a process of its own, which ends with this object or with this process."""

    def __init__(self, name: str, settings: dict[str, Any]):
        self._name, self._num_envs = name, settings["num_envs"]
        # -P: the folder of the program must not hide packages of the same name as a file in it.
        command = [sys.executable, "-P", worker.__file__, json.dumps(settings)]
        path = os.pathsep.join(entry for entry in sys.path if entry) or os.curdir
        # A session of its own: Ctrl-C is for the trainer, which ends a chunk before it stops.
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
        )
        self._process = process
        self._end = weakref.finalize(self, _end, process)

    def begin(self) -> None:
        """Waits until its environments are there."""
        self._receive()

    def ask(self, what: str, part: np.ndarray) -> None:
        """Has the process begin with ``"reset"`` of seeds, or ``"step"`` with actions."""
        kind = worker.RESET if what == "reset" else worker.STEP
        try:
            worker.send(self._process.stdin, kind, np.ascontiguousarray(part).tobytes())  # pyright: ignore[reportArgumentType]
        except (BrokenPipeError, ValueError):
            self._lost()

    def answer(self) -> np.ndarray:
        """Waits for the rows [envs, entries] of the last request."""
        return np.frombuffer(self._receive(), np.float32).reshape(self._num_envs, -1)

    def close(self) -> None:
        """Ends the process."""
        self._end()

    def _receive(self) -> bytes:
        kind, payload = worker.receive(self._process.stdout)  # pyright: ignore[reportArgumentType]
        if kind == worker.FAILURE:
            raise ValueError(f"{self._name!r} failed: {payload.decode()}")
        if kind != worker.ANSWER:
            self._lost()
        return payload

    def _lost(self) -> None:
        raise ChildProcessError(f"a process that steps {self._name!r} has ended unexpectedly")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Closes a worker's input, which ends it, and waits for that."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):  # it is dead and left a request unread
                stream.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
