# SPDX-License-Identifier: Apache-2.0
"""Task families for meta-training; arrays come in from outside, this package loads no data."""

from mnemosyne.meta.tasks.mlp import MLPTask, teacher_data

__all__ = ["MLPTask", "teacher_data"]
