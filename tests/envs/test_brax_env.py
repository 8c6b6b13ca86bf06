# SPDX-License-Identifier: Apache-2.0
"""The Brax adapter: keys, structure, positions, no leaking of flags, warnings or files."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("brax")

import envs
from envs import brax_env
from envs.api import Env, EpisodeWrapper
from envs.checker import check

TIME_LIMIT = 12
NUM_LANES = 3
NUM_STEPS = 30


class Played(NamedTuple):
    """A body with random actions: first states [lane], later states [lane, time].

    ``raw_obs`` [lane] is what Brax itself makes of the raw form of the same keys.
    """

    env: brax_env.BraxEnv
    first: Any
    states: Any
    raw_obs: jax.Array


def _play(name: str) -> Played:
    """One compiled program for all tests of a body, as compiling is what takes time."""
    env = envs.make(name)
    wrapped = EpisodeWrapper(env, TIME_LIMIT)

    def lane(key):
        key_first, key_action = jax.random.split(key)
        first = wrapped.reset(key_first)
        shape = (NUM_STEPS, env.action_size)
        actions = LARGEST[name] * jax.random.uniform(key_action, shape, minval=-1.0, maxval=1.0)

        def advance(state, action):
            state = wrapped.step(state, action, first)
            return state, state

        raw_obs = env.brax_env.reset(jax.random.key_data(key_first)).obs
        return first, jax.lax.scan(advance, first, actions)[1], raw_obs

    keys = jax.random.split(jax.random.key(0), NUM_LANES)
    return Played(env, *jax.jit(jax.vmap(lane))(keys))


@pytest.fixture(scope="module")
def hopper() -> Played:
    return _play("brax:hopper")


@pytest.fixture(scope="module")
def pendulum() -> Played:
    return _play("brax:inverted_pendulum")


@pytest.fixture
def played(request) -> Played:
    return request.getfixturevalue(request.param)


# The hopper takes twice as long to compile, and of the adapter it shows no more than its metrics.
both = pytest.mark.parametrize(
    "played", ["pendulum", pytest.param("hopper", marks=pytest.mark.slow)], indirect=True
)
# Weak enough for the pole to stay up until the time limit.
LARGEST = {"brax:inverted_pendulum": 0.3, "brax:hopper": 1.0}
SIZES = {"brax:inverted_pendulum": (4, 1, 0.02), "brax:hopper": (11, 3, 0.008)}


@both
def test_body_is_an_env_with_brax_sizes(played):
    env, info = played.env, envs.describe(played.env.name)
    assert isinstance(env, Env)
    assert (env.observation_size, env.action_size, env.dt) == SIZES[env.name]
    assert (info.observation_size, info.action_size) == SIZES[env.name][:2]
    assert env.backend == "spring"
    assert played.first.obs.shape == (NUM_LANES, env.observation_size)


@both
def test_form_is_fixed_and_float32(played):
    assert jax.tree.structure(played.first) == jax.tree.structure(played.states)
    floats = [played.states.obs, played.states.reward, played.states.done]
    for leaf in floats + jax.tree.leaves(played.states.metrics):
        assert leaf.dtype == jnp.float32
    for leaf in jax.tree.leaves(played.states):
        assert not leaf.weak_type
        assert np.isfinite(leaf).all()


@pytest.mark.slow
def test_hopper_x_position_is_the_torsos_from_reset_on(hopper):
    for states in (hopper.first, hopper.states):
        running = np.asarray(states.done) == 0  # after a restart physics is already the new one
        x = np.asarray(states.physics.x.pos)[..., 0, 0]
        np.testing.assert_array_equal(np.asarray(states.metrics["x_position"])[running], x[running])
    assert np.all(np.asarray(hopper.first.metrics["x_position"]) != 0.0)


@pytest.mark.slow
def test_hopper_distance_is_velocity_times_time(hopper):
    x = np.asarray(hopper.states.metrics["x_position"])[:, :TIME_LIMIT]
    start = np.asarray(hopper.first.metrics["x_position"])
    velocity = np.asarray(hopper.states.metrics["x_velocity"])[:, :TIME_LIMIT]
    assert np.asarray(hopper.states.info["termination"]).sum() == 0
    np.testing.assert_allclose(x[:, -1] - start, velocity.sum(axis=1) * hopper.env.dt, atol=1e-5)
    assert np.abs(x[:, -1] - start).max() > 1e-3


@both
def test_resets_are_distinct(played):
    obs = np.asarray(played.first.obs)
    assert len({tuple(row) for row in obs}) == NUM_LANES


@both
def test_time_limit_does_not_leak_into_later_steps(played):
    truncation = np.asarray(played.states.info["truncation"])
    expected = (np.arange(1, NUM_STEPS + 1) % TIME_LIMIT == 0).astype(np.float32)
    np.testing.assert_array_equal(truncation, np.broadcast_to(expected, truncation.shape))
    np.testing.assert_array_equal(played.states.done, truncation)


# Parents, lengths in m, radii, as in the model files: rail, cart, pole; torso, thigh, leg, foot.
BODIES = {
    "brax:inverted_pendulum": ((-1, 0), [2.0, 0.2, 0.6], [0.02, 0.1, 0.049]),
    "brax:hopper": ((-1, 0, 1, 2), [0.4, 0.45, 0.5, 0.39], [0.05, 0.05, 0.04, 0.06]),
}


@both
def test_skeleton_and_segments_agree_with_the_physics(played):
    physics = jax.tree.map(lambda leaf: leaf[0], played.first.physics)
    positions, parents = played.env.skeleton(physics)
    expected_parents, expected_lengths, expected_radii = BODIES[played.env.name]
    assert positions.shape == (len(expected_parents), 3)
    assert parents == expected_parents
    assert played.env.qpos(physics).shape == (played.env.model.nq,)
    ends, radii = played.env.segments(physics)
    assert ends.shape == (len(expected_lengths), 2, 3)
    lengths = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=-1)
    np.testing.assert_allclose(lengths, expected_lengths, atol=1e-6)
    np.testing.assert_allclose(radii, expected_radii, atol=1e-6)
    root = len(expected_lengths) - len(expected_parents)  # after what is fixed to the world
    np.testing.assert_allclose(ends[root].mean(axis=0), positions[0], atol=1e-3)


@both
def test_reset_from_typed_key_equals_brax_from_raw_key(played):
    np.testing.assert_array_equal(played.first.obs, played.raw_obs)


class _Kinematics(NamedTuple):
    """As much of a pipeline state as the adapter reads."""

    pos: jax.Array


class _Physics(NamedTuple):
    x: _Kinematics
    q: jax.Array


class _Sloppy:
    """A Brax environment with every bad habit that one of Brax's own has."""

    def reset(self, rng):
        from brax.envs.base import State

        assert rng.shape == (2,)
        assert rng.dtype == jnp.uint32, "Brax needs raw keys"
        physics = _Physics(_Kinematics(jnp.full((1, 3), 2.5)), jnp.asarray(1.0))
        zero = jnp.zeros(())
        return State(physics, jnp.zeros(2), zero, zero, {"x_position": zero}, {"time_out": zero})

    def step(self, state, action):
        warnings.warn("old names", DeprecationWarning, stacklevel=1)
        state.metrics.update(x_position=99.0)
        physics = _Physics(_Kinematics(state.pipeline_state.x.pos + 1.0), jnp.asarray(2))
        return state.replace(pipeline_state=physics, reward=1.0)


