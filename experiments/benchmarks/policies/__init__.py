# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne benchmark policies``: zero tuning on robots that the optimizer never saw."""

from __future__ import annotations

from typing import Any

from experiments.benchmarks.options import Options

__all__ = ["run"]


def run(options: Options) -> dict[str, Any]:
    """See :func:`experiments.benchmarks.policies.command.run`.

    Raises:
      ValueError: for flags that fit nothing.
    """
    # Here, or ``python -m`` on a module of this package would find it imported already.
    from experiments.benchmarks.policies import command

    return command.run(options)
