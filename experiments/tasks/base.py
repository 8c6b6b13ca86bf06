# SPDX-License-Identifier: Apache-2.0
"""What every benchmark task has in common: its length, its group, and a hash of what it is."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments import cache
from mnemosyne.meta.task import Task


@dataclasses.dataclass(frozen=True, eq=False)
class BenchmarkTask:
    """A task with the length of its runs.

    Attributes:
      task: what is trained.
      steps: updates of one run.
      group: family in tables, such as ``"mlp"``, ``"function"`` or ``"stress"``.
      floor: what counts as the end of the way down, where it is known: the lowest expected loss, or
        a little less for functions, whose values fall for ever. With data it is only a bound.
    """

    task: Task
    steps: int
    group: str
    floor: float = 0.0

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.task.name


Builder = Callable[[Path | None], BenchmarkTask]
"""Makes one benchmark task from the data folder; ValueError where its file is missing."""


def content_hash(task: Any) -> str:
    """Hash of everything a task is, except its name: code, data, numbers.

    Two tasks of equal hash are the same problem under different names. Comments and docstrings of
    the defining files do not count.
    """
    return cache.key_hash(describe(task))


def describe(value: Any) -> Any:
    """A JSON-able account of a task: classes with their sources, arrays by hash, other fields."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: describe(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.name != "name"
        }
        return {"class": type(value).__name__, "source": source_hash(type(value)), **fields}
    if isinstance(value, np.ndarray):
        return {"shape": value.shape, "dtype": str(value.dtype), "data": cache.array_hash(value)}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if inspect.isfunction(value):
        return {"function": value.__qualname__, "source": source_hash(value)}
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"a task's field must be data or a function, got {type(value).__name__}.")


def source_hash(definition: Any) -> str:
    """Hash of the code of the file that defines a class or function."""
    file = inspect.getsourcefile(definition)
    if file is None:
        raise ValueError(f"{definition!r} has no source file.")
    return code_hash(Path(file).read_text())


def code_hash(source: str) -> str:
    """Hash of Python code without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [item for item in node.body if not _is_text(item)] or [ast.Pass()]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]


def _is_text(node: ast.stmt) -> bool:
    """Whether a statement is a bare string: a docstring of whatever it follows."""
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
        return False
    return isinstance(node.value.value, str)
