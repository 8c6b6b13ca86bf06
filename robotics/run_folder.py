# SPDX-License-Identifier: Apache-2.0
"""Files of a run folder: where it is, what it says about itself, and atomic writing.

Layout: ``config.json``, ``command.txt``, ``versions.json``, ``git.diff``, ``metrics.jsonl``,
``faults.jsonl`` after a rollback, TensorBoard events, ``checkpoints/``, ``best/``,
``policy.safetensors`` with ``policy.json``, a video, ``summary.png``, ``result.json``.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
FAULTS = "faults.jsonl"
RESULT = "result.json"
_PACKAGES = (
    "mnemosyne-optimizer jax jaxlib numpy optax safetensors brax mujoco mujoco-mjx "
    "orbax-checkpoint tensorboardX tyro rich"
)
_MAX_DIFF_BYTES = 1 << 20


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes a file beside its place and renames it: a reader never meets half of it.

    Raises:
      OSError: if the folder cannot be written; what was at ``path`` stays.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """``value`` as JSON knows it: arrays become lists, paths text, non-finite numbers ``None``.

    Example:
      >>> plain({"a": np.float32(1.5), "b": (float("nan"), Path("x"))})
      {'a': 1.5, 'b': [None, 'x']}
    """
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    array = np.asarray(value)
    if array.ndim:
        return [plain(entry) for entry in array.tolist()]
    number = array.item()
    return number if not isinstance(number, float) or math.isfinite(number) else None


def write_json(path: Path, data: Any) -> None:
    """Writes indented JSON atomically; see :func:`plain` for what is turned into what."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(plain(data), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
      ValueError: if the file is missing or is not JSON, in a sentence.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{path} is not valid JSON; it may be truncated or altered") from None


def default_folder(
    root: Path, env: str, algo: str, optimizer: str, seed: int, num_seeds: int, stamp: str
) -> Path:
    """``root/<env>/<algo>-<optimizer>/<seed>x<num-seeds>-<stamp>``; ``:`` and ``/`` become ``-``.

    Example:
      >>> str(default_folder(Path("runs"), "brax:hopper", "ppo", "adam", 0, 4, "noon"))
      'runs/brax-hopper/ppo-adam/0x4-noon'
    """
    slug = env.replace(":", "-").replace("/", "-")
    optimizer_slug = optimizer.replace(":", "-").replace("/", "-")
    return Path(root) / slug / f"{algo}-{optimizer_slug}" / f"{seed}x{num_seeds}-{stamp}"


def find_run(path: Path) -> Path:
    """The run folder that a user means: ``path`` itself, or the newest run anywhere below it.

    Raises:
      ValueError: if there is none.
    """
    return max(find_runs(path), key=lambda folder: (folder / CONFIG).stat().st_mtime)


def find_runs(path: Path) -> list[Path]:
    """``path`` itself if it is a run folder, else all runs anywhere below it, in order of names.

    Raises:
      ValueError: if there is none.
    """
    path = Path(path)
    if path.is_file():
        raise ValueError(f"{path} is a file; a run is the folder that holds {CONFIG}")
    if (path / CONFIG).is_file():
        return [path]
    found = [config.parent for config in path.rglob(CONFIG)] if path.is_dir() else []
    if not found:
        raise ValueError(f"{path} holds no run: there is no {CONFIG} in it")
    return sorted(found)


def check_new(folder: Path) -> None:
    """Refuses a folder that already holds a run, or that cannot be written; creates nothing.

    Raises:
      ValueError: in a sentence that names the way out.
    """
    if any((folder / name).exists() for name in (CONFIG, CHECKPOINTS, METRICS, RESULT)):
        raise ValueError(
            f"{folder} already holds a run; continue it with --resume {folder} "
            "or choose another --logdir"
        )
    check_writable(folder)


def check_writable(folder: Path) -> None:
    """Refuses a folder that cannot be made or written; creates nothing.

    Raises:
      ValueError: naming the part of the path that is in the way.
    """
    there = next(
        part for part in (folder, *folder.absolute().parents) if part.exists() or part.is_symlink()
    )
    if not there.is_dir():
        raise ValueError(f"cannot write {folder}: {there} is not a folder")
    try:
        # Tried, not asked: permission bits say nothing about a read-only or virtual file system.
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise ValueError(f"cannot write {folder}: {there}: {error.strerror or error}") from None


def describe(folder: Path, config: Mapping[str, Any], argv: Sequence[str]) -> None:
    """Writes what a run says of itself before its first step: config, command, versions, diff."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, config)
    append_command(folder, argv)
    write_json(folder / "versions.json", versions())
    write_atomic(folder / "git.diff", git_diff())


def append_command(folder: Path, argv: Sequence[str]) -> None:
    """Adds one line, ready for a shell, to ``command.txt``; a resumed run has several."""
    before = (folder / "command.txt").read_text() if (folder / "command.txt").exists() else ""
    write_atomic(folder / "command.txt", before + shlex.join(argv) + "\n")


def versions() -> dict[str, Any]:
    """Versions of everything that can change a number, read from metadata without importing."""
    import jax

    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES.split():
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    device = jax.devices()[0]
    found |= {
        "device": f"{device.platform}:{device.device_kind}",
        "devices": jax.device_count(),
        "cpu_count": os.cpu_count(),
        "matmul_precision": str(jax.config.values["jax_default_matmul_precision"]),
        "x64": bool(jax.config.values["jax_enable_x64"]),
        "commit": _git("rev-parse", "HEAD").strip() or None,
    }
    return found


def git_diff() -> str:
    """Uncommitted changes of the checkout that this code runs from; empty outside of one."""
    diff = _git("diff", "HEAD")
    if len(diff) > _MAX_DIFF_BYTES:
        return diff[:_MAX_DIFF_BYTES] + "\n(cut here)\n"
    return diff


def _git(*arguments: str) -> str:
    """Output of a git command in the source checkout, empty if there is no git or no checkout."""
    source = Path(__file__).resolve().parent.parent
    if shutil.which("git") is None or not (source / ".git").exists():
        return ""
    command = ["git", "-C", str(source), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def command_line() -> list[str]:
    """How this process was started, as a user would type it."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
