# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne demo``: a policy with Mnemosyne, the same steps with default Adam, in minutes.

The budget is in env steps, not in seconds, so that the result does not depend on the machine.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

RIVAL, RIVAL_RATE = "adam", 3e-4


@dataclasses.dataclass(frozen=True)
class Demo:
    """Train a Brax policy with Mnemosyne and, for the same steps, Adam at its default rate."""

    env: str = "brax:hopper"
    """Environment; one that moves along x shows a distance."""
    num_timesteps: int = 2_000_000
    """Env steps for each of the two optimizers, at least one rollout."""
    seed: int = 0
    """Seed of both runs, at least 0."""
    weights: str = "mnemosyne-rl"
    """Meta-parameters of Mnemosyne: a shipped name or a file."""
    logdir: Path | None = None
    """Folder for both runs, new or empty; default: runs/demo-<time>."""
    json: Path | None = None
    """File to write the numbers of both runs to."""
    video: bool = True
    """Make a video of Mnemosyne's best policy."""
    quiet: bool = False
    """Print only the table in the end."""


def run(config: Demo) -> dict[str, Any]:
    """Trains twice and prints both returns, with intervals, beside uniform random actions.

    Raises:
      ValueError: for settings that cannot be, before anything is written.
    """
    from mnemosyne.cli import train
    from robotics.plots import plot_runs

    folder = config.logdir
    if folder is None:
        folder = Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    runs = {name: _settings(config, name, folder / name) for name in ("mnemosyne", RIVAL)}
    for settings in runs.values():
        train.prepare(settings)  # both, before the first one takes its minutes
    measured = {}
    for name, settings in runs.items():
        if not config.quiet:
            rate = "" if settings.learning_rate is None else f" {settings.learning_rate:g}"
            print(f"== {config.env} with {name}{rate}", flush=True)
        measured[name] = train.run(settings)
    picture = plot_runs([folder / name for name in runs], folder / "summary.png")
    print(_table(config.env, measured))
    print(f"picture: {picture}")
    for video in sorted((folder / "mnemosyne").glob("video.*")):
        print(f"video: {video}")
    print(f"watch: tensorboard --logdir {folder}")
    return {"runs": measured, "picture": picture}


def _settings(config: Demo, name: str, folder: Path) -> Any:
    """One of the two runs, with the preset of the environment."""
    from mnemosyne.cli import train

    ours = name == "mnemosyne"
    return dataclasses.replace(
        train.defaults(["--env", config.env]),
        env=config.env,
        optimizer=name,
        learning_rate=None if ours else RIVAL_RATE,
        weights=config.weights if ours else None,
        num_timesteps=config.num_timesteps,
        num_evaluations=10,
        seed=config.seed,
        logdir=folder,
        video=config.video and ours,
        quiet=config.quiet,
    )


def _table(env: str, measured: dict[str, dict[str, Any]]) -> str:
    """Both optimizers and the random policy, one row each."""
    first = next(iter(measured.values()))
    rows = [
        (name, run["return_mean"], run["return_ci95"], run.get("distance_m"))
        for name, run in measured.items()
    ]
    random = (first["return_random"], first["return_random_ci95"], first.get("distance_random_m"))
    rows.append(("uniform random", *random))
    steps, episodes = f"{first['env_steps']:,}", first["eval_episodes"]
    lines = [
        "",
        f"{env}, {steps} env steps, 1 seed, {episodes} fresh deterministic episodes",
        f"{'':<16}{'return':>10}   {'95 % over episodes':<22}{'distance (m)':>12}",
    ]
    for name, mean, (low, high), distance in rows:
        moved = "-" if distance is None else f"{distance:.2f}"
        lines.append(f"{name:<16}{mean:>10.4g}   {f'{low:.4g} to {high:.4g}':<22}{moved:>12}")
    return "\n".join(lines)
