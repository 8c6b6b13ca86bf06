# SPDX-License-Identifier: Apache-2.0
"""The normalised MLP rule of Celo2: a network of 347 numbers decides directions, never sizes.

    d = MLP_30-8-8-3(features / rms over the tensor)[0]
    update = -learning_rate d / rms(d over the tensor)

Moudgil et al. 2026, "Celo2: Towards Learned Optimization Free Lunch", arXiv 2602.19142, in its
``base`` form: the network for all tensors, no orthogonalisation. Decays are fixed, no time and no
loss is read, and the step size is the user's. Two of its three outputs do nothing, as published.
Tensors of more than two axes are normalised as a whole, where the published code does so for every
trailing matrix; vectors repeat their unfactored moments as row and column statistics.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from mnemosyne.baselines import adafactor
from mnemosyne.baselines.adafactor import Block, Decays, Signals
from mnemosyne.learned import LearnedOptimizer

LEARNING_RATE = 1e-3
NUM_SIGNALS = 30
SIZES = (NUM_SIGNALS, 8, 8, 3)
MOMENTUM_DECAYS = (0.9, 0.99, 0.999)
SECOND_DECAY = 0.95
FACTORED_DECAYS = (0.9, 0.99, 0.999)
MAX_GRADIENT = 1000.0
EPS = 1e-9


def init(key: Key[Array, ""]) -> dict[str, Any]:
    """Untrained meta-parameters, 347 numbers."""
    return {"network": adafactor.init_network(key, SIZES)}


def features(signals: Signals) -> list[Array]:
    """The 30 features of every coordinate, in the published order and before normalisation."""
    inverse = jax.lax.rsqrt(signals.v + 1e-8)
    row, col = list(signals.row), list(signals.col)
    return [
        signals.g,
        jnp.clip(signals.g, -0.1, 0.1),
        signals.p,
        *signals.m,
        signals.v,
        *(m * inverse for m in signals.m),
        inverse,
        *(signals.g * scale for scale in signals.scale_g),
        signals.g * inverse,
        *row,
        *col,
        *(jax.lax.rsqrt(r + 1e-8) for r in row),
        *(jax.lax.rsqrt(c + 1e-8) for c in col),
        *(m * scale for m, scale in zip(signals.m, signals.scale_m, strict=True)),
    ]


def scale_by_celo2(
    theta: dict[str, Any], learning_rate: optax.ScalarOrSchedule = LEARNING_RATE
) -> optax.GradientTransformationExtraArgs:
    """The complete update of the normalised rule; extras are ignored.

    Args:
      theta: from :func:`init`.
      learning_rate: root mean square of a tensor's update, or a schedule of it over updates.

    Raises:
      ValueError: from ``update``, without ``params``.
    """
    theta = jax.tree.map(jnp.asarray, theta)
    decays = Decays(
        jnp.asarray(MOMENTUM_DECAYS, jnp.float32),
        jnp.asarray(SECOND_DECAY, jnp.float32),
        jnp.asarray(FACTORED_DECAYS, jnp.float32),
    )

    def rule(block: Block, count: Int[Array, ""]) -> Array:
        rate = learning_rate(count) if callable(learning_rate) else learning_rate
        inputs = adafactor.normalize(features(block.signals), block.rows, EPS)
        direction = adafactor.mlp(theta["network"], inputs, outputs=1)
        scaled = adafactor.normalize(direction, block.rows, EPS)[0]
        return -jnp.asarray(rate, jnp.float32) * scaled

    return adafactor.transformation("celo2", decays, rule, MAX_GRADIENT)


def celo2_rule(learning_rate: optax.ScalarOrSchedule = LEARNING_RATE) -> LearnedOptimizer:
    """The normalised MLP rule for meta-training and benchmarks.

    Args:
      learning_rate: see :func:`scale_by_celo2`; the rule has no step size of its own.
    """
    return LearnedOptimizer("celo2", init, lambda theta: scale_by_celo2(theta, learning_rate))
