# SPDX-License-Identifier: Apache-2.0
"""Domain randomization: another robot in every episode.

A randomization is a function ``randomize(key, model) -> model`` that returns the model with some
arrays replaced by others of the same shape, for example ``model.replace(body_mass=...)``. ``model``
is what the simulator calls one: an ``mjx.Model`` for ``mujoco:`` and ``playground:``, a
``brax.base.System`` for ``brax:``. It is called in ``reset``; the arrays that it changed travel
with the state, so that every episode has its own robot and a restart brings another one.

As everywhere in MuJoCo, constants that its compiler derives (``body_invweight0``, ...) keep the
values of the original model.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

Randomize = Callable[[Key[Array, ""], Any], Any]

INFO = "randomized"
"""Name in ``info`` under which the changed arrays travel."""
_STREAM = 0x72_61_6E_64


def draw(randomize: Randomize, key: Key[Array, ""], model: Any) -> dict[str, Array]:
    """The arrays of a model that a randomization changes, by their path.

    Raises:
      ValueError: the randomization fails, or changes the structure of the model or the shape of an
        array.
    """
    try:
        # Apart from the key of the episode's start, which the environment splits in its own way.
        changed = randomize(jax.random.fold_in(key, _STREAM), model)
    except Exception as error:
        said = str(error).strip().splitlines() or [""]
        raise ValueError(
            f"The randomization fails: {type(error).__name__}: {said[0].rstrip('.')}."
        ) from error
    old, form = jax.tree_util.tree_flatten_with_path(model)
    new, new_form = jax.tree_util.tree_flatten_with_path(changed)
    if form != new_form:
        raise ValueError("The randomization returns another structure than the model's.")
    found = {}
    for (path, before), (_, after) in zip(old, new, strict=True):
        name = jax.tree_util.keystr(path)
        if after is not before:
            if jnp.shape(after) != jnp.shape(before):
                raise ValueError(
                    f"The randomization gives {name.lstrip('.')} the shape {jnp.shape(after)}; "
                    f"it must stay {jnp.shape(before)}."
                )
            found[name] = jnp.asarray(after, jnp.asarray(before).dtype)
    return found


def put(model: Any, changed: dict[str, Array]) -> Any:
    """The model with the arrays that :func:`draw` found."""

    def pick(path: Any, leaf: Any) -> Any:
        return changed.get(jax.tree_util.keystr(path), leaf)

    return jax.tree_util.tree_map_with_path(pick, model) if changed else model


@contextlib.contextmanager
def swapped(owner: Any, attribute: str, model: Any) -> Iterator[None]:
    """Traces with another model in an environment that keeps its model in an attribute."""
    original = getattr(owner, attribute)
    setattr(owner, attribute, model)
    try:
        yield
    finally:
        setattr(owner, attribute, original)


def from_batched(randomization_fn: Callable[[Any, Array], tuple[Any, Any]]) -> Randomize:
    """A randomization from one in the convention of Brax and MuJoCo Playground.

    Args:
      randomization_fn: ``(model, raw keys [n, 2]) -> (models, in_axes)``, where ``in_axes`` is 0
        for the arrays of ``models`` that have a leading axis of n.

    Example:
      >>> double = from_batched(
      ...     lambda model, keys: ({"mass": 2 * model["mass"][None]}, {"mass": 0})
      ... )
      >>> float(double(jax.random.key(0), {"mass": jnp.ones(())})["mass"])
      2.0
    """

    def randomize(key: Key[Array, ""], model: Any) -> Any:
        models, in_axes = randomization_fn(model, jax.random.key_data(key)[None])
        return jax.tree.map(
            lambda axis, leaf: leaf if axis is None else leaf[0],
            in_axes,
            models,
            is_leaf=lambda axis: axis is None,
        )

    return randomize


def load(name: str | Randomize | None) -> Randomize | None:
    """The function that ``module:function`` names; a function, or ``None``, is returned as it is.

    Raises:
      ValueError: it cannot be imported, or is no function.
    """
    if not isinstance(name, str):
        return name
    module, colon, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function) if colon else None
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"randomization {name!r} cannot be imported: {error}.") from error
    if not callable(found):
        raise ValueError(
            f"randomization {name!r} must be 'module:function' of a function (key, model) -> model."
        )
    return found
