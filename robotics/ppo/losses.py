# SPDX-License-Identifier: Apache-2.0
"""The clipped PPO objective (Schulman et al. 2017, arXiv 1707.06347, eq. 7 and 9)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from robotics import distributions, networks
from robotics.algorithm import Metrics
from robotics.ppo.config import PPOConfig


class Minibatch(NamedTuple):
    """Samples of one update.

    Attributes:
      obs: normalized observation.
      raw_action: action before tanh, or the number of the choice.
      log_prob: log-density (or log-probability) of the action when it was taken.
      advantage: how much better than expected it was.
      target: what the value network should say.
      privileged: normalized privileged observation, ``None`` where there is none.
    """

    obs: Float[Array, "batch obs"]
    raw_action: Float[Array, "batch action"]
    log_prob: Float[Array, " batch"]
    advantage: Float[Array, " batch"]
    target: Float[Array, " batch"]
    privileged: Float[Array, "batch privileged"] | None = None


def compute_ppo_loss(
    params: networks.Params, minibatch: Minibatch, config: PPOConfig, discrete: bool = False
) -> tuple[Float[Array, ""], Metrics]:
    """Policy loss + value_cost * value loss - entropy_cost * entropy.

    With r the probability ratio: policy loss = -mean(min(r A, clip(r, 1 - eps, 1 + eps) A)), value
    loss = mean((V - target)^2), and the k3 estimate of the KL divergence from the old policy,
    mean(r - 1 - log r) (Schulman, "Approximating KL divergence", 2020), never negative.

    Args:
      params: ``{"policy": ..., "value": ...}``.
      minibatch: the samples.
      config: settings.
      discrete: whether actions are choices.

    Returns:
      The loss, and scalars ``policy_loss``, ``v_loss`` (weighted), ``entropy_loss`` (weighted),
      ``entropy``, ``kl``, ``clip_fraction`` and, where actions have one, ``std``.
    """
    policy = networks.apply_distribution(params["policy"], minibatch.obs, config.network, discrete)
    log_ratio = policy.log_prob(minibatch.raw_action) - minibatch.log_prob
    ratio = jnp.exp(log_ratio)
    eps = config.clipping_epsilon
    clipped = jnp.clip(ratio, 1.0 - eps, 1.0 + eps)
    policy_loss = -jnp.mean(jnp.minimum(ratio * minibatch.advantage, clipped * minibatch.advantage))
    values = networks.apply_value(
        params["value"], minibatch.obs, config.network, minibatch.privileged
    )
    v_loss = config.value_cost * jnp.mean(jnp.square(values - minibatch.target))
    entropy = jnp.mean(policy.entropy())
    if config.entropy_cost == 0.0:
        # Nobody else takes a gradient times zero out of the program.
        entropy = jax.lax.stop_gradient(entropy)
    entropy_loss = -config.entropy_cost * entropy
    scalars = {
        "policy_loss": policy_loss,
        "v_loss": v_loss,
        "entropy_loss": entropy_loss,
        "entropy": entropy,
        # expm1 keeps what a difference of nearly equal numbers would lose when the ratio is close
        # to 1.
        "kl": jnp.mean(jnp.expm1(log_ratio) - log_ratio),
        "clip_fraction": jnp.mean((jnp.abs(ratio - 1.0) > eps).astype(jnp.float32)),
    }
    if isinstance(policy, distributions.TanhNormal):
        scalars["std"] = jnp.mean(policy.std)
    return policy_loss + v_loss + entropy_loss, scalars


def explained_variance(
    values: Float[Array, "..."], targets: Float[Array, "..."]
) -> Float[Array, ""]:
    """1 - Var(targets - values) / Var(targets), at least -1; 0 where the targets do not vary.

    1 is a perfect value network, 0 as good as a constant. The floor keeps the mean over a chunk
    readable.
    """
    variance = jnp.var(targets)
    unexplained = jnp.var(targets - values) / jnp.maximum(variance, 1e-8)
    return jnp.where(variance > 1e-8, jnp.maximum(1.0 - unexplained, -1.0), 0.0)
