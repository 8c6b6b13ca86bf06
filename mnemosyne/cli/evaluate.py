# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne evaluate``: fresh episodes with a trained policy, beside uniform random actions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

if TYPE_CHECKING:
    from robotics.algorithm import Policy


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Play fresh episodes with a run's policies and with uniform random actions."""

    run: tyro.conf.Positional[Path]
    """Run folder, or a folder with runs below it (then the newest)."""
    num_episodes: int = 64
    """Fresh episodes for each seed, at least 1."""
    seed: int = 0
    """Decides the episodes, at least 0; they are never those of the training's evaluations."""
    best: bool = False
    """Play the best policy that the run kept, instead of every seed's last one."""
    json: Path | None = None
    """File to write the numbers to."""


_STREAM = 0x70_6C_61_79  # keeps these episodes apart from those played during training


def run(config: Evaluate) -> dict[str, Any]:
    """Prints return, length and distance with 95 % intervals over the episodes.

    Raises:
      ValueError: no run, or a damaged checkpoint or policy.
    """
    import jax

    from envs.api import HostEnv
    from mnemosyne.cli.build import build
    from mnemosyne.cli.train import read_config
    from robotics import result
    from robotics.evaluate import make_player, random_policy
    from robotics.run_folder import find_run, plain

    if config.num_episodes < 1:
        raise ValueError(f"--num-episodes is {config.num_episodes}, but it must be at least 1")
    if config.seed < 0:
        raise ValueError(f"--seed is {config.seed}, but it must be at least 0")
    folder = find_run(config.run)
    train = read_config(folder)
    built = build(train)
    params, about = _params(config, folder, train, built)
    count = jax.tree.leaves(params)[0].shape[0]
    key = jax.random.fold_in(jax.random.key(config.seed), _STREAM)
    keys = jax.random.split(key, count)
    env = built.env if isinstance(built.env, HostEnv) else built.env.env
    uniform = random_policy(env.action_size, getattr(env, "discrete", False))

    def play(policy: Policy, params: Any, keys: Any) -> dict[str, Any]:
        player = make_player(built.env, policy, config.num_episodes)
        player = player if isinstance(built.env, HostEnv) else jax.jit(player)
        return jax.device_get(player(params, keys))

    entry = result.evaluation(about["env_steps"], play(built.algorithm.policy, params, keys))
    random = result.evaluation(0, play(uniform, None, keys[:1]))
    fields = result.summarize([entry], random, [True] * count)
    fields.pop("failed")  # needs the history of the run
    measured = plain({"run": folder, "env": train.env, **about, **fields})
    _report(measured)
    return measured


def _params(config: Evaluate, folder: Path, train: Any, built: Any) -> tuple[Any, dict[str, Any]]:
    """What acting needs, with a leading axis of policies, and where it comes from."""
    import jax
    import jax.numpy as jnp

    from robotics.checkpoint import Checkpointer
    from robotics.export import read_policy, unflatten
    from robotics.run import RunConfig, state_template
    from robotics.run_folder import CHECKPOINTS

    if config.best:
        tensors, header = read_policy(folder / "best")
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], unflatten(tensors))
        return params, {
            "policy": "best",
            "seeds": [header["seed"]],
            "env_steps": header["env_steps"],
        }
    run_config = RunConfig(folder, seed=train.seed, num_seeds=train.num_seeds)
    template = state_template(built.algorithm, run_config)
    restored = Checkpointer(folder / CHECKPOINTS, identity=built.identity).restore(template)
    params = jax.jit(jax.vmap(built.algorithm.inference_params))(restored.state)
    return params, {"policy": "last", "seeds": run_config.seeds, "env_steps": restored.step}


def _report(measured: dict[str, Any]) -> None:
    """The table."""
    rows: list[tuple] = [
        ("return", "return_mean", "return_ci95", "return_random", "return_random_ci95")
    ]
    if "distance_m" in measured:
        rows.append(("distance (m)", "distance_m", None, "distance_random_m", None))
    steps = f"{measured['env_steps']:,} env steps"
    print(f"{measured['policy']} policy of seeds {measured['seeds']}, {steps}")
    for name, mean, interval, random, random_interval in rows:
        ours = _with_interval(measured, mean, interval)
        theirs = _with_interval(measured, random, random_interval)
        print(f"{name:<14} {ours}   uniform random: {theirs}")


def _with_interval(measured: dict[str, Any], mean: str, interval: str | None) -> str:
    if interval is None:
        return f"{measured[mean]:.4g}"
    low, high = measured[interval]
    return f"{measured[mean]:.4g} (95 %: {low:.4g} to {high:.4g})"
