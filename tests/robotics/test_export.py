# SPDX-License-Identifier: Apache-2.0
"""A policy gives the same actions wherever it is taken: NumPy, ONNX, Brax, Gymnasium."""

from __future__ import annotations

import copy
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.cli.main import main
from robotics.export import export_policy, load_numpy_policy, read_policy
from robotics.networks import NetworkConfig, init_policy, make_policy
from robotics.policies import load_policy
from tests.robotics.test_render import distinct, frames_of

OBS, ACTIONS = 4, 1  # the sizes of inverted_pendulum
CONFIGS = {
    "tanh": NetworkConfig(policy_hidden=(8, 5)),
    "swish": NetworkConfig(policy_hidden=(8,), activation="swish", noise="network"),
    "elu": NetworkConfig(policy_hidden=(8,), activation="elu", noise="none"),
    "relu": NetworkConfig(policy_hidden=(8,), activation="relu"),
    "linear": NetworkConfig(policy_hidden=()),
}
CHOICES = 3
LOW, HIGH = [-4.0, 0.0, -0.1], [8.0, 0.7, 0.1]  # a robot with three unlike motors


@functools.cache
def start(config: NetworkConfig, obs: int, size: int, discrete: bool) -> dict:
    """Fresh weights, the same for all files; each operation on its own is compiled on its own."""
    init = jax.jit(lambda key: init_policy(key, obs, size, config, discrete))
    return jax.device_get(init(jax.random.key(1)))


def write(
    folder: Path,
    config: NetworkConfig,
    discrete: bool = False,
    sizes: tuple[int, int] = (OBS, ACTIONS),
    **about,
) -> Path:
    """An exported policy that has never been trained but does something."""
    obs, size = (OBS, CHOICES) if discrete else sizes
    policy = make_policy(obs, size, config, discrete)
    params = copy.deepcopy(start(config, obs, size, discrete))
    last = params["mlp"][f"layer_{len(config.policy_hidden)}"]
    last["kernel"] = last["kernel"] * 100.0  # the start is close to zero on purpose
    rng = np.random.default_rng(0)
    normalizer = {
        "mean": np.float32(rng.normal(size=obs)),
        "std": np.float32(rng.uniform(0.5, 2.0, obs)),
    }
    header = {"env": "brax:inverted_pendulum", "backend": None, "dt": 0.02, "env_steps": 5}
    header |= {"observation_size": obs, "action_size": size, "episode_length": 20}
    header |= {"action_range": [0, size - 1] if discrete else {"low": [-1.0], "high": [1.0]}}
    params = {"normalizer": normalizer, "policy": params}
    export_policy(folder, policy.spec, params, header | about)
    return folder


def write_motors(folder: Path) -> Path:
    """A policy of the robot with three unlike motors."""
    at_home = {"low": LOW, "high": HIGH}
    return write(folder, CONFIGS["tanh"], sizes=(OBS, 3), action_range=at_home)


def stretched(actions: np.ndarray, low: list[float], high: list[float]) -> np.ndarray:
    return np.array(low) + (actions + 1.0) / 2.0 * (np.array(high) - np.array(low))


@pytest.fixture(scope="module", params=CONFIGS)
def policy(request, tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("policy"), CONFIGS[request.param])


@pytest.fixture
def pendulum(tmp_path) -> Path:
    return write(tmp_path / "policy", CONFIGS["tanh"])


def observations(folder: Path, reach: float = 9.9) -> np.ndarray:
    tensors = read_policy(folder).tensors
    spread = np.random.default_rng(3).uniform(-reach, reach, (64, tensors["normalizer/mean"].size))
    return (tensors["normalizer/mean"] + tensors["normalizer/std"] * spread).astype(np.float32)


def actions_in_jax(folder: Path, obs: np.ndarray) -> np.ndarray:
    loaded = load_policy(folder)
    actions = loaded.policy.act(loaded.params, jnp.asarray(obs), jax.random.key(0), True)
    assert np.abs(actions).mean() > 0.1  # a policy that does nothing proves nothing
    return np.asarray(actions)


RECIPE = re.search(
    r"## NumPy alone.*?```python\n(.*?)```",
    (Path(__file__).parents[2] / "docs" / "take-a-policy-along.md").read_text(),
    re.DOTALL,
)


