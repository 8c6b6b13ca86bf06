# SPDX-License-Identifier: Apache-2.0
"""The live panel of a run on a terminal, drawn with ``rich``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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

    def update(self, title: str, fraction: float, fields: Mapping[str, str]) -> None:
        """Draws the panel.

        Args:
          title: its headline.
          fraction: how much of the run is done, in [0, 1].
          fields: what to show, by name.
        """
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for name, value in fields.items():
            table.add_row(name, value)
        bar = ProgressBar(total=1.0, completed=min(max(fraction, 0.0), 1.0))
        self._live.update(Panel(Group(table, bar), title=title, width=72))

    def print(self, line: str) -> None:
        """Prints a line above the panel."""
        self._console.print(line, highlight=False, markup=False)

    def close(self) -> None:
        """Takes the panel off the screen."""
        self._live.stop()


def live_panel(stream: Any, quiet: bool) -> Any:
    """A :class:`LivePanel` on a terminal, else ``None``."""
    if quiet or not stream.isatty():
        return None
    try:
        return LivePanel(stream)
    except ImportError:
        return None
