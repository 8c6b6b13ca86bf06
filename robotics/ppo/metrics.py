# SPDX-License-Identifier: Apache-2.0
"""The metrics of PPO: of the updates on a rollout, and of the episodes of a chunk; one seed."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from robotics.algorithm import Metrics
from robotics.rollout import Rollout

Stacked = dict[str, Array]
"""Metrics with leading axes of a scan."""

EPISODE_METRICS = ("episode/sum_reward", "episode/length")
"""Metrics of episodes, which keep their last value where no episode ends in a chunk."""


def training_metrics(scalars: Stacked, variance_explained: Array) -> Metrics:
    """Means over the updates of a rollout, under Brax's names where it has them."""
    names = {
        "training/total_loss": "loss",
        "training/policy_loss": "policy_loss",
        "training/v_loss": "v_loss",
        "training/entropy_loss": "entropy_loss",
        "training/entropy": "entropy",
        "training/kl_mean": "kl",
        "training/clip_fraction": "clip_fraction",
        "training/policy_dist_mean_std": "std",
    }
    metrics = {tag: jnp.mean(scalars[name]) for tag, name in names.items() if name in scalars}
    return metrics | {"training/explained_variance": variance_explained}


def finished_episodes(rollout: Rollout) -> Metrics:
    """Sums over the episodes that ended in a rollout, and their number."""
    done = rollout.termination + rollout.truncation
    return {
        "episode/sum_reward": jnp.sum(done * rollout.episode_return),
        "episode/length": jnp.sum(done * rollout.episode_steps),
        "episode/count": jnp.sum(done),
    }


def episode_metrics(stacked: Stacked, carried: Metrics) -> tuple[Metrics, Metrics]:
    """Means over a chunk; those of episodes weigh every finished episode alike."""
    counts = stacked["episode/count"]
    count = jnp.sum(counts)
    metrics = {name: jnp.mean(values) for name, values in stacked.items()}
    metrics["episode/count"] = count
    carried = {
        name: jnp.where(count > 0, jnp.sum(stacked[name]) / jnp.maximum(count, 1.0), carried[name])
        for name in EPISODE_METRICS
    }
    return metrics | carried, carried
