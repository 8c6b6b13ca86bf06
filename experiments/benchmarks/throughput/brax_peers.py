# SPDX-License-Identifier: Apache-2.0
"""Brax's own ``ppo.train`` and ``es.train`` as contestants, under the settings of ours.

What cannot be made equal: Brax starts networks by LeCun's uniform rule, estimates advantages anew
for every minibatch, shuffles pieces of episodes instead of steps, and restarts an environment from
the one state that it began with; its ES acts with noise and simulates every episode to the time
limit.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from envs.api import Env
from experiments.benchmarks.throughput.handed import Handed
from experiments.benchmarks.throughput.race import Turn, UnavailableError
from experiments.benchmarks.throughput.settings import Course
from robotics.networks import NetworkConfig

_RETURN = "eval/episode_reward"


class BraxRun:
    """One call of a ``train`` of Brax; see :class:`race.Contestant`.

    Args:
      train: takes a progress function, and trains.
      judged: whether it evaluates, and so reports once before training.
      quota: env steps of a turn.
      updates: optimizer updates a report; a turn has as many reports as its quota needs.
    """

    compile_s: float | None = None

    def __init__(
        self, train: Callable[[Callable[..., None]], Any], judged: bool, quota: int, updates: int
    ):
        self._quota, self._updates, self._seconds, self._steps = quota, updates, 0.0, 0
        self._turns = 0

        def work(report: Callable[[Any], None]) -> None:
            train(lambda env_steps, metrics: report((int(env_steps), dict(metrics))))

        self._handed = Handed(work)
        if judged:
            self._next()

    def _next(self) -> tuple[int, dict[str, Any]]:
        with _quiet(), _removed_function():
            return self._handed.next()

    def turn(self) -> Turn:
        """Reports until the quota is met."""
        self._turns += 1
        before, began, count = self._steps, self._seconds, 0
        while self._steps < self._turns * self._quota or not count:
            self._steps, metrics = self._next()
            self._seconds, count = float(metrics["training/walltime"]), count + 1
        score = metrics.get(_RETURN)
        taken = self._steps - before
        seconds = self._seconds - began
        return Turn(taken, count * self._updates, seconds, None if score is None else float(score))

    def close(self) -> None:
        """Ends the call."""
        self._handed.stop()


def ppo(course: Course, judged: bool, seed: int) -> BraxRun:
    """``brax.training.agents.ppo.train``."""
    train = _agent("ppo").train
    from brax.training.agents.ppo.networks import make_ppo_networks

    config = course.config
    arguments = {
        **_common(course, judged, seed),
        "num_timesteps": config.total_env_steps,
        "num_evals": config.num_epochs + 1,
        "run_evals": judged,
        "num_envs": config.num_envs,
        "unroll_length": config.unroll_length,
        "batch_size": _trajectories(config),
        "num_minibatches": config.num_minibatches,
        "num_updates_per_batch": config.num_updates_per_batch,
        "discounting": config.discount,
        "gae_lambda": config.gae_lambda,
        "clipping_epsilon": config.clipping_epsilon,
        "entropy_cost": config.entropy_cost,
        # Brax halves the squared error once more.
        "vf_loss_coefficient": 2.0 * config.value_cost,
        "reward_scaling": config.reward_scaling,
        "normalize_advantage": config.normalize_advantages,
        "normalize_observations": config.normalize_observations,
        "network_factory": functools.partial(
            make_ppo_networks,
            policy_hidden_layer_sizes=config.network.policy_hidden,
            value_hidden_layer_sizes=config.network.value_hidden,
            activation=_activation(config.network),
        ),
    }
    updates = config.rollouts_per_epoch * config.updates_per_rollout
    quota = config.env_steps_per_epoch
    return BraxRun(lambda f: train(progress_fn=f, **arguments), judged, quota, updates)


def es(course: Course, seed: int) -> BraxRun:
    """``brax.training.agents.es.train``; a turn has the env steps of a turn of ours."""
    agent = _agent("es")
    from brax.training.agents.es.networks import make_es_networks

    config, budget = course.config, course.config.num_timesteps
    arguments = {
        **_common(course, True, seed),
        # An evaluation, and with it a report, after every generation.
        "num_timesteps": budget,
        "num_evals": budget + 1,
        "population_size": config.population_size // 2,
        "perturbation_std": config.perturbation_std,
        "fitness_shaping": agent.FitnessShaping.CENTERED_RANK,
        "normalize_observations": config.normalize_observations,
        "network_factory": functools.partial(
            make_es_networks,
            hidden_layer_sizes=config.network.policy_hidden,
            activation=_activation(config.network),
        ),
    }
    quota = config.steps_per_generation(course.episode_length)
    return BraxRun(lambda f: agent.train(progress_fn=f, **arguments), True, quota, 1)


def _common(course: Course, judged: bool, seed: int) -> dict[str, Any]:
    """Arguments that both agents take."""
    return {
        "environment": for_brax(course.inner),
        "episode_length": course.episode_length,
        "learning_rate": course.learning_rate,
        "num_eval_envs": course.eval_episodes if judged else 1,
        "deterministic_eval": True,
        "max_devices_per_host": 1,
        "seed": seed,
    }


def _agent(name: str) -> Any:
    """A module with a ``train``.

    Raises:
      UnavailableError: without Brax.
    """
    try:
        with _quiet():
            return importlib.import_module(f"brax.training.agents.{name}.train")
    except ModuleNotFoundError as error:
        raise UnavailableError(f"the package {error.name!r} is not installed") from error


def _trajectories(config: Any) -> int:
    """Brax's batch size: pieces of episodes in a minibatch."""
    if config.num_envs % config.num_minibatches:
        raise UnavailableError(
            f"it cannot divide {config.num_envs} environments among {config.num_minibatches} "
            "minibatches"
        )
    return config.num_envs // config.num_minibatches


