# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne benchmark warm-start``: {new, warm start} x {Adam, Mnemosyne}, on other robots."""

from __future__ import annotations

from typing import Any

from experiments.benchmarks.options import Options

__all__ = ["run"]


def run(options: Options) -> dict[str, Any]:
    """See :func:`experiments.benchmarks.warm_start.command.run`.

    Raises:
      ValueError: for flags that fit nothing.
    """
    from experiments.benchmarks.warm_start import command

    return command.run(options)
