# SPDX-License-Identifier: Apache-2.0
"""What every optimizer is compared on: an environment, an algorithm and all of its settings.

Settings are written down here and not taken from the presets of ``mnemosyne train``: those are
there to be improved, these are there to stay. Bodies of the hold-out share the settings that were
found on the hopper.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from envs.api import EpisodeWrapper
from experiments.variety import ScaledRewards
from robotics.algorithm import Algorithm
from robotics.es.config import ESConfig
from robotics.networks import NetworkConfig
from robotics.ppo.config import PPOConfig

Algo = Literal["ppo", "es"]
EVALUATIONS = 25
"""Evaluations a run, after the one of the untrained policy: two are in the last 5 % of the run."""
EVALUATION_EPISODES = 8
"""Episodes of an evaluation."""

# What a stored number depends on. A field that is added later is left out as long as it has its
# default, which has to mean what was done before; the trainer's fingerprint tells if it does not.
_NETWORK = ("policy_hidden", "value_hidden", "activation", "noise", "init_std")
_FIELDS: dict[str, tuple[str, ...]] = {
    "ppo": (
        "num_timesteps",
        "num_evaluations",
        "num_envs",
        "unroll_length",
        "num_minibatches",
        "num_updates_per_batch",
        "discount",
        "gae_lambda",
        "clipping_epsilon",
        "value_cost",
        "entropy_cost",
        "reward_scaling",
        "normalize_rewards",
        "normalize_observations",
        "normalize_advantages",
    ),
    "es": (
        "num_timesteps",
        "num_evaluations",
        "population_size",
        "episodes_per_member",
        "perturbation_std",
        "normalize_observations",
    ),
}


class Cell(NamedTuple):
    """One thing to train.

    Attributes:
      env_name: registry name.
      backend: physics backend, ``None`` where there is none to choose.
      episode_length: time limit, env steps.
      config: of PPO or ES.
      label: what it is called in tables; the name of the environment unless something is varied.
      episodes: of an evaluation.
      withheld: whether the optimizer is told nothing but gradients and parameters.
      reward_factor: of the rewards that training sees, before any normalization; evaluations see
        the environment's own.
      halved: whether the optimizer is given gradients rounded to bfloat16.
    """

    env_name: str
    backend: str | None
    episode_length: int
    config: PPOConfig | ESConfig
    label: str
    episodes: int = EVALUATION_EPISODES
    withheld: bool = False
    reward_factor: float = 1.0
    halved: bool = False

    @property
    def algo(self) -> Algo:
        """Which algorithm."""
        return "ppo" if isinstance(self.config, PPOConfig) else "es"

    @property
    def num_updates(self) -> int | None:
        """Optimizer updates of a run; ``None`` where episodes decide."""
        return self.config.num_updates if isinstance(self.config, PPOConfig) else None

    def env(self) -> EpisodeWrapper:
        """The environment with its time limit."""
        import envs

        inner = envs.make(self.env_name, backend=self.backend, episode_length=self.episode_length)
        return EpisodeWrapper(inner)

    def algorithm(self, env: EpisodeWrapper, optimizer: optax.GradientTransformation) -> Algorithm:
        """The algorithm with any optimizer in its slot."""
        from robotics.es import make_es
        from robotics.ppo import make_ppo

        if self.withheld:
            optimizer = optax.GradientTransformation(optimizer.init, _plain(optimizer))
        if self.halved:
            optimizer = _with_half_gradients(optimizer)
        if self.reward_factor != 1.0:
            env = dataclasses.replace(env, env=ScaledRewards(env.env, self.reward_factor))
        if isinstance(self.config, PPOConfig):
            return make_ppo(env, self.config, optimizer)
        return make_es(env, self.config, optimizer)

    def description(self) -> dict[str, Any]:
        """Everything about the cell that a stored number depends on."""
        config = {name: getattr(self.config, name) for name in _FIELDS[self.algo]}
        network = {name: _plain_json(getattr(self.config.network, name)) for name in _NETWORK}
        added = {
            name: getattr(self, name) for name in _ADDED if getattr(self, name) != _ADDED[name]
        }
        return {
            **added,
            "env": self.env_name,
            "backend": self.backend,
            "episode_length": self.episode_length,
            "algo": self.algo,
            "config": config,
            "network": network,
            "episodes": self.episodes,
            "withheld": self.withheld,
        }


_ADDED: dict[str, Any] = {"reward_factor": 1.0, "halved": False}
"""Fields of a cell that came later, with what was done before."""


def _with_half_gradients(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer on gradients with the precision of bfloat16; parameters stay as they are.

    They are float32 again, because optax's clipping takes no other dtype beside a traced bound.
    """
    inner = optax.with_extra_args_support(optimizer)

    def update(updates: Any, state: Any, params: Any = None, **extras: Any) -> Any:
        halved = jax.tree.map(lambda g: g.astype(jnp.bfloat16).astype(g.dtype), updates)
        return inner.update(halved, state, params, **extras)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _plain(optimizer: optax.GradientTransformation) -> Any:
    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return optimizer.update(updates, state, params)

    return update


