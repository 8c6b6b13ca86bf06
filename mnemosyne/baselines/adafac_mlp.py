# SPDX-License-Identifier: Apache-2.0
"""AdafacMLP, also known as small_fc_lopt: 39 features a coordinate, a network of 197 numbers.

    (d, a) = MLP_39-4-4-2(features / rms over the tensor, tanh of the step)
    update = -0.001 d exp(0.001 a)

Metz et al. 2022, "Practical tradeoffs between memory, compute, and performance in learned
optimizers", arXiv 2203.11860. Features, their order, constants and initialisation are those of the
published code; the step features have the ``- 1`` that some descriptions leave out. An untrained
network is a random walk of about 1e-3 a step.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from mnemosyne.baselines import adafactor
from mnemosyne.baselines.adafactor import Block, Decays, Signals
from mnemosyne.learned import LearnedOptimizer

STEP_SIZE = 1e-3
EXP_SCALE = 1e-3
NUM_SIGNALS = 28
TIMESCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
MOMENTUM_DECAYS = (0.9, 0.99, 0.999)
SECOND_DECAY = 0.999
FACTORED_DECAYS = (0.9, 0.99, 0.999)


def init(key: Key[Array, ""], outputs: int = 2, hidden: int = 4) -> dict[str, Any]:
    """Untrained meta-parameters, 197 numbers with the published sizes.

    Args:
      key: typed PRNG key.
      outputs: heads of the network; STAR has four.
      hidden: units of the two hidden layers.
    """
    sizes = (NUM_SIGNALS + len(TIMESCALES), hidden, hidden, outputs)
    return {
        "decays": {
            "momentum": jnp.zeros(len(MOMENTUM_DECAYS), jnp.float32),
            "second": jnp.zeros(1, jnp.float32),
            "factored": jnp.zeros(len(FACTORED_DECAYS), jnp.float32),
        },
        "network": adafactor.init_network(key, sizes),
    }


def decays_of(theta: dict[str, Any]) -> Decays:
    """The learned decay rates, ``1 - exp(10 (log(1 - d0) / 10 + theta))``."""

    def learned(initial: tuple[float, ...], offset: Array) -> Array:
        return 1.0 - (1.0 - jnp.asarray(initial, jnp.float32)) * jnp.exp(10.0 * offset)

    offsets = theta["decays"]
    second = jnp.clip(learned((SECOND_DECAY,), offsets["second"]), 0.0, 1.0)
    factored = jnp.clip(learned(FACTORED_DECAYS, offsets["factored"]), 0.0, 1.0)
    return Decays(learned(MOMENTUM_DECAYS, offsets["momentum"]), second[0], factored)


def features(signals: Signals) -> list[Array]:
    """The 28 features of every coordinate, in the published order and before normalisation."""
    inverse = jax.lax.rsqrt(signals.v + 1e-6)
    row, col = list(signals.row), list(signals.col)
    return [
        signals.g,
        signals.p,
        *signals.m,
        signals.v,
        *(m * inverse for m in signals.m),
        inverse,
        *(signals.g * scale for scale in signals.scale_g),
        *row,
        *col,
        *(jax.lax.rsqrt(r + 1e-8) for r in row),
        *(jax.lax.rsqrt(c + 1e-8) for c in col),
        *(m * scale for m, scale in zip(signals.m, signals.scale_m, strict=True)),
    ]


def step_features(count: Array) -> Float[Array, " 11"]:
    """``tanh(t / tau - 1)`` for tau from 1 to 1e5, appended without normalisation."""
    return jnp.tanh(count.astype(jnp.float32) / jnp.asarray(TIMESCALES, jnp.float32) - 1.0)


def heads(theta: dict[str, Any], block: Block, count: Array, outputs: int) -> list[Array]:
    """The first ``outputs`` heads of the network for every coordinate of a block."""
    inputs = adafactor.normalize(features(block.signals), block.rows, eps=1e-5)
    return adafactor.mlp(theta["network"], inputs, step_features(count), outputs)


def scale_by_adafac_mlp(
    theta: dict[str, Any], step_size: float | Float[Array, ""] = STEP_SIZE
) -> optax.GradientTransformationExtraArgs:
    """The complete AdafacMLP update; extras are ignored.

    Args:
      theta: from :func:`init`.
      step_size: scale of the direction; 1e-3 as published.

    Raises:
      ValueError: from ``update``, without ``params``.
    """
    theta = jax.tree.map(jnp.asarray, theta)

    def rule(block: Block, count: Int[Array, ""]) -> Array:
        direction, magnitude = heads(theta, block, count, 2)
        return -step_size * direction * jnp.exp(EXP_SCALE * magnitude)

    return adafactor.transformation("adafac-mlp", decays_of(theta), rule)


def adafac_mlp_rule() -> LearnedOptimizer:
    """AdafacMLP for meta-training and benchmarks."""
    return LearnedOptimizer("adafac-mlp", init, scale_by_adafac_mlp)
