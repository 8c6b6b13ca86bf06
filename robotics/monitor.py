# SPDX-License-Identifier: Apache-2.0
"""What a run tells while it trains: ``metrics.jsonl``, TensorBoard, console lines, a live panel.

Scalars have one value a seed. ``metrics.jsonl`` keeps them all; TensorBoard shows the mean over
seeds under the tag itself, and each seed of the evaluated return under ``seeds/<seed>/``. The x
axis is always env steps of one seed. A resumed run goes on behind its checkpoint: later lines of
``metrics.jsonl`` are cut, and TensorBoard file is written anew from what is left, so that nothing
is missing or appears twice.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from robotics import run_folder
from robotics.panel import live_panel

RETURN = "eval/episode_reward"


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
    """

    def __init__(
        self,
        folder: Path | None,
        seeds: Sequence[int],
        resume_at: int | None = None,
        quiet: bool = False,
        stream: Any = None,
    ):
        self._seeds = list(seeds)
        self._quiet = quiet
        self._stream = sys.stdout if stream is None else stream
        self._panel = live_panel(self._stream, quiet)
        self._file: TextIO | None = None
        self._writer: Any = None
        if folder is not None:
            self._open_files(folder, resume_at)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_files(self, folder: Path, resume_at: int | None) -> None:
        from tensorboardX import SummaryWriter

        path = folder / run_folder.METRICS
        rows = [] if resume_at is None else read_metrics(path)
        rows = [row for row in rows if row["env_steps"] <= (resume_at or 0)]
        run_folder.write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = path.open("a")
        before = sorted(folder.glob("events.out.tfevents.*"))
        # File names are precise to a second only, and two files must not share one.
        suffix = f".{time.time_ns() % 10**9:09d}"
        self._writer = SummaryWriter(str(folder), filename_suffix=suffix, flush_secs=5)
        for row in rows:
            self._write_events(row)
        self._writer.flush()
        for file in before:
            file.unlink()

    def record(self, env_steps: int, scalars: Mapping[str, Any], host: Mapping[str, float]) -> None:
        """Writes one row of numbers.

        Args:
          env_steps: the x axis, env steps of one seed.
          scalars: by tag, one value a seed (or one for all).
          host: by tag, one number for the whole run, such as steps per second.
        """
        row: dict[str, Any] = {"env_steps": int(env_steps), "time": time.time()}
        row |= {tag: run_folder.plain(np.atleast_1d(value)) for tag, value in scalars.items()}
        row |= {tag: run_folder.plain(value) for tag, value in host.items()}
        if self._file is not None:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
        if self._writer is not None:
            self._write_events(row)
            self._writer.flush()

    def _write_events(self, row: Mapping[str, Any]) -> None:
        """One row of ``metrics.jsonl`` as TensorBoard scalars; lists are per seed."""
        step, when = row["env_steps"], row.get("time")
        for tag, value in row.items():
            if tag in ("env_steps", "time"):
                continue
            values = np.atleast_1d(np.array(value, np.float64))  # ``None`` becomes NaN
            self._writer.add_scalar(tag, float(values.mean()), step, when)
            if tag == RETURN and len(values) > 1:
                for seed, one in zip(self._seeds, values, strict=True):
                    self._writer.add_scalar(f"seeds/{seed}/{tag}", float(one), step, when)

    def text(self, tag: str, markdown: str) -> None:
        """Puts a Markdown text into TensorBoard."""
        if self._writer is not None:
            self._writer.add_text(tag, markdown, 0)

    def say(self, line: str) -> None:
        """One plain line on the console."""
        if self._quiet:
            return
        if self._panel is not None:
            self._panel.print(line)
        else:
            print(line, file=self._stream, flush=True)

    def live(self, title: str, fraction: float, fields: Mapping[str, str]) -> None:
        """Changes the live panel of a terminal; nothing where there is none."""
        if self._panel is not None:
            self._panel.update(title, fraction, fields)

    def close(self) -> None:
        """Ends the live panel and closes the files."""
        if self._panel is not None:
            self._panel.close()
            self._panel = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._file is not None:
            self._file.close()
            self._file = None
