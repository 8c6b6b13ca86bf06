# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints: exact resume, damage noticed, another run's checkpoint refused.

A checkpoint is one Orbax step folder (written aside, then renamed, so that a kill never leaves half
of one) with two items: ``arrays``, the leaves of the training state under numbered names, and
``record``, JSON with the structure, what the host loop needs to go on, and a SHA-256 over all of
it. Orbax alone does not notice every altered byte, and would restore another run's arrays where
shapes happen to agree; the record settles both. A file ``files.sha256`` (in the format of
``sha256sum``) written right after completion covers Orbax's own files as well.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

FORMAT_VERSION = 1
_DIGITS = 12  # zero-padded folder names sort as integers
_MANIFEST = "files.sha256"
_FULL_BYTES = 1 << 16  # a disk with less than that has no room for any checkpoint


class Restored(NamedTuple):
    """What :meth:`Checkpointer.restore` gives back: training state, host's record, step."""

    state: PyTree
    host: dict[str, Any]
    step: int


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _structure(tree: PyTree) -> list[list[Any]]:
    """``[path, shape, dtype]`` of every leaf; the dtype of typed keys is like ``"key<fry>"``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [
        [jax.tree_util.keystr(path, simple=True, separator="/"), list(leaf.shape), str(leaf.dtype)]
        for path, leaf in leaves
    ]


def _described(shape: list[int], dtype: str) -> jax.ShapeDtypeStruct:
    """The inverse of :func:`_structure` for one leaf."""
    if not dtype.startswith("key<"):
        return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
    implementations = ("threefry2x32", "rbg", "unsafe_rbg")
    kinds = [jax.eval_shape(lambda name=name: jax.random.key(0, impl=name)).dtype
             for name in implementations]  # fmt: skip
    return jax.ShapeDtypeStruct(tuple(shape), next(kind for kind in kinds if str(kind) == dtype))


def _to_host(leaf: Any) -> np.ndarray:
    """A copy in host memory; a view would change under a later step that donates the buffer."""
    return np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf, copy=True, order="C")


def _fingerprint(arrays: list[np.ndarray], record: Mapping[str, Any]) -> str:
    """SHA-256 over the bytes of all leaves and the canonical JSON of the record."""
    digest = hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=True).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _file_hashes(path: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, the manifest itself aside, by relative name."""
    files = sorted(
        entry for entry in path.rglob("*") if entry.is_file() and entry.name != _MANIFEST
    )
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }


def _write_manifest(path: Path) -> None:
    """Lists the hashes of a complete checkpoint; after a kill before this, the record covers it."""
    lines = [f"{digest}  {name}\n" for name, digest in _file_hashes(path).items()]
    partial = path / f"{_MANIFEST}.partial"
    partial.write_text("".join(lines))
    os.replace(partial, path / _MANIFEST)


def _altered_file(path: Path) -> str | None:
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


def _name(index: int) -> str:
    return f"leaf_{index:05d}"


def _check_structure(saved: list[list[Any]], wanted: list[list[Any]], path: Path) -> None:
    """Names the first leaf in which a checkpoint differs from the state of this run."""
    for old, new in zip(saved, wanted, strict=False):
        if old[0] != new[0]:
            raise ValueError(
                f"checkpoint {path} belongs to another network, optimizer or environment: "
                f"it holds {old[0]!r} where this run has {new[0]!r}"
            )
        if old[1:] != new[1:]:
            raise ValueError(
                f"checkpoint {path} belongs to another network, optimizer or environment: "
                f"{old[0]!r} is {old[2]}{old[1]} there and {new[2]}{new[1]} in this run"
            )
    if len(saved) != len(wanted):
        raise ValueError(
            f"checkpoint {path} belongs to another network, optimizer or environment: "
            f"it holds {len(saved)} arrays, this run {len(wanted)}"
        )


