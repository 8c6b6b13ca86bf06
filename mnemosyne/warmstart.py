# SPDX-License-Identifier: Apache-2.0
"""What earlier runs remember, pooled to the tokens of another network.

The memory is additive, so the mean of several memories is the memory of a token that would have
written the mean of their patterns at every step: what tokens that share a slot do anyway. A tensor
takes the memory of the tensor of the same role (its path in the parameter tree), whatever its
shape: tokens are stretches of a tensor, and a new one takes the mean over the old ones that it
overlaps. A tensor without such a predecessor takes the mean over all of its kind. Either way the
mean over a tensor's tokens is that over the tokens it came from, mass included.

Keys and values have a meaning only under the meta-parameters that wrote them: memories must not be
carried from one artifact to another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from mnemosyne import plus
from mnemosyne.artifacts import unflatten
from mnemosyne.config import MnemosyneConfig
from mnemosyne.layout import Layout
from mnemosyne.memory import MemoryState
from mnemosyne.plus import ScaleByMnemosyneState
from mnemosyne.telemetry import find_state

WarmStart = Callable[[Any, optax.Params], Any]
"""``warm_start(old_state, new_params) -> state``."""


def roles(tree: Any) -> tuple[str, ...]:
    """The path of every tensor, in tree order: what it is to the network.

    Example:
      >>> roles({"mlp": {"bias": np.zeros(2), "kernel": np.zeros((3, 2))}})
      ('mlp/bias', 'mlp/kernel')
    """
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths)


def make_warm_start(optimizer: optax.GradientTransformation, config: MnemosyneConfig) -> WarmStart:
    """How a new run begins with the memory of an earlier one.

    Args:
      optimizer: Mnemosyne in ``plus`` mode, alone or inside other transformations.
      config: the configuration of its network.

    Returns:
      ``warm_start(old_state, new_params)``: the optimizer's first state for ``new_params``, but for
      its memory, which comes from the Mnemosyne state inside ``old_state``. Moments are not carried
      over: they are about gradients of parameters that are gone. It raises ValueError where there
      is no such state, or one of another network.
    """

    def warm_start(old_state: Any, new_params: optax.Params) -> Any:
        old = find_state(old_state)
        state = optimizer.init(new_params)
        ours = find_state(state)
        if old is None or ours is None:
            which = "old" if old is None else "new"
            raise ValueError(f"the {which} optimizer has no memory of Mnemosyne in plus mode.")
        pooled = pool_memory(old, ours, config)
        return replace_state(state, ours._replace(memory=pooled))

    return warm_start


def replace_state(state: Any, ours: ScaleByMnemosyneState) -> Any:
    """Puts a Mnemosyne state where there is one inside any optax state."""
    return jax.tree.map(
        lambda leaf: ours if isinstance(leaf, ScaleByMnemosyneState) else leaf,
        state,
        is_leaf=lambda leaf: isinstance(leaf, ScaleByMnemosyneState),
    )


def pool_memory(
    old: ScaleByMnemosyneState, new: ScaleByMnemosyneState, config: MnemosyneConfig
) -> MemoryState:
    """The memory of ``old`` in the slots of ``new``; the same arrays where the networks are alike.

    Args:
      old: what an earlier run has come to.
      new: of another network; its moments say which one.
      config: of both.

    Raises:
      ValueError: if the memories differ in more than their number of slots.
    """
    if old.memory.matrix.shape[1:] != new.memory.matrix.shape[1:]:
        raise ValueError(
            f"the old memory has slots of heads, features and width {old.memory.matrix.shape[1:]}, "
            f"this one {new.memory.matrix.shape[1:]}."
        )
    layouts = [plus.layout_of(state.mu, config) for state in (old, new)]
    weights = pooling_weights(roles(old.mu), layouts[0], roles(new.mu), layouts[1])
    if np.array_equal(weights, np.eye(*weights.shape)):
        return old.memory
    return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, axes=1), old.memory)


def pooling_weights(
    old_roles: Sequence[str], old: Layout, new_roles: Sequence[str], new: Layout
) -> Float[np.ndarray, "new_slots old_slots"]:
    """The share of every old slot in every new one; the shares of a new slot sum to 1.

    Args:
      old_roles: paths of the old tensors, in tree order.
      old: their tokens and slots.
      new_roles: paths of the new tensors.
      new: their tokens and slots.
    """
    by_token = np.zeros((new.num_tokens, old.num_tokens))
    for i, role in enumerate(new_roles):
        if new.tokens[i]:
            rows = slice(new.offsets[i], new.offsets[i + 1])
            by_token[rows] = _sources(role, len(new.shapes[i]), new.tokens[i], old_roles, old)
    slots = np.zeros((old.num_tokens, old.num_slots))
    slots[np.arange(old.num_tokens), old.slots] = 1.0
    shares = np.zeros((new.num_slots, new.num_tokens))
    shares[new.slots, np.arange(new.num_tokens)] = 1.0
    shares /= shares.sum(axis=1, keepdims=True)
    # Rounded, or the thirds of three tokens that share a slot would not quite give it back.
    return np.round(shares @ by_token @ slots, 12).astype(np.float32)


def _sources(
    role: str, ndim: int, tokens: int, old_roles: Sequence[str], old: Layout
) -> Float[np.ndarray, "tokens old_tokens"]:
    """Weights of old tokens in the tokens of one new tensor."""
    found = np.zeros((tokens, old.num_tokens))
    filled = [i for i, count in enumerate(old.tokens) if count]
    if not filled:
        raise ValueError("the old network has no parameters, so there is nothing to remember.")
    for i in filled:
        if old_roles[i] == role:
            found[:, old.offsets[i] : old.offsets[i + 1]] = overlaps(tokens, old.tokens[i])
            return found
    for i in _kin(role, ndim, filled, old_roles, old):
        found[:, old.offsets[i] : old.offsets[i + 1]] = 1.0
    return found / found.sum(axis=1, keepdims=True)


def _kin(
    role: str, ndim: int, filled: list[int], old_roles: Sequence[str], old: Layout
) -> list[int]:
    """Old tensors of a new one's kind: name and axes, else axes, else all there are."""
    axes = [i for i in filled if len(old.shapes[i]) == ndim]
    named = [i for i in axes if old_roles[i].split("/")[-1] == role.split("/")[-1]]
    return named or axes or filled


