# SPDX-License-Identifier: Apache-2.0
"""Results of rivals, kept by content: computed once, committed, never computed again."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnemosyne.artifacts import write_atomically

COMMITTED = Path(__file__).parent / "envelopes"
DIGITS = 6
"""Significant digits of stored numbers."""


def key_hash(description: Any) -> str:
    """Hash of anything JSON can say; arrays are to be described by their own hash."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


def array_hash(*arrays: Any) -> str:
    """Hash of array contents."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def tree_hash(tree: Any) -> str:
    """Hash of the structure and the contents of a pytree of arrays."""
    leaves, structure = jax.tree.flatten(jax.device_get(tree))
    shapes = [(leaf.shape, str(leaf.dtype)) for leaf in leaves]
    return key_hash([str(structure), str(shapes), array_hash(*leaves)])


def sources_hash(*folders: Path) -> str:
    """Hash of the Python files directly in some folders: results of our own code die with it.

    What is said about the code does not count, and neither does its layout.
    """
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.glob("*.py")):
            digest.update(path.name.encode() + program(path.read_text()).encode())
    return digest.hexdigest()[:16]


def program(source: str) -> str:
    """What a source file does: without comments, docstrings and its layout.

    Example:
      >>> program("x = (2)  # two")
      'x = 2'
    """
    return ast.unparse(_Silent().visit(ast.parse(source)))


class _Silent(ast.NodeTransformer):
    """Leaves out strings that stand alone."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        """Docstrings, also of fields."""
        value = node.value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return None
        return node


def describe(value: Any) -> Any:
    """A JSON-able account of a task: what its fields hold, the same on every machine.

    Arrays are described by shape, type and mean magnitude to three digits: data sets are named by
    the task already, and their last bits depend on the machine that prepared them.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        magnitude = f"{np.mean(np.abs(array), dtype=np.float64):.3g}" if array.size else ""
        return [list(array.shape), str(array.dtype), magnitude]
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, dict):
        return {str(name): describe(item) for name, item in value.items()}
    if value is None or isinstance(value, str | int | float):
        return value
    return getattr(value, "__qualname__", type(value).__name__)


def rounded(value: Any) -> Any:
    """``value`` with arrays as lists, floats at six digits, and ``None`` for what is not finite.

    Example:
      >>> rounded({"a": np.asarray([1.23456789, np.inf])})
      {'a': [1.23457, None]}
    """
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | jax.Array):
        return rounded(np.asarray(value).tolist())
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def _file(name: str, description: Any) -> str:
    readable = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
    return f"{readable}-{key_hash(description)}.json"


def find(name: str, description: Any, folder: Path) -> dict[str, Any] | None:
    """The stored numbers for ``description``, from the committed ones or from ``folder``."""
    for place in (COMMITTED, folder):
        path = place / _file(name, description)
        if path.is_file():
            return json.loads(path.read_text())["result"]
    return None


def cached(
    name: str, description: Any, compute: Callable[[], dict[str, Any]], folder: Path
) -> dict[str, Any]:
    """Numbers for ``description``: committed, found in ``folder``, or computed and stored there.

    Args:
      name: readable start of the file name.
      description: everything the numbers depend on.
      compute: called if neither folder has them; returns JSON-able numbers or arrays of them.
      folder: where new results are written.

    Returns:
      The numbers as they are stored: :func:`rounded`.
    """
    found = find(name, description, folder)
    if found is not None:
        return found
    result = rounded(compute())
    # One line a field: readable, and small although curves are long.
    fields = [f"{json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in result.items()]
    head = json.dumps(description, sort_keys=True)
    text = f'{{"description": {head},\n"result": {{\n' + ",\n".join(fields) + "\n}}\n"
    write_atomically(folder / _file(name, description), text.encode())
    return result
