# SPDX-License-Identifier: Apache-2.0
"""What a run tells while it trains: ``metrics.jsonl``, TensorBoard, console lines, a live panel.

Scalars have one value a seed. ``metrics.jsonl`` keeps them all; TensorBoard shows the mean over
seeds under the tag itself, and each seed of the evaluated return under ``seeds/<seed>/``. The x
axis is always env steps of one seed. A resumed run goes on behind its checkpoint: later lines of
``metrics.jsonl`` are cut, and TensorBoard's file is written anew from what is left, so that nothing
is missing or appears twice.

A write that fails, on a full disk or in a folder that has become unwritable, raises ``OSError``;
so does a folder that was moved or removed, into which an open file would go on writing unseen.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from robotics import run_folder
from robotics.events import EventFile, is_image, is_scalar, read_events
from robotics.panel import live_panel

RETURN = "eval/episode_reward"
_EVENTS = "events.out.tfevents.*"


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
      >>> duration(4.2), duration(75), duration(7260)
      ('4 s', '1 min 15 s', '2 h 01 min')
    """
    if not math.isfinite(seconds):
        return "?"
    whole = round(max(seconds, 0.0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a ``metrics.jsonl``; a last line cut off by a kill is left out.

    Raises:
      ValueError: if a line other than the last is not JSON.
    """
    records = []
    lines = path.read_text().splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise ValueError(f"line {number} of {path} is not valid JSON") from None
    return records


class Monitor:
    """Writes one run's numbers and says how it is getting on.

    Args:
      folder: the run folder; ``None`` writes no files.
      seeds: the seed numbers, in the order of the leading axis of all scalars.
      resume_at: env steps of the checkpoint a run continues from; ``None`` for a new run.
      quiet: say nothing on the console.
      stream: where lines go; ``None`` means standard output.
      settings: what TensorBoard shows as configuration and hyperparameters of a new run.

    Raises:
      OSError: if the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path | None,
        seeds: Sequence[int],
        resume_at: int | None = None,
        quiet: bool = False,
        stream: Any = None,
        settings: Mapping[str, Any] | None = None,
    ):
        self._seeds = list(seeds)
        self._quiet = quiet
        self._stream = sys.stdout if stream is None else stream
        self._panel = live_panel(self._stream, quiet)
        self._file: TextIO | None = None
        self._events: EventFile | None = None
        self._folder = folder
        if folder is not None:
            self._open_files(folder, resume_at)
            if resume_at is None and settings:
                self._describe(settings)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: object, error: object, _: object) -> None:
        try:
            self.close()
        except OSError:
            if error is None:  # else it is but the echo of what has gone wrong before
                raise

    def _open_files(self, folder: Path, resume_at: int | None) -> None:
        path = folder / run_folder.METRICS
        rows = [] if resume_at is None else read_metrics(path)
        rows = [row for row in rows if row["env_steps"] <= (resume_at or 0)]
        run_folder.write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = path.open("a")
        before = sorted(folder.glob(_EVENTS))
        self._events = EventFile(folder)
        for row in rows:
            self._write_events(row)
        for event in (event for file in before for event in read_events(file)):
            # Curves come from the rows; a run that ends makes its video anew.
            kept = event.HasField("summary") and not is_scalar(event) and not is_image(event)
            if kept and resume_at is not None and event.step <= resume_at:
                self._events.copy(event)
        self._events.flush()
        for file in before:
            file.unlink()

    def _describe(self, settings: Mapping[str, Any]) -> None:
        """The configuration as a table of text and as hyperparameters."""
        assert self._events is not None
        flat = flatten(settings)
        rows = "".join(f"| {name} | {value} |\n" for name, value in flat.items())
        self._events.text("run/config", f"| setting | value |\n|---|---|\n{rows}")
        self._events.hparams(flat, RETURN)
        self._events.flush()

    def check(self) -> None:
        """Sees that what is written still arrives.

        Raises:
          FileNotFoundError: if the run folder was moved or removed.
        """
        if self._file is None or self._folder is None:
            return
        path = self._folder / run_folder.METRICS
        try:
            same = os.path.samestat(path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            same = False
        if not same:
            raise FileNotFoundError(f"{path} was moved or removed")

    def record(self, env_steps: int, scalars: Mapping[str, Any], host: Mapping[str, float]) -> None:
        """Writes one row of numbers.

        Args:
          env_steps: the x axis, env steps of one seed.
          scalars: by tag, one value a seed (or one for all).
          host: by tag, one number for the whole run, such as steps per second.

        Raises:
          OSError: if it cannot be written.
        """
        self.check()
        row: dict[str, Any] = {"env_steps": int(env_steps), "time": time.time()}
        row |= {tag: run_folder.plain(np.atleast_1d(value)) for tag, value in scalars.items()}
        row |= {tag: run_folder.plain(value) for tag, value in host.items()}
        if self._file is not None:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
        if self._events is not None:
            self._write_events(row)
            self._events.flush()

    def histograms(self, env_steps: int, values: Mapping[str, np.ndarray]) -> None:
        """Writes distributions; they are large, so rarely.

        Args:
          env_steps: the x axis.
          values: by tag, arrays of any shape.

        Raises:
          OSError: if they cannot be written.
        """
        if self._events is None:
            return
        for tag, array in values.items():
            self._events.histogram(tag, array, env_steps)
        self._events.flush()

    def _write_events(self, row: Mapping[str, Any]) -> None:
        """One row of ``metrics.jsonl`` as TensorBoard scalars; lists are per seed."""
        assert self._events is not None
        step, when = row["env_steps"], row.get("time")
        for tag, value in row.items():
            if tag in ("env_steps", "time"):
                continue
            values = np.atleast_1d(np.array(value, np.float64))  # ``None`` becomes NaN
            self._events.scalar(tag, float(values.mean()), step, when)
            if tag == RETURN and len(values) > 1:
                for seed, one in zip(self._seeds, values, strict=True):
                    self._events.scalar(f"seeds/{seed}/{tag}", float(one), step, when)

    def say(self, line: str) -> None:
        """One plain line on the console."""
        if self._quiet:
            return
        if self._panel is not None:
            self._panel.print(line)
        else:
            print(line, file=self._stream, flush=True)

    def live(self, title: str, fraction: float | None, fields: Mapping[str, str]) -> None:
        """Changes the live panel of a terminal; nothing where there is none.

        Args:
          title: headline.
          fraction: of the run that is done; ``None`` where the end is not known.
          fields: what to show, by name.
        """
        if self._panel is not None:
            self._panel.update(title, fraction, fields)

    def close(self) -> None:
        """Ends the live panel and closes the files.

        Raises:
          OSError: if the last of what was written does not arrive.
        """
        if self._panel is not None:
            self._panel.close()
        files = [file for file in (self._events, self._file) if file is not None]
        self._panel = self._events = self._file = None
        with contextlib.ExitStack() as stack:  # closes all of them, also if one fails
            for file in files:
                stack.callback(file.close)


def add_video(folder: Path, video: Path, env_steps: int) -> None:
    """Shows a video of the best policy among the images of a run that has ended.

    Args:
      folder: the run's.
      video: ``.mp4`` or ``.gif``.
      env_steps: of the policy.

    Raises:
      OSError: if it cannot be written.
      RuntimeError: if it cannot be converted.
    """
    events = EventFile(folder)
    try:
        events.video("video/best_policy", video, env_steps)
    finally:
        events.close()


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by the names of their flags; ``None`` is left out.

    Example:
      >>> flatten({"env": "brax:hopper", "weights": None, "ppo": {"num_envs": 64}})
      {'env': 'brax:hopper', 'ppo.num_envs': 64}
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = value
    return flat
