# SPDX-License-Identifier: Apache-2.0
"""Contestants take turns in one process, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np

WARM_UP = 2
"""Turns in which a peer may compile; what is said about pace is of the others."""


class UnavailableError(Exception):
    """A peer cannot run here; the message says why."""


class Turn(NamedTuple):
    """What a contestant did.

    Attributes:
      env_steps: of running episodes, all seeds together.
      updates: of the optimizer, all seeds together.
      seconds: of training; evaluation apart.
      score: return of the deterministic policy after it, ``None`` where nobody asks.
    """

    env_steps: int
    updates: int
    seconds: float
    score: float | None = None


class Contestant(Protocol):
    """A training run under way.

    Attributes:
      compile_s: seconds that compiling the training took; ``None`` where the first turn has it.
    """

    compile_s: float | None

    def turn(self) -> Turn:
        """Trains a chunk, then evaluates."""
        ...

    def close(self) -> None:
        """Ends the run."""
        ...


class Entry(NamedTuple):
    """How a contestant begins with a seed; a peer may fail, which is reported, ours may not."""

    start: Callable[[int], Contestant]
    peer: bool


class Run(NamedTuple):
    """One run of a contestant; ``skipped`` says why there is none."""

    compile_s: float
    turns: list[Turn]
    skipped: str | None = None


def race(entries: Mapping[str, Entry], turns: int, seed: int = 0) -> dict[str, Run]:
    """One run of each, turn by turn; every other round in reverse order.

    Args:
      entries: by name.
      turns: at least 3.
      seed: of the runs.
    """
    running: dict[str, Contestant] = {}
    log: dict[str, list[Turn]] = {name: [] for name in entries}
    skipped: dict[str, str] = {}

    def attempt(name: str, action: Callable[[], None]) -> None:
        if name in skipped:
            return
        try:
            action()
        except Exception as error:
            if not entries[name].peer:
                raise
            skipped[name] = reason(error)

    def begin(name: str) -> None:
        running[name] = entries[name].start(seed)

    try:
        for name in entries:
            attempt(name, lambda name=name: begin(name))
        for index in range(turns):
            for name in list(entries)[:: -1 if index % 2 else 1]:
                attempt(name, lambda name=name: log[name].append(running[name].turn()))
    finally:
        for one in running.values():
            one.close()
    return {
        name: Run(0.0, [], skipped[name])
        if name in skipped
        else settle(running[name].compile_s, log[name])
        for name in entries
    }


def reason(error: Exception) -> str:
    """One line: what a peer failed with, and in which file."""
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, UnavailableError):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename.rpartition('site-packages/')[2]})" if frames else ""
    return f"{type(error).__name__}: {text[:200]}{where}"


def settle(compile_s: float | None, turns: list[Turn]) -> Run:
    """A run whose first turns are free of compilation.

    Where they were not, compilation is what they took beyond their updates at the pace of the
    others. Two turns are looked at: Brax's ES compiles once more for the state that its first
    generation returns.
    """
    if compile_s is not None:
        return Run(compile_s, turns)
    pace = float(np.median([turn.seconds / turn.updates for turn in turns[WARM_UP:]]))
    first = [turn._replace(seconds=pace * turn.updates) for turn in turns[:WARM_UP]]
    excess = [
        max(turn.seconds - free.seconds, 0.0) for turn, free in zip(turns, first, strict=False)
    ]
    return Run(sum(excess), [*first, *turns[WARM_UP:]])
