# SPDX-License-Identifier: Apache-2.0
"""Two tasks for ``two_link_crawler.xml``: this file has to be asked for one of them by name."""

import jax
import jax.numpy as jnp

from envs.mujoco_task import Task


class Crawl(Task):
    dt = 0.04
    episode_length = 100
    observation_size, action_size = 6, 1

    def observation(self, data):
        return jnp.concatenate([data.qpos[2:], data.qvel])

    def reward(self, data, action):
        return data.qvel[0]

    def metrics(self, data):
        return {"x_position": data.qpos[0]}

    def randomize(self, key, model):
        scale = jax.random.uniform(key, model.body_mass.shape, minval=0.8, maxval=1.2)
        return model.replace(body_mass=model.body_mass * scale)


class Hold(Crawl):
    def reward(self, data, action):
        return -jnp.abs(data.qpos[3] - 1.0)
