# SPDX-License-Identifier: Apache-2.0
"""Task families for meta-training; arrays come in from outside, this package loads no data."""

from mnemosyne.meta.tasks.mlp import MLP, mlp_task
from mnemosyne.meta.tasks.supervised import ClassifyTask, Model, RegressTask
from mnemosyne.meta.tasks.teachers import teacher_data, teacher_targets

__all__ = [
    "MLP",
    "ClassifyTask",
    "Model",
    "RegressTask",
    "mlp_task",
    "teacher_data",
    "teacher_targets",
]
