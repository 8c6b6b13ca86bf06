# SPDX-License-Identifier: Apache-2.0
"""Hopping forward, for ``hopper.xml``."""

import jax.numpy as jnp

from envs.mujoco_task import Task


class Hop(Task):
    dt = 0.02  # seconds between actions
    episode_length = 500  # time limit, in actions

    def observation(self, data):
        return jnp.concatenate([data.qpos[1:], data.qvel])  # all but how far it has come

    def reward(self, data, action):
        return 1.0 + data.qvel[0] - 0.01 * jnp.sum(action**2)

    def done(self, data):
        height, pitch = data.qpos[1], data.qpos[2]
        return (height < -0.3) | (jnp.abs(pitch) > 0.6)  # it has fallen

    def metrics(self, data):
        return {"x_position": data.qpos[0]}
