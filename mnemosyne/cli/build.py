# SPDX-License-Identifier: Apache-2.0
"""From the flags of ``train`` to environment, optimizer, algorithm: where all packages meet."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import optax

from mnemosyne.cli import parse

if TYPE_CHECKING:
    from envs.api import EpisodeWrapper, HostEnv
    from mnemosyne.cli.train import Train
    from robotics.algorithm import Algorithm, HostAlgorithm

RIVAL = "evosax:"  # an --optimizer with this prefix is a strategy of evosax


class Built(NamedTuple):
    """What a run is made of.

    Attributes:
      env: environment with its time limit; one that JAX cannot trace has its own.
      backend: its physics backend, if it has one.
      optimizer: the transformation in the slot; ``None`` for a strategy of evosax, which has none.
      algorithm: PPO or ES with it.
      identity: every setting that a checkpoint must agree on.
      policy_info: what ``policy.json`` says about the policy's world.
    """

    env: EpisodeWrapper | HostEnv
    backend: str | None
    optimizer: optax.GradientTransformation | None
    algorithm: Algorithm | HostAlgorithm
    identity: dict[str, Any]
    policy_info: dict[str, Any]


def build(config: Train) -> Built:
    """Builds everything that a run needs; allocates nothing large.

    Raises:
      ValueError: unknown env, optimizer or weights, settings that do not fit together.
    """
    import envs
    from envs.api import EpisodeWrapper, HostEnv
    from mnemosyne import telemetry
    from mnemosyne.cli.warm import less_probe
    from robotics import sharding
    from robotics.es import ESConfig, make_es
    from robotics.ppo import PPOConfig, make_host_ppo, make_ppo

    inner = envs.make(
        config.env,
        backend=config.backend,
        episode_length=config.episode_length,
        randomize=config.randomize,
    )
    on_host = isinstance(inner, HostEnv)
    mesh = sharding.make_mesh(1 if on_host and config.devices is None else config.devices)
    if on_host and mesh is not None:
        raise ValueError(f"{config.env} does not run inside JAX, so that it has --devices 1 only")
    env = inner if on_host else EpisodeWrapper(inner)
    if on_host and config.algo != "ppo":
        raise ValueError(
            f"--algo {config.algo} needs an environment that runs inside JAX, and {config.env} "
            "does not; use --algo ppo"
        )
    counts = {"num_timesteps": config.num_timesteps, "num_evaluations": config.num_evaluations}
    make: Any
    algo: Any
    if config.algo == "ppo":
        make = make_host_ppo if on_host else make_ppo
        algo = less_probe(parse.from_flags(PPOConfig, config.ppo, **counts), config.warm_probe)
    else:
        make, algo = make_es, parse.from_flags(ESConfig, config.es, **counts)
    optimizer = sha256 = None
    parts: tuple[Any, ...]
    if config.optimizer.startswith(RIVAL):
        make, parts = _rival(config), (config.optimizer.removeprefix(RIVAL), config.learning_rate)
    else:
        # Episodes of ES end when they end, so it cannot know its number of updates beforehand.
        optimizer, sha256 = make_optimizer(config, getattr(algo, "num_updates", None))
        parts = (optimizer,)
    return Built(
        env=env,
        backend=getattr(inner, "backend", None),
        optimizer=optimizer,
        algorithm=make(env, algo, *parts, telemetry, *([] if on_host else [mesh])),
        identity=_identity(config, sha256),
        policy_info=_policy_info(config, inner),
    )


def _rival(config: Train) -> Any:
    """What makes an algorithm of a strategy of evosax.

    Raises:
      ValueError: for PPO, which has no population.
    """
    from robotics.es import make_rival

    if config.algo != "es":
        raise ValueError(f"--optimizer {config.optimizer} is an evolution strategy: add --algo es")
    if config.warm_start is not None or config.hand_over is not None:
        raise ValueError(
            f"--optimizer {config.optimizer} begins and goes on by its own rule: leave out "
            "--warm-start and --hand-over"
        )
    return make_rival


def make_optimizer(
    config: Train, num_updates: int | None
) -> tuple[optax.GradientTransformation, str | None]:
    """The optimizer that the flags name, and the hash of its meta-parameters if it has any.

    Raises:
      ValueError: unknown name, weights, or a learning rate where there is none.
    """
    import mnemosyne
    from mnemosyne.cli.warm import make_hand_over
    from robotics import optimizers

    if config.hand_over is not None:
        return make_hand_over(config, num_updates)
    if config.optimizer != "mnemosyne":
        _check_name(config.optimizer, [*optimizers.list_optimizers(), "mnemosyne"])
        rate = config.learning_rate
        return optimizers.make_optimizer(config.optimizer, rate, num_updates, config.algo), None
    factor = 1.0 if config.learning_rate is None else config.learning_rate
    weights = weights_of(config)
    made = mnemosyne.mnemosyne(weights, total_steps=num_updates, learning_rate=factor)
    return made, mnemosyne.load(weights).tensor_sha256


def weights_of(config: Train) -> str:
    """The meta-parameters that Mnemosyne has under these flags, by name or file."""
    return config.weights or ("mnemosyne-base" if config.algo == "es" else "mnemosyne-rl")


def _check_name(name: str, valid: list[str]) -> None:
    """Refuses an unknown name here, where Mnemosyne itself is among the valid ones."""
    if ":" not in name and name not in valid:
        best = parse.nearest(name, valid)
        raise ValueError(f"unknown optimizer {name!r}; the nearest valid one is {best!r}")


def _identity(config: Train, sha256: str | None) -> dict[str, Any]:
    """Every setting that has a part in what is learned, flat, as JSON knows it."""
    from mnemosyne.cli.train import FREE
    from robotics.run_folder import plain

    settings = dataclasses.asdict(config)
    other = "es" if config.algo == "ppo" else "ppo"
    kept = {name: value for name, value in settings.items() if name not in (*FREE, other)}
    return plain(kept | {"weights_sha256": sha256})


def _policy_info(config: Train, env: Any) -> dict[str, Any]:
    """Where a policy is at home."""
    return {
        "env": config.env,
        "backend": getattr(env, "backend", None),
        "algo": config.algo,
        "optimizer": config.optimizer,
        "observation_size": env.observation_size,
        "action_size": env.action_size,
        "action_range": _action_range(env),
        "dt": env.dt,
        "episode_length": env.episode_length,
    }


def _action_range(env: Any) -> list[int] | dict[str, list[float]]:
    """First and last choice, or what -1 and 1 of each entry of an action become."""
    from envs.api import action_bounds

    if getattr(env, "discrete", False):
        return [0, env.action_size - 1]
    low, high = action_bounds(env)
    return {"low": low.tolist(), "high": high.tolist()}
