# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne evaluate``: fresh episodes with a trained policy, beside uniform random actions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import tyro


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Play fresh episodes with a run's or an exported policy and with uniform random actions."""

    run: tyro.conf.Positional[Path]
    """Run folder, a folder with runs below it (then the newest), or an exported policy."""
    num_episodes: int = 64
    """Fresh episodes for each seed, at least 1."""
    seed: int = 0
    """Decides the episodes, at least 0; they are never those of the training's evaluations."""
    best: bool = False
    """Play the best policy that the run kept, instead of every seed's last one."""
    env: str | None = None
    """Environment to play in, also gym:<id> (C MuJoCo through Gymnasium); default: the policy's."""
    backend: str | None = None
    """Physics backend of that environment; default: the policy's in its own, else the default."""
    json: Path | None = None
    """File to write the numbers to."""


_STREAM = 0x70_6C_61_79  # keeps these episodes apart from those played during training


class _Policies(NamedTuple):
    """What is evaluated: parameters with a leading axis of policies, and where they come from."""

    policy: Any
    params: Any
    header: dict[str, Any]
    about: dict[str, Any]


def run(config: Evaluate) -> dict[str, Any]:
    """Prints return, length and distance with 95 % intervals over the episodes.

    Raises:
      ValueError: no policy, a damaged one or a damaged checkpoint, an environment of other sizes.
    """
    from mnemosyne.cli.exported import is_gym
    from robotics import result
    from robotics.run_folder import plain

    if config.num_episodes < 1:
        raise ValueError(f"--num-episodes is {config.num_episodes}, but it must be at least 1")
    if not 0 <= config.seed < 2**31:
        raise ValueError(f"--seed is {config.seed}, but it must lie between 0 and 2^31 - 1")
    policies = _policies(config)
    play = _play_gym if is_gym(policies.header, config.env) else _play
    episodes, random = play(config, policies)
    entry = result.evaluation(policies.about["env_steps"], episodes)
    fields = result.summarize([entry], result.evaluation(0, random), [True] * len(entry["return"]))
    fields.pop("failed")  # needs the history of the run
    names = {"run": config.run, "env": config.env or policies.header["env"]}
    measured = plain({**names, **policies.about, **fields})
    _report(measured)
    return measured


def _policies(config: Evaluate) -> _Policies:
    """An exported policy, a run's best one, or the last one of every seed from its checkpoint."""
    import jax

    from mnemosyne.cli.exported import find_policy, is_exported
    from robotics.policies import load_policy

    alone = is_exported(config.run)
    if not (alone or config.best):
        return _last_policies(config.run)
    loaded = load_policy(find_policy(config.run))
    about = {
        "policy": "exported" if alone else "best",
        "seeds": [loaded.header.get("seed")],
        "env_steps": loaded.header.get("env_steps", 0),
    }
    params = jax.tree.map(lambda leaf: leaf[None], loaded.params)
    return _Policies(loaded.policy, params, loaded.header, about)


def _last_policies(path: Path) -> _Policies:
    import jax

    from mnemosyne.cli.build import build
    from mnemosyne.cli.train import read_config
    from robotics.checkpoint import Checkpointer
    from robotics.run import RunConfig, state_template
    from robotics.run_folder import CHECKPOINTS, find_run

    folder = find_run(path)
    train = read_config(folder)
    built = build(train)
    run_config = RunConfig(folder, seed=train.seed, num_seeds=train.num_seeds)
    template = state_template(built.algorithm, run_config)
    restored = Checkpointer(folder / CHECKPOINTS, identity=built.identity).restore(template)
    params = jax.jit(jax.vmap(built.algorithm.inference_params))(restored.state)
    about = {"policy": "last", "seeds": run_config.seeds, "env_steps": restored.step}
    policy = built.algorithm.policy
    return _Policies(policy, params, built.policy_info | {"network": policy.spec}, about)


def _play(config: Evaluate, policies: _Policies) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays [policies, episodes] of the policies and of uniform random actions, in JAX."""
    import jax

    from mnemosyne.cli.exported import make_env, note_dt
    from robotics.evaluate import make_evaluate, random_policy

    env = make_env(policies.header, config.env, config.backend)
    note_dt(policies.header, env.env.name, env.env.dt)
    key = jax.random.fold_in(jax.random.key(config.seed), _STREAM)
    keys = jax.random.split(key, jax.tree.leaves(policies.params)[0].shape[0])
    play = make_evaluate(env, policies.policy, config.num_episodes)
    episodes = jax.device_get(jax.jit(jax.vmap(play))(policies.params, keys))
    play_random = make_evaluate(env, random_policy(env.env.action_size), config.num_episodes)
    random = jax.device_get(jax.jit(play_random)(None, keys[0]))
    return episodes, {name: value[None] for name, value in random.items()}


def _play_gym(config: Evaluate, policies: _Policies) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same on the host, in an environment of Gymnasium."""
    import jax
    import numpy as np

    from mnemosyne.cli.exported import note_dt
    from robotics import gym_play
    from robotics.export import flatten, numpy_policy

    header = policies.header
    name = config.env or header["env"]
    env = gym_play.make(name, header["observation_size"], header["action_size"])
    note_dt(header, name, gym_play.step_seconds(env))
    # Episodes of one seed start from numbers that lie side by side; seeds must not overlap.
    first = int(np.random.default_rng((config.seed, _STREAM)).integers(2**31))
    count = jax.tree.leaves(policies.params)[0].shape[0]
    try:
        rows = []
        for i in range(count):
            tensors = flatten(jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), policies.params))
            start = first + i * config.num_episodes
            act = numpy_policy(tensors, header)
            rows.append(gym_play.play(env, act, config.num_episodes, start))
        random_act = gym_play.random_act(env, first)
        random = gym_play.play(env, random_act, config.num_episodes, first)
    finally:
        env.close()
    episodes = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return episodes, {name: value[None] for name, value in random.items()}


def _report(measured: dict[str, Any]) -> None:
    """The table."""
    rows: list[tuple] = [
        ("return", "return_mean", "return_ci95", "return_random", "return_random_ci95")
    ]
    if "distance_m" in measured:
        rows.append(("distance (m)", "distance_m", None, "distance_random_m", None))
    steps = f"{measured['env_steps']:,} env steps"
    seeds = ", ".join(map(str, measured["seeds"]))
    print(f"{measured['env']}: {measured['policy']} policy of seed {seeds} after {steps}")
    for name, mean, interval, random, random_interval in rows:
        ours = _with_interval(measured, mean, interval)
        theirs = _with_interval(measured, random, random_interval)
        print(f"{name:<14} {ours}   uniform random: {theirs}")


def _with_interval(measured: dict[str, Any], mean: str, interval: str | None) -> str:
    if interval is None:
        return f"{measured[mean]:.4g}"
    low, high = measured[interval]
    return f"{measured[mean]:.4g} (95 %: {low:.4g} to {high:.4g})"