def _plain_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


_LENGTHS = {
    "control:pendulum": 200,
    "control:cartpole": 500,
    "control:cartpole-swingup": 500,
    "control:pointmass": 100,
}
_EPISODE_LENGTH = 1000  # of all others
_ES_LIMIT = 250
"""Longest episode of evolution strategies: 100 generations of 32 members then fit into 800,000 env
steps, and a body gains more by moving than by standing upright for longer."""
_PPO: dict[str, dict[str, Any]] = {
    "brax:inverted_pendulum": {"num_envs": 16, "reward_scaling": 0.1},
    "brax:inverted_double_pendulum": {"reward_scaling": 0.1},
    "control:pendulum": {"num_envs": 16, "normalize_rewards": True},
    "control:cartpole": {"num_envs": 16},
    "control:cartpole-swingup": {"num_envs": 16, "normalize_rewards": True},
    "control:pointmass": {"num_envs": 16, "normalize_rewards": True},
}
_BODIES = {"normalize_rewards": True}  # as found on the hopper


def backend(env_name: str) -> str | None:
    """Physics of Brax: ``spring`` on a processor, ``mjx`` on an accelerator.

    The swimmer has ``generalized`` only; other families have nothing to choose.
    """
    family, _, task = env_name.partition(":")
    if family != "brax":
        return None
    return _brax_backend(task, jax.default_backend() == "cpu")


def _brax_backend(task: str, processor: bool) -> str:
    if task == "swimmer":
        return "generalized"
    return "spring" if processor else "mjx"


def make_cell(
    env_name: str, algo: Algo, rollouts: int, label: str | None = None, **changes: Any
) -> Cell:
    """The cell of an environment.

    Args:
      env_name: registry name.
      algo: ``"ppo"`` or ``"es"``.
      rollouts: between two of the evaluations of PPO; generations of full episodes for ES.
      label: name in tables.
      **changes: settings that differ from the environment's own.
    """
    length = _LENGTHS.get(env_name, _EPISODE_LENGTH)
    evaluations = changes.pop("num_evaluations", EVALUATIONS)
    config: PPOConfig | ESConfig
    if algo == "ppo":
        fields = {**_PPO.get(env_name, _BODIES), **changes, "num_evaluations": evaluations}
        steps = evaluations * rollouts * PPOConfig(**fields).batch_size
        config = PPOConfig(**{"num_timesteps": steps, **fields})
    else:
        length = min(length, _ES_LIMIT)
        fields = {**changes, "num_evaluations": evaluations}
        steps = evaluations * rollouts * ESConfig(**fields).steps_per_generation(length)
        config = ESConfig(**{"num_timesteps": steps, **fields})
    return Cell(env_name, backend(env_name), length, config, label or env_name)


def scaled_network(config: NetworkConfig, factor: float) -> NetworkConfig:
    """The same networks with hidden layers ``factor`` times as wide."""

    def scaled(widths: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(max(1, round(width * factor)) for width in widths)

    return dataclasses.replace(
        config,
        policy_hidden=scaled(config.policy_hidden),
        value_hidden=scaled(config.value_hidden),
    )
