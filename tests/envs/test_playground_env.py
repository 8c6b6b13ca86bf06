# SPDX-License-Identifier: Apache-2.0
"""The Playground adapter: keys, dict observations, randomization, nothing downloaded."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("mujoco_playground")

import envs
from envs import _sizes, playground_env, randomization, registry
from envs.checker import check
from envs.playground_env import PlaygroundEnv

QUICK = {"xla_cpu_use_fusion_emitters": False}
"""The emitters of fused loops take three quarters of the time that compilation takes."""


class Data:
    """As much of an ``mjx.Data`` as the adapter reads."""

    def __init__(self, qpos: Any, qvel: Any):
        self.qpos, self.qvel = qpos, qvel


jax.tree_util.register_pytree_node(
    Data, lambda data: ((data.qpos, data.qvel), None), lambda _, parts: Data(*parts)
)


class Walker:
    """A Playground environment with dict observations and Playground's bad habits."""

    def __init__(self, names: tuple[str, ...] = ("state", "privileged_state")):
        self.names = names
        self._mjx_model = {"mass": jnp.asarray(2.0), "size": jnp.asarray(1.0)}

    @property
    def unwrapped(self):
        return self

    @property
    def mjx_model(self):
        return self._mjx_model

    def _observe(self, data):
        return {name: jnp.full(2 + i, data.qpos[0]) for i, name in enumerate(self.names)}

    def reset(self, rng):
        from mujoco_playground import State

        assert rng.shape == (2,) and rng.dtype == jnp.uint32, "Playground needs raw keys"
        data = Data(jax.random.uniform(rng, (1,)), jnp.zeros(1))
        info = {"rng": rng, "last_act": jnp.zeros(1), "steps": 0}
        zero = jnp.zeros(())
        return State(data, self._observe(data), zero, zero, {"speed": 0.0}, info)

    def step(self, state, action):
        assert set(state.obs) == set(self.names), "some tasks build on the last observation"
        assert set(state.metrics) == {"speed"}
        state.info["last_act"] = action
        state.info["steps"] += 1
        speed = state.data.qvel + action / self.mjx_model["mass"]
        data = Data(state.data.qpos + speed, speed)
        state.metrics.update(speed=speed[0])
        return state.replace(data=data, obs=self._observe(data), reward=1, done=state.done)


@pytest.fixture
def walker() -> PlaygroundEnv:
    return PlaygroundEnv("test:walker", 2, 1, 20, 0.02, Walker(), privileged_observation_size=3)


def test_adapter_dict_observation_shows_state_to_the_policy_and_privileged_state_to_the_critic():
    names = ("state", "privileged_state", "height_scan")
    walker = PlaygroundEnv("test:walker", 2, 1, 20, 0.02, Walker(names), 3)
    check(walker)
    state = walker.step(walker.reset(jax.random.key(0)), jnp.ones(1))
    assert state.obs.shape == (2,)
    assert state.info["privileged_obs"].shape == (3,)
    assert float(state.info["privileged_obs"][0]) == float(state.obs[0])
    assert set(state.info["other_obs"]) == {"height_scan"}


def test_privileged_reading_that_is_not_finite_ends_the_episode(walker):
    def poisoned(data):
        return {"state": jnp.ones(2), "privileged_state": jnp.full(3, 1.0 / (2.0 - data.qpos[0]))}

    start = walker.reset(jax.random.key(0))
    walker.playground_env._observe = poisoned
    speed = 2.0 - start.physics.qpos - 0.5  # the step adds half of the action to it
    physics = Data(start.physics.qpos, speed)
    after = walker.step(start.replace(physics=physics), jnp.ones(1))
    assert (float(after.done), float(after.metrics["diverged"])) == (1.0, 1.0)
    np.testing.assert_array_equal(after.info["privileged_obs"], start.info["privileged_obs"])


def test_adapter_step_leaves_its_input_alone_and_passes_no_done_on(walker):
    start = walker.reset(jax.random.key(0))
    after = walker.step(start.replace(done=jnp.ones(())), jnp.ones(1))
    assert float(after.done) == 0.0 and float(after.reward) == 1.0
    assert int(start.info["playground"]["steps"]) == 0
    assert float(start.metrics["speed"]) == 0.0


def test_adapter_leaves_entries_of_wrappers_alone(walker):
    """Training steps every environment inside the episode wrapper, which adds to ``info``."""
    env = envs.EpisodeWrapper(walker)
    start = env.reset(jax.random.key(0))
    after = env.step(env.step(start, jnp.ones(1), start), jnp.ones(1), start)
    assert jax.tree.structure(after) == jax.tree.structure(start)
    assert (float(after.info["episode_steps"]), int(after.info["playground"]["steps"])) == (2.0, 2)