def test_numpy_gives_the_actions_of_jax(policy):
    obs = observations(policy, reach=20.0)  # beyond the clipping too
    np.testing.assert_allclose(
        load_numpy_policy(policy)(obs), actions_in_jax(policy, obs), atol=2e-6
    )


def run_recipe(folder: Path, obs: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Heavy packages that the documented recipe has imported, and its actions."""
    assert RECIPE is not None
    program = f"{RECIPE[1]}\nimport sys\nobs = np.array(json.loads(sys.stdin.read()))\n"
    program += "heavy = {'jax', 'safetensors', 'robotics', 'mnemosyne'} & set(sys.modules)\n"
    program += "print(json.dumps([sorted(heavy), act(obs).tolist()]))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program],
        cwd=folder,
        input=json.dumps(obs.tolist()),
        capture_output=True,
        text=True,
        check=True,
    )
    heavy, actions = json.loads(done.stdout)
    return heavy, np.array(actions)


def test_documented_recipe_needs_numpy_alone(policy):
    obs = observations(policy, reach=20.0)
    heavy, actions = run_recipe(policy, obs)
    assert heavy == []
    np.testing.assert_allclose(actions, actions_in_jax(policy, obs), atol=2e-6)


def test_documented_recipe_sends_each_action_to_its_own_range(tmp_path):
    folder = write_motors(tmp_path)
    obs = observations(folder, reach=20.0)
    wanted = stretched(actions_in_jax(folder, obs), LOW, HIGH)
    np.testing.assert_allclose(run_recipe(folder, obs)[1], wanted, atol=2e-5)
    np.testing.assert_allclose(load_numpy_policy(folder, scaled=True)(obs), wanted, atol=2e-5)
    assert np.abs(load_numpy_policy(folder)(obs)).max() <= 1.0


def test_policies_of_older_files_keep_their_single_range(tmp_path):
    folder = write(tmp_path, CONFIGS["tanh"], sizes=(OBS, 3), action_range=[-2, 3])
    obs = observations(folder, reach=20.0)
    wanted = stretched(actions_in_jax(folder, obs), [-2.0], [3.0])
    np.testing.assert_allclose(load_numpy_policy(folder, scaled=True)(obs), wanted, atol=1e-5)
    np.testing.assert_allclose(run_recipe(folder, obs)[1], wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"low": [0.0], "high": [1.0, 2.0]}, "does not fit its actions"),
        ({"low": [0.0]}, "does not fit its actions"),
        ({"low": [0.0] * 3, "high": [1.0, 1.0, -1.0]}, "is empty"),
        ([0, float("inf")], "is empty"),
    ],
)
def test_range_that_cannot_be_is_refused(tmp_path, given, sentence):
    folder = write(tmp_path, CONFIGS["tanh"], sizes=(OBS, 3), action_range=given)
    with pytest.raises(ValueError, match=f"the policy's action range {sentence}"):
        load_numpy_policy(folder, scaled=True)


@pytest.mark.parametrize("action_range", [(-1.0, 1.0), (-0.5, 3.0)])
def test_onnx_has_normalizer_and_scaling_inside(policy, tmp_path, action_range):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from robotics.export_onnx import run_onnx, write_onnx

    obs = observations(policy, reach=20.0)
    file = write_onnx(tmp_path / "policy.onnx", read_policy(policy), action_range)
    low, high = action_range
    wanted = low + (actions_in_jax(policy, obs) + 1.0) / 2.0 * (high - low)
    np.testing.assert_allclose(run_onnx(file, obs), wanted, atol=5e-6)
    np.testing.assert_allclose(run_onnx(file, obs[:1]), wanted[:1], atol=5e-6)


def test_onnx_says_what_it_is(pendulum):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    assert main(["export", str(pendulum)]) == 0
    model = onnx.load(str(pendulum / "policy.onnx"))
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert about["env"] == "brax:inverted_pendulum"
    assert json.loads(about["action_range"]) == {"low": [-1.0], "high": [1.0]}


def exported_onnx(folder: Path, *flags: str) -> tuple[np.ndarray, np.ndarray, dict[str, list]]:
    """Actions of the graph that the command writes, those of JAX in [-1, 1], and its range."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from robotics.export_onnx import run_onnx

    assert main(["export", str(folder), *flags]) == 0
    file, obs = folder / "policy.onnx", observations(folder, reach=20.0)
    about = {entry.key: entry.value for entry in onnx.load(str(file)).metadata_props}
    return run_onnx(file, obs), actions_in_jax(folder, obs), json.loads(about["action_range"])


def test_onnx_sends_each_action_to_its_own_range_unless_told_otherwise(tmp_path, capsys, refuse):
    folder = write_motors(tmp_path / "policy")
    actions, unit, about = exported_onnx(folder)
    np.testing.assert_allclose(actions, stretched(unit, LOW, HIGH), atol=2e-5)
    assert about == {"low": LOW, "high": HIGH}
    assert "action range: -4 to 8, 0 to 0.7, -0.1 to 0.1" in capsys.readouterr().out

    actions, unit, about = exported_onnx(folder, "--action-range", "-1", "2")
    np.testing.assert_allclose(actions, stretched(unit, [-1.0], [2.0]), atol=1e-5)
    assert about == {"low": [-1.0] * 3, "high": [2.0] * 3}

    each = [flag for high in "123" for flag in ("--action-range", "0", high)]
    actions, unit, about = exported_onnx(folder, *each)
    np.testing.assert_allclose(actions, stretched(unit, [0.0], [1.0, 2.0, 3.0]), atol=1e-5)
    capsys.readouterr()
    sentence = refuse("export", folder, *each[:6])
    assert "2 action ranges are given, but the policy has 3 actions" in sentence


def test_onnx_reaches_the_limits_and_passes_none_by_the_last_bit(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from robotics.export_onnx import run_onnx, write_onnx

    folder = write(tmp_path, CONFIGS["linear"], sizes=(OBS, 3))
    policy, obs = read_policy(folder), observations(folder)
    policy.tensors["policy/mlp/layer_0/kernel"] = 1e4 * policy.tensors["policy/mlp/layer_0/kernel"]
    # In float32, 0.4 + 0.3 is more than 0.7 and 0.4 - 0.3 less than 0.1.
    actions = run_onnx(write_onnx(tmp_path / "policy.onnx", policy, (0.1, 0.7)), obs)
    np.testing.assert_array_equal(actions.min(axis=0), np.float32([0.1] * 3))
    np.testing.assert_array_equal(actions.max(axis=0), np.float32([0.7] * 3))


def test_onnx_of_an_action_that_cannot_move_is_that_action(tmp_path):
    fixed = {"low": [2.0, 0.0], "high": [2.0, 0.0]}
    folder = write(tmp_path, CONFIGS["tanh"], sizes=(OBS, 2), action_range=fixed)
    np.testing.assert_array_equal(exported_onnx(folder)[0], np.tile([2.0, 0.0], (64, 1)))


def test_exported_actions_are_those_that_evaluate_gives_to_the_environment(tmp_path):
    """Sent as they are to Gymnasium, whose torques are in [-2, 2]: nothing is scaled twice."""
    gymnasium = pytest.importorskip("gymnasium")
    from mnemosyne.cli.evaluate import _STREAM
    from robotics.host import env_seeds

    about = {"env": "gym:Pendulum-v1", "dt": 0.05, "episode_length": 30}
    at_home = {"low": [-2.0], "high": [2.0]}
    folder = write(tmp_path / "p", CONFIGS["tanh"], sizes=(3, 1), action_range=at_home, **about)
    numbers = tmp_path / "n.json"
    flags = ["--num-episodes", "2", "--json", str(numbers)]
    assert main(["evaluate", str(folder), *flags]) == 0
    key = jax.random.fold_in(jax.random.key(0), _STREAM)
    returns, act = [], load_numpy_policy(folder, scaled=True)
    for seed in env_seeds(jax.random.split(key, 1), 2)[0].tolist():
        env = gymnasium.make("Pendulum-v1", max_episode_steps=30)
        obs, ended, returned = env.reset(seed=seed)[0], False, 0.0
        while not ended:
            obs, reward, _, ended, _ = env.step(act(obs))
            returned += float(reward)
        returns.append(returned)
    measured = json.loads(numbers.read_text())
    np.testing.assert_allclose(measured["return_mean"], np.mean(returns), rtol=1e-4)
    unsaid = write(tmp_path / "q", CONFIGS["tanh"], sizes=(3, 1), **about)
    assert main(["evaluate", str(unsaid), *flags]) == 0
    assert json.loads(numbers.read_text())["return_mean"] == measured["return_mean"]


@pytest.mark.parametrize("kind", ["tanh", "swish"])
def test_brax_loads_what_is_written_for_it(kind, tmp_path):
    pytest.importorskip("brax")
    from robotics.export_brax import run_brax, write_brax

    policy = write(tmp_path / "policy", CONFIGS[kind])
    obs = observations(policy)
    written = write_brax(tmp_path / "brax", read_policy(policy))
    np.testing.assert_allclose(run_brax(written, obs), actions_in_jax(policy, obs), atol=1e-5)
    with pytest.raises(ValueError, match="exists already"):
        write_brax(tmp_path / "brax", read_policy(policy))


def test_brax_draws_actions_with_the_same_noise(pendulum):
    pytest.importorskip("brax")
    from brax.training.acme import running_statistics
    from brax.training.agents.ppo import networks

    from robotics.export_brax import brax_params

    made = networks.make_ppo_networks(
        OBS,
        ACTIONS,
        running_statistics.normalize,
        policy_hidden_layer_sizes=(8, 5),
        activation=jnp.tanh,
    )
    obs = observations(pendulum)
    params = brax_params(read_policy(pendulum))
    logits = made.policy_network.apply(*params, obs)
    scale = made.parametric_action_distribution.create_dist(logits).scale
    np.testing.assert_allclose(scale, CONFIGS["tanh"].init_std, rtol=1e-5)
    actions = networks.make_inference_fn(made)(params, deterministic=True)(obs, None)[0]
    np.testing.assert_allclose(actions, actions_in_jax(pendulum, obs), atol=1e-5)


def test_choices_are_the_same_wherever_the_policy_is_taken(tmp_path, refuse):
    folder = write(tmp_path / "policy", CONFIGS["tanh"], discrete=True)
    obs = observations(folder)
    choices = actions_in_jax(folder, obs)
    assert set(choices.tolist()) == set(range(CHOICES))
    np.testing.assert_array_equal(load_numpy_policy(folder)(obs), choices)
    np.testing.assert_array_equal(run_recipe(folder, obs)[1], choices)
    pytest.importorskip("brax")
    out = tmp_path / "brax"
    sentence = refuse("export", folder, "--format", "brax", "--out", out)
    assert "chooses among actions, which Brax's PPO cannot" in sentence and not out.exists()
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from robotics.export_onnx import run_onnx

    assert "have no range" in refuse("export", folder, "--action-range", "0", "2")
    assert main(["export", str(folder)]) == 0
    np.testing.assert_array_equal(run_onnx(folder / "policy.onnx", obs), choices)


def test_choices_do_not_fit_where_numbers_are_wanted(tmp_path, refuse):
    folder = write(tmp_path / "policy", CONFIGS["tanh"], discrete=True)
    sentence = refuse("evaluate", folder)
    assert "observes 4 numbers and chooses one of 3 actions, but brax:inverted_pendulum" in sentence


def test_policy_files_name_no_code_to_run(tmp_path, capsys):
    folder = write(tmp_path / "p", CONFIGS["tanh"], env="control:cartpole", randomize="this:that")
    assert main(["evaluate", str(folder), "--num-episodes", "1"]) == 0


def test_unknown_networks_are_refused_by_name(tmp_path):
    from robotics.export import write_policy

    folder = write(tmp_path, CONFIGS["tanh"])
    tensors, header = read_policy(folder)
    for name, value in (("kind", "cnn"), ("activation", "gelu"), ("squash", "clip")):
        write_policy(folder, tensors, header | {"network": header["network"] | {name: value}})
        with pytest.raises(ValueError, match=f"unknown .*{value}"):
            load_policy(folder)


@pytest.fixture
def refuse(capsys):
    def run(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        return captured.err

    return run


def test_exports_that_cannot_be_are_refused(refuse, pendulum, tmp_path):
    pytest.importorskip("onnx")
    assert "holds no run" in refuse("export", tmp_path / "nowhere")
    assert "range 2 to 1 is empty" in refuse("export", pendulum, "--action-range", "2", "1")
    assert "--action-range is for --format onnx" in refuse(
        "export", pendulum, "--format", "brax", "--action-range", "0", "1"
    )
    assert "onnx takes a file" in refuse("export", pendulum, "--out", tmp_path)
    assert "holds a policy already" in refuse(
        "export", pendulum, "--format", "numpy", "--out", pendulum
    )


def test_copied_policy_is_the_policy(pendulum, tmp_path):
    copy = tmp_path / "copy"
    assert main(["export", str(pendulum), "--format", "numpy", "--out", str(copy)]) == 0
    obs = observations(pendulum)
    np.testing.assert_array_equal(load_numpy_policy(copy)(obs), load_numpy_policy(pendulum)(obs))
    assert read_policy(copy).header == read_policy(pendulum).header


def test_policy_plays_in_its_own_environment_without_a_run(tmp_path, capsys):
    folder = write(tmp_path / "p", CONFIGS["tanh"], env="control:cartpole", dt=0.02)
    numbers = tmp_path / "n.json"
    flags = ["--num-episodes", "4", "--json", str(numbers)]
    assert main(["evaluate", str(folder), *flags]) == 0
    measured = json.loads(numbers.read_text())
    assert measured["policy"] == "exported" and measured["eval_episodes"] == 4
    assert measured["episode_length"] <= 20  # the time limit of the policy's own world
    assert main(["render", str(folder), "--seconds", "0.5"]) == 0
    assert (folder / "video.gif").stat().st_size > 1000
    assert "control:cartpole: exported policy" in capsys.readouterr().out


def test_policy_of_other_sizes_is_refused_and_one_that_fits_is_named(refuse, pendulum):
    sentence = refuse("evaluate", pendulum, "--env", "control:pendulum")
    assert "observes 4 numbers and gives 1 actions, but control:pendulum has 3 and 1" in sentence
    assert "brax:inverted_pendulum would fit" in sentence


def test_gymnasium_plays_in_c_mujoco(pendulum, tmp_path, refuse, capsys):
    pytest.importorskip("gymnasium")
    pytest.importorskip("mujoco")
    numbers = tmp_path / "n.json"
    flags = ["--env", "gym:InvertedPendulum-v5", "--num-episodes", "3", "--json", str(numbers)]
    measured = []
    for _ in range(2):
        assert main(["evaluate", str(pendulum), *flags]) == 0
        measured.append(json.loads(numbers.read_text()))
    assert measured[0] == measured[1]
    # Gymnasium gives a point for every step but the one that falls.
    assert measured[0]["return_mean"] == measured[0]["episode_length"] - 1
    assert "takes 0.04 s a step, the policy has learned with 0.02 s" in capsys.readouterr().out
    sentence = refuse("evaluate", pendulum, "--env", "gym:Hopper-v5")
    assert "gym:Hopper-v5 has 11 and 3" in sentence
    assert "the nearest valid one is 'gym:Hopper-v5'" in refuse(
        "render", pendulum, "--env", "gym:Hoper-v5"
    )


@pytest.mark.filterwarnings("ignore:the video is drawn by hand")  # where there is no OpenGL
def test_video_in_another_environment_moves_and_leaves_the_runs_own_alone(pendulum, capsys):
    pytest.importorskip("gymnasium")
    pytest.importorskip("mujoco")
    (pendulum / "video.mp4").write_bytes(b"the policy in its own environment")
    flags = ["--env", "gym:InvertedPendulum-v5", "--seconds", "0.6"]
    assert main(["render", str(pendulum), *flags]) == 0
    (video,) = pendulum.glob("video-gym-InvertedPendulum-v5.*")
    assert f"video: {video}" in capsys.readouterr().out
    frames = frames_of(video)
    assert len(frames) == 15  # of 0.04 s
    assert distinct(frames) > 5
    assert (pendulum / "video.mp4").read_bytes() == b"the policy in its own environment"
