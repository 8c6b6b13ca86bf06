# SPDX-License-Identifier: Apache-2.0
"""evosax's own OpenAI-ES on its own Brax problem as a contestant, generation by generation."""

from __future__ import annotations

import importlib
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from experiments.benchmarks.throughput.race import Turn, UnavailableError
from experiments.benchmarks.throughput.settings import Course
from robotics.algorithm import Policy
from robotics.evaluate import make_evaluate


class EvosaxRun:
    """One run; see :class:`race.Contestant`.

    A generation simulates every episode to the time limit; env steps count to the first end.

    Args:
      course: where.
      seed: of the run.

    Raises:
      UnavailableError: without evosax, or outside of Brax's environments.
    """

    def __init__(self, course: Course, seed: int):
        family, _, task = course.env.partition(":")
        if family != "brax":
            raise UnavailableError("its Brax problem has Brax's environments only")
        config = course.config
        problem = _problem(task, course)
        self._quota = config.steps_per_generation(course.episode_length)
        self._turns = self._steps = 0
        keys = jax.random.split(jax.random.key(seed), 4)
        solution = problem.sample(keys[0])
        strategy = _strategy(config, solution, course.learning_rate)
        settings = strategy.default_params
        self._state = strategy.init(keys[1], solution, settings), problem.init(keys[2]), keys[3]
        began = time.perf_counter()
        generation = jax.jit(lambda state: _generation(problem, strategy, settings, state))
        self._generation = generation.lower(self._state).compile()
        self.compile_s: float | None = time.perf_counter() - began

        def act(params: PyTree, obs: Array, key: Array, deterministic: bool) -> Array:
            mean, statistics = params
            return problem.policy.apply(mean, problem.normalize_obs(obs, statistics), key)

        policy = Policy(act, {"kind": "evosax"})
        self._evaluate = jax.jit(make_evaluate(course.wrapped, policy, course.eval_episodes))
        self._mean = jax.jit(strategy.get_mean)

    def turn(self) -> Turn:
        """Generations until the quota of running env steps is met."""
        self._turns += 1
        before, count = self._steps, 0
        began = time.perf_counter()
        while self._steps < self._turns * self._quota:
            self._state, steps = self._generation(self._state)
            self._steps, count = self._steps + int(steps), count + 1
        seconds = time.perf_counter() - began
        strategy_state, statistics, key = self._state
        found = self._evaluate((self._mean(strategy_state), statistics), key)
        score = float(found["episode_return"].mean())
        return Turn(self._steps - before, count, seconds, score)

    def close(self) -> None:
        """Nothing is left open."""


def _problem(task: str, course: Course) -> Any:
    """Episodes of Brax as evosax plays them."""
    try:
        networks, problems = (
            importlib.import_module(f"evosax.problems.{name}") for name in ("networks", "rl.brax")
        )
    except ModuleNotFoundError as error:
        raise UnavailableError(f"the package {error.name!r} is not installed") from error
    config = course.config
    activation = {"tanh": jnp.tanh, "swish": jax.nn.swish, "relu": jax.nn.relu, "elu": jax.nn.elu}
    network = networks.MLP(
        layer_sizes=(*config.network.policy_hidden, course.inner.action_size),
        activation=activation[config.network.activation],
        output_fn=networks.tanh_output_fn,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return problems.BraxProblem(
            task,
            network,
            course.episode_length,
            config.episodes_per_member,
            config.normalize_observations,
            {"backend": course.backend or "spring"},
        )


def _strategy(config: Any, solution: PyTree, learning_rate: float) -> Any:
    return importlib.import_module("evosax.algorithms").Open_ES(
        population_size=config.population_size,
        solution=solution,
        optimizer=optax.adam(learning_rate),
        std_schedule=optax.constant_schedule(config.perturbation_std),
    )


def _generation(problem: Any, strategy: Any, settings: Any, state: Any) -> tuple[Any, Array]:
    """One population, one update; and its env steps up to the first end of each episode."""
    strategy_state, statistics, key = state
    key, key_ask, key_play, key_tell = jax.random.split(key, 4)
    population, strategy_state = strategy.ask(key_ask, strategy_state, settings)
    fitness, statistics, info = problem.eval(key_play, population, statistics)
    # It minimizes.
    strategy_state, _ = strategy.tell(key_tell, population, -fitness, strategy_state, settings)
    done = info["env_states"].done
    ended_before = jnp.cumsum(done, axis=-1) - done
    return (strategy_state, statistics, key), jnp.sum(ended_before == 0)
