# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne plot``: learning curves of runs in one picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import tyro


@dataclasses.dataclass(frozen=True)
class Plot:
    """Draw the learning curves of runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run folders, or folders with runs below them."""
    out: Path | None = None
    """Picture to write (.png, .svg, .pdf); default: summary.png in the run, else ./curves.png."""


def run(config: Plot) -> dict[str, Any]:
    """Writes the picture and says where it is.

    Raises:
      ValueError: no run, a run without evaluations, or a place that cannot be written.
    """
    from robotics.plots import plot_runs
    from robotics.run_folder import check_writable, find_run

    if not config.runs:
        raise ValueError("name at least one run: mnemosyne plot RUN [RUN ...]")
    folders = [find_run(path) for path in config.runs]
    default = folders[0] / "summary.png" if len(folders) == 1 else Path("curves.png")
    out = default if config.out is None else config.out
    check_writable(out.parent)
    picture = plot_runs(folders, out)
    print(f"picture: {picture}")
    return {"picture": picture, "runs": folders}
