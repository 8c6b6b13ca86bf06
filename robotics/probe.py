# SPDX-License-Identifier: Apache-2.0
"""A short probe before a run: the optimizer sees gradients and takes no step.

It fills the normalizer of observations and whatever the optimizer remembers, moments included. Its
env steps are part of the budget.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from robotics import programs
from robotics.algorithm import Algorithm, HostAlgorithm
from robotics.ppo.config import PPOConfig

MAX_SHARE = 0.01
"""Of the budget."""


def probe_config(config: PPOConfig, share: float) -> PPOConfig:
    """Settings of a probe: PPO in the same environments, each rollout read once.

    Args:
      config: of the run without a probe.
      share: of its budget, in (0, 0.01].

    Raises:
      ValueError: for another share, or one that is less than a step of every environment.
    """
    if not 0 < share <= MAX_SHARE:
        raise ValueError(f"--warm-probe is {share:g}, but it must lie in (0, {MAX_SHARE:g}]")
    steps = int(share * config.num_timesteps) // config.num_envs
    if steps < 1:
        least = math.ceil(config.num_envs / share)
        raise ValueError(
            f"{share:.2g} of {config.num_timesteps:,} env steps is less than one step of each of "
            f"{config.num_envs} environments; use --num-timesteps {least} or more, or no probe"
        )
    length = min(steps, config.unroll_length)
    return dataclasses.replace(
        config,
        unroll_length=length,
        num_timesteps=steps // length * length * config.num_envs,
        num_evaluations=1,
        num_minibatches=math.gcd(length * config.num_envs, config.num_minibatches),
        num_updates_per_batch=1,  # parameters stand still: a second pass would see nothing new
    )


def after_probe(config: PPOConfig, share: float) -> PPOConfig:
    """Settings of the run that follows, with what the probe leaves of the budget.

    Raises:
      ValueError: see :func:`probe_config`.
    """
    left = config.num_timesteps - probe_config(config, share).total_env_steps
    return dataclasses.replace(config, num_timesteps=left)


def standing_still(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """The same optimizer, whose state moves and whose updates are zero.

    It is told that the run is at its beginning: the end of a probe is not the end of a run.
    """
    inner = optax.with_extra_args_support(optimizer)

    def update(
        updates: optax.Updates, state: PyTree, params: optax.Params | None = None, **extras: object
    ) -> tuple[optax.Updates, PyTree]:
        told = extras | {"progress": jnp.zeros(())} if "progress" in extras else extras
        moved, state = inner.update(updates, state, params, **told)
        return jax.tree.map(jnp.zeros_like, moved), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def run_probe(algorithm: Algorithm | HostAlgorithm, state: PyTree) -> PyTree:
    """Probes with all seeds side by side.

    Args:
      algorithm: made with :func:`probe_config` and an optimizer that is :func:`standing_still`.
      state: of the run that follows, all seeds (a leading axis), before its first update.

    Returns:
      The state with what was learned; updates and chunks are counted from here on.
    """
    if isinstance(algorithm, HostAlgorithm):
        epoch = algorithm.open(state)[0]
        probed, _ = epoch(state, lambda: None)
    else:
        compiled, _ = programs.compile_timed(jax.vmap(algorithm.epoch), state)
        probed, _ = compiled(state)
    return probed._replace(updates=state.updates, epoch=state.epoch, carried=state.carried)
