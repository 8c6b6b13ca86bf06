# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne evaluate``: fresh episodes with a trained policy, beside uniform random actions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import tyro

if TYPE_CHECKING:
    from robotics.algorithm import Policy


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

    policy: Policy
    params: Any
    header: dict[str, Any]
    about: dict[str, Any]
    randomize: str | None


def run(config: Evaluate) -> dict[str, Any]:
    """Prints return, length and distance with 95 % intervals over the episodes.

    Raises:
      ValueError: no policy, a damaged one or a damaged checkpoint, an environment of other sizes.
    """
    from robotics import result
    from robotics.run_folder import plain

    if config.num_episodes < 1:
        raise ValueError(f"--num-episodes is {config.num_episodes}, but it must be at least 1")
    if not 0 <= config.seed < 2**31:
        raise ValueError(f"--seed is {config.seed}, but it must lie between 0 and 2^31 - 1")
    policies = _policies(config)
    episodes, random = _play(config, policies)
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
    from mnemosyne.cli.train import read_config
    from robotics.policies import load_policy
    from robotics.run_folder import find_run

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
    # Code is run because a run's own settings name it, never because a policy file does.
    randomize = None if alone else read_config(find_run(config.run)).randomize
    return _Policies(loaded.policy, params, loaded.header, about, randomize)


def _last_policies(path: Path) -> _Policies:
    import jax

    from mnemosyne.cli.build import build
    from mnemosyne.cli.train import read_config
    from robotics.checkpoint import Checkpointer
    from robotics.run import RunConfig, state_template
    from robotics.run_folder import CHECKPOINTS, find_run

    folder = find_run(path)
    train = read_config(folder)
    built = build(dataclasses.replace(train, devices=1))
    run_config = RunConfig(folder, seed=train.seed, num_seeds=train.num_seeds)
    template = state_template(built.algorithm, run_config)
    restored = Checkpointer(folder / CHECKPOINTS, identity=built.identity).restore(template)
    params = jax.jit(jax.vmap(built.algorithm.inference_params))(restored.state)
    about = {"policy": "last", "seeds": run_config.seeds, "env_steps": restored.step}
    policy = built.algorithm.policy
    header = built.policy_info | {"network": policy.spec}
    return _Policies(policy, params, header, about, train.randomize)


def _play(config: Evaluate, policies: _Policies) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays [policies, episodes] of the policies, and [1, episodes] of uniform random actions."""
    import jax

    from envs.api import HostEnv
    from mnemosyne.cli.exported import make_env, note_dt
    from robotics.evaluate import make_player, random_policy

    env = make_env(policies.header, config.env, config.backend, policies.randomize)
    inner = env if isinstance(env, HostEnv) else env.env
    note_dt(policies.header, inner.name, inner.dt)
    key = jax.random.fold_in(jax.random.key(config.seed), _STREAM)
    keys = jax.random.split(key, jax.tree.leaves(policies.params)[0].shape[0])
    uniform = random_policy(inner.action_size, getattr(inner, "discrete", False))

    def play(policy: Policy, params: Any, keys: Any) -> dict[str, Any]:
        player = make_player(env, policy, config.num_episodes)
        player = player if isinstance(env, HostEnv) else jax.jit(player)
        return jax.device_get(player(params, keys))

    return play(policies.policy, policies.params, keys), play(uniform, None, keys[:1])


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
