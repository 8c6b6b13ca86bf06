# SPDX-License-Identifier: Apache-2.0
"""What a result has to say of its making: machine by name, command, versions, commit."""

from __future__ import annotations

import os
import platform
import shlex
from pathlib import Path
from typing import Any

import jax


def machine() -> str:
    """The accelerator, or the processor and the number of its cores, by name.

    Example:
      >>> bool(machine())
      True
    """
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}"
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores of {name}"


def stamp() -> dict[str, Any]:
    """Goes into every result."""
    from robotics.run_folder import command_line, versions

    return {
        "machine": machine(),
        "command": shlex.join(command_line()),
        "versions": versions(),
    }
