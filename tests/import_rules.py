# SPDX-License-Identifier: Apache-2.0
"""Reads sources, without running them, for imports and import-time effects that are not allowed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import NamedTuple

FIRST_PARTY = ("mnemosyne", "robotics", "envs", "experiments")
CORE_THIRD_PARTY = frozenset({"jax", "jaxlib", "optax", "numpy", "jaxtyping", "safetensors"})
# Slow to import or part of an extra: only inside the functions that need them.
HEAVY = frozenset(
    [
        "brax",
        "evosax",
        "flax",
        "gymnasium",
        "imageio",
        "matplotlib",
        "ml_collections",
        "mujoco",
        "mujoco_playground",
        "onnx",
        "onnxruntime",
        "orbax",
        "PIL",
        "psutil",
        "rich",
        "scipy",
        "sklearn",
        "tensorboard",
        "tensorboardX",
        "tensorstore",
        "torch",
        "tyro",
        "warp",
    ]
)
# Loading any of these runs code that is stored in the file.
UNSAFE = frozenset(
    ["pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"]
)
# Calls that change the process for everybody; at import time they surprise the importer.
EFFECTS = frozenset(
    [
        "jax.config.update",
        "config.update",
        "warnings.filterwarnings",
        "warnings.simplefilter",
        "filterwarnings",
        "simplefilter",
        "logging.basicConfig",
        "os.putenv",
        "os.unsetenv",
        "os.chdir",
        "environ.update",
        "environ.setdefault",
        "environ.pop",
        "os.environ.update",
        "os.environ.setdefault",
        "os.environ.pop",
        "sys.path.append",
        "sys.path.insert",
        "np.random.seed",
        "numpy.random.seed",
        "random.seed",
        "np.seterr",
        "numpy.seterr",
        "matplotlib.use",
        "signal.signal",
        "multiprocessing.set_start_method",
    ]
)
ENVIRON = frozenset({"os.environ", "environ"})


class Found(NamedTuple):
    """One imported module name with its place."""

    name: str
    line: int
    lazy: bool


def package_of(module: str) -> str:
    """The layer that a module belongs to: the executable is one of its own."""
    parts = module.split(".")
    return "cli" if parts[:2] == ["mnemosyne", "cli"] else parts[0]


def is_verb(module: str) -> bool:
    """Whether the module is one verb of the executable, which ``main`` imports on demand.

    Such a module annotates its flags for tyro and nests the configs of what it runs, so it needs
    both at the top.
    """
    return package_of(module) == "cli" and module not in ("mnemosyne.cli", "mnemosyne.cli.main")


def may_import(importer: str, target: str) -> bool:
    """Whether the layer of ``importer`` may know the first-party module ``target``."""
    if package_of(target) == "cli":
        return package_of(importer) == "cli"
    match package_of(importer):
        case "mnemosyne":
            return package_of(target) == "mnemosyne"
        case "robotics":
            return package_of(target) == "robotics" or target in ("envs.api", "envs")
        case "envs":
            return package_of(target) == "envs"
        case _:
            return True


def _dotted(node: ast.AST) -> str:
    """``a.b.c`` for a chain of attributes, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := _dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def _walk(node: ast.AST, lazy: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes, with whether they run only after the import: functions, typing-only blocks."""
    yield node, lazy
    for field, value in ast.iter_fields(node):
        is_body = field == "body" and (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            or (isinstance(node, ast.If) and _dotted(node.test).endswith("TYPE_CHECKING"))
            or (isinstance(node, ast.If) and "__main__" in ast.dump(node.test))
        )
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _walk(child, lazy or is_body)


def _imported(node: ast.AST) -> list[str]:
    """Names of the modules that a node imports; a member of a first-party package counts as one."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        if node.level:
            return ["." * node.level + (node.module or "")]
        module = node.module or ""
        if module in FIRST_PARTY:
            return [f"{module}.{alias.name}" for alias in node.names]
        return [module]
    if isinstance(node, ast.Call) and _dotted(node.func).split(".")[-1] in (
        "import_module",
        "__import__",
    ):
        return [a.value for a in node.args[:1] if isinstance(a, ast.Constant)]
    return []


def _changes_environ(node: ast.AST) -> bool:
    """Whether the node sets or deletes an environment variable by subscript."""
    if isinstance(node, ast.Assign | ast.Delete):
        targets = node.targets
    elif isinstance(node, ast.AugAssign):
        targets = [node.target]
    else:
        return False
    return any(isinstance(t, ast.Subscript) and _dotted(t.value) in ENVIRON for t in targets)


def _import_problems(module: str, found: Found, stdlib: frozenset[str]) -> Iterator[str]:
    top = found.name.split(".")[0]
    if found.name.startswith("."):
        yield "relative import"
    elif top in UNSAFE:
        yield f"imports {top}, which runs code from files"
    elif top in FIRST_PARTY:
        if not may_import(module, found.name):
            yield f"must not import {found.name}"
        elif package_of(module) == "cli" and not (
            found.lazy or top == "mnemosyne" or is_verb(module)
        ):
            yield f"imports {top} outside a function"
    elif top == "tyro" and is_verb(module):
        pass
    elif package_of(module) == "mnemosyne" and top not in CORE_THIRD_PARTY | stdlib:
        yield f"the core must not need {top}"
    elif top in HEAVY and not found.lazy:
        yield f"imports {top} outside a function"


def _node_problems(module: str, node: ast.AST, lazy: bool, stdlib: frozenset[str]) -> Iterator[str]:
    for name in _imported(node):
        line = getattr(node, "lineno", 0)
        yield from _import_problems(module, Found(name, line, lazy), stdlib)
    if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
        refused = isinstance(node.value, ast.Constant) and node.value.value is False
        yield from () if refused else ("allow_pickle lets a file run code",)
    if not lazy and isinstance(node, ast.Call) and _dotted(node.func) in EFFECTS:
        yield f"calls {_dotted(node.func)} at import"
    if not lazy and _changes_environ(node):
        yield "changes an environment variable at import"


def problems(source: str, module: str, stdlib: frozenset[str]) -> list[str]:
    """What is wrong with one source.

    Args:
      source: text of the file.
      module: its dotted name, which decides what it may import.
      stdlib: names of the standard library's modules.

    Returns:
      One sentence for each problem, ``line: what``, in the order of the file.
    """
    return [
        f"{getattr(node, 'lineno', 0)}: {what}"
        for node, lazy in _walk(ast.parse(source))
        for what in _node_problems(module, node, lazy, stdlib)
    ]
