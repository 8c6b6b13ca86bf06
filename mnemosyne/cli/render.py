# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne render``: a video of a trained policy, also without a screen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import tyro

from mnemosyne.cli.build import Built


@dataclasses.dataclass(frozen=True)
class Render:
    """Make a video of a run's best policy."""

    run: tyro.conf.Positional[Path]
    """Run folder, or a folder with runs below it (then the newest)."""
    seconds: float = 10.0
    """Simulated time to show, above 0."""
    seed: int = 0
    """Decides the episodes that are shown, at least 0."""
    last: bool = False
    """Show the last policy instead of the best."""
    out: Path | None = None
    """File to write, without its ending (.mp4 or .gif is added); default: video in the run."""


def run(config: Render) -> dict[str, Any]:
    """Writes the video and says where it is.

    Raises:
      ValueError: no run, a damaged policy, or a place that cannot be written.
    """
    from mnemosyne.cli.build import build
    from mnemosyne.cli.train import read_config
    from robotics.run_folder import check_writable, find_run

    if not 0 < config.seconds < float("inf"):
        raise ValueError(f"--seconds is {config.seconds}, but it must be above 0")
    if config.seed < 0:
        raise ValueError(f"--seed is {config.seed}, but it must be at least 0")
    folder = find_run(config.run)
    out = folder / "video" if config.out is None else config.out.with_suffix("")
    check_writable(out.parent)
    built = build(read_config(folder))
    best = not config.last
    video = render_run(built, folder, out, config.seconds, config.seed, best)
    print(f"video: {video}")
    return {"video": video}


def render_run(
    built: Built, folder: Path, stem: Path, seconds: float = 10.0, seed: int = 0, best: bool = True
) -> Path:
    """Renders the exported policy of a run, the best one or the last one.

    Returns:
      The file that was written.

    Raises:
      ValueError: if the policy is missing or damaged.
    """
    import jax
    import jax.numpy as jnp

    from robotics.export import read_policy, unflatten
    from robotics.render import render

    tensors = read_policy(folder / "best" if best else folder).tensors
    params = jax.tree.map(jnp.asarray, unflatten(tensors))
    policy = built.algorithm.policy

    def act(obs: jax.Array, key: jax.Array) -> jax.Array:
        return policy.act(params, obs, key, True)

    return render(built.env, act, jax.random.key(seed), stem, seconds)