@pytest.fixture(name="sloppy")
def _sloppy():
    return brax_env.BraxEnv("test:sloppy", "spring", 2, 1, 10, 0.1, _Sloppy())


def test_adapter_sloppy_environment_keeps_the_protocol(sloppy):
    check(sloppy)


def test_step_passes_no_done_on_and_writes_no_metrics(sloppy):
    state = sloppy.reset(jax.random.key(0))
    assert float(state.metrics["x_position"]) == 2.5
    after = sloppy.step(state.replace(done=jnp.ones(())), jnp.zeros(1))
    assert (float(after.done), float(after.reward)) == (0.0, 1.0)
    assert float(after.metrics["x_position"]) == 3.5
    assert float(state.metrics["x_position"]) == 2.5
    assert after.physics.q.dtype == jnp.float32


def test_make_leaves_warning_filters_and_folder_alone(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        # This body's model file makes MuJoCo write a warning.
        env = envs.make("brax:halfcheetah")
        jax.eval_shape(lambda key: env.reset(key).obs, jax.random.key(0))
        assert warnings.filters == before
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_swimmer_steps_on_this_jax():
    env = envs.make("brax:swimmer")
    assert env.backend == "generalized"
    info = envs.describe("brax:swimmer")
    assert (env.observation_size, env.action_size) == (info.observation_size, info.action_size)

    def forms(key, action):
        state = env.step(env.reset(key), action)
        return state.obs, state.reward

    obs, reward = jax.eval_shape(forms, jax.random.key(0), jax.ShapeDtypeStruct((2,), jnp.float32))
    assert (obs.shape, reward.shape) == ((8,), ())


def test_make_wrong_task_or_backend_is_refused():
    with pytest.raises(ValueError, match="'hoper'; the nearest valid one is 'hopper'"):
        brax_env.make("hoper")
    with pytest.raises(ValueError, match=r"'sprng' for 'brax:hopper'; .* 'spring'"):
        brax_env.make("hopper", backend="sprng")


@pytest.mark.slow  # each engine is a compilation of its own; spring is what all other tests use
@pytest.mark.parametrize("backend", ["positional", "generalized", "mjx"])
@pytest.mark.parametrize("name", ["brax:inverted_pendulum", "brax:hopper"])
def test_bodies_step_on_every_backend(name, backend):
    env = envs.make(name, backend=backend)
    assert env.backend == backend and env.brax_env.backend == backend

    def pushed(key, push):
        def advance(state, _):
            state = env.step(state, jnp.full(env.action_size, push))
            return state, state

        first = env.reset(key)
        return first, jax.lax.scan(advance, first, length=6)[1]

    keys = jax.random.split(jax.random.key(2), 2)
    play = jax.jit(jax.vmap(jax.vmap(pushed, (None, 0)), (0, None)))
    first, states = jax.device_get(play(keys, jnp.array([-0.5, 0.5])))
    assert jax.tree.structure(first) == jax.tree.structure(states)
    assert states.obs.shape == (2, 2, 6, SIZES[name][0])
    assert states.reward.shape == states.done.shape == (2, 2, 6)
    for leaf in jax.tree.leaves(states):
        assert np.isfinite(leaf).all()
    # Keys decide the start, pushes what follows; the cart goes where it is pushed.
    assert (first.obs[0] != first.obs[1]).any() and (first.obs[:, 0] == first.obs[:, 1]).all()
    assert np.abs(states.obs[:, 0] - states.obs[:, 1]).max() > 1e-2
    if name == "brax:inverted_pendulum":
        assert (states.obs[:, 0, -1, 2] < 0).all() and (states.obs[:, 1, -1, 2] > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in envs.list_envs() if name.startswith("brax:")])
def test_check_every_brax_environment(name):
    env = envs.make(name)
    info = envs.describe(name)
    assert (env.observation_size, env.action_size) == (info.observation_size, info.action_size)
    check(env)
