# SPDX-License-Identifier: Apache-2.0
"""Policies as files that NumPy alone can run: ``policy.safetensors`` and ``policy.json``.

The header of ``policy.safetensors`` says everything (network, sizes, env, dt, where it comes from)
and holds a SHA-256 over the tensor bytes, so that the file can be judged by itself; ``policy.json``
repeats it for people and for languages without a safetensors reader. This module imports neither
JAX nor anything else of this package.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FORMAT_VERSION = 1
TENSORS, HEADER = "policy.safetensors", "policy.json"
_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    "swish": lambda x: x / (1.0 + np.exp(-x)),
}


class PolicyFile(NamedTuple):
    """A policy as it lies on the disk: named arrays and what the header says about them."""

    tensors: dict[str, np.ndarray]
    header: dict[str, Any]


def tensor_sha256(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names and bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()


def write_policy(
    folder: Path, tensors: Mapping[str, np.ndarray], header: Mapping[str, Any]
) -> None:
    """Writes ``policy.safetensors`` and ``policy.json`` atomically.

    Args:
      folder: created if needed.
      tensors: arrays by name.
      header: JSON-able; format version and hash are added.

    Raises:
      OSError: if the folder cannot be written.
    """
    from safetensors.numpy import save

    from robotics.run_folder import plain, write_atomic, write_json

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    full = plain(
        {**header, "format_version": FORMAT_VERSION, "tensor_sha256": tensor_sha256(tensors)}
    )
    # The self-contained file first: a kill between the two leaves at worst an older copy for
    # people.
    write_atomic(
        folder / TENSORS, save(tensors, metadata={"policy": json.dumps(full, sort_keys=True)})
    )
    write_json(folder / HEADER, full)


def read_policy(path: Path) -> PolicyFile:
    """Reads a policy with the standard library and NumPy only.

    Args:
      path: the file, or the folder that holds it.

    Raises:
      ValueError: if the file is missing, truncated, altered, or of an unknown format version.
    """
    path = Path(path)
    path = path / TENSORS if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"there is no policy {path}")
    try:
        tensors, metadata = _parse_safetensors(path.read_bytes())
        header = json.loads(metadata["policy"])
        version, claimed = header["format_version"], header["tensor_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"policy {path} is truncated or altered") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"policy {path} has format version {version}, this program reads {FORMAT_VERSION}"
        )
    if tensor_sha256(tensors) != claimed:
        raise ValueError(f"policy {path} was altered: its tensors do not match their hash")
    return PolicyFile(tensors, header)


def _parse_safetensors(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a safetensors file: header length, JSON header, raw arrays."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    kinds = {"F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8", "U32": "<u4", "BOOL": "?"}
    body = data[8 + length :]
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        if end > len(body):
            raise ValueError(f"the file ends inside {name}")
        tensors[name] = np.frombuffer(body[start:end], kinds[entry["dtype"]]).reshape(
            entry["shape"]
        )
    return tensors, metadata


def export_policy(
    folder: Path, spec: Mapping[str, Any], params: Any, about: Mapping[str, Any]
) -> None:
    """Writes the policy of one seed.

    Args:
      folder: where to.
      spec: how to compute an action, from :attr:`robotics.algorithm.Policy.spec`.
      params: what acting needs, nested dicts of arrays.
      about: env, dt, env steps and whatever else a reader should know; JSON-able.

    Raises:
      OSError: if the folder cannot be written.
    """
    write_policy(folder, flatten(params), {**about, "network": dict(spec)})


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Nested dicts as one, with names joined by ``/``.

    Example:
      >>> flatten({"a": {"b": np.zeros(2)}})
      {'a/b': array([0., 0.])}
    """
    flat: dict[str, np.ndarray] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = np.asarray(value)
    return flat