def test_adapter_randomized_model_lasts_an_episode_and_leaves_the_env_alone():
    def heavier(key, model):
        return model | {"mass": model["mass"] * jax.random.uniform(key, (), minval=2.0, maxval=4.0)}

    inner = Walker()
    env = PlaygroundEnv("test:walker", 2, 1, 20, 0.02, inner, 3, heavier)

    def speeds(key):
        first = env.step(env.reset(key), jnp.ones(1))
        return first.metrics["speed"], env.step(first, jnp.ones(1)).metrics["speed"]

    one, two = jax.vmap(speeds)(jax.random.split(jax.random.key(0), 5))
    assert (np.asarray(one) < 0.25).all() and (np.asarray(one) > 0.125).all()
    assert len(np.unique(one)) == 5
    np.testing.assert_allclose(two, 2 * one, rtol=1e-6)
    assert float(inner.mjx_model["mass"]) == 2.0
    state = env.reset(jax.random.key(0))
    assert set(state.info[randomization.INFO]) == {"['mass']"}
    check(env)


def test_dict_observation_without_state_is_refused():
    obs = {"pixels/view_0": jnp.zeros((64, 64, 3)), "privileged_state": jnp.zeros(3)}
    sentence = "observes 'pixels/view_0', 'privileged_state', but a policy needs .* 'state'"
    with pytest.raises(ValueError, match=sentence):
        playground_env._sizes(obs, "playground:Blind")


def test_cartpole_is_an_env_on_mjx_in_jax(monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = envs.make("playground:CartpoleBalance")
    assert capfd.readouterr().out == "" and list(tmp_path.iterdir()) == []
    assert (env.observation_size, env.action_size, env.episode_length) == (5, 1, 1000)
    assert env.playground_env.mjx_model.impl.value == "jax"  # Playground's own choice is Warp

    def play(key, action):
        start = env.reset(key)
        return start, env.step(start, action)

    keys = jax.random.split(jax.random.key(0), 2)
    first, after = jax.jit(jax.vmap(play), compiler_options=QUICK)(keys, jnp.ones((2, 1)))
    assert jax.tree.structure(first) == jax.tree.structure(after)
    assert first.obs.shape == (2, 5) and len(np.unique(np.asarray(first.obs[:, 0]))) == 2
    assert (np.asarray(after.obs[:, 3]) > np.asarray(first.obs[:, 3])).all()  # the cart speeds up
    assert (np.asarray(after.reward) > 0.5).all() and not np.asarray(after.done).any()
    ends, _ = env.segments(jax.tree.map(lambda leaf: leaf[0], first.physics))
    assert ends.shape[1:] == (2, 3)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("CartpoleBalanc", {}, "the nearest valid one is 'playground:CartpoleBalance'"),
        ("CartpoleBalance", {"backend": "warp"}, "Unknown backend 'warp' .* 'mjx'"),
        ("CartpoleBalance", {"randomise": "default"}, "'randomise' .* 'randomize'"),
        ("CartpoleBalance", {"randomize": "default"}, "no randomization of its own for 'playgr"),
        ("CartpoleBalance", {"episode_length": 0}, "is 0; it must be at least 1 step"),
    ],
)
def test_wrong_name_or_option_is_met_with_one_sentence(name, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        envs.make(f"playground:{name}", **options)


def test_robot_whose_files_are_missing_is_refused_instead_of_downloaded(monkeypatch, tmp_path):
    from mujoco_playground._src import mjx_env

    def never():
        raise AssertionError("a download was started")

    monkeypatch.setattr(mjx_env, "ensure_menagerie_exists", never)
    monkeypatch.setattr(mjx_env, "MENAGERIE_PATH", tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"needs MuJoCo Menagerie in .*nowhere"):
        playground_env.make("Go1JoystickFlatTerrain")
    monkeypatch.setattr(registry, "_folders", lambda package: [tmp_path])
    assert envs.describe("playground:Go1JoystickFlatTerrain").lacks == "assets"
    assert envs.describe("playground:CheetahRun").installed
    with pytest.raises(
        ValueError, match="files of its robot that MuJoCo Playground does not bring"
    ):
        envs.make("playground:Go1JoystickFlatTerrain")


def test_listed_tasks_are_playgrounds():
    from mujoco_playground import registry as theirs

    listed = {n.partition(":")[2] for n in envs.list_envs() if n.startswith("playground:")}
    assert listed == set(theirs.ALL_ENVS)


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(_sizes.PLAYGROUND))
def test_sizes_of_every_control_task_are_as_listed(task):
    env, info = envs.make(f"playground:{task}"), envs.describe(f"playground:{task}")
    assert (env.observation_size, env.action_size) == (info.observation_size, info.action_size)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["CartpoleBalance", "PointMass", "HopperHop", "CheetahRun"])
def test_checker_passes_on(task):
    check(envs.make(f"playground:{task}", episode_length=20), num_steps=8)
