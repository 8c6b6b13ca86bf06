# SPDX-License-Identifier: Apache-2.0
"""Trains on one and on eight virtual devices; prints both as JSON. A process of its own."""

from __future__ import annotations

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from envs.api import EpisodeWrapper
from envs.registry import make
from robotics import sharding
from robotics.es import ESConfig, make_es
from robotics.networks import NetworkConfig
from robotics.ppo import PPOConfig, make_ppo

_NETWORK = {"policy_hidden": (8,), "value_hidden": (8,)}
_ENV = EpisodeWrapper(make("control:pendulum"), episode_length=9)


def _make(algo, mesh, **changes):
    if algo == "ppo":
        # Episodes end in the middle of a rollout, so that restarts cross the devices.
        fields = {"num_timesteps": 512, "num_evaluations": 1, "num_envs": 16, "unroll_length": 16}
        network = NetworkConfig(**_NETWORK)
        config = PPOConfig(**(fields | {"normalize_rewards": True, "network": network} | changes))
        return make_ppo(_ENV, config, optax.adam(1e-2), None, mesh)
    fields = {"num_timesteps": 900, "num_evaluations": 1, "population_size": 16}
    fields |= {"episodes_per_member": 2, "perturbation": "low-rank"}
    config = ESConfig(**(fields | {"network": NetworkConfig(**_NETWORK, noise="none")} | changes))
    return make_es(_ENV, config, optax.adam(1e-2), None, mesh)


def _train(algo, num_devices):
    """Numbers after one chunk, and how many parts the environments lie in."""
    mesh = sharding.make_mesh(num_devices)
    algorithm = _make(algo, mesh)
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


def _refusal(algo, **changes):
    try:
        _make(algo, sharding.make_mesh(8), **changes)
    except ValueError as error:
        return str(error)
    return "accepted"


if __name__ == "__main__":
    out = {algo: {n: _train(algo, n) for n in (1, 8)} for algo in ("ppo", "es")}
    out["refusals"] = [
        _refusal("ppo", num_envs=12),
        _refusal("ppo", num_minibatches=64),
        _refusal("es", population_size=24),
    ]
    json.dump(out, sys.stdout)
