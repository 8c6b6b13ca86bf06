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
    action_range: tyro.conf.UseAppendAction[tuple[tuple[float, float], ...]] = ()
    """Onnx only: what the outermost actions -1 and 1 are sent to, such as a motor's limits; once
    for all actions, or once for each in their order. Default: as in the policy's environment."""
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

    if config.action_range and config.format != "onnx":
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

    from robotics.export import numpy_policy, stretch
    from robotics.export_onnx import output_bounds, run_onnx, write_onnx
    from robotics.run_folder import check_writable

    if out.is_dir():
        raise ValueError(f"cannot write {out}: it is a folder, onnx takes a file")
    check_writable(out.absolute().parent)
    given = tuple(np.transpose(config.action_range)) if config.action_range else None
    bounds = output_bounds(policy, given)
    write_onnx(out, policy, given)
    obs = _observations(policy)
    actions, wanted = run_onnx(out, obs), numpy_policy(*policy)(obs)
    if bounds is None:
        return out, float(np.abs(actions - wanted).max())
    print(f"action range: {_told(*bounds)}")
    largest = np.maximum(*np.abs(bounds))
    # A number of float32 in the actuators' units is as exact as its size allows.
    unit = np.where(largest > 0.0, largest, 1.0)
    return out, float(np.abs((actions - stretch(wanted, *bounds)) / unit).max())


def _told(low: Any, high: Any) -> str:
    """Ranges in words, a single one where all are the same."""
    pairs = [f"{a:g} to {b:g}" for a, b in zip(low, high, strict=True)]
    return pairs[0] if len(set(pairs)) == 1 else ", ".join(pairs)


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
