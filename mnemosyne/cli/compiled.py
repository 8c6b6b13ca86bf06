# SPDX-License-Identifier: Apache-2.0
"""Compiled programs kept between processes: the second run of a kind starts in seconds.

A training program takes most of a minute to compile, a meta-training one several. JAX can keep what
XLA made of them; the command line switches that on, the library never does.
"""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

VARIABLE = "MNEMOSYNE_CACHE_DIR"
"""Names the folder; set to nothing, it switches the cache off."""
MAX_BYTES = 2**30
"""Of programs that are kept; the oldest go first."""


def folder() -> Path | None:
    """Where programs are kept; ``None`` if they are not, or JAX's own variable says where."""
    chosen = os.environ.get(VARIABLE)
    if chosen == "" or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return None
    if chosen:
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "mnemosyne" / _machine()


def enable() -> Path | None:
    """Has JAX keep compiled programs in :func:`folder`; returns it, ``None`` if that is not so.

    A folder that cannot be written costs nothing but the time of compilation.
    """
    import jax

    place = folder()
    if place is None:
        return None
    try:
        place.mkdir(parents=True, exist_ok=True)
        prune(place, MAX_BYTES)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(place))
    return place


def prune(place: Path, most: int) -> None:
    """Deletes the oldest programs until ``most`` bytes are left.

    JAX could do it by itself, with a package more. A program that another process is about to read
    may go: it is compiled again then.
    """
    files = sorted(place.glob("*-cache"), key=lambda file: file.stat().st_mtime, reverse=True)
    kept = 0
    for file in files:
        kept += file.stat().st_size
        if kept > most:
            file.unlink(missing_ok=True)


def _machine() -> str:
    """A name for this kind of processor: programs use whatever instructions it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        flags = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"
