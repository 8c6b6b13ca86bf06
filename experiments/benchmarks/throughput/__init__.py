# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne benchmark throughput``: env steps a second and seconds to a return, against peers."""

from __future__ import annotations

from typing import Any

from experiments.benchmarks.options import Options

__all__ = ["run"]


def run(options: Options) -> dict[str, Any]:
    """See :func:`experiments.benchmarks.throughput.command.run`.

    Raises:
      ValueError: for flags that fit nothing.
    """
    from experiments.benchmarks.throughput import command

    return command.run(options)
