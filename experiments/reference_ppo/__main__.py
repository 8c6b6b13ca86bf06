# SPDX-License-Identifier: Apache-2.0
"""What a run of ``mnemosyne train`` with Adam reached, and what a plain PPO reaches instead.

    mnemosyne train --env brax:hopper --optimizer adam --num-seeds 4 --logdir runs/hopper
    python -m experiments.reference_ppo runs/hopper --json F

The plain one takes environment, settings, rate and seeds from the run, and is judged by as many
episodes of its deterministic policy. Equal seeds do not mean equal starts, so the difference is
one of two independent samples.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

import envs
from envs.api import EpisodeWrapper, HostEnv
from experiments.benchmarks import provenance
from experiments.reference_ppo import host, plain
from mnemosyne.meta.session import write_json
from robotics.algorithm import Policy
from robotics.evaluate import make_evaluate, summary
from robotics.host import make_host_evaluate
from robotics.networks import NetworkConfig
from robotics.optimizers import default_learning_rate
from robotics.ppo import PPOConfig
from robotics.run_folder import CONFIG, RESULT, find_run, read_json


def returns(
    env: EpisodeWrapper | HostEnv,
    config: PPOConfig,
    rate: float,
    keys: Key[Array, " seeds"],
    episodes: int,
) -> Float[np.ndarray, " seeds"]:
    """Trains the plain PPO from each key; mean return of each one's episodes."""

    def act(params: PyTree, obs: Array, key: Array, deterministic: bool) -> Array:
        seen = plain.normalize(params["obs"], obs)
        return jnp.tanh(plain.policy(params["params"], seen, config.network)[0])

    policy = Policy(act, {"kind": "reference"})
    key_episodes = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
    if isinstance(env, HostEnv):
        each = [host.train(env, config, rate, key) for key in keys]
        learner = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        play = make_host_evaluate(env, policy, episodes)
    else:
        learner = jax.jit(jax.vmap(lambda key: plain.train(env, config, rate, key)))(keys)
        play = jax.jit(jax.vmap(make_evaluate(env, policy, episodes)))
    found = play({"params": learner.params, "obs": learner.obs}, key_episodes)
    return np.asarray(found["episode_return"]).mean(axis=1)


def settings_of(run: dict[str, Any]) -> tuple[PPOConfig, float]:
    """The settings of PPO in a run's ``config.json``, and Adam's learning rate.

    Raises:
      ValueError: if it was another algorithm, another optimizer, or did not begin anew.
    """
    others = [run[name] for name in ("randomize", "warm_start", "hand_over")]
    if (run["algo"], run["optimizer"]) != ("ppo", "adam") or any(others):
        raise ValueError("the run must be one of PPO with Adam alone, begun anew on one robot.")
    network: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in run["ppo"]["network"].items()
    }
    counts = {name: run[name] for name in ("num_timesteps", "num_evaluations")}
    settings: dict[str, Any] = run["ppo"] | counts | {"network": NetworkConfig(**network)}
    config = PPOConfig(**settings)
    return config, run["learning_rate"] or default_learning_rate("adam") or math.nan


def compare(folder: Path) -> dict[str, Any]:
    """The run's returns beside those of the plain PPO.

    Raises:
      ValueError: for a folder without a finished run, or a run that the plain PPO cannot repeat.
    """
    folder = find_run(folder)
    run, result = read_json(folder / CONFIG), read_json(folder / RESULT)
    config, rate = settings_of(run)
    inner = envs.make(run["env"], **{name: run[name] for name in ("backend", "episode_length")})
    env = inner if isinstance(inner, HostEnv) else EpisodeWrapper(inner)
    if isinstance(env, EpisodeWrapper) and env.privileged_observation_size:
        raise ValueError(
            f"{env.env.name!r} shows its critic a privileged observation; that of the plain PPO "
            "would not see it."
        )
    seeds = list(range(run["seed"], run["seed"] + run["num_seeds"]))
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    began = time.perf_counter()
    plain_returns = returns(env, config, rate, keys, run["eval_episodes"])
    seconds = time.perf_counter() - began
    by_seed = {"ours": np.asarray(result["return_per_seed"]), "reference": plain_returns}
    rows = {
        name: {"returns": row.tolist(), **summary(row)._asdict()} for name, row in by_seed.items()
    }
    gap = rows["ours"]["mean"] - rows["reference"]["mean"]
    error = float(np.sqrt(sum(row["std"] ** 2 for row in rows.values()) / len(seeds)))
    return {
        "env": run["env"],
        "env_steps": config.total_env_steps,
        "learning_rate": rate,
        "seeds": seeds,
        "rows": rows,
        "random": result["return_random"],
        "difference": gap,
        "standard_error": error,
        "seconds": seconds,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Prints both rows and the difference; writes them with ``--json``; 2 for a user's error."""
    parser = argparse.ArgumentParser("python -m experiments.reference_ppo", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(argv)
    try:
        result = compare(given.run)
    except ValueError as error:
        print(f"{parser.prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{result['env']}, {result['env_steps']} env steps, random {result['random']:.4g}")
    for name, row in result["rows"].items():
        each = " ".join(f"{value:.4g}" for value in row["returns"])
        print(f"{name:<9} {row['mean']:.4g} ± {row['std']:.3g} ({each})")
    gap, error = result["difference"], result["standard_error"]
    print(f"ours - reference: {gap:+.4g}, standard error {error:.3g}")
    if given.json:
        write_json(given.json, result | provenance.stamp())
    return 0


if __name__ == "__main__":
    sys.exit(main())
