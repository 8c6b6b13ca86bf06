# SPDX-License-Identifier: Apache-2.0
"""One run on several devices, of one machine or of several: environments and population are split.

Devices form a mesh with one axis. What is many (environments, perturbed policies, rows of a
minibatch) is divided over it, what is one (parameters, optimizer, statistics) is on every device.
Simulators run under ``shard_map``: their loops end when the episodes of one device end, and nothing
is exchanged between steps. Where there is no mesh, every function here does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

AXIS = "devices"
"""Name of the mesh's only axis."""


def make_mesh(num_devices: int | None = None) -> Mesh | None:
    """The devices of a run; ``None`` if it is one.

    Args:
      num_devices: of each process, at least 1; ``None`` takes all local accelerators, or one device
        on the CPU, whose cores are one device.

    Raises:
      ValueError: if a process has fewer.
    """
    here = jax.local_devices()
    if num_devices is None:
        num_devices = 1 if here[0].platform == "cpu" else len(here)
    if num_devices < 1:
        raise ValueError(f"{num_devices} devices were asked for, but it must be at least 1.")
    found = [
        [device for device in jax.devices() if device.process_index == process]
        for process in range(jax.process_count())
    ]
    fewest = min(len(devices) for devices in found)
    if num_devices > fewest:
        raise ValueError(
            f"{num_devices} devices were asked for, but there are {fewest} "
            f"({here[0].platform}); use at most {fewest}."
        )
    chosen = [device for devices in found for device in devices[:num_devices]]
    return None if len(chosen) == 1 else Mesh(np.array(chosen), (AXIS,))


def check_divides(mesh: Mesh | None, what: str, count: int) -> None:
    """Raises ValueError, naming the nearest number that fits, if ``count`` cannot be divided."""
    devices = 1 if mesh is None else mesh.size
    if count % devices:
        nearest = max(devices, round(count / devices) * devices)
        raise ValueError(
            f"{count} {what} cannot be divided among {devices} devices; "
            f"the nearest number that fits is {nearest}."
        )


def over_devices(
    mesh: Mesh | None, function: Callable[..., Any], in_specs: PyTree, out_specs: PyTree
) -> Callable[..., Any]:
    """``function`` on every device's part of its arguments; itself without a mesh."""
    if mesh is None:
        return function
    # The check of replication would have to follow the loops of whole simulators.
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def gathered(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """Inside of :func:`over_devices`: the parts of all devices, one after another."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, AXIS, tiled=True), tree)


def total(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """Inside of :func:`over_devices`: the sum over all devices."""
    return tree if mesh is None else jax.lax.psum(tree, AXIS)


def position(mesh: Mesh | None) -> Array | int:
    """Inside of :func:`over_devices`: the number of this device, from 0."""
    return 0 if mesh is None else jax.lax.axis_index(AXIS)


def divided(mesh: Mesh | None, tree: PyTree, axis: int = 0) -> PyTree:
    """Asks for leaves that are divided along ``axis``."""
    return _constrained(mesh, tree, P(*[None] * axis, AXIS))


def everywhere(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """Asks for leaves that are whole on every device."""
    return _constrained(mesh, tree, P())


def _constrained(mesh: Mesh | None, tree: PyTree, spec: P) -> PyTree:
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, spec))


def state_shardings(mesh: Mesh | None, state: PyTree) -> PyTree:
    """Where the training state of all seeds lies: environments divided, the rest everywhere."""
    if mesh is None:
        return None
    one = jax.tree.map(lambda _: NamedSharding(mesh, P()), state)
    envs = jax.tree.map(lambda _: NamedSharding(mesh, P(None, AXIS)), state.env_state)
    return one._replace(env_state=envs)


def replicated(mesh: Mesh | None) -> NamedSharding | None:
    """Whole on every device."""
    return None if mesh is None else NamedSharding(mesh, P())


def put(mesh: Mesh | None, tree: PyTree, shardings: PyTree = None) -> PyTree:
    """Puts host arrays, the same in every process, on the devices of the run.

    Args:
      mesh: of the run.
      tree: arrays or typed keys.
      shardings: one a leaf; ``None`` means whole on every device.
    """
    if mesh is None:
        return tree
    if shardings is None:
        shardings = jax.tree.map(lambda _: NamedSharding(mesh, P()), tree)
    return jax.tree.map(_put, tree, shardings)


def _put(leaf: Any, sharding: NamedSharding) -> Array:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    array = np.asarray(leaf)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def moved(mesh: Mesh | None, tree: PyTree, shardings: PyTree) -> PyTree:
    """Puts arrays that are on the devices already to where they belong.

    Unlike :func:`put` without the host, which cannot read what other processes hold.

    Args:
      mesh: of the run.
      tree: arrays or typed keys, on all devices of the mesh.
      shardings: one a leaf, or one for all.
    """
    return tree if mesh is None else jax.jit(lambda tree: tree, out_shardings=shardings)(tree)


def whole(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """Divided leaves as whole ones, which the host of every process can read."""
    if mesh is None or jax.process_count() == 1:
        return tree  # the host reads the parts of its own devices as they are
    return moved(mesh, tree, NamedSharding(mesh, P()))


def local(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """Whole leaves on the default device of this process, for programs that are its own."""
    return tree if mesh is None else jax.tree.map(jnp.asarray, jax.device_get(tree))


def any_process(flag: bool) -> bool:
    """Whether ``flag`` is set in any process; all of them must ask."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
