# SPDX-License-Identifier: Apache-2.0
"""A policy earns in MuJoCo's C code, through its exported file, what it earns in MJX.

The exported actions go to the actuators of the C simulation as they are, so that a wrong scaling
would be seen too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

pytest.importorskip("mujoco.mjx")

import envs
from envs import _mujoco
from envs.api import EpisodeWrapper, action_bounds
from robotics.evaluate import make_evaluate
from robotics.export import export_policy, load_numpy_policy
from robotics.networks import NetworkConfig, make_policy
from robotics.policies import load_policy

ROBOTS = Path(__file__).parents[1] / "envs" / "robots"
NUM_EPISODES, TIME_LIMIT = 8, 200  # steps of 0.02 s
TORQUES = [40.0, 40.0, 20.0]  # N m
TOLERANCE = 1e-3  # of the mean return
# Feedback from (z, pitch, hip, knee, ankle) and the speeds of x and these, found by random search.
# The hopper lands, shuffles 0.6 m forward with its foot leaving the floor a few times, and in some
# episodes falls shortly before the time limit.
GAINS = [
    [0.38, 0.12, -0.22, 1.59, 0.64, 0.76, 0.07, -0.2, -0.56, 0.45, 0.14],
    [0.69, -1.11, 0.06, -2.42, -0.29, 0.23, -0.56, 0.55, -0.55, 0.11, -0.22],
    [-0.12, 1.33, -0.09, -0.29, 0.45, 0.5, 0.51, 2.68, 1.54, 1.97, -0.91],
]
OFFSETS = [0.19, -0.7, 0.46]


@pytest.fixture
def env(tmp_path) -> Any:
    """The hopper with motors in N m, whose ranges differ, instead of in shares of their gears."""
    model = (ROBOTS / "hopper.xml").read_text()
    for joint, torque in zip(("hip", "knee", "ankle"), TORQUES, strict=True):
        shares = f'<motor joint="{joint}" gear="{torque:g}"/>'
        assert shares in model
        limits = f'ctrlrange="-{torque:g} {torque:g}"'
        model = model.replace(shares, f'<motor joint="{joint}" {limits}/>')
    (tmp_path / "hopper.xml").write_text(model)
    (tmp_path / "hopper.py").write_text((ROBOTS / "hopper.py").read_text())
    return envs.make(f"mujoco:{tmp_path / 'hopper.xml'}", episode_length=TIME_LIMIT)


@pytest.fixture
def policy(env, tmp_path) -> Path:
    """A folder with the policy's files."""
    sizes = env.observation_size, env.action_size
    layer = {"kernel": np.float32(GAINS).T, "bias": np.float32(OFFSETS)}
    params = {
        "normalizer": {"mean": np.zeros(sizes[0], "f4"), "std": np.ones(sizes[0], "f4")},
        "policy": {"mlp": {"layer_0": layer}},
    }
    spec = make_policy(*sizes, NetworkConfig(policy_hidden=(), noise="none")).spec
    low, high = (bound.tolist() for bound in action_bounds(env))
    about = {"env": env.name, "action_range": {"low": low, "high": high}}
    export_policy(tmp_path / "policy", spec, params, about)
    return tmp_path / "policy"


def returns_in_c(env: Any, policy: Path, key: jax.Array, gravity: float = -9.81) -> np.ndarray:
    """Returns [episodes] of the same task and starts in MuJoCo's C code."""
    mujoco = _mujoco.module()
    model = mujoco.MjModel.from_xml_path(env.name.removeprefix("mujoco:"))
    model.opt.gravity[2] = gravity
    home = env._home()
    keys = jax.random.split(jax.random.split(key)[0], NUM_EPISODES)  # as evaluations draw them
    starts = jax.vmap(lambda key: env.task.reset(key, home))(keys)
    unit, torques = load_numpy_policy(policy), load_numpy_policy(policy, scaled=True)
    returns = np.zeros(NUM_EPISODES)
    for i in range(NUM_EPISODES):
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = starts.qpos[i], starts.qvel[i]
        mujoco.mj_forward(model, data)
        for _ in range(TIME_LIMIT):
            obs = np.asarray(env.task.observation(data))
            data.ctrl[:] = torques(obs)
            mujoco.mj_step(model, data, round(env.dt / model.opt.timestep))
            returns[i] += env.task.reward(data, unit(obs))
            if env.task.done(data):
                break
    return returns


@pytest.mark.slow
def test_policy_returns_in_c_mujoco_what_it_returns_in_mjx(env, policy):
    loaded, key = load_policy(policy), jax.random.key(0)
    evaluate = make_evaluate(EpisodeWrapper(env), loaded.policy, NUM_EPISODES)
    played = jax.device_get(jax.jit(evaluate)(loaded.params, key))
    lengths = played["episode_length"]
    assert lengths.min() > TIME_LIMIT / 2 and 0 < (lengths < TIME_LIMIT).sum() < NUM_EPISODES
    ours, theirs = played["episode_return"], returns_in_c(env, policy, key)
    # Seen: 229.17738 and 229.17743, single episodes within 4e-6.
    np.testing.assert_allclose(ours.mean(), theirs.mean(), rtol=TOLERANCE)
    # The comparison can fail: a fiftieth more gravity costs a tenth of the return.
    heavy = returns_in_c(env, policy, key, gravity=1.02 * -9.81).mean()
    assert abs(heavy - theirs.mean()) > 50 * TOLERANCE * theirs.mean()
