# SPDX-License-Identifier: Apache-2.0
"""Meta-parameters on disk: safetensors with a JSON header, hash-checked; shipped ones live here."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mnemosyne import controller, features, paper
from mnemosyne.config import MnemosyneConfig

FORMAT_VERSION = "2"
FOLDER = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Artifact:
    """Meta-parameters together with what they are and where they come from.

    Attributes:
      meta_params: nested dictionary of float32 arrays.
      config: the network they belong to.
      trained_with: command, versions and budget of the meta-training, JSON-able.
      tasks: names of the meta-training tasks.
      tensor_sha256: hash over the tensors' names, shapes and bytes.
    """

    meta_params: dict[str, Any]
    config: MnemosyneConfig
    trained_with: dict[str, Any]
    tasks: tuple[str, ...]
    tensor_sha256: str = ""


def list_weights() -> list[str]:
    """Names of the shipped artifacts, for ``mnemosyne(weights=...)``."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def flatten(meta_params: dict[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Nested dictionaries to ``{"memory/query": array}``, sorted by name."""
    flat: dict[str, np.ndarray] = {}
    for name, value in sorted(meta_params.items()):
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = np.ascontiguousarray(value, dtype=np.float32)
    return flat


def unflatten(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of :func:`flatten`."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return nested


def tensor_sha256(meta_params: dict[str, Any]) -> str:
    """Hash over names, shapes and bytes of the tensors; equal where the meta-parameters are."""
    digest = hashlib.sha256()
    for name, value in flatten(meta_params).items():
        digest.update(f"{name}{value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Writes beside ``path`` and renames: a reader sees the old file or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def save_artifact(path: str | Path, artifact: Artifact) -> str:
    """Writes an artifact.

    Args:
      path: file to write, by convention ``*.safetensors``; replaced only when fully written.
      artifact: its ``tensor_sha256`` is computed here.

    Returns:
      The hash of the tensors.
    """
    sha = tensor_sha256(artifact.meta_params)
    header = {
        "format_version": FORMAT_VERSION,
        "feature_contract": features.CONTRACT,
        "config": json.dumps(artifact.config.to_dict(), sort_keys=True),
        "trained_with": json.dumps(artifact.trained_with, sort_keys=True),
        "tasks": json.dumps(list(artifact.tasks)),
        "tensor_sha256": sha,
    }
    content = _sort_header(save(flatten(artifact.meta_params), metadata=header))
    write_atomically(Path(path), content)
    return sha


def _sort_header(content: bytes) -> bytes:
    """The same file with its header sorted; the library writes the metadata in random order."""
    (length,) = struct.unpack("<Q", content[:8])
    text = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def _resolve(name_or_path: str | Path) -> Path:
    shipped = FOLDER / f"{name_or_path}.safetensors"
    if shipped.is_file() and os.sep not in str(name_or_path):
        return shipped
    path = Path(name_or_path)
    if path.is_dir():
        path = path / "best.safetensors"
    if path.is_file():
        return path
    known = list_weights()
    near = difflib.get_close_matches(str(name_or_path), known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"shipped are {', '.join(known) or 'none'}."
    raise ValueError(f"no artifact {str(name_or_path)!r}: {hint}")


def load(name_or_path: str | Path) -> Artifact:
    """Reads and checks an artifact.

    Args:
      name_or_path: a shipped name such as ``"mnemosyne-base"``, a file, or a meta-training folder.

    Returns:
      The artifact.

    Raises:
      ValueError: if there is none, it is damaged, or it was made for another format or contract.
    """
    path = _resolve(name_or_path)
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or no artifact: {error}.") from error
    _check_header(path, header)
    meta_params = unflatten(flat)
    if (sha := tensor_sha256(meta_params)) != header["tensor_sha256"]:
        raise ValueError(f"{path} was altered: its tensors hash to {sha[:12]}, not as stated.")
    config = MnemosyneConfig.from_dict(json.loads(header["config"]))
    _check_shapes(path, meta_params, config)
    return Artifact(
        meta_params,
        config,
        json.loads(header["trained_with"]),
        tuple(json.loads(header["tasks"])),
        sha,
    )


def _check_shapes(path: Path, meta_params: dict[str, Any], config: MnemosyneConfig) -> None:
    """Refuses tensors that are not those of the network in the header, such as a baseline's."""
    module = controller if config.mode == "plus" else paper
    expected = jax.eval_shape(lambda key: module.init(key, config), jax.random.key(0))
    if jax.tree.map(np.shape, meta_params) != jax.tree.map(np.shape, expected):
        raise ValueError(f"{path} holds the tensors of another network or optimizer.")


def _check_header(path: Path, header: dict[str, str]) -> None:
    needed = ("config", "trained_with", "tasks", "tensor_sha256")
    if missing := [name for name in needed if name not in header]:
        raise ValueError(f"{path} is no Mnemosyne artifact: its header lacks {missing[0]!r}.")
    for field, ours in (
        ("format_version", FORMAT_VERSION),
        ("feature_contract", features.CONTRACT),
    ):
        if header.get(field) != ours:
            raise ValueError(
                f"{path} has {field} {header.get(field)!r}, but this version reads {ours!r}: "
                "use the mnemosyne release that wrote it."
            )
