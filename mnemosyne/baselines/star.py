# SPDX-License-Identifier: Apache-2.0
"""STAR: AdafacMLP kept stable by a nominal descent term and a preconditioned output.

    (d, a, a_nominal, a_decay) = MLP_39-4-4-4(features of AdafacMLP)
    update = - step_size d exp(0.001 a) P - nominal exp(0.001 a_nominal) G
             - decay exp(0.001 a_decay) p,      G = mean_k m_k / sqrt(v + 1e-6)

Harrison, Metz & Sohl-Dickstein 2022, "A closer look at learned optimization: stability, robustness,
and inductive biases", arXiv 2209.11208. Its regulariser of the *network's* weights belongs into the
outer optimizer.

The published preconditioner ``P = 1 / sqrt(v + 1e-6)`` is 1000 where a coordinate never saw a
gradient, so dead units drift by the size of their weights within a few steps. The default here,
``P = |m_2| / sqrt(v + 1e-6)`` with the momentum of decay 0.99, is bounded and vanishes there.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from mnemosyne.baselines import adafac_mlp, adafactor
from mnemosyne.baselines.adafactor import Block, Signals
from mnemosyne.learned import LearnedOptimizer

Preconditioner = Literal["momentum", "inverse", "none"]
"""``momentum``: ours, see above; ``inverse``: as published; ``none``: the code's default."""

NOMINAL_STEP = 1e-3
NUM_HEADS = 4
EPS = 1e-6


def init(key: Key[Array, ""], zero_head: bool = True) -> dict[str, Any]:
    """Untrained meta-parameters, 207 numbers.

    Args:
      key: typed PRNG key.
      zero_head: start with the last layer at zero, so that a fresh rule is its nominal term
        exactly; the published code starts at random.
    """
    theta = adafac_mlp.init(key, NUM_HEADS)
    if zero_head:
        theta["network"]["w2"] = jnp.zeros_like(theta["network"]["w2"])
    return theta


def nominal_direction(signals: Signals) -> Array:
    """``AdamAggMo``: the mean over decays of momentum over the root of the second moment."""
    # Spelled out: a reduction over the decays would not be fused, at ten times the cost.
    total = signals.m[0] + signals.m[1] + signals.m[2]
    return total / adafactor.NUM_DECAYS * jax.lax.rsqrt(signals.v + EPS)


def _precondition(signals: Signals, preconditioner: Preconditioner) -> Array:
    if preconditioner == "none":
        return jnp.ones(())
    inverse = jax.lax.rsqrt(signals.v + EPS)
    return inverse if preconditioner == "inverse" else jnp.abs(signals.m[1]) * inverse


def scale_by_star(
    theta: dict[str, Any],
    nominal_step: float | Float[Array, ""] = NOMINAL_STEP,
    step_size: float | Float[Array, ""] = adafac_mlp.STEP_SIZE,
    weight_decay: float = 0.0,
    preconditioner: Preconditioner = "momentum",
) -> optax.GradientTransformationExtraArgs:
    """The complete STAR update; extras are ignored.

    Args:
      theta: from :func:`init`.
      nominal_step: of the hand-designed descent term, about Adam's rate.
      step_size: scale of the learned direction.
      weight_decay: of the parameters, an update; the network scales it by its fourth head.
      preconditioner: of the learned term, see :data:`Preconditioner`.

    Raises:
      ValueError: for an unknown preconditioner; from ``update``, without ``params``.
    """
    if preconditioner not in get_args(Preconditioner):
        names = ", ".join(get_args(Preconditioner))
        raise ValueError(f"preconditioner must be one of {names}, got {preconditioner!r}.")
    theta = jax.tree.map(jnp.asarray, theta)
    scale = adafac_mlp.EXP_SCALE
    outputs = NUM_HEADS if weight_decay else NUM_HEADS - 1

    def rule(block: Block, count: Int[Array, ""]) -> Array:
        signals = block.signals
        direction, magnitude, nominal, *decay = adafac_mlp.heads(theta, block, count, outputs)
        learned = step_size * direction * jnp.exp(scale * magnitude)
        step = learned * _precondition(signals, preconditioner)
        step += nominal_step * jnp.exp(scale * nominal) * nominal_direction(signals)
        if decay:
            step += weight_decay * jnp.exp(scale * decay[0]) * signals.p
        return -step

    return adafactor.transformation("star", adafac_mlp.decays_of(theta), rule)


def star_rule() -> LearnedOptimizer:
    """STAR for meta-training and benchmarks."""
    return LearnedOptimizer("star", functools.partial(init, zero_head=True), scale_by_star)
