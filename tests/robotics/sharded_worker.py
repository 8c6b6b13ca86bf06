# SPDX-License-Identifier: Apache-2.0
"""Prints as JSON what virtual devices do. A process of its own.

``train`` trains on one and on eight of them, ``recover`` takes back runs on eight that go wrong.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from envs.api import EpisodeWrapper
from envs.registry import make
from robotics import sharding
from robotics.chunks import CompiledChunks
from robotics.es import ESConfig, make_es
from robotics.networks import NetworkConfig
from robotics.ppo import PPOConfig, make_ppo
from robotics.progress import Progress
from robotics.recovery import Recovery
from robotics.rollout import reset
from tests.robotics.broken_env import Break, BrokenEnv
from tests.robotics.counting_env import HiddenCountingEnv

_NETWORK = {"policy_hidden": (8,), "value_hidden": (8,)}
_ENV = EpisodeWrapper(make("control:pendulum"), episode_length=9)


def _make(algo, mesh, env=_ENV, **changes):
    if algo == "ppo":
        # Episodes end in the middle of a rollout, so that restarts cross the devices.
        fields = {"num_timesteps": 512, "num_evaluations": 1, "num_envs": 16, "unroll_length": 16}
        network = NetworkConfig(**_NETWORK)
        config = PPOConfig(**(fields | {"normalize_rewards": True, "network": network} | changes))
        return make_ppo(env, config, optax.adam(1e-2), None, mesh)
    fields = {"num_timesteps": 900, "num_evaluations": 1, "population_size": 16}
    fields |= {"episodes_per_member": 2, "perturbation": "low-rank"}
    config = ESConfig(**(fields | {"network": NetworkConfig(**_NETWORK, noise="none")} | changes))
    return make_es(env, config, optax.adam(1e-2), None, mesh)


def _train(algo, num_devices, env=_ENV):
    """Numbers after one chunk, and how many parts the environments lie in."""
    mesh = sharding.make_mesh(num_devices)
    algorithm = _make(algo, mesh, env)
    keys = sharding.put(mesh, jax.vmap(jax.random.key)(jnp.arange(2, dtype=jnp.uint32)))
    outputs = None
    if mesh is not None:
        state_at = sharding.state_shardings(mesh, jax.eval_shape(jax.vmap(algorithm.init), keys))
        outputs = (state_at, NamedSharding(mesh, PartitionSpec()))

    def whole(key):
        return algorithm.epoch(algorithm.init(key))

    state, metrics = jax.jit(jax.vmap(whole), out_shardings=outputs)(keys)
    kept = {"params": state.params, "normalizer": state.normalizer, "metrics": metrics}
    if state.env_state is not None:
        kept["obs"] = state.env_state.obs
    leaves = jax.tree_util.tree_leaves_with_path(kept)
    numbers = {jax.tree_util.keystr(path): np.asarray(leaf).tolist() for path, leaf in leaves}
    parts = {
        str(shard.index)
        for shard in getattr(state.env_state, "obs", jnp.zeros(())).addressable_shards
    }
    return {"numbers": numbers, "parts": len(parts)}


def _broken_env(algo, mesh, state):
    """An environment that breaks in the second seed, for PPO in number 11, for ES in number 13."""
    if algo == "ppo":
        start = state.env_state.obs[1, 11, 0]
    else:
        key = jax.random.split(sharding.local(mesh, state.key)[1], 3)[2]
        start = reset(EpisodeWrapper(BrokenEnv()), key, 16).obs[13, 0]
    return EpisodeWrapper(BrokenEnv(breaks=(Break("obs", float(start), 3),)), episode_length=9)


def _recover(algo):
    """Two chunks of three seeds: a calm one, one with a fault, and one that cannot be helped."""
    mesh = sharding.make_mesh(8)
    plain = _make(algo, mesh, EpisodeWrapper(BrokenEnv(), episode_length=9), num_evaluations=3)
    keys = sharding.put(mesh, jax.vmap(jax.random.key)(jnp.arange(3, dtype=jnp.uint32)))
    state_at = sharding.state_shardings(mesh, jax.eval_shape(jax.vmap(plain.init), keys))
    before = jax.jit(jax.vmap(plain.init), out_shardings=state_at)(keys)
    sick = jax.tree.map(
        lambda leaf: leaf.at[2].set(jnp.nan) if leaf.ndim > 1 else leaf, before.opt_state
    )
    before = before._replace(opt_state=sharding.put(mesh, sick))
    algorithm = _make(algo, mesh, _broken_env(algo, mesh, before), num_evaluations=3)
    chunks = CompiledChunks(algorithm, before, jax.block_until_ready, lambda line: None)
    progress, state = Progress.of_seeds(3), before
    clean = chunks.run(before, np.ones(3, np.float32), None).state
    with tempfile.TemporaryDirectory() as folder:
        recovery = Recovery(algorithm, chunks, [0, 1, 2], Path(folder), lambda line: None)
        state, _ = recovery.advance(before, progress)
        calm = jax.tree.map(lambda a, b: bool((a[0] == b[0]).all()), state, clean)
        state, _ = recovery.advance(state, progress)
    placed = jax.tree.map(
        lambda leaf, at: leaf.sharding.is_equivalent_to(at, leaf.ndim), state, state_at
    )
    names = ("seed", "term", "env", "round", "step")
    return {
        "faults": [[fault[name] for name in names] for fault in progress.faults],
        "rollbacks": progress.rollbacks,
        "frozen": progress.frozen,
        "step_scale": progress.step_scale,
        "calm": jax.tree.all(calm),
        "placed": jax.tree.all(placed),
        "finite": all(np.isfinite(leaf).all().item() for leaf in jax.tree.leaves(state.params)),
        "updates": state.updates.tolist(),
    }


def _refusal(algo, **changes):
    try:
        _make(algo, sharding.make_mesh(8), **changes)
    except ValueError as error:
        return str(error)
    return "accepted"


def _trained():
    refusals = [
        _refusal("ppo", num_envs=12),
        _refusal("ppo", num_minibatches=64),
        _refusal("es", population_size=24),
    ]
    trained = {algo: {n: _train(algo, n) for n in (1, 8)} for algo in ("ppo", "es")}
    hidden = EpisodeWrapper(HiddenCountingEnv(), episode_length=9)
    critic = {n: _train("ppo", n, hidden) for n in (1, 8)}
    return trained | {"refusals": refusals, "critic": critic}


def _recovered():
    return {algo: _recover(algo) for algo in ("ppo", "es")}


if __name__ == "__main__":
    json.dump({"train": _trained, "recover": _recovered}[sys.argv[1]](), sys.stdout)
