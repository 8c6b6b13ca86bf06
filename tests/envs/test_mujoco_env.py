# SPDX-License-Identifier: Apache-2.0
"""Users' own models: the numbers of MuJoCo's C code, one sentence for each mistake."""

from __future__ import annotations

import sys
import textwrap
import types
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("mujoco.mjx")

import envs
from envs import _mujoco, mujoco_env, randomization
from envs.api import Env, EpisodeWrapper, action_bounds
from envs.checker import check

ROBOTS = Path(__file__).parent / "robots"
NUM_LANES, NUM_STEPS, TIME_LIMIT = 3, 24, 16
# A cart of 2 kg on a frictionless rail; force -4 N at action -1, 8 N at action 1.
CART = """
<mujoco>
  <option timestep="0.01" gravity="0 0 0"/>
  <worldbody>
    <body name="cart">
      <joint name="rail" type="slide" axis="1 0 0"/>
      <geom type="sphere" size="0.1" mass="2"/>
    </body>
  </worldbody>
  <actuator><motor joint="rail" ctrlrange="-4 8"/></actuator>
  <keyframe><key qpos="0.5"/></keyframe>
</mujoco>
"""
PUSH = """
import jax
import jax.numpy as jnp
from envs.mujoco_task import Task

class Push(Task):
    def reset(self, key, data):
        return data
    def reward(self, data, action):
        return data.qvel[0]
"""
RANDOM_MASS = """
    def randomize(self, key, model):
        factor = jax.random.uniform(key, (), minval=0.5, maxval=1.0)
        return model.replace(body_mass=model.body_mass * factor)
"""


# A mass of 2 kg on an upright rail, 5 cm above the floor; force -4 N at action -1, 20 N at 1.
LANDER = """
<mujoco>
  <option timestep="0.005" iterations="4" ls_iterations="8"/>
  <worldbody>
    <geom type="plane" size="4 4 1"/>
    <body name="mass" pos="0 0 0.1">
      <joint name="height" type="slide" axis="0 0 1"/>
      <geom type="sphere" size="0.1" mass="2"/>
    </body>
  </worldbody>
  <actuator><motor joint="height" ctrlrange="-4 20"/></actuator>
  <keyframe><key qpos="0.05"/></keyframe>
</mujoco>
"""
LAND = """
from envs.mujoco_task import Task

class Land(Task):
    dt = 0.02
    def reward(self, data, action):
        return 1.0 + data.qvel[0] - 0.01 * action[0] ** 2
    def metrics(self, data):
        return {"x_position": data.qpos[0]}
"""


class Played(NamedTuple):
    """A robot with random actions: first states [lane], later states [lane, time]."""

    env: Any
    first: Any
    states: Any
    actions: jax.Array


def _play(env: Env, largest: float) -> Played:
    """One compiled program for all tests of a robot, as compiling is what takes time."""
    wrapped = EpisodeWrapper(env, TIME_LIMIT)

    def lane(key, actions):
        first = wrapped.reset(key)

        def advance(state, action):
            state = wrapped.step(state, action, first)
            return state, state

        return first, jax.lax.scan(advance, first, actions)[1]

    keys = jax.random.split(jax.random.key(0), NUM_LANES)
    shape = (NUM_LANES, NUM_STEPS, env.action_size)
    actions = jax.random.uniform(jax.random.key(1), shape, minval=-largest, maxval=largest)
    return Played(env, *jax.jit(jax.vmap(lane))(keys, actions), actions)


@pytest.fixture(scope="module")
def lander(tmp_path_factory) -> Played:
    """Some of its actions are too large."""
    folder = tmp_path_factory.mktemp("lander")
    (folder / "lander.xml").write_text(LANDER)
    (folder / "lander.py").write_text(LAND)
    return _play(envs.make(f"mujoco:{folder / 'lander.xml'}"), 1.3)


@pytest.fixture(scope="module")
def hopper() -> Played:
    """Its actions are weak enough for it to land and to stay on its foot until the time limit."""
    return _play(envs.make(f"mujoco:{ROBOTS / 'hopper.xml'}"), 0.2)


