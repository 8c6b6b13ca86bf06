# SPDX-License-Identifier: Apache-2.0
"""Task families for meta-training; arrays come in from outside, this package loads no data."""

from mnemosyne.meta.tasks.mlp import MLP, mlp_task
from mnemosyne.meta.tasks.supervised import ClassifyTask, Model, RegressTask
from mnemosyne.meta.tasks.varied import Mixture, Rows, Symbols, Teacher, VariedMLP

__all__ = [
    "MLP",
    "ClassifyTask",
    "Mixture",
    "Model",
    "RegressTask",
    "Rows",
    "Symbols",
    "Teacher",
    "VariedMLP",
    "mlp_task",
]
