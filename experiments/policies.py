# SPDX-License-Identifier: Apache-2.0
"""PPO runs as inner problems: what teaches the optimizer about policies instead of classifiers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

import envs
from envs.api import EpisodeWrapper
from mnemosyne.learned import LearnedOptimizer, Theta
from mnemosyne.meta.estimators import System
from robotics.algorithm import Algorithm, TrainState
from robotics.networks import NetworkConfig
from robotics.ppo import PPOConfig, make_ppo


class PolicyProblem(NamedTuple):
    """One policy problem of fixed size.

    Attributes:
      name: env and size; goes into artifact headers.
      env: the wrapped environment.
      config: of PPO; one of its chunks is one truncation, and a run is one inner problem.
      best_return: about what a good policy reaches, for normalisation.
    """

    name: str
    env: EpisodeWrapper
    config: PPOConfig
    best_return: float

    def algorithm(self, optimizer: optax.GradientTransformation) -> Algorithm:
        """PPO on this problem with any optimizer."""
        return make_ppo(self.env, self.config, optimizer)

    def loss(self, metrics: dict[str, Array]) -> Float[Array, ""]:
        """One minus the normalised return of the chunk's episodes; a diverged run scores 2."""
        loss = 1.0 - metrics["episode/sum_reward"] / self.best_return
        return jnp.where(jnp.isfinite(loss), loss, 2.0)


def make_problem(
    env_name: str,
    episode_length: int,
    rollouts: int,
    chunk: int,
    best_return: float,
    width: int = 64,
    **config: Any,
) -> PolicyProblem:
    """A problem of ``rollouts`` rollouts, ``chunk`` of them between two outer updates."""
    sizes = PPOConfig(**config)
    settings = PPOConfig(
        **config,
        num_timesteps=rollouts * sizes.batch_size,
        num_evaluations=rollouts // chunk,
        network=NetworkConfig(policy_hidden=(width, width), value_hidden=(width, width)),
    )
    name = f"ppo-{width}x{width}-{settings.num_updates}/{env_name}[{episode_length}]"
    env = EpisodeWrapper(envs.make(env_name), episode_length)
    return PolicyProblem(name, env, settings, best_return)


class Running(NamedTuple):
    """A PPO run on its way, and after how many chunks it ends."""

    train: TrainState
    limit: Int[Array, ""]


def make_system(problem: PolicyProblem, rule: LearnedOptimizer) -> System:
    """A policy problem under the learned optimizer, as the estimators see it."""

    def algorithm(theta: Theta) -> Algorithm:
        return problem.algorithm(rule.transform(theta))

    def reset(theta: Theta, key: Key[Array, ""], fraction: Array | float) -> Running:
        limit = jnp.ceil(fraction * problem.config.num_epochs).astype(jnp.int32)
        return Running(algorithm(theta).init(key), limit)

    def advance(theta: Theta, state: Running) -> tuple[Running, Float[Array, ""]]:
        moved, metrics = algorithm(theta).epoch(state.train)
        return state._replace(train=moved), problem.loss(metrics)

    def finished(state: Running) -> Array:
        return state.train.epoch >= state.limit

    return System(reset, advance, finished)


def learning_curve(
    problem: PolicyProblem, optimizer: optax.GradientTransformation, keys: Array
) -> Float[Array, "seeds chunks"]:
    """Normalised training returns of whole runs: 1 is about the best there is."""
    algorithm = problem.algorithm(optimizer)

    def run(key: Key[Array, ""]) -> Float[Array, " chunks"]:
        def step(state: TrainState, _: None) -> tuple[TrainState, Array]:
            state, metrics = algorithm.epoch(state)
            return state, 1.0 - problem.loss(metrics)

        return jax.lax.scan(step, algorithm.init(key), None, problem.config.num_epochs)[1]

    return jax.vmap(run)(keys)


def make_check(
    problems: list[PolicyProblem], rule: LearnedOptimizer, num_seeds: int = 8
) -> Callable[[Theta], list[dict[str, Any]]]:
    """Validation on whole runs of fresh seeds, beside Adam 3e-4 on the same ones."""
    keys = jax.random.split(jax.random.key(0x5EED), num_seeds)
    adam = {
        p.name: float(
            jnp.mean(jax.jit(lambda k, p=p: learning_curve(p, optax.adam(3e-4), k))(keys))
        )
        for p in problems
    }
    compiled = {
        p.name: jax.jit(lambda theta, p=p: learning_curve(p, rule.transform(theta), keys))
        for p in problems
    }

    def check(theta: Theta) -> list[dict[str, Any]]:
        rows = []
        for name, function in compiled.items():
            curve = function(theta)
            area, final = float(jnp.mean(curve)), float(jnp.mean(curve[:, -1]))
            rows.append(
                {
                    "task": name,
                    "score": adam[name] - area,
                    "mean_return": area,
                    "adam_mean_return": adam[name],
                    "final_return": final,
                }
            )
        return rows

    return check