def _check_identity(saved: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Names the first setting in which a checkpoint differs from this run."""
    for name, value in wanted.items():
        if name in saved and saved[name] != value:
            raise ValueError(
                f"checkpoint {path} was made with {name} {saved[name]!r}, not {value!r}"
            )


class Checkpointer:
    """Saves and restores training states of one run.

    Args:
      folder: where the numbered step folders live; created on the first save.
      max_to_keep: how many of the newest checkpoints stay on the disk, at least 1.
      identity: JSON-able settings that a checkpoint must agree on, such as env, algorithm and
        optimizer.

    Raises:
      ValueError: if ``max_to_keep`` is below 1.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> with Checkpointer(folder) as checkpointer:
      ...     checkpointer.save(1000, {"w": jnp.ones(3)}, {"epoch": 1})
      ...     checkpointer.restore({"w": jnp.zeros(3)}).host
      {'epoch': 1}
    """

    def __init__(
        self, folder: Path, max_to_keep: int = 3, identity: Mapping[str, Any] | None = None
    ):
        if max_to_keep < 1:
            raise ValueError(
                f"max_to_keep is {max_to_keep}, but at least 1 checkpoint must be kept"
            )
        self.folder = Path(folder).absolute()
        self._max_to_keep = max_to_keep
        self._identity = dict(identity or {})
        self._manager: Any = None

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints on the disk, in rising order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.folder.iterdir() if entry.name.isdigit())

    def save(self, step: int, state: PyTree, host: Mapping[str, Any]) -> None:
        """Writes one checkpoint and returns when it is complete on the disk.

        Args:
          step: env steps so far; larger than that of every earlier checkpoint.
          state: pytree of arrays; typed PRNG keys are allowed.
          host: JSON-able record of the host loop.

        Raises:
          ValueError: if ``step`` is not larger than an earlier one.
          OSError: if the folder cannot be written; earlier checkpoints stay as they are.
        """
        known = self.steps()
        if known and step <= known[-1]:
            raise ValueError(
                f"a checkpoint at step {step} must come after that at {known[-1]} in {self.folder}"
            )
        arrays = [_to_host(leaf) for leaf in jax.tree.leaves(state)]
        record = {
            "format_version": FORMAT_VERSION,
            "identity": self._identity,
            "structure": _structure(state),
            "host": dict(host),
        }
        record["sha256"] = _fingerprint(arrays, record)
        try:
            self._write(step, arrays, record)
        except Exception as error:  # Orbax tells of a full disk in many ways, none an OSError
            raise OSError(f"checkpoint {self._path(step)} {_reason(self.folder, error)}") from error

    def _write(self, step: int, arrays: list[np.ndarray], record: dict[str, Any]) -> None:
        import orbax.checkpoint as ocp

        # Orbax cannot store empty arrays (simulators have some); the structure alone brings them
        # back.
        stored = {_name(i): array for i, array in enumerate(arrays) if array.size}
        items = ocp.args.Composite(
            arrays=ocp.args.StandardSave(stored), record=ocp.args.JsonSave(record)
        )
        manager = self._open()
        manager.save(step, args=items)
        manager.wait_until_finished()
        _write_manifest(self._path(step))

    def restore(self, template: PyTree, step: int | None = None) -> Restored:
        """Reads one checkpoint, or refuses it with a sentence.

        Args:
          template: pytree with the structure, shapes and dtypes of this run's state
            (``jax.eval_shape`` is enough).
          step: which checkpoint; ``None`` takes the newest complete one.

        Returns:
          The state on the default device, the host's record, and the step.

        Raises:
          FileNotFoundError: if there is no such checkpoint.
          ValueError: if it is damaged, or belongs to another network, optimizer or environment.
        """
        known = self.steps()
        if not known or (step is not None and step not in known):
            raise FileNotFoundError(
                f"{self.folder} holds no checkpoint{'' if step is None else f' at step {step}'}"
            )
        step = known[-1] if step is None else step
        path = self._path(step)
        record = self._read_record(step, path)
        _check_identity(record["identity"], self._identity, path)
        wanted = _structure(template)
        _check_structure(record["structure"], wanted, path)
        templates = jax.tree.leaves(template)
        arrays = self._read_arrays(step, path, templates)
        claimed = record.pop("sha256")
        if _fingerprint(arrays, record) != claimed:
            raise ValueError(self._damaged(path, "its contents do not match its hash"))
        leaves = [_to_device(array, leaf) for array, leaf in zip(arrays, templates, strict=True)]
        return Restored(
            jax.tree.unflatten(jax.tree.structure(template), leaves), record["host"], step
        )

    def leaves(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The arrays of the newest checkpoint by their paths, keys left out, and its record.

        For whoever does not have the state's template, such as a run that starts from another one.

        Raises:
          FileNotFoundError: if there is no checkpoint.
          ValueError: if it is damaged.
        """
        if not self.steps():
            raise FileNotFoundError(f"{self.folder} holds no checkpoint")
        step = self.steps()[-1]
        path = self._path(step)
        record = self._read_record(step, path)
        shapes = [_described(*entry[1:]) for entry in record["structure"]]
        arrays = self._read_arrays(step, path, shapes)
        claimed = record.pop("sha256")
        if _fingerprint(arrays, record) != claimed:
            raise ValueError(self._damaged(path, "its contents do not match its hash"))
        found = zip(record["structure"], shapes, arrays, strict=True)
        return {entry[0]: array for entry, leaf, array in found if not _is_key(leaf)}, record

    def host_record(self) -> dict[str, Any] | None:
        """The host's record of the newest checkpoint, without its arrays; ``None`` without one."""
        known = self.steps()
        if not known:
            return None
        return self._read_record(known[-1], self._path(known[-1]))["host"]

    def close(self) -> None:
        """Waits for writes that are under way and releases the manager."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:0{_DIGITS}d}"

    def _open(self) -> Any:
        if self._manager is None:
            import orbax.checkpoint as ocp

            self.folder.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._max_to_keep,
                step_format_fixed_length=_DIGITS,
                create=False,
                multiprocessing_options=_alone(),
                cleanup_tmp_directories=True,
                enable_async_checkpointing=False,
            )
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        return self._manager

    def _read(self, step: int, path: Path, item: str, args: Any) -> Any:
        import orbax.checkpoint as ocp

        # A manager of its own: reading must neither create folders nor clean anything up.
        options = ocp.CheckpointManagerOptions(
            step_format_fixed_length=_DIGITS, create=False, multiprocessing_options=_alone()
        )
        try:
            with ocp.CheckpointManager(self.folder, options=options) as manager:
                return manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]
        except Exception as error:  # Orbax raises many kinds, all of which mean the same here
            raise ValueError(self._damaged(path, f"{item} cannot be read")) from error

    def _read_record(self, step: int, path: Path) -> dict[str, Any]:
        import orbax.checkpoint as ocp

        altered = _altered_file(path)
        if altered is not None:
            raise ValueError(self._damaged(path, f"its file {altered} was truncated or altered"))
        record = self._read(step, path, "record", ocp.args.JsonRestore())
        wanted = {"format_version", "identity", "structure", "host", "sha256"}
        if not isinstance(record, dict) or not wanted <= record.keys():
            raise ValueError(self._damaged(path, "its record is incomplete"))
        if record["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"checkpoint {path} has format version {record['format_version']}, "
                f"this program reads {FORMAT_VERSION}"
            )
        return record

    def _read_arrays(self, step: int, path: Path, templates: list[Any]) -> list[np.ndarray]:
        import orbax.checkpoint as ocp

        shapes = [
            jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
            for leaf in templates
        ]
        stored = {
            _name(i): np.empty(leaf.shape, leaf.dtype) for i, leaf in enumerate(shapes) if leaf.size
        }
        arrays = self._read(step, path, "arrays", ocp.args.StandardRestore(stored))
        return [
            np.asarray(arrays[_name(i)]) if leaf.size else np.empty(leaf.shape, leaf.dtype)
            for i, leaf in enumerate(shapes)
        ]

    def _damaged(self, path: Path, why: str) -> str:
        earlier = [step for step in self.steps() if step < int(path.name)]
        advice = (
            f"delete that folder to continue from step {earlier[-1]}"
            if earlier
            else "there is no earlier checkpoint"
        )
        return f"checkpoint {path} is damaged ({why}); {advice}"


def _alone() -> Any:
    """Has Orbax wait for no other process: in a run of several, each has a folder of its own."""
    import orbax.checkpoint as ocp

    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process-{index}"
    )


def _reason(folder: Path, error: Exception) -> str:
    """Why a checkpoint was not written, in words."""
    text = str(error)
    try:
        full = shutil.disk_usage(folder).free < _FULL_BYTES
    except OSError:
        return "cannot be written: its folder was removed"
    full = full or "No space left" in text or getattr(error, "errno", None) == errno.ENOSPC
    if full:
        return "cannot be written: the disk is full"
    first = (text.splitlines() or [type(error).__name__])[0]
    return f"cannot be written: {first[:200]}"


def _to_device(array: np.ndarray, template: Any) -> jax.Array:
    """Puts a leaf back on the default device, as a typed key where the template has one."""
    value = jnp.asarray(array)
    if _is_key(template):
        return jax.random.wrap_key_data(
            value, impl=jax.random.key_impl(jnp.zeros((), template.dtype))
        )
    return value