@pytest.fixture
def played(request) -> Played:
    return request.getfixturevalue(request.param)


both = pytest.mark.parametrize(
    "played", ["lander", pytest.param("hopper", marks=pytest.mark.slow)], indirect=True
)


@pytest.fixture
def robot(tmp_path):
    """Writes a model and a task; gives the name of their environment."""

    def write(task: str = PUSH, model: str = CART, name: str = "cart") -> str:
        (tmp_path / f"{name}.xml").write_text(model)
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(task))
        return f"mujoco:{tmp_path / name}.xml"

    return write


@pytest.fixture
def unmeasured(monkeypatch):
    """Takes a second of tracing from tests that ask nothing of observations or of the physics."""
    monkeypatch.setattr(mujoco_env, "_measured", lambda env: env)


SIZES = {"lander": (2, 1, 0.02, 1000), "hopper": (11, 3, 0.02, 500)}


@both
def test_robot_is_an_env_with_the_sizes_of_its_model(played):
    assert isinstance(played.env, Env)
    sizes = (played.env.observation_size, played.env.action_size)
    sizes += (played.env.dt, played.env.episode_length)
    assert sizes == SIZES[Path(played.env.name).stem]
    assert played.first.obs.shape == (NUM_LANES, sizes[0])
    assert jax.tree.structure(played.first) == jax.tree.structure(played.states)
    for leaf in jax.tree.leaves(played.states):
        assert not leaf.weak_type
    assert bool(jnp.isfinite(played.states.obs).all())
    assert len({tuple(row) for row in np.asarray(played.first.obs)}) == NUM_LANES


@both
def test_robot_reward_and_position_are_those_of_the_task(played):
    running = np.asarray(played.states.done) == 0  # after a restart physics is already the new one
    qpos, qvel = (np.asarray(getattr(played.states.physics, name)) for name in ("qpos", "qvel"))
    actions = np.clip(played.actions, -1.0, 1.0)
    reward = 1.0 + qvel[..., 0] - 0.01 * np.square(actions).sum(axis=-1)
    np.testing.assert_allclose(played.states.reward[running], reward[running], atol=1e-6)
    x = np.asarray(played.states.metrics["x_position"])
    np.testing.assert_array_equal(x[running], qpos[..., 0][running])
    truncation = np.asarray(played.states.info["truncation"])
    assert truncation[:, TIME_LIMIT - 1].all() and truncation.sum() == NUM_LANES


def _in_c(played: Played, lane: int, gravity: float = -9.81) -> np.ndarray:
    """Positions [time, nq] that MuJoCo's C code makes of a lane's first state and actions."""
    mujoco = _mujoco.module()
    model = mujoco.MjModel.from_xml_path(played.env.name.removeprefix("mujoco:"))
    low, high = model.actuator_ctrlrange.T
    model.opt.gravity[2] = gravity
    data = mujoco.MjData(model)
    data.qpos[:] = played.first.physics.qpos[lane]
    data.qvel[:] = played.first.physics.qvel[lane]
    positions = []
    for action in np.asarray(played.actions[lane])[: TIME_LIMIT - 1]:
        data.ctrl[:] = low + (np.clip(action, -1.0, 1.0) + 1.0) / 2.0 * (high - low)
        mujoco.mj_step(model, data, 4)
        positions.append(data.qpos.copy())
    return np.stack(positions)


@both
def test_robot_moves_as_in_mujocos_c_code_through_its_first_contacts(played):
    for lane in range(NUM_LANES):
        ours = np.asarray(played.states.physics.qpos[lane])[: TIME_LIMIT - 1]
        theirs = _in_c(played, lane)
        # 1e-5 after 15 steps of 4 simulator steps each, in float32 against float64.
        np.testing.assert_allclose(ours, theirs, atol=5e-5)
        # The comparison can fail: a hundredth more gravity is seen.
        assert np.abs(ours - _in_c(played, lane, gravity=-9.91)).max() > 2e-4
    assert np.asarray(played.states.physics._impl.contact.dist).min() < 0.0  # it has landed