def overlaps(new: int, old: int) -> Float[np.ndarray, "new old"]:
    """How much of each of ``new`` equal parts of a stretch lies in each of ``old`` equal parts.

    Example:
      >>> overlaps(2, 3).round(2).tolist()
      [[0.67, 0.33, 0.0], [0.0, 0.33, 0.67]]
    """
    starts, others = np.arange(new)[:, None] * old, np.arange(old)[None] * new
    shared = np.minimum(starts + old, others + new) - np.maximum(starts, others)
    return np.maximum(shared, 0) / old


def mean_memory(states: ScaleByMnemosyneState) -> ScaleByMnemosyneState:
    """One state from those of several seeds (a leading axis): memories that are numbers pooled.

    Raises:
      ValueError: if no seed has a memory of finite numbers.
    """
    leaves = [np.asarray(leaf) for leaf in states.memory]
    finite = np.all([np.isfinite(leaf).reshape(len(leaf), -1).all(1) for leaf in leaves], axis=0)
    if not finite.any():
        raise ValueError("the memory of the earlier run is not finite.")
    pooled = MemoryState(*(jnp.asarray(leaf[finite].mean(axis=0)) for leaf in leaves))
    first: Any = jax.tree.map(lambda leaf: leaf[0], states)
    return first._replace(memory=pooled)


def from_leaves(leaves: Mapping[str, Array | np.ndarray]) -> ScaleByMnemosyneState | None:
    """The Mnemosyne state among the leaves of a stored optimizer state, by their paths.

    Only the memory and, for the shapes of the network, the first moment are filled in.

    Args:
      leaves: such as ``{"0/mu/w": ..., "0/memory/matrix": ..., "0/memory/mass": ...}``.

    Returns:
      ``None`` if there is none.
    """
    split = [tuple(path.split("/")) for path in leaves]
    owners = [parts[:-2] for parts in split if parts[-2:] == ("memory", "matrix")]
    # The paper's modes have a memory too, but no moments, and no other network to pool it to.
    heads = {parts[: i + 1] for parts in split for i in range(len(parts))}
    found = [owner for owner in owners if (*owner, "mu") in heads]
    if not found:
        return None
    prefix = "".join(f"{part}/" for part in found[0])
    start, nothing = f"{prefix}mu/", ()
    mine = [path for path in leaves if path.startswith(start)]
    mu = {path.removeprefix(start): np.asarray(leaves[path]) for path in mine}
    parts = (jnp.asarray(leaves[f"{prefix}memory/{name}"]) for name in MemoryState._fields)
    fields: dict[str, Any] = dict.fromkeys(ScaleByMnemosyneState._fields, nothing)
    return ScaleByMnemosyneState(**fields | {"mu": unflatten(mu), "memory": MemoryState(*parts)})