def _activation(network: NetworkConfig) -> Any:
    return {"tanh": jnp.tanh, "swish": jax.nn.swish, "relu": jax.nn.relu, "elu": jax.nn.elu}[
        network.activation
    ]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps inside what Brax and its dependencies warn about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _removed_function() -> Iterator[None]:
    """Lets ``ppo.train`` of Brax 0.14 run on JAX >= 0.10, which dropped a function it calls.

    Only the name ``jax`` of that module changes, and only while it runs. Copies have to lie where
    ``pmap`` puts its results, or Brax would compile its training twice.
    """
    module = importlib.import_module("brax.training.agents.ppo.train")

    class _WithReplicated:
        """``jax`` with ``device_put_replicated``."""

        def __getattr__(self, name: str) -> Any:
            return getattr(jax, name)

        @staticmethod
        def device_put_replicated(tree: Any, devices: list[Any]) -> Any:
            copies = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(devices)), tree)
            return jax.pmap(lambda leaf: leaf, axis_name=module._PMAP_AXIS_NAME)(copies)

    before: Any = module.jax
    module.jax = _WithReplicated()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        module.jax = before  # pyright: ignore[reportAttributeAccessIssue]


def for_brax(env: Env) -> Any:
    """An environment as Brax knows it: its own one, or ours in its clothes."""
    inner = getattr(env, "brax_env", None)
    if inner is not None:
        return inner
    with _quiet():
        from brax.envs.base import Env as BraxEnv
        from brax.envs.base import State as BraxState

    def dressed(state: Any, metrics: Any, info: Any) -> Any:
        return BraxState(state, state.obs, state.reward, state.done, metrics, info)

    class Dressed(BraxEnv):
        """Raw keys outside, typed ones inside; our state takes the place of Brax's physics."""

        observation_size = property(lambda self: env.observation_size)
        action_size = property(lambda self: env.action_size)
        backend = property(lambda self: "none")

        def reset(self, rng: Any) -> Any:
            return dressed(env.reset(jax.random.wrap_key_data(rng)), {}, {})

        def step(self, state: Any, action: Any) -> Any:
            return dressed(env.step(state.pipeline_state, action), state.metrics, state.info)

    return Dressed()
