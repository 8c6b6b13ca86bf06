# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne info``: what the shipped optimizer is and what it costs, counted on a real state."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import tyro


@dataclasses.dataclass(frozen=True)
class Info:
    """Show an artifact, and count its state on a network of a given size."""

    artifact: tyro.conf.Positional[str] = "mnemosyne-base"
    """Name of shipped weights, or a file."""
    layout: Literal["mlp", "transformer", "many-small"] = "mlp"
    """Network to count on: equal layers, transformer blocks, or thousands of 32 x 32 tensors."""
    params: int = 1_000_000
    """About how many parameters that network has."""
    json: Path | None = None
    """File for the numbers that are printed."""


def count_state(artifact: Any, shapes: list[tuple[int, ...]]) -> dict[str, Any]:
    """Initialises the optimizer on such a network and counts what it holds."""
    import jax
    import jax.numpy as jnp

    import mnemosyne

    optimizer = mnemosyne.from_meta_params(artifact.meta_params, artifact.config)
    params = [jnp.zeros(shape) for shape in shapes]
    leaves = jax.tree.leaves(optimizer.init(params))
    weights = sum(math.prod(shape) for shape in shapes)
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    return {
        "tensors": len(shapes),
        "params": weights,
        "state_bytes": state_bytes,
        "state_floats_per_param": state_bytes / 4 / weights,
    }


def run(config: Info) -> dict[str, Any]:
    """Prints and returns the numbers."""
    if config.params < 1:
        raise ValueError(f"--params must be at least 1, got {config.params}.")
    from robotics.limits import check_memory

    # Parameters, their moments and one temporary copy, in float32.
    check_memory(
        16 * config.params,
        f"a network of {config.params:,} parameters with its optimizer",
        "give a smaller --params",
    )
    import mnemosyne
    from experiments.benchmarks.layouts import LAYOUTS
    from mnemosyne import artifacts, features

    artifact = mnemosyne.load(config.artifact)
    flat = artifacts.flatten(artifact.meta_params)
    result = {
        "artifact": config.artifact,
        "tensor_sha256": artifact.tensor_sha256,
        "feature_contract": features.CONTRACT,
        "mode": artifact.config.mode,
        "meta_params": sum(int(array.size) for array in flat.values()),
        "trained_with": artifact.trained_with.get("command", ""),
        "tasks": list(artifact.tasks),
        "layout": config.layout,
        **count_state(artifact, LAYOUTS[config.layout](config.params)),
    }
    for name, value in result.items():
        print(f"{name:>24}  {value}")
    return result
