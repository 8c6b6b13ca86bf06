# SPDX-License-Identifier: Apache-2.0
"""Ablations of trained weights: one part of the network falls silent, all else stays as it is."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mnemosyne import features
from mnemosyne.controller import MetaParams


def _deaf(*names: str) -> Callable[[MetaParams], MetaParams]:
    """Weights that no longer read some of the extras."""
    first = [features.input_row(name, 0) for name in names]
    rows = [row + i for row in first for i in range(features.NUM_EXTRA_FEATURES)]

    def silenced(theta: MetaParams) -> MetaParams:
        deaf = {name: theta[name].at[rows, ...].set(0.0) for name in ("embed", "skip")}
        return theta | deaf

    return silenced


def _without(name: str, leaf: str) -> Callable[[MetaParams], MetaParams]:
    """Weights of which one block adds nothing to the tokens."""

    def silenced(theta: MetaParams) -> MetaParams:
        if name not in theta:
            return theta
        return theta | {name: theta[name] | {leaf: 0.0 * theta[name][leaf]}}

    return silenced


def _zeroed(*names: str) -> Callable[[MetaParams], MetaParams]:
    """Weights of which some arrays are zero."""
    return lambda theta: theta | {name: 0.0 * theta[name] for name in names if name in theta}


PARTS: dict[str, Callable[[MetaParams], MetaParams]] = {
    "actions": _deaf(*features.OF_ACTIONS),
    "progress": _deaf("progress"),
    "extras": _deaf(*features.EXTRAS),
    "memory": _without("memory", "out"),
    "attention": _without("cross", "out"),
    "encoder": _without("encoder", "pool"),
    "residual": _zeroed("residual"),
    "network": _zeroed("heads", "residual"),
    "linear": _zeroed("skip"),
}
"""What can be silenced: what the optimizer is told of actions (the KL divergence and the like), of
the length of the run, of anything; the associative memory; attention across tokens; the encoder of
coordinates; the residual; everything but the linear path from inputs to controls; and that path."""


def silence(theta: MetaParams, part: str) -> MetaParams:
    """Meta-parameters without one of :data:`PARTS`; those that have no such part come back equal.

    Args:
      theta: of ``plus`` mode.
      part: a key of :data:`PARTS`.

    Raises:
      ValueError: for a part that is not there, or weights of a paper mode.

    Example:
      >>> import mnemosyne
      >>> theta = mnemosyne.load("mnemosyne-rl").meta_params
      >>> float(abs(silence(theta, "linear")["skip"]).max())
      0.0
    """
    if part not in PARTS:
        raise ValueError(f"there is no part {part!r}; there are {', '.join(PARTS)}.")
    if "skip" not in theta:
        raise ValueError("only weights of plus mode have parts that can fall silent.")
    return PARTS[part](jax.tree.map(jnp.asarray, theta))
