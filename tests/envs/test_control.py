# SPDX-License-Identifier: Apache-2.0
"""The control tasks against Gymnasium, conservation of energy and closed forms."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.control import (
    Cartpole,
    CartpoleParams,
    CartpolePhysics,
    CartpoleSwingup,
    Pendulum,
    PendulumParams,
    PendulumPhysics,
    Pointmass,
    PointmassParams,
    PointmassPhysics,
    cartpole_step,
    make,
)

TASKS = ("cartpole", "cartpole-swingup", "pendulum", "pointmass")


def _rollout(env, state, actions):
    """All states after the first, [time, ...]."""

    def advance(state, action):
        state = env.step(state, action)
        return state, state

    return jax.jit(lambda state: jax.lax.scan(advance, state, actions)[1])(state)


def _at(env, physics):
    """A state of ``env`` with the physics given."""
    physics = jax.tree.map(jnp.float32, physics)
    return env.reset(jax.random.key(0)).replace(physics=physics)


def test_pendulum_moves_as_in_gymnasium():
    classic = pytest.importorskip("gymnasium.envs.classic_control.pendulum")
    reference = classic.PendulumEnv(g=10.0)
    reference.reset(seed=0)
    env = Pendulum()
    state = _at(env, PendulumPhysics(*reference.state))
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (100, 1)).astype(np.float32)
    obs = np.asarray(_rollout(env, state, actions).obs)
    expected = [reference.step(2.0 * action)[0] for action in actions]
    np.testing.assert_allclose(obs, expected, atol=2e-4)


def test_cartpole_moves_and_falls_as_in_gymnasium():
    classic = pytest.importorskip("gymnasium.envs.classic_control.cartpole")
    reference = classic.CartPoleEnv()
    reference.kinematics_integrator = "semi-implicit euler"
    reference.reset(seed=1)
    env = Cartpole()
    state = _at(env, CartpolePhysics(*reference.state))
    pushes = np.random.default_rng(3).integers(0, 2, 60)
    actions = jnp.asarray(2.0 * pushes[:, None] - 1.0, jnp.float32)
    states = _rollout(env, state, actions)
    for t, push in enumerate(pushes):
        obs, reward, terminated, _, _ = reference.step(int(push))
        np.testing.assert_allclose(states.obs[t], obs, atol=1e-4)
        assert (states.reward[t], states.done[t]) == (reward, terminated)
        if terminated:
            break
    assert terminated, "random pushes must let the pole fall within 60 steps"


def test_pendulum_without_torque_keeps_its_energy():
    params = PendulumParams(mass=1.3, length=0.7, gravity=9.0, max_speed=100.0)
    env = Pendulum(params, dt=0.002)
    states = _rollout(env, _at(env, PendulumPhysics(2.0, 0.5)), jnp.zeros((3000, 1)))

    def energy(angle, velocity):
        kinetic = params.mass * params.length**2 * velocity**2 / 6.0
        return kinetic + 0.5 * params.mass * params.gravity * params.length * np.cos(angle)

    energies = energy(*(np.asarray(leaf) for leaf in states.physics))
    # Twice the largest potential energy is the scale; the error of one step is of order dt.
    scale = params.mass * params.gravity * params.length
    assert np.abs(energies - energy(2.0, 0.5)).max() < 0.005 * scale
    assert np.ptp(np.asarray(states.physics.angle)) > 2.0, "it must have swung"


def test_pendulum_damping_takes_energy_out():
    env = Pendulum(PendulumParams(damping=0.3))
    states = _rollout(env, _at(env, PendulumPhysics(2.0, 0.0)), jnp.zeros((600, 1)))
    assert abs(float(states.physics.velocity[-1])) < 1e-2
    assert abs(float(states.physics.angle[-1])) == pytest.approx(math.pi, abs=1e-2)


def test_cartpole_without_force_keeps_energy_and_momentum():
    params = CartpoleParams(cart_mass=0.8, pole_mass=0.4, half_length=0.6)
    start = CartpolePhysics(*map(jnp.float32, (0.0, 0.3, 2.5, -0.4)))

    def advance(physics, _):
        physics = cartpole_step(params, physics, jnp.float32(0.0), 0.001)
        return physics, physics

    states = jax.jit(lambda start: jax.lax.scan(advance, start, length=4000)[1])(start)
    mass, arm = params.pole_mass, params.half_length

    def invariants(position, velocity, angle, spin):
        momentum = (params.cart_mass + mass) * velocity + mass * arm * spin * np.cos(angle)
        kinetic = 0.5 * (params.cart_mass + mass) * velocity**2
        kinetic += mass * arm * velocity * spin * np.cos(angle) + 2 / 3 * mass * arm**2 * spin**2
        return momentum, kinetic + mass * params.gravity * arm * np.cos(angle)

    momentum, energy = invariants(*(np.asarray(leaf) for leaf in states))
    momentum_start, energy_start = invariants(*(float(leaf) for leaf in start))
    np.testing.assert_allclose(momentum, momentum_start, atol=2e-3)
    np.testing.assert_allclose(energy, energy_start, atol=2e-2)
    assert np.ptp(np.asarray(states.angle)) > 1.0, "it must have swung"


def test_pointmass_reaches_the_speed_of_its_closed_form():
    params = PointmassParams(mass=0.5, gear=3.0, damping=1.5)
    env = Pointmass(params)
    start = _at(env, PointmassPhysics(jnp.array([0.4, -0.2]), jnp.zeros(2)))
    states = _rollout(env, start, jnp.broadcast_to(jnp.array([1.0, -0.5]), (40, 2)))
    n = np.arange(1, 41)[:, None]
    decay = (1.0 - params.damping * env.dt / params.mass) ** n
    speed = params.gear / params.damping * np.array([1.0, -0.5]) * (1.0 - decay)
    np.testing.assert_allclose(states.physics.velocity, speed, rtol=1e-4, atol=1e-5)
    position = np.array([0.4, -0.2]) + np.cumsum(speed * env.dt, axis=0)
    np.testing.assert_allclose(states.obs[:, :2], position, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("env", "physics", "action", "reward"),
    [
        (Pendulum(), (0.0, 0.0), [0.0], 1.0),
        (Pendulum(), (math.pi, 0.0), [0.0], 0.0),
        (Pendulum(PendulumParams(gear=1e-9)), (0.0, 0.0), [5.0], 0.9),
        (CartpoleSwingup(), (0.0, 0.0, 0.0, 0.0), [0.0], 1.0),
        (CartpoleSwingup(), (2.4, 0.0, 0.0, 0.0), [0.0], 0.5),
        (CartpoleSwingup(), (0.0, 0.0, math.pi, 0.0), [0.0], 0.0),
        (Pointmass(), ([0.0, 0.0], [0.0, 0.0]), [0.0, 0.0], 1.0),
        (Pointmass(), ([0.2, 0.0], [0.0, 0.0]), [0.0, 0.0], 0.5),
    ],
)
def test_reward_known_states(env, physics, action, reward):
    kind = type(jax.eval_shape(env.reset, jax.random.key(0)).physics)
    physics = kind(*(np.float32(value) for value in physics))
    state = jax.jit(lambda action: env.step(_at(env, physics), action))(np.float32(action))
    assert float(state.reward) == pytest.approx(reward, abs=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_reward_stays_between_0_and_1_and_everything_finite(task):
    env = make(task)

    def lane(key):
        key_reset, key_action = jax.random.split(key)
        shape = (env.episode_length, env.action_size)
        actions = jax.random.choice(key_action, jnp.array([-1.0, 1.0]), shape)
        start = env.reset(key_reset)
        return jax.lax.scan(lambda s, a: (env.step(s, a),) * 2, start, actions)[1]

    states = jax.device_get(jax.jit(jax.vmap(lane))(jax.random.split(jax.random.key(0), 16)))
    assert float(states.reward.min()) >= 0.0
    assert float(states.reward.max()) <= 1.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(states))
    assert (task == "cartpole") == bool(states.done.any())


@pytest.mark.parametrize("task", TASKS)
def test_action_outside_the_range_counts_as_its_edge(task):
    env = make(task)
    step = jax.jit(lambda action: env.step(env.reset(jax.random.key(1)), action))
    far, edge = (step(np.full(env.action_size, a, np.float32)) for a in (7.0, 1.0))
    np.testing.assert_array_equal(far.obs, edge.obs)
    assert float(far.reward) == float(edge.reward)


def test_swingup_cart_stops_at_the_end_of_the_track():
    env = CartpoleSwingup()
    states = _rollout(env, env.reset(jax.random.key(0)), jnp.ones((200, 1)))
    assert float(states.physics.position.max()) == pytest.approx(2.4)
    at_wall = np.asarray(states.physics.position) >= 2.4
    assert at_wall.any()
    np.testing.assert_array_equal(np.asarray(states.physics.velocity)[at_wall], 0.0)


def test_params_drawn_at_random_under_vmap_equal_one_by_one():
    masses = jnp.array([0.5, 1.0, 2.0])

    def push(mass):
        env = Pendulum(PendulumParams(mass=mass))
        return env.step(_at(env, PendulumPhysics(0.0, 0.0)), jnp.ones(1)).physics.velocity

    velocities = jax.jit(jax.vmap(push))(masses)
    np.testing.assert_allclose(velocities, [float(push(mass)) for mass in masses], rtol=1e-6)
    np.testing.assert_allclose(velocities, 3.0 * 2.0 * 0.05 / np.asarray(masses), rtol=1e-6)


def test_make_sets_physics_and_leaves_defaults_alone():
    env = make("cartpole", episode_length=9, gravity=3.7)
    assert (env.params.gravity, env.episode_length) == (3.7, 9)
    assert make("cartpole") == Cartpole() == dataclasses.replace(Cartpole())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mas": 1.0}, "'mas' for 'control:pendulum'; the nearest valid one is 'mass'."),
        ({"mass": 0.0}, "mass of 'control:pendulum' is 0.0; it must be finite and above 0."),
        ({"damping": -1.0}, "is -1.0; it must be finite and at least 0."),
        ({"gravity": math.nan}, "gravity of 'control:pendulum' is nan; it must be finite."),
    ],
)
def test_make_wrong_physics_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make("pendulum", **options)
