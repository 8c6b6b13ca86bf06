# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint says of itself, and how that is checked before anything of it is believed.

The record of a checkpoint names the format, the run's identity and every leaf (path, shape, dtype),
carries what the host loop needs to go on, and ends in a SHA-256 over all of that and the arrays'
bytes. The file list covers Orbax's own files as well.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

FORMAT_VERSION = 1
_FIELDS = frozenset({"format_version", "identity", "structure", "host", "sha256"})
_MANIFEST = "files.sha256"


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed PRNG key or an array of them."""
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def structure(tree: PyTree) -> list[list[Any]]:
    """``[path, shape, dtype]`` of every leaf; the dtype of typed keys is like ``"key<fry>"``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [
        [jax.tree_util.keystr(path, simple=True, separator="/"), list(leaf.shape), str(leaf.dtype)]
        for path, leaf in leaves
    ]


def abstract_leaf(shape: list[int], dtype: str) -> jax.ShapeDtypeStruct:
    """The inverse of :func:`structure` for one leaf."""
    if not dtype.startswith("key<"):
        return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
    implementations = ("threefry2x32", "rbg", "unsafe_rbg")
    kinds = [jax.eval_shape(lambda name=name: jax.random.key(0, impl=name)).dtype
             for name in implementations]  # fmt: skip
    return jax.ShapeDtypeStruct(tuple(shape), next(kind for kind in kinds if str(kind) == dtype))


def to_host(leaf: Any) -> np.ndarray:
    """A copy in host memory; a view would change under a later step that donates the buffer."""
    return np.array(jax.random.key_data(leaf) if is_key(leaf) else leaf, copy=True, order="C")


def host_shape(leaf: Any) -> Any:
    """Shape and dtype of :func:`to_host` of a leaf that may itself be a shape."""
    return jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf


def to_device(array: np.ndarray, template: Any) -> jax.Array:
    """Puts a leaf back on the default device, as a typed key where the template has one."""
    value = jnp.asarray(array)
    if is_key(template):
        return jax.random.wrap_key_data(
            value, impl=jax.random.key_impl(jnp.zeros((), template.dtype))
        )
    return value


def make_record(
    identity: Mapping[str, Any], state: PyTree, host: Mapping[str, Any], arrays: list[np.ndarray]
) -> dict[str, Any]:
    """The record of a state, whose leaves are ``arrays`` on the host."""
    record = {
        "format_version": FORMAT_VERSION,
        "identity": dict(identity),
        "structure": structure(state),
        "host": dict(host),
    }
    return record | {"sha256": _fingerprint(arrays, record)}


def is_complete(record: Any) -> bool:
    """Whether a record has all of its fields, in whatever format."""
    return isinstance(record, dict) and record.keys() >= _FIELDS


def matches(record: Mapping[str, Any], arrays: list[np.ndarray]) -> bool:
    """Whether the record's hash is that of its other fields and of these arrays."""
    fields = {name: value for name, value in record.items() if name != "sha256"}
    return _fingerprint(arrays, fields) == record["sha256"]


def _fingerprint(arrays: list[np.ndarray], record: Mapping[str, Any]) -> str:
    """SHA-256 over the bytes of all leaves and the canonical JSON of the record."""
    digest = hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=True).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def check_format(record: Mapping[str, Any], path: Path) -> None:
    """Refuses a record of another format."""
    if record["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"checkpoint {path} has format version {record['format_version']}, "
            f"this program reads {FORMAT_VERSION}"
        )


def check_structure(saved: list[list[Any]], wanted: list[list[Any]], path: Path) -> None:
    """Names the first leaf in which a checkpoint differs from the state of this run."""
    foreign = f"checkpoint {path} belongs to another network, optimizer or environment"
    for old, new in zip(saved, wanted, strict=False):
        if old[0] != new[0]:
            raise ValueError(f"{foreign}: it holds {old[0]!r} where this run has {new[0]!r}")
        if old[1:] != new[1:]:
            raise ValueError(
                f"{foreign}: {old[0]!r} is {old[2]}{old[1]} there and {new[2]}{new[1]} in this run"
            )
    if len(saved) != len(wanted):
        raise ValueError(f"{foreign}: it holds {len(saved)} arrays, this run {len(wanted)}")


def check_identity(saved: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Names the first setting in which a checkpoint differs from this run."""
    for name, value in wanted.items():
        if name in saved and saved[name] != value:
            raise ValueError(
                f"checkpoint {path} was made with {name} {saved[name]!r}, not {value!r}"
            )


def _file_hashes(path: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, the manifest itself aside, by relative name."""
    files = sorted(
        entry for entry in path.rglob("*") if entry.is_file() and entry.name != _MANIFEST
    )
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }


def write_manifest(path: Path) -> None:
    """Lists the hashes of a complete checkpoint; after a kill before this, the record covers it."""
    lines = [f"{digest}  {name}\n" for name, digest in _file_hashes(path).items()]
    partial = path / f"{_MANIFEST}.partial"
    partial.write_text("".join(lines))
    os.replace(partial, path / _MANIFEST)


def altered_file(path: Path) -> str | None:
    """The first file that does not match the manifest, if any."""
    manifest = path / _MANIFEST
    if not manifest.is_file():
        return None
    listed = [line.split("  ", 1) for line in manifest.read_text(errors="replace").splitlines()]
    found = _file_hashes(path)
    for entry in listed:
        if len(entry) != 2 or found.get(entry[1]) != entry[0]:
            return entry[-1]
    return _MANIFEST if len(listed) < len(found) else None
