# SPDX-License-Identifier: Apache-2.0
"""What a run takes over from an earlier one, and what the console says about it.

``robotics`` knows how to take over networks and statistics; what Mnemosyne remembers is added here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from mnemosyne.cli.build import Built
    from mnemosyne.cli.train import Train
    from robotics.warmstart import Source


class Takeover(NamedTuple):
    """What a run takes over.

    Attributes:
      transfer: of the first state of one seed.
      lines: for the console.
    """

    transfer: Callable[[Any], Any]
    lines: list[str]


def uses_mnemosyne(config: Train) -> bool:
    """Whether Mnemosyne has any part in the run."""
    return config.optimizer == "mnemosyne" or config.hand_over is not None


def make_takeover(config: Train, built: Built) -> Takeover:
    """Reads the source and decides what is taken over.

    Raises:
      ValueError: for a source of another algorithm, or without a checkpoint or what is wanted.
    """
    import jax

    from mnemosyne.cli.build import weights_of
    from robotics import warmstart

    source = warmstart.read_source(Path(str(config.warm_start)))
    algo = source.identity.get("algo")
    if algo != config.algo:
        raise ValueError(f"{source.folder} was trained with --algo {algo}, not {config.algo}")
    same_env = source.identity.get("env") == config.env
    parts: list[str] = list(config.warm_parts or warmstart.default_parts(same_env))
    scaled = _other_rewards(built, source)
    read = [part for part in parts if part != "value" or scaled is None]
    template = jax.eval_shape(built.algorithm.init, jax.eval_shape(jax.random.key, 0))
    plan = warmstart.make_plan(source, template, read, config.num_timesteps)
    lines, taken, start = dict(plan.lines), list(plan.taken), None
    if not config.warm_parts and not same_env:
        lines["heads"] = "begin anew, this is another environment"
    if scaled is not None and "value" in parts:
        lines["value"] = scaled
    if "memory" in parts:
        start, lines["memory"] = _memory(config, built, source)
        taken += ["memory"] if start is not None else []
    _check_taken(config, source, taken, lines)
    if uses_mnemosyne(config):
        lines = {"weights": weights_of(config), **lines}
    return Takeover(
        lambda state: warmstart.transfer(state, plan.leaves, start),
        [_headline(source), *(f"  {part}: {line}" for part, line in lines.items())],
    )


def _check_taken(config: Train, source: Source, taken: list[str], lines: dict[str, str]) -> None:
    """Refuses a part that was asked for by name and is not there, and a start with nothing."""
    for part in config.warm_parts:
        if part not in taken:
            raise ValueError(f"--warm-parts {part} cannot be had of {source.folder}: {lines[part]}")
    if not taken:
        why = "; ".join(f"{part} {line}" for part, line in lines.items())
        raise ValueError(f"nothing of {source.folder} fits this run: {why}")


def _other_rewards(built: Built, source: Source) -> str | None:
    """Why values of the two runs have different units, if they have."""
    settings = [run.get("ppo", {}) for run in (source.identity, built.identity)]
    old, new = (one.get("reward_scaling") for one in settings)
    return None if old == new else f"begins anew, --ppo.reward-scaling was {old} and is {new}"


def _headline(source: Source) -> str:
    known = [source.identity.get(name) for name in ("env", "algo", "optimizer")]
    about = ", ".join(str(value) for value in known if value is not None)
    first = int(source.identity.get("seed") or 0)
    steps = f"{source.env_steps:,} env steps"
    return f"warm start from {source.folder} ({about}, {steps}, seed {first + source.seed})"


def _memory(config: Train, built: Built, source: Source) -> tuple[Callable[[Any], Any] | None, str]:
    """How the optimizer begins for new parameters, ``None`` if as ever, and a line about it."""
    import mnemosyne
    from mnemosyne import warmstart
    from mnemosyne.cli.build import weights_of

    if built.optimizer is None or not uses_mnemosyne(config):
        return None, f"begins anew, {config.optimizer} has none"
    stored = warmstart.from_leaves(source.opt_leaves())
    if stored is None:
        return None, f"begins anew, {source.identity.get('optimizer')} has none"
    if source.identity.get("weights_sha256") != built.identity["weights_sha256"]:
        return None, "begins anew, it was written with other weights"
    old = warmstart.mean_memory(stored)
    start = mnemosyne.make_warm_start(built.optimizer, mnemosyne.load(weights_of(config)).config)
    seeds, slots = stored.memory.mass.shape[:2]
    return lambda params: start(old, params), f"pooled from {slots} slots of {seeds} seed(s)"