@pytest.mark.usefixtures("unmeasured")
def test_hopper_can_be_drawn_without_opengl():
    env = envs.make(f"mujoco:{ROBOTS / 'hopper.xml'}")
    physics = types.SimpleNamespace(qpos=jnp.asarray(env.model.qpos0, jnp.float32))
    assert env.qpos(physics).shape == (env.model.nq,)
    ends, radii = env.segments(physics)
    # The model file: torso 0.3 m, thigh and shin 0.4 m, foot 0.3 m long; the floor is left out.
    lengths = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=-1)
    np.testing.assert_allclose(lengths, [0.3, 0.4, 0.4, 0.3], atol=1e-6)
    np.testing.assert_allclose(radii, [0.06, 0.05, 0.04, 0.05])


def test_episodes_start_near_the_keyframe_and_actions_span_the_control_range(lander):
    np.testing.assert_allclose(lander.first.obs, [[0.05, 0.0]] * NUM_LANES, atol=0.01)
    # Before it lands, a step changes its speed by (force / 2 kg - 9.81 m/s^2) x 0.02 s.
    speed = np.asarray(lander.first.obs)[:, 1]
    forces = 8.0 + 12.0 * np.clip(lander.actions[:, 0, 0], -1.0, 1.0)
    expected = speed + (forces / 2.0 - 9.81) * 0.02
    np.testing.assert_allclose(lander.states.obs[:, 0, 1], expected, rtol=1e-4, atol=1e-5)
    assert np.abs(lander.actions).max() > 1.0


@pytest.mark.usefixtures("unmeasured")
def test_action_bounds_are_the_control_ranges_and_one_without_a_range(robot):
    free = '<motor joint="rail"/><motor joint="rail" ctrlrange="0 0.5"/></actuator>'
    env = envs.make(robot(model=CART.replace("</actuator>", free)))
    low, high = action_bounds(env)
    assert (low.tolist(), high.tolist()) == ([-4.0, -1.0, 0.0], [8.0, 1.0, 0.5])
    for action, control in ((-1.0, low), (1.0, high)):
        np.testing.assert_allclose(env._control(jnp.full(3, action)), control)


def test_randomized_robot_keeps_its_mass_until_the_episode_restarts(robot):
    env = EpisodeWrapper(envs.make(robot(PUSH + RANDOM_MASS)), 3)

    def masses(key):
        key, key_restart = jax.random.split(key)
        first, restart = env.reset(key), env.reset(key_restart)

        def advance(state, _):
            after = env.step(state, jnp.ones(1), restart)
            speed = after.reward - state.physics.qvel[0]
            return after, 8.0 * 0.01 / speed  # force x time / change of velocity

        return jax.lax.scan(advance, first, None, length=6)[1]

    keys = jax.random.split(jax.random.key(0), 4)
    found = np.asarray(jax.jit(jax.vmap(masses))(keys))
    assert (found > 1.0).all() and (found < 2.0).all()
    np.testing.assert_allclose(found[:, :3], np.tile(found[:, :1], 3), rtol=1e-4)
    np.testing.assert_allclose(found[:, 3:], np.tile(found[:, 3:4], 3), rtol=1e-4)
    assert len(np.unique(found.round(4))) == 8


def test_critic_of_a_task_sees_what_the_policy_does_not_such_as_the_mass_drawn(robot):
    critic = """
    def privileged_observation(self, data, model):
        return jnp.stack([model.body_mass[1], data.qpos[0]])
"""
    env = envs.make(robot(PUSH + RANDOM_MASS + critic))
    assert (env.observation_size, env.privileged_observation_size) == (2, 2)
    wrapped = EpisodeWrapper(env, 1)

    def play(keys):
        first, restart = (wrapped.reset(key) for key in keys)
        return first, restart, wrapped.step(first, jnp.ones(1), restart)

    first, restart, after = jax.jit(play)(jax.random.split(jax.random.key(0)))
    masses = [float(state.info[randomization.INFO][".body_mass"][1]) for state in (first, restart)]
    np.testing.assert_allclose(first.info["privileged_obs"], [masses[0], 0.5])
    np.testing.assert_allclose(after.info["privileged_obs"], [masses[1], 0.5])
    assert masses[0] != masses[1]
    final = np.asarray(after.info["final_privileged_obs"])
    assert final[0] == np.float32(masses[0]) and final[1] == after.info["final_obs"][0] > 0.5


