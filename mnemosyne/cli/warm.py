# SPDX-License-Identifier: Apache-2.0
"""Flags of a warm start into what they mean: ``--warm-start`` and its kin, ``--hand-over``.

What a run brings to another one is in :mod:`.takeover`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optax

from mnemosyne.cli import parse
from mnemosyne.cli.takeover import Takeover, make_takeover, uses_mnemosyne

if TYPE_CHECKING:
    from mnemosyne.cli.build import Built
    from mnemosyne.cli.train import Train
    from robotics.ppo import PPOConfig
    from robotics.run import WarmUp

_NEVER = 2**31 - 1  # updates; more than any run has


def settle(config: Train) -> Train:
    """The settings with the weights that ``--warm-start`` brings.

    They are part of the settings so that a run can go on, and be played, when the source is gone.

    Raises:
      ValueError: for flags that contradict each other, or a source that is none.
    """
    if config.warm_start is None:
        if config.warm_parts:
            raise ValueError("--warm-parts says what to take, --warm-start must say from where")
        return config
    if config.resume is not None:
        return config
    return _settle_run(config) if is_run(config.warm_start) else _settle_weights(config)


def is_run(source: str) -> bool:
    """Whether a source is a run folder, or has one below it; otherwise it has to be weights."""
    from robotics.run_folder import CONFIG

    return Path(source).is_dir() and any(Path(source).rglob(CONFIG))


def _settle_run(config: Train) -> Train:
    from mnemosyne.cli.build import weights_of
    from mnemosyne.cli.train import read_config
    from robotics.run_folder import find_run

    source = read_config(find_run(Path(str(config.warm_start))))
    if config.weights is not None or not (uses_mnemosyne(config) and uses_mnemosyne(source)):
        return config
    return dataclasses.replace(config, weights=weights_of(source))


def _settle_weights(config: Train) -> Train:
    import mnemosyne

    source = str(config.warm_start)
    try:
        mnemosyne.load(source)
    except ValueError as error:
        raise ValueError(f"--warm-start {source} is no run, and as weights: {error}") from None
    if not uses_mnemosyne(config):
        raise ValueError(
            f"--warm-start {source} names weights of mnemosyne, which --optimizer "
            f"{config.optimizer} does not read; name a run"
        )
    if config.weights not in (None, source):
        raise ValueError(
            f"--warm-start {source} and --weights {config.weights} are different weights; drop one"
        )
    if config.warm_parts:
        raise ValueError(f"--warm-parts takes parts of a run, but {source} names weights")
    return dataclasses.replace(config, weights=source)


def less_probe(config: PPOConfig, share: float) -> PPOConfig:
    """Settings of PPO with what a probe leaves of the budget.

    Raises:
      ValueError: for a share that cannot be.
    """
    from robotics.probe import after_probe

    return after_probe(config, share) if share else config


def make_hand_over(
    config: Train, num_updates: int | None
) -> tuple[optax.GradientTransformation, str]:
    """Mnemosyne and Adam with a hand-over, and the hash of the meta-parameters.

    Raises:
      ValueError: for another optimizer, weights, or a share outside [0, 1].
    """
    import mnemosyne
    from mnemosyne.cli.build import weights_of
    from robotics import optimizers

    if config.optimizer not in ("mnemosyne", "adam"):
        raise ValueError(
            "--hand-over goes from mnemosyne to adam, or from adam to mnemosyne, not from "
            f"{config.optimizer}"
        )
    artifact = mnemosyne.load(weights_of(config))
    rate = config.learning_rate or optimizers.default_learning_rate("adam", config.algo)
    assert rate is not None and config.hand_over is not None
    made = mnemosyne.hand_over(
        mnemosyne.mnemosyne(weights_of(config), total_steps=num_updates),
        artifact.config,
        share=config.hand_over,
        learning_rate=rate,
        # Evolution strategies know their progress, but not how many updates it takes.
        total_steps=num_updates or _NEVER,
        adam_first=config.optimizer == "adam",
    )
    return made, artifact.tensor_sha256


def make_warm_up(config: Train, built: Built, folder: Path) -> WarmUp | None:
    """What happens to a run's first state; ``None`` where nothing does.

    Raises:
      ValueError: for a source that does not fit, before anything is written.
    """
    from robotics.checkpoint import Checkpointer
    from robotics.run_folder import CHECKPOINTS

    if config.resume is not None and Checkpointer(folder / CHECKPOINTS).steps():
        return None
    takeover = _source(config, built)
    probe, env_steps = _probe(config, built)
    if takeover is None and probe is None:
        return None

    def warm_up(state: Any, say: Callable[[str], None]) -> tuple[Any, int]:
        import jax

        if takeover is not None:
            for line in takeover.lines:
                say(line)
            state = jax.jit(jax.vmap(takeover.transfer))(state)
        if probe is not None:
            from robotics.probe import run_probe

            say(f"probe: {env_steps:,} env steps without an update")
            state = run_probe(probe, state)
        return state, env_steps

    return warm_up


def _source(config: Train, built: Built) -> Takeover | None:
    """What the source of a warm start brings besides weights, which have become settings."""
    if config.warm_start is None:
        return None
    if is_run(config.warm_start):
        return make_takeover(config, built)
    if config.warm_start != config.weights:
        raise ValueError(f"--warm-start {config.warm_start} holds no run any more")
    return Takeover(lambda state: state, [f"warm start with the weights {config.weights}"])


def _probe(config: Train, built: Built) -> tuple[Any, int]:
    """The probe as an algorithm of one chunk, and its env steps."""
    from envs.api import HostEnv
    from robotics.ppo import PPOConfig, make_host_ppo, make_ppo
    from robotics.probe import probe_config, standing_still

    if not config.warm_probe:
        return None, 0
    if config.algo != "ppo":
        raise ValueError("--warm-probe reads rollouts of PPO, which --algo es does not have")
    assert built.optimizer is not None  # only strategies of --algo es have none
    counts = {"num_timesteps": config.num_timesteps, "num_evaluations": config.num_evaluations}
    whole = parse.from_flags(PPOConfig, config.ppo, **counts)
    settings = probe_config(whole, config.warm_probe)
    make: Any = make_host_ppo if isinstance(built.env, HostEnv) else make_ppo
    return make(built.env, settings, standing_still(built.optimizer)), settings.total_env_steps
