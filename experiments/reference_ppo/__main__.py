# SPDX-License-Identifier: Apache-2.0
"""Final returns of our PPO and of the plain one: same settings, same rate of Adam, same seeds.

    python -m experiments.reference_ppo --env brax:hopper --num-timesteps 500000 --num-seeds 4

Settings are the presets of the environment. Both are judged by the same deterministic evaluation;
equal seeds do not mean equal starts, so the difference is one of two independent samples.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

import envs
from envs.api import EpisodeWrapper, HostEnv
from experiments.benchmarks import provenance
from experiments.reference_ppo import plain
from mnemosyne.meta.session import write_json
from robotics.algorithm import Policy, check_positive
from robotics.evaluate import make_evaluate, summary
from robotics.ppo import PPOConfig, make_ppo, presets

EPISODES = 64
"""Of a policy's evaluation."""

Trained = tuple[Callable[[Array], PyTree], Policy]
"""A run from its key to what acting needs, and how to act with it."""


def reference(env: EpisodeWrapper, config: PPOConfig, rate: float) -> Trained:
    """The plain PPO."""

    def run(key: Array) -> PyTree:
        learner = plain.train(env, config, rate, key)
        return {"params": learner.params, "obs": learner.obs}

    def act(params: PyTree, obs: Array, key: Array, deterministic: bool) -> Array:
        seen = plain.normalize(params["obs"], obs)
        return jnp.tanh(plain.policy(params["params"], seen, config.network)[0])

    return run, Policy(act, {"kind": "reference"})


def ours(env: EpisodeWrapper, config: PPOConfig, rate: float) -> Trained:
    """Our PPO with ``optax.adam``."""
    algorithm = make_ppo(env, config, optax.adam(rate))

    def run(key: Array) -> PyTree:
        def epoch(state: Any, _: None) -> tuple[Any, None]:
            return algorithm.epoch(state)[0], None

        state = jax.lax.scan(epoch, algorithm.init(key), None, length=algorithm.num_epochs)[0]
        return algorithm.inference_params(state)

    return run, algorithm.policy


def returns(env: EpisodeWrapper, trained: Trained, seeds: Sequence[int]) -> dict[str, Any]:
    """Trains all seeds side by side; mean return of each one's episodes."""
    run, policy = trained
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    began = time.perf_counter()
    params = jax.block_until_ready(jax.jit(jax.vmap(run))(keys))
    seconds = time.perf_counter() - began
    play = jax.jit(jax.vmap(make_evaluate(env, policy, EPISODES)))
    found = play(params, jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys))
    by_seed = np.asarray(found["episode_return"]).mean(axis=1)
    whole = summary(by_seed)
    return {
        "returns": by_seed.tolist(),
        "mean": whole.mean,
        "std": whole.std,
        "seconds": seconds,
    }


def compare(
    name: str, num_timesteps: int, num_seeds: int, seed: int, rate: float
) -> dict[str, Any]:
    """Both on one environment.

    Raises:
      ValueError: unknown environment, one outside of JAX, or settings that cannot be.
    """
    check_positive("the comparison's", num_seeds=num_seeds, learning_rate=rate)
    config = presets(name, num_timesteps=num_timesteps)
    inner = envs.make(name)
    if isinstance(inner, HostEnv):
        raise ValueError(f"{name} does not run inside JAX, where the reference is at home.")
    env, seeds = EpisodeWrapper(inner), list(range(seed, seed + num_seeds))
    rows = {
        "reference": returns(env, reference(env, config, rate), seeds),
        "ours": returns(env, ours(env, config, rate), seeds),
    }
    gap = rows["ours"]["mean"] - rows["reference"]["mean"]
    error = float(np.sqrt(sum(row["std"] ** 2 for row in rows.values()) / num_seeds))
    return {
        "env": name,
        "env_steps": config.total_env_steps,
        "learning_rate": rate,
        "seeds": seeds,
        "rows": rows,
        "difference": gap,
        "standard_error": error,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Prints both rows and the difference; writes them with ``--json``; 2 for a user's error."""
    parser = argparse.ArgumentParser("python -m experiments.reference_ppo", description=__doc__)
    parser.add_argument("--env", default="brax:hopper")
    parser.add_argument("--num-timesteps", type=int, default=500_000)
    parser.add_argument("--num-seeds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(argv)
    try:
        result = compare(
            given.env, given.num_timesteps, given.num_seeds, given.seed, given.learning_rate
        )
    except ValueError as error:
        print(f"{parser.prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    for name, row in result["rows"].items():
        each = " ".join(f"{value:.4g}" for value in row["returns"])
        print(f"{name:<9} {row['mean']:.4g} ± {row['std']:.3g} ({each}), {row['seconds']:.0f} s")
    gap, error = result["difference"], result["standard_error"]
    print(f"ours - reference: {gap:+.4g}, standard error {error:.3g}")
    if given.json:
        write_json(given.json, result | provenance.stamp())
    return 0


if __name__ == "__main__":
    sys.exit(main())