def double_mass(key, model):
    return model.replace(body_mass=2.0 * model.body_mass)


@pytest.mark.usefixtures("unmeasured")
def test_randomize_option_takes_the_place_of_the_tasks_own(robot, monkeypatch):
    monkeypatch.setitem(sys.modules, "my_robots", types.SimpleNamespace(double=double_mass))
    for option in ("my_robots:double", double_mass):
        env = envs.make(robot(PUSH + RANDOM_MASS), randomize=option)
        assert env.randomize is double_mass
        (mass,) = randomization.draw(env.randomize, jax.random.key(0), env.mjx_model).values()
        np.testing.assert_array_equal(mass, 2.0 * env.mjx_model.body_mass)


@pytest.mark.usefixtures("unmeasured")
def test_batched_randomization_is_that_of_brax_and_playground(robot):
    def batched(model, keys):
        masses = jax.vmap(lambda key: model.body_mass * jax.random.uniform(key))(keys)
        in_axes = jax.tree.map(lambda leaf: None, model).replace(body_mass=0)
        return model.replace(body_mass=masses), in_axes

    model = envs.make(robot()).mjx_model
    key = jax.random.key(3)
    changed = randomization.draw(randomization.from_batched(batched), key, model)
    assert list(changed) == [".body_mass"]
    put = randomization.put(model, changed)
    assert jax.tree.structure(put) == jax.tree.structure(model)
    assert 0.0 < float(put.body_mass[1] / model.body_mass[1]) < 1.0
    assert put.qpos0 is model.qpos0


def test_exploding_simulation_ends_its_episode_with_finite_numbers(robot):
    explode = PUSH.replace("data.qvel[0]", "data.qvel[0] / (data.qpos[0] < 0.505)")
    env = envs.make(robot(explode))

    def play(key):
        start = env.reset(key)

        def advance(state, _):
            state = env.step(state, jnp.ones(1))
            return state, state

        return jax.lax.scan(advance, start, None, length=8)[1]

    states = jax.jit(play)(jax.random.key(0))
    # v = 0.04 n after n steps of 0.01 s: 0.504 m after four, 0.506 m after five.
    assert np.asarray(states.metrics["diverged"])[:5].tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]
    assert np.asarray(states.done)[:5].tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]
    assert float(states.reward[4]) == 0.0
    np.testing.assert_array_equal(states.obs[4], states.obs[3])
    np.testing.assert_array_equal(states.physics.qpos[4], states.physics.qpos[3])


@pytest.mark.slow
def test_checker_passes_on_a_users_robot(robot):
    check(envs.make(robot(), episode_length=20), num_steps=8)


@pytest.mark.usefixtures("unmeasured")
def test_file_with_two_tasks_makes_the_one_that_is_named():
    name = f"mujoco:{ROBOTS / 'two_link_crawler.xml'}"
    assert envs.make(f"{name}:Crawl").name == f"{name}:Crawl"
    assert type(envs.make(f"{name}:Hold").task).__name__ == "Hold"
    with pytest.raises(ValueError, match=r"has 2 tasks \(Crawl, Hold\); choose one, as in 'muj"):
        envs.make(name)
    with pytest.raises(ValueError, match=r"Unknown task 'Hald' in .*; the nearest .* 'Hold'"):
        envs.make(f"{name}:Hald")


@pytest.mark.slow
@pytest.mark.parametrize("robot", ["hopper.xml", "two_link_crawler.xml:Crawl"])
def test_checker_passes_on_the_fixtures(robot):
    check(envs.make(f"mujoco:{ROBOTS / robot}"), num_steps=16)


