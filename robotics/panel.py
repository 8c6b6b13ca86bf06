# SPDX-License-Identifier: Apache-2.0
"""The live panel of a run on a terminal, drawn with ``rich``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_WIDTH = 72  # characters
_BLOCKS = "▁▂▃▄▅▆▇█"


class LivePanel:
    """A bar and a few fields below the printed lines; it vanishes when the run ends.

    Args:
      stream: a terminal.

    Raises:
      ImportError: without ``rich``.
    """

    def __init__(self, stream: Any):
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=stream)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._live.start()

    def update(self, title: str, fraction: float | None, fields: Mapping[str, str]) -> None:
        """Draws the panel.

        Args:
          title: its headline.
          fraction: how much of the run is done, in [0, 1]; ``None`` shows a moving bar, for work
            whose end is not known, such as compiling.
          fields: what to show, by name.
        """
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for name, value in fields.items():
            table.add_row(Text(name, style="dim"), Text(value))
        done = None if fraction is None else min(max(fraction, 0.0), 1.0)
        bar = ProgressBar(total=None if done is None else 1.0, completed=done or 0.0)
        # A text, because rich would read a path with brackets as markup.
        self._live.update(Panel(Group(table, bar), title=Text(title), width=_WIDTH))

    def print(self, line: str) -> None:
        """Prints a line above the panel."""
        self._console.print(line, highlight=False, markup=False)

    def close(self) -> None:
        """Takes the panel off the screen."""
        self._live.stop()


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """A curve of one line of text, lowest to highest value; the newest ``width`` of them.

    Example:
      >>> sparkline([0.0, 5.0, 10.0, float("nan")])
      '▁▅█ '
    """
    shown = list(values)[-width:]
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return ""
    low, size = min(finite), max(max(finite) - min(finite), 1e-12)
    return "".join(
        _BLOCKS[round((value - low) / size * (len(_BLOCKS) - 1))] if math.isfinite(value) else " "
        for value in shown
    )


def live_panel(stream: Any, quiet: bool) -> Any:
    """A :class:`LivePanel` on a terminal, else ``None``."""
    if quiet or not stream.isatty():
        return None
    try:
        return LivePanel(stream)
    except ImportError:
        return None
