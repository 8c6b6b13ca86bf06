# SPDX-License-Identifier: Apache-2.0
"""PPO runs as inner problems: what teaches the optimizer about policies instead of classifiers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

import envs
from envs.api import EpisodeWrapper
from experiments import variety
from experiments.variety import Draw, Variety
from mnemosyne.learned import LearnedOptimizer, Theta
from mnemosyne.meta import compiling
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
      best_return: about what a good policy reaches within the time limit, for normalisation.
    """

    name: str
    env: EpisodeWrapper
    config: PPOConfig
    best_return: float

    def algorithm(self, optimizer: optax.GradientTransformation) -> Algorithm:
        """PPO on this problem with any optimizer."""
        return make_ppo(self.env, self.config, optimizer)


def make_problem(
    env: Any,
    episode_length: int,
    rollouts: int,
    chunk: int,
    best_return: float,
    width: int = 64,
    **config: Any,
) -> PolicyProblem:
    """A problem of ``rollouts`` rollouts, ``chunk`` of them between two outer updates.

    ``env`` is a registry name or an environment.
    """
    inner = envs.make(env) if isinstance(env, str) else env
    sizes = PPOConfig(**config)
    settings = PPOConfig(
        **config,
        num_timesteps=rollouts * sizes.batch_size,
        num_evaluations=rollouts // chunk,
        network=NetworkConfig(policy_hidden=(width, width), value_hidden=(width, width)),
    )
    name = f"ppo-{width}x{width}-{settings.num_updates}/{inner.name}[{episode_length}]"
    return PolicyProblem(name, EpisodeWrapper(inner, episode_length), settings, best_return)


class Running(NamedTuple):
    """A PPO run on its way, its conditions, and after how many chunks it ends."""

    train: TrainState
    drawn: Draw
    limit: Int[Array, ""]


def make_system(problem: PolicyProblem, rule: LearnedOptimizer, varied: Variety) -> System:
    """A policy problem under the learned optimizer, as the estimators see it.

    Each chunk has a loss, one minus its normalised return, weighed by
    :func:`experiments.variety.weights`; 2 if the run diverged.

    Args:
      problem: of fixed size.
      rule: the learned optimizer.
      varied: what differs between runs.
    """
    total = problem.config.num_epochs

    def algorithm(theta: Theta, drawn: Draw, limit: Array) -> Algorithm:
        host = variety.varied_host(rule.transform(theta), drawn, limit / total)
        return make_ppo(variety.varied_env(problem.env, drawn), problem.config, host)

    def reset(theta: Theta, key: Key[Array, ""], fraction: Array | float) -> Running:
        key_draw, key_run = jax.random.split(key)
        drawn = variety.draw(key_draw, problem.env, varied)
        limit = jnp.ceil(fraction * total).astype(jnp.int32)
        return Running(algorithm(theta, drawn, limit).init(key_run), drawn, limit)

    def advance(theta: Theta, state: Running) -> tuple[Running, Float[Array, ""]]:
        train, metrics = algorithm(theta, state.drawn, state.limit).epoch(state.train)
        best = problem.best_return * state.drawn.limit / problem.env.time_limit
        gained = metrics["episode/sum_reward"] / (state.drawn.reward * best)
        lost = jnp.where(jnp.isfinite(gained), 1.0 - gained, 2.0)
        return state._replace(train=train), lost * variety.weights(state.train.epoch, state.limit)

    def finished(state: Running) -> Array:
        return state.train.epoch >= state.limit

    return System(reset, advance, finished)


def learning_curve(
    problem: PolicyProblem, optimizer: optax.GradientTransformation, keys: Array
) -> Float[Array, "seeds chunks"]:
    """Normalised training returns of whole runs: 1 is about the best there is, -1 diverged."""
    algorithm = problem.algorithm(optimizer)

    def run(key: Key[Array, ""]) -> Float[Array, " chunks"]:
        def step(state: TrainState, _: None) -> tuple[TrainState, Array]:
            state, metrics = algorithm.epoch(state)
            gained = metrics["episode/sum_reward"] / problem.best_return
            return state, jnp.where(jnp.isfinite(gained), gained, -1.0)

        return jax.lax.scan(step, algorithm.init(key), None, problem.config.num_epochs)[1]

    return jax.vmap(run)(keys)


def make_check(
    problems: list[PolicyProblem], rule: LearnedOptimizer, num_seeds: int = 8
) -> Callable[[Theta], list[dict[str, Any]]]:
    """Validation on whole runs, beside Adam 3e-4 on the same seeds; both by the objective."""
    keys = jax.random.split(jax.random.key(0x5EED), num_seeds)

    def judged(problem: PolicyProblem, optimizer: optax.GradientTransformation) -> Array:
        curve = jnp.mean(learning_curve(problem, optimizer, keys), axis=0)
        weight = jax.vmap(variety.weights, (0, None))(jnp.arange(curve.size), curve.size)
        return jnp.stack([jnp.mean(weight * curve), jnp.mean(curve), curve[-1]])

    # A body takes minutes to compile otherwise.
    jit = functools.partial(jax.jit, compiler_options=compiling.compiler_options())
    adam = {p.name: jit(lambda p=p: judged(p, optax.adam(3e-4)))() for p in problems}
    ours = {p.name: jit(lambda theta, p=p: judged(p, rule.transform(theta))) for p in problems}

    def check(theta: Theta) -> list[dict[str, Any]]:
        return [_row(name, judge(theta), adam[name]) for name, judge in ours.items()]

    return check


def _row(name: str, ours: Float[Array, "3"], adam: Float[Array, "3"]) -> dict[str, Any]:
    """A row of validation from objective, mean and final return of both."""
    (ours_objective, ours_mean, ours_final), (objective, mean, final) = (
        [float(x) for x in found] for found in (ours, adam)
    )
    return {
        "task": name,
        "score": objective - ours_objective,
        "mean_return": ours_mean,
        "adam_mean_return": mean,
        "final_return": ours_final,
        "adam_final_return": final,
    }