def unflatten(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of :func:`flatten`."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return nested


def load_numpy_policy(path: Path, scaled: bool = False) -> Callable[[np.ndarray], np.ndarray]:
    """The deterministic policy as a function on NumPy arrays.

    Args:
      path: ``policy.safetensors`` or its folder.
      scaled: stretch actions to :func:`action_bounds`, for actuators; environments of this package
        do that themselves.

    Returns:
      ``act(obs)``: observations [..., obs] to actions [..., action] in [-1, 1] or ``scaled``,
      float32; to the numbers [...] of the choices, int64, where actions are choices.

    Raises:
      ValueError: if the file is damaged, or holds a kind of network this version does not know.
    """
    return numpy_policy(*read_policy(path), scaled)


def numpy_policy(
    tensors: Mapping[str, np.ndarray], header: Mapping[str, Any], scaled: bool = False
) -> Callable[[np.ndarray], np.ndarray]:
    """What :func:`load_numpy_policy` gives, from a policy that has been read.

    Raises:
      ValueError: for a kind of network that this version does not know.
    """
    network = mlp_network(header)
    choose = network["squash"] == "argmax"
    bounds = action_bounds(header) if scaled and not choose else None
    activation = _ACTIVATIONS[network["activation"]]

    def act(obs: np.ndarray) -> np.ndarray:
        scaled = (obs - tensors["normalizer/mean"]) / tensors["normalizer/std"]
        x = np.clip(scaled, -network["obs_clip"], network["obs_clip"]).astype(np.float32)
        for i in range(network["num_layers"]):
            layer = f"policy/mlp/layer_{i}"
            x = x @ tensors[f"{layer}/kernel"] + tensors[f"{layer}/bias"]
            if i < network["num_layers"] - 1:
                x = activation(x)
        outputs = x[..., : network["action_size"]]
        if choose:
            return outputs.argmax(axis=-1)
        actions = np.tanh(outputs)
        return actions if bounds is None else stretch(actions, *bounds)

    return act


def action_bounds(header: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """What -1 and 1 of each action become in the policy's own environment.

    Args:
      header: of a policy that does not choose. Its ``action_range`` holds ``low`` and ``high``, a
        number for each action; older files hold one pair of numbers for all of them.

    Returns:
      Lowest and highest values, float64 [action].

    Raises:
      ValueError: for a range that is empty or does not fit the actions.
    """
    given = header.get("action_range", (-1.0, 1.0))
    try:
        low, high = (given["low"], given["high"]) if isinstance(given, Mapping) else given
        size = (header["network"]["action_size"],)
        low, high = (np.broadcast_to(np.asarray(bound, np.float64), size) for bound in (low, high))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the policy's action range does not fit its actions: {given}") from error
    if not (np.isfinite([low, high]).all() and (low <= high).all()):
        raise ValueError(f"the policy's action range is empty: {given}")
    return low, high


def stretch(actions: np.ndarray, low: Any, high: Any) -> np.ndarray:
    """Actions in [-1, 1] between ``low`` and ``high``, each [action] or a number; float32.

    Example:
      >>> stretch(np.float32([-1.0, 0.0, 1.0]), -2.0, [2.0, 4.0, 8.0])
      array([-2.,  1.,  8.], dtype=float32)
    """
    unit = 0.5 * (np.asarray(actions, np.float64) + 1.0)
    return np.asarray(low + unit * np.subtract(high, low), np.float32)


def mlp_network(header: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a policy's network, see :func:`robotics.networks.policy_spec`.

    Raises:
      ValueError: unless it is the kind of network that every exporter here knows.
    """
    network = dict(header["network"])
    kind = network.get("kind")
    if kind != "mlp":
        raise ValueError(f"the policy has a network of an unknown kind: {kind!r}, not 'mlp'")
    for name, valid in (("activation", tuple(_ACTIVATIONS)), ("squash", ("tanh", "argmax"))):
        if network.get(name) not in valid:
            known = ", ".join(map(repr, valid))
            raise ValueError(
                f"the policy's network has an unknown {name}: {network.get(name)!r}, not {known}"
            )
    return network


def mlp_layers(
    tensors: Mapping[str, np.ndarray], network: Mapping[str, Any]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernel [inputs, outputs] and bias [outputs] of every layer, from the input to the output."""
    names = [f"policy/mlp/layer_{i}" for i in range(network["num_layers"])]
    return [(tensors[f"{name}/kernel"], tensors[f"{name}/bias"]) for name in names]
