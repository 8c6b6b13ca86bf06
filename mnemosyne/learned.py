# SPDX-License-Identifier: Apache-2.0
"""What meta-training and benchmarks need to know of a learned optimizer, ours or a baseline's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import optax
from jaxtyping import Array, Key

from mnemosyne.config import MnemosyneConfig
from mnemosyne.optimizer import init_meta_params, scale_by_mnemosyne

Theta = Any


class LearnedOptimizer(NamedTuple):
    """A family of optax transformations with meta-parameters.

    Attributes:
      name: short and stable, such as ``"mnemosyne"`` or ``"lstm"``.
      init: ``init(key) -> theta``, untrained meta-parameters, a pytree of float32 arrays.
      transform: ``transform(theta)`` is the complete update, step size and sign included; it must
        work under ``vmap`` over theta and accept optax's extra arguments.
      fixed: names of the entries of theta that meta-training must leave as they are.
    """

    name: str
    init: Callable[[Key[Array, ""]], Theta]
    transform: Callable[[Theta], optax.GradientTransformationExtraArgs]
    fixed: tuple[str, ...] = ()


def mnemosyne_rule(config: MnemosyneConfig) -> LearnedOptimizer:
    """Our own network as a :class:`LearnedOptimizer`."""
    return LearnedOptimizer(
        "mnemosyne",
        functools.partial(init_meta_params, config=config),
        functools.partial(scale_by_mnemosyne, config=config),
        fixed=("directions",),
    )
