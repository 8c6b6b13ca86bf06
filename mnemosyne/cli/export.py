# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne export``: a trained policy in a form that other programs load."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import tyro

Format = Literal["onnx", "brax", "numpy"]
TOLERANCE = 1e-5
"""Largest difference between an exported policy and ours, in actions."""
_OBSERVATIONS = 256


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a policy for other programs, and check that it gives the same actions there."""

    run: tyro.conf.Positional[Path]
    """Run folder, a folder with runs below it (then the newest), or an exported policy."""
    format: Format = "onnx"
    """onnx: one graph with normalizer and scaling inside; brax: a checkpoint of Brax's PPO; numpy:
    policy.safetensors and policy.json, which need nothing but NumPy."""
    last: bool = False
    """Export the last policy of a run instead of the best."""
    action_range: tuple[float, float] = (-1.0, 1.0)
    """Onnx only: what the outermost actions -1 and 1 are sent to, such as a motor's limits."""
    out: Path | None = None
    """File (onnx) or new folder to write; default: beside the policy, named after the format."""
    json: Path | None = None
    """File to write what was checked to."""


def run(config: Export) -> dict[str, Any]:
    """Writes the policy, loads it again with the other program, and compares.

    Raises:
      ValueError: no policy, a damaged one, a place that cannot be written, or other actions.
    """
    from mnemosyne.cli.exported import find_policy
    from robotics.export import read_policy

    if config.action_range != (-1.0, 1.0) and config.format != "onnx":
        raise ValueError(f"--action-range is for --format onnx, not {config.format}")
    file = find_policy(config.run, best=not config.last)
    policy = read_policy(file)
    out = file.parent / f"policy.{config.format}" if config.out is None else config.out
    written, difference = _FORMATS[config.format](config, policy, out)
    if not difference <= TOLERANCE:
        raise ValueError(
            f"{written} gives other actions than the policy, by up to {difference:.2g}"
        )
    print(f"policy: {file}\nwritten: {written}")
    print(f"largest difference in {_OBSERVATIONS} actions: {difference:.2g}")
    return {"policy": file, "format": config.format, "out": written, "difference": difference}


def _observations(policy: Any) -> Any:
    """Observations that reach, but do not pass, the end of the normalizer's range."""
    import numpy as np

    mean, std = (policy.tensors[f"normalizer/{name}"] for name in ("mean", "std"))
    reach = 0.99 * policy.header["network"]["obs_clip"]
    spread = np.random.default_rng(0).uniform(-reach, reach, (_OBSERVATIONS, mean.size))
    return (mean + std * spread).astype(np.float32)


def _onnx(config: Export, policy: Any, out: Path) -> tuple[Path, float]:
    import numpy as np

    from robotics.export import numpy_policy
    from robotics.export_onnx import run_onnx, write_onnx
    from robotics.run_folder import check_writable

    if out.is_dir():
        raise ValueError(f"cannot write {out}: it is a folder, onnx takes a file")
    check_writable(out.absolute().parent)
    write_onnx(out, policy, config.action_range)
    obs = _observations(policy)
    actions = run_onnx(out, obs)
    if policy.header["network"]["squash"] == "tanh":
        low, high = config.action_range
        actions = (actions - low) / (high - low) * 2.0 - 1.0
    return out, float(np.abs(actions - numpy_policy(*policy)(obs)).max())


def _brax(config: Export, policy: Any, out: Path) -> tuple[Path, float]:
    import numpy as np

    from robotics.export import numpy_policy
    from robotics.export_brax import run_brax, write_brax

    written = write_brax(out, policy)
    obs = _observations(policy)
    return written, float(np.abs(run_brax(written, obs) - numpy_policy(*policy)(obs)).max())


def _numpy(config: Export, policy: Any, out: Path) -> tuple[Path, float]:
    import numpy as np

    from robotics.export import TENSORS, load_numpy_policy, numpy_policy, write_policy
    from robotics.run_folder import check_writable

    if (out / TENSORS).exists():
        raise ValueError(f"{out} holds a policy already; choose another --out")
    check_writable(out)
    write_policy(out, *policy)
    obs = _observations(policy)
    return out, float(np.abs(load_numpy_policy(out)(obs) - numpy_policy(*policy)(obs)).max())


_FORMATS = {"onnx": _onnx, "brax": _brax, "numpy": _numpy}
