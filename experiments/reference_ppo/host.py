# SPDX-License-Identifier: Apache-2.0
"""The plain PPO where JAX cannot trace the environment: one seed after the other."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array, Key

from envs.api import HostBatch, HostEnv, HostStep
from experiments.reference_ppo import plain
from robotics.host import env_seeds
from robotics.ppo.config import PPOConfig


def train(
    env: HostEnv, config: PPOConfig, learning_rate: float, key: Key[Array, ""]
) -> plain.Learner:
    """A run of ``config.total_env_steps`` env steps with ``optax.adam``.

    Raises:
      ValueError: where actions are choices, which the plain PPO does not know.
    """
    if env.discrete:
        raise ValueError(f"{env.name} has actions to choose from, the plain PPO has bounded ones.")
    adam = optax.adam(learning_rate)
    act = jax.jit(functools.partial(plain.act, config))
    improve = jax.jit(functools.partial(plain.improve, config, adam))
    key_nets, key_envs, key = jax.random.split(key, 3)
    learner = plain.init(config, (env.observation_size, env.action_size), adam, key_nets)
    running = env.start(config.num_envs)
    try:
        step = running.reset(env_seeds(key_envs[None], config.num_envs).ravel().tolist())
        for _ in range(config.num_epochs * config.rollouts_per_epoch):
            key, key_act, key_improve = jax.random.split(key, 3)
            keys = jax.random.split(key_act, config.unroll_length)
            step, batch = _collect(functools.partial(act, learner), running, step, keys)
            learner = improve(learner, batch, key_improve)
    finally:
        running.close()
    return learner


def _collect(
    act: Any, running: HostBatch, step: HostStep, keys: Key[Array, " T"]
) -> tuple[HostStep, plain.Batch]:
    """A rollout; the environments restart by themselves."""
    rows: list[Any] = []
    for key in keys:
        obs = step.obs
        action, raw, density = act(obs, key)
        step = running.step(np.asarray(action))
        ends = step.termination, step.truncation
        rows.append((obs, raw, density, step.reward, *ends, step.final_obs))
    columns: Any = (np.stack(column) for column in zip(*rows, strict=True))
    return step, plain.Batch(*columns)
