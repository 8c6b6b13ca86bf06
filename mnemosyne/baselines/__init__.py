# SPDX-License-Identifier: Apache-2.0
"""Published learned optimizers on the interface of our own, to meta-train and compare with."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from mnemosyne.baselines.adafac_mlp import adafac_mlp_rule
from mnemosyne.baselines.celo2 import celo2_rule
from mnemosyne.baselines.lstm import lstm_rule
from mnemosyne.baselines.nn_adam import nn_adam_rule
from mnemosyne.baselines.star import star_rule
from mnemosyne.learned import LearnedOptimizer

BASELINES: dict[str, Callable[[], LearnedOptimizer]] = {
    "lstm": lambda: lstm_rule("paper"),
    "lstm-code": lambda: lstm_rule("code"),
    "lstm-features": lambda: lstm_rule("features"),
    "adafac-mlp": adafac_mlp_rule,
    "star": star_rule,
    "nn-adam": nn_adam_rule,
    "celo2": celo2_rule,
}
"""Every baseline by name, with its published settings."""


def make(name: str) -> LearnedOptimizer:
    """A baseline by name.

    Args:
      name: a key of :data:`BASELINES`.

    Raises:
      ValueError: for an unknown name, with the nearest known one.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> rule = make("nn-adam")
      >>> optimizer = rule.transform(rule.init(jax.random.key(0)))
      >>> params = {"w": jnp.ones(3)}
      >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
    """
    if name not in BASELINES:
        nearest = difflib.get_close_matches(name, BASELINES, 1, 0.0)[0]
        raise ValueError(f"unknown learned baseline {name!r}; did you mean {nearest!r}?")
    return BASELINES[name]()


__all__ = [
    "BASELINES",
    "adafac_mlp_rule",
    "celo2_rule",
    "lstm_rule",
    "make",
    "nn_adam_rule",
    "star_rule",
]
