# SPDX-License-Identifier: Apache-2.0
"""Refusing what cannot fit into memory before it is allocated, instead of being killed half-way."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import jax

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def tree_bytes(tree: Any) -> int:
    """Bytes of a pytree of arrays or of their shapes; a PRNG key counts as 16."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        total += math.prod(leaf.shape) * (16 if is_key else leaf.dtype.itemsize)
    return total


def memory_bytes() -> int | None:
    """Memory of the accelerator, else of the machine or its container; ``None`` if unknown."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    limits = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in _CGROUP_LIMITS:
        text = Path(name).read_text().strip() if Path(name).is_file() else ""
        if text.isdigit():
            limits.append(int(text))
    return min(limits, default=None)


def check_memory(needed: int, what: str, remedy: str) -> None:
    """Refuses what is larger than the memory of the default device.

    Args:
      needed: bytes.
      what: subject of the sentence, such as ``"the training state"``.
      remedy: what to make smaller.

    Raises:
      ValueError: if ``needed`` exceeds the memory.
    """
    memory = memory_bytes()
    if memory is not None and needed > memory:
        raise ValueError(
            f"{what} needs about {needed / 2**30:.3g} GiB, "
            f"this machine has {memory / 2**30:.3g} GiB; {remedy}"
        )
