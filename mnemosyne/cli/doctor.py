# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne doctor``: what this machine has, what is missing, and which command brings it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from mnemosyne.cli.main import DISTRIBUTION

_REQUIRED = ("jax", "jaxlib", "optax", "numpy", "jaxtyping", "safetensors")
_OPTIONAL = {
    "cli": ("tyro", "rich", "orbax-checkpoint", "tensorboardX", "matplotlib", "scikit-learn"),
    "robotics": (
        "brax",
        "mujoco",
        "mujoco-mjx",
        "gymnasium",
        "imageio",
        "imageio-ffmpeg",
        "tensorboard",
    ),
    "supervised": ("flax",),
}
_DRAW = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 8, 8).render()"


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Check this machine and say what is missing."""

    logdir: Path = Path("runs")
    """Folder in which runs are to be written."""
    json: Path | None = None
    """File to write the findings to."""


class Finding(NamedTuple):
    """One check: a verdict (``ok``, ``fail``, ``missing`` for what is optional) and a few words."""

    name: str
    verdict: str
    detail: str


def run(config: Doctor) -> dict[str, Any]:
    """Prints every finding; the exit code is 1 if a required one failed."""
    findings = [
        *_packages(),
        _devices(),
        _memory(),
        _drawing(),
        _folder(config.logdir),
        _compiled(),
        *_artifacts(),
    ]
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{finding.verdict:<7}  {finding.name:<{width}}  {finding.detail}")
    failed = [finding.name for finding in findings if finding.verdict == "fail"]
    missing = [finding.name for finding in findings if finding.verdict == "missing"]
    print(f"failed: {', '.join(failed) or 'nothing'}; missing: {', '.join(missing) or 'nothing'}")
    return {
        "findings": [finding._asdict() for finding in findings],
        "failed": failed,
        "missing": missing,
        "exit_code": int(bool(failed)),
    }


def _packages() -> list[Finding]:
    """Python and every package, with the extra that brings a missing one."""
    enough = sys.version_info >= (3, 11)
    findings = [Finding("python", "ok" if enough else "fail", platform.python_version())]
    for package in _REQUIRED:
        version = _version(package)
        findings.append(
            Finding(package, "ok" if version else "fail", version or f"pip install {package}")
        )
    for extra, packages in _OPTIONAL.items():
        for package in packages:
            version = _version(package)
            remedy = f"pip install '{DISTRIBUTION}[{extra}]'"
            findings.append(Finding(package, "ok" if version else "missing", version or remedy))
    return findings


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> Finding:
    """What JAX computes on."""
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:
        return Finding("devices", "fail", " ".join(str(error).split()))
    return Finding("devices", "ok", ", ".join(f"{d.platform}:{d.device_kind}" for d in devices))


def _memory() -> Finding:
    """How much memory training may use, and how many cores there are."""
    from robotics.limits import memory_bytes

    memory = memory_bytes()
    size = "unknown" if memory is None else f"{memory / 2**30:.1f} GiB"
    return Finding("memory", "ok", f"{size}, {os.cpu_count()} processor cores")


def _drawing() -> Finding:
    """Whether MuJoCo can draw without a screen; a process of its own, as a bad driver crashes."""
    name = "drawing (EGL)"
    if _version("mujoco") is None:
        return Finding(name, "missing", "needs mujoco; videos will be stick figures")
    environment = {"MUJOCO_GL": "egl"} | dict(os.environ)
    command = [sys.executable, "-c", _DRAW]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, timeout=60, check=False
        )
        works = done.returncode == 0
    except subprocess.TimeoutExpired:
        works = False
    library = environment["MUJOCO_GL"]
    if works:
        return Finding(name, "ok", f"MUJOCO_GL={library}")
    return Finding(
        name, "missing", f"MUJOCO_GL={library} does not work; videos will be stick figures"
    )


def _folder(logdir: Path) -> Finding:
    """Whether runs can be written."""
    from robotics.run_folder import check_writable

    try:
        check_writable(logdir)
    except ValueError as error:
        return Finding("logdir", "fail", str(error))
    return Finding("logdir", "ok", str(logdir.absolute()))


def _compiled() -> Finding:
    """Where compiled programs are kept between runs."""
    from mnemosyne.cli import compiled

    place = compiled.folder()
    if place is None:
        own = os.environ.get("JAX_COMPILATION_CACHE_DIR")
        return Finding("compiled", "ok", own or f"not kept ({compiled.VARIABLE} is empty)")
    return Finding("compiled", "ok", f"{place} (set {compiled.VARIABLE} to nothing for none)")


def _artifacts() -> list[Finding]:
    """Whether the shipped weights are there and whole."""
    import mnemosyne

    names = mnemosyne.list_weights()
    if not names:
        return [Finding("weights", "fail", "no weights are installed; reinstall the package")]
    findings = []
    for name in names:
        try:
            artifact = mnemosyne.load(name)
        except ValueError as error:
            findings.append(Finding(name, "fail", " ".join(str(error).split())))
            continue
        findings.append(Finding(name, "ok", f"sha256 {artifact.tensor_sha256[:16]}..."))
    return findings
