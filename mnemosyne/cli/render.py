# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne render``: a video of a trained policy, also without a screen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import tyro


@dataclasses.dataclass(frozen=True)
class Render:
    """Make a video of a run's best policy, or of an exported one."""

    run: tyro.conf.Positional[Path]
    """Run folder, a folder with runs below it (then the newest), or an exported policy."""
    seconds: float = 10.0
    """Simulated time to show, above 0."""
    seed: int = 0
    """Decides the episodes that are shown, at least 0."""
    last: bool = False
    """Show the last policy of a run instead of the best."""
    env: str | None = None
    """Environment to show it in, also gym:<id>; default: the policy's own."""
    backend: str | None = None
    """Physics backend of that environment; default: the policy's in its own, else the default."""
    out: Path | None = None
    """File to write, without its ending (.mp4 or .gif is added); default: video in the run,
    video-<env> in another environment than the policy's."""


def run(config: Render) -> dict[str, Any]:
    """Writes the video and says where it is.

    Raises:
      ValueError: no policy, a damaged one, an environment it does not fit, or a place that cannot
        be written.
    """
    from mnemosyne.cli.exported import find_policy, is_exported
    from robotics.run_folder import check_writable, find_run

    if not 0 < config.seconds < float("inf"):
        raise ValueError(f"--seconds is {config.seconds}, but it must be above 0")
    if config.seed < 0:
        raise ValueError(f"--seed is {config.seed}, but it must be at least 0")
    file = find_policy(config.run, best=not config.last)
    folder = file.parent if is_exported(config.run) else find_run(config.run)
    # Another environment's video must not take the place of the run's own.
    name = "video" if config.env is None else f"video-{config.env.replace(':', '-')}"
    out = folder / name if config.out is None else config.out.with_suffix("")
    check_writable(out.parent)
    video = render_policy(file, out, config.seconds, config.seed, config.env, config.backend)
    print(f"video: {video}")
    return {"video": video}


def render_policy(
    file: Path,
    stem: Path,
    seconds: float = 10.0,
    seed: int = 0,
    env: str | None = None,
    backend: str | None = None,
) -> Path:
    """Renders an exported policy.

    Args:
      file: ``policy.safetensors`` or its folder.
      stem: path of the video without its ending.
      seconds: simulated time, above 0.
      seed: decides the episodes.
      env: environment; ``None`` takes the policy's own.
      backend: its physics backend.

    Returns:
      The file that was written.

    Raises:
      ValueError: if the policy is missing or damaged, or does not fit the environment.
    """
    import jax

    from mnemosyne.cli.exported import make_env
    from robotics.policies import load_policy
    from robotics.render import render

    loaded = load_policy(file)
    made = make_env(loaded.header, env, backend)

    def act(obs: jax.Array, key: jax.Array) -> jax.Array:
        return loaded.policy.act(loaded.params, obs, key, True)

    return render(made, act, jax.random.key(seed), stem, seconds)
