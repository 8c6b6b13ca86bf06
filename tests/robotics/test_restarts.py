# SPDX-License-Identifier: Apache-2.0
"""Episodes drawn outside of the training program are those that it would draw itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import envs
from envs.api import EpisodeWrapper
from robotics import restarts
from robotics.algorithm import Algorithm
from robotics.chunks import CompiledChunks
from robotics.ppo import PPOConfig, make_ppo

SEEDS = 2


@pytest.fixture(scope="module")
def algorithm():
    config = PPOConfig(num_timesteps=512, num_evaluations=2, num_envs=8, unroll_length=16)
    # Episodes of five steps, so that restarts are many.
    env = EpisodeWrapper(envs.make("control:cartpole"), episode_length=5)
    return make_ppo(env, config, optax.adam(1e-3))


@pytest.fixture(scope="module")
def keys():
    return jax.vmap(jax.random.key)(jnp.arange(SEEDS))


def test_episodes_drawn_outside_change_no_number_of_a_run(algorithm, keys):
    episodes = _made(algorithm, keys)
    inside = jax.jit(jax.vmap(algorithm.init))(keys)
    outside = jax.jit(jax.vmap(algorithm.init))(keys, episodes.start(keys))
    assert all(jax.tree.leaves(jax.tree.map(_same, inside, outside)))
    drawn = episodes.of_chunk(inside)
    assert drawn.obs.shape[:3] == (SEEDS, 2, 8)
    assert len(np.unique(np.asarray(drawn.obs[..., 0]))) == SEEDS * 2 * 8  # no episode twice
    one, two = (
        CompiledChunks(algorithm, inside, jax.block_until_ready, print, given)
        for given in (None, episodes)
    )
    scale = np.ones(SEEDS, np.float32)
    for _ in range(2):
        inside, outside = (one.run(inside, scale, None).state, two.run(outside, scale, None).state)
    assert all(jax.tree.leaves(jax.tree.map(_close, inside, outside)))


def test_other_restarts_change_the_run(algorithm, keys):
    """So the comparison above can fail."""
    episodes = _made(algorithm, keys)
    state = jax.jit(jax.vmap(algorithm.init))(keys)
    epoch = jax.jit(jax.vmap(lambda state, drawn: algorithm.epoch(state, 1.0, drawn)))
    drawn = episodes.of_chunk(state)
    moved = drawn.replace(obs=drawn.obs + 1.0)
    one, two = epoch(state, drawn)[0], epoch(state, moved)[0]
    assert not all(jax.tree.leaves(jax.tree.map(_close, one.params, two.params)))


def test_episodes_that_are_too_large_stay_inside(algorithm, keys, monkeypatch):
    monkeypatch.setattr(restarts, "MAX_BYTES", 100)
    assert restarts.make_episodes(algorithm, keys) is None


def test_algorithm_without_restarts_draws_itself(algorithm, keys):
    assert restarts.make_episodes(algorithm._replace(restarts=None), keys) is None


def _made(algorithm: Algorithm, keys: jax.Array) -> restarts.Episodes:
    made = restarts.make_episodes(algorithm, keys)
    assert made is not None
    return made


def _same(a: jax.Array, b: jax.Array) -> bool:
    return bool(jnp.all(a == b))


def _close(a: jax.Array, b: jax.Array) -> bool:
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return _same(a, b)
    return bool(np.allclose(a, b, rtol=1e-4, atol=1e-5))
