# SPDX-License-Identifier: Apache-2.0
"""Meta-gradient estimators behind one interface: BPTT, and evolution strategies (ES) of four kinds.

A worker owns one inner problem and advances it a truncation (``K`` inner steps) at a time. All
estimators aim at the gradient of a truncation's loss, averaged over the inner problem:

| name | what a worker does | bias | variance |
|---|---|---|---|
| ``bptt`` | differentiates a truncation from a state that it takes as constant | truncation | grows with chaos |
| ``full-es`` | plays whole inner problems under ``theta + eps`` and ``theta - eps`` | none | constant |
| ``truncated-es`` | perturbs one truncation of a shared, unperturbed state | truncation | constant |
| ``pes`` | keeps perturbed states, draws ``eps`` a truncation, weighs by its sum | hysteresis | grows with horizon / K |
| ``es-single`` | keeps perturbed states, draws ``eps`` once an inner problem (also called NRES) | hysteresis | constant |

*None* means none for quadratic losses, else that of smoothing with ``sigma``; *hysteresis* is what
moving ``theta`` during an inner problem costs, none if it is frozen. All ES pairs are antithetic and
share data and resets.

Sources: Vicol et al. 2021, "Unbiased Gradient Estimation in Unrolled Computation Graphs with
Persistent Evolution Strategies", algorithm 2 (PES); Vicol et al. 2023, "Low-Variance Gradient
Estimation in Unrolled Computation Graphs with ES-Single", algorithms 1 (truncated ES) and 2; Metz
et al. 2022, "VeLO" (sign of the difference).
"""  # noqa: E501 - rows of a table cannot be broken

from __future__ import annotations

import difflib
import functools
from typing import get_args

import jax
from jaxtyping import Array, Float, Key

from mnemosyne.meta.estimators import bptt, evolution
from mnemosyne.meta.estimators.interface import (
    Contribution,
    Estimator,
    EstimatorName,
    State,
    System,
    Theta,
)


def make_estimator(
    name: EstimatorName | str,
    sigma: float = 0.01,
    clip: float = float("inf"),
    sign_scale: float | None = None,
) -> Estimator:
    """An estimator by name.

    Args:
      name: one of the table at the top of this module.
      sigma: standard deviation of the perturbations, > 0; ``bptt`` has none.
      clip: bound of a pair's difference, in multiples of the median one (see
        :func:`evolution.pes_gradient`); for ``bptt`` the same bound of a worker's gradient norm.
      sign_scale: if given, > 0, a pair's difference is replaced by its sign times this number
        (VeLO uses 1), which no heavy tail can hurt; not for ``bptt``.

    Raises:
      ValueError: for an unknown name, or a number out of range.

    Example:
      >>> make_estimator("es-single", sigma=0.1).name
      'es-single'
    """
    names = get_args(EstimatorName)
    if name not in names:
        best = (difflib.get_close_matches(name, names, 1, 0.0) or names)[0]
        raise ValueError(f"unknown estimator {name!r}; did you mean {best!r}?")
    if not (sigma > 0 and clip > 0):
        raise ValueError(f"sigma and clip must be positive, got {sigma} and {clip}.")
    if sign_scale is not None and (name == "bptt" or not sign_scale > 0):
        raise ValueError(f"sign_scale must be positive and is not for bptt, got {sign_scale}.")
    if name == "bptt":
        return bptt.make(clip)
    return evolution.make(name, sigma, clip, sign_scale)


def estimate(
    estimator: Estimator,
    system: System,
    theta: Theta,
    mask: Theta,
    states: State,
    keys: Key[Array, " workers"],
    fraction: Array | float = 1.0,
) -> tuple[State, Theta, Float[Array, "workers members"]]:
    """Advances all workers and combines what they learned.

    Args:
      estimator: how.
      system: of what.
      theta: outer parameters.
      mask: like ``theta``: 0 where it stays as it is, else the unit of its changes.
      states: of the workers, leading axis.
      keys: one a worker.
      fraction: of their length that problems are cut to which start now, the same for all workers,
        so that none waits for the others.

    Returns:
      New states, the gradient, and the losses.
    """
    advance = functools.partial(estimator.advance, system, theta, mask)
    states, contributions = jax.vmap(advance, (0, 0, None))(states, keys, fraction)
    return states, estimator.gradient(contributions), contributions.losses


__all__ = [
    "Contribution",
    "Estimator",
    "EstimatorName",
    "System",
    "Theta",
    "estimate",
    "make_estimator",
]