MODEL_MISTAKES = {
    "no XML": ("<mujoco", "MuJoCo cannot read '.*cart.xml': "),
    "unknown element": (CART.replace("<joint ", "<jiont "), "cannot read .* unrecognized"),
    "no actuator": (CART.replace('<motor joint="rail" ctrlrange="-4 8"/>', ""), "has no actuators"),
    "not in MJX": (
        CART.replace("<option ", '<option integrator="implicit" '),
        "MJX cannot simulate '.*cart.xml': ",
    ),
}
TASK_MISTAKES = {
    "no class": ("x = 1", "has no subclass of envs.mujoco_task.Task"),
    "syntax": ("class :", "The task file '.*cart.py' fails: SyntaxError"),
    "import": ("import nowhere", "ModuleNotFoundError: No module named 'nowhere' .line 1 of cart"),
    "no reward": (
        "from envs.mujoco_task import Task\nclass Push(Task):\n  pass",
        r"Push in '.*cart.py' has no method reward\(data, action\)",
    ),
    "misspelt field": (
        PUSH.replace("qvel[0]", "qvle[0]"),
        "reward of Push for .* fails: AttributeError: .*'qvle' .line 10 of cart.py",
    ),
    "python if": (
        PUSH.replace("return data.qvel[0]", "return 1.0 if data.qvel[0] > 0 else 0.0"),
        "reward of Push for .* fails: TracerBoolConversionError",
    ),
    "vector reward": (
        PUSH.replace("data.qvel[0]", "data.qvel"),
        r"reward of Push for .* has shape \(1,\), but it must be one number",
    ),
    "matrix observation": (
        PUSH + "    def observation(self, data):\n        return data.xpos",
        r"observation of Push .* has shape \(2, 3\), but it must have one axis",
    ),
    "privileged matrix": (
        PUSH + "    def privileged_observation(self, data, model):\n        return data.xpos",
        r"privileged_observation of Push .* has shape \(2, 3\), but it must have one axis",
    ),
    "other action size": (
        PUSH + "    action_size = 2",
        "Push declares action_size 2, but 'mujoco:.*cart.xml' has 1",
    ),
    "other observation size": (
        PUSH + "    observation_size = 3",
        "observation_size 3, but .* has 2",
    ),
    "dt": (PUSH + "    dt = 0.025", "0.025 s, which is no multiple of .* 0.01 s; .* 0.02 s"),
    "episode length": (PUSH + "    episode_length = 0", "is 0; it must be at least 1 step"),
    "random shape": (
        PUSH + "    def randomize(self, key, model):\n"
        "        return model.replace(body_mass=model.body_mass[:1])",
        r"gives body_mass the shape \(1,\); it must stay \(2,\)",
    ),
}


@pytest.mark.parametrize("case", TASK_MISTAKES)
def test_mistake_in_a_task_is_met_with_one_sentence(robot, case):
    task, sentence = TASK_MISTAKES[case]
    with pytest.raises(ValueError, match=sentence) as caught:
        envs.make(robot(task))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", MODEL_MISTAKES)
def test_mistake_in_a_model_is_met_with_one_sentence(robot, case):
    model, sentence = MODEL_MISTAKES[case]
    with pytest.raises(ValueError, match=sentence) as caught:
        envs.make(robot(model=model))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("cort.xml", {}, "There is no MJCF file '.*cort.xml'; the nearest one is '.*cart.xml'"),
        ("cart.xml", {"backend": "spring"}, "'spring' for 'mujoco:.*; .* 'mjx'"),
        ("cart.xml", {"episod_length": 3}, "Unknown option 'episod_length'"),
        ("cart.xml", {"randomize": "nowhere:f"}, "randomization 'nowhere:f' cannot be imported"),
        ("cart.xml", {"randomize": "jax"}, "'jax' must be 'module:function'"),
    ],
)
def test_wrong_name_or_option_is_met_with_one_sentence(robot, tmp_path, name, options, sentence):
    robot()
    with pytest.raises(ValueError, match=sentence):
        envs.make(f"mujoco:{tmp_path / name}", **options)


def test_model_without_a_task_says_where_one_is_shown(robot, tmp_path):
    name = robot()
    (tmp_path / "cart.py").unlink()
    with pytest.raises(ValueError, match=r"no task file '.*cart.py' .*docs/your-own-robot.md"):
        envs.make(name)
