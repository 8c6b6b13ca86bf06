# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne benchmark policies``: zero tuning on robots that the optimizer never saw."""

from experiments.benchmarks.policies.command import run

__all__ = ["run"]
