# SPDX-License-Identifier: Apache-2.0
"""Every mistake of a user ends in one sentence and exit code 2, and leaves the disk as it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import mnemosyne
from mnemosyne.cli import main as cli
from mnemosyne.cli import parse
from mnemosyne.cli.build import build
from mnemosyne.cli.train import Train
from robotics import run_folder
from robotics.checkpoint import Checkpointer
from robotics.run import RunConfig, state_template

TINY = ["train"]
TINY += ["--env", "probe:action", "--optimizer", "adam", "--num-timesteps", "128"]
TINY += ["--ppo.num-envs", "4", "--ppo.unroll-length", "8", "--ppo.network.policy-hidden", "4"]
TINY += ["--num-evaluations", "1", "--no-video"]


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def refuse(tmp_path, capsys, monkeypatch):
    """Runs a command that must fail; gives its sentence."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, code: int = 2) -> str:
        before = snapshot(tmp_path)
        assert cli.main([str(argument) for argument in arguments]) == code
        captured = capsys.readouterr()
        assert snapshot(tmp_path) == before
        assert captured.out == ""
        assert captured.err.count("\n") == 1 and captured.err.startswith("mnemosyne: ")
        assert "Traceback" not in captured.err and "\u2502" not in captured.err  # no boxes
        return captured.err

    return run


@pytest.fixture
def made(tmp_path) -> Path:
    """A run folder with one checkpoint, written without training."""
    folder = tmp_path / "made"
    config = parse.parse(Train, TINY[1:], "x", "x")
    assert config is not None
    built = build(config)
    template = state_template(built.algorithm, RunConfig(folder))
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), template)
    run_folder.describe(folder, run_folder.plain(vars(config) | _groups(config)), ["mnemosyne"])
    with Checkpointer(folder / "checkpoints", identity=built.identity) as checkpointer:
        checkpointer.save(128, state, {"epoch": 1})
    return folder


def _groups(config: Train) -> dict:
    import dataclasses

    fields = dataclasses.asdict(config)
    return {name: fields[name] for name in ("ppo", "es", "hosts")}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--env", "brax:hoper"], "'brax:hopper'"),
        (["--env", "probe:acton"], "'probe:action'"),
        (["--env", "gym:CartPol-v1"], "the nearest valid one is 'gym:CartPole-v1'"),
        (["--env", "gym:Blackjack-v1"], "observations of the space Tuple"),
        (["--env", "gym:CartPole-v1", "--backend", "mjx"], "has no backend to choose"),
        (["--env", "gym:CartPole-v1", "--algo", "es"], "--algo es needs an environment that runs"),
        (["--optimizer", "adan"], "unknown optimizer 'adan'; the nearest valid one is 'adam'"),
        (["--optimizer", "mnemosine"], "nearest valid one is 'mnemosyne'"),
        (["--optimizer", "optax:nope"], "'optax:nope'"),
        (["--optimizer", "mnemosyne", "--weights", "nowhere.safetensors"], "nowhere"),
        (["--algo", "pppo"], "unknown value 'pppo' for --algo; the nearest of ppo, es is 'ppo'"),
        (["--backend", "sprng"], "backend"),
        (["--env", "brax:hopper", "--backend", "sprng"], "'spring'"),
        (["--num-timesteps", "many"], "'many'"),
        (["--num-timesteps", "0"], "--num-timesteps is 0, but it must be at least 1"),
        (["--num-timesteps", "-5"], "--num-timesteps is -5, but it must be at least 1"),
        (["--num-timesteps", "7"], "use at least 32"),
        (["--num-evaluations", "0"], "--num-evaluations is 0"),
        (["--eval-episodes", "0"], "--eval-episodes is 0"),
        (["--episode-length", "0"], "episode_length"),
        (["--num-seeds", "0"], "--num-seeds is 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--max-to-keep", "0"], "--max-to-keep is 0"),
        (["--learning-rate", "0"], "--learning-rate is 0.0, but it must be above 0"),
        (["--learning-rate", "fast"], "'fast'"),
        (["--num-seed", "3"], "unknown flag '--num-seed'; the nearest valid one is '--num-seeds'"),
        (["--ppo.num-env", "3"], "unknown flag '--ppo.num-env'; the nearest valid one is"),
        (["--ppo.num-minibatches", "5"], "do not divide into 5 minibatches; the nearest number"),
        (["--ppo.num-envs", "0"], "num_envs is 0"),
        (["--ppo.network.activation", "tan"], "the nearest of tanh, swish, relu, elu is 'tanh'"),
        (["--ppo.network.policy-hidden", "0"], "width is 0"),
        (["--algo", "es", "--es.population-size", "7"], "the nearest size that fits is 8"),
        (["--ppo.network.policy-hidden", "3000000", "3000000"], "GiB, this machine has"),
        (["--num-seeds", "2000000000"], "GiB, this machine has"),
        (["stray"], "unrecognized options: stray"),
        (["--logdir"], "missing value for argument '--logdir'"),
        (["--config", "nowhere.json"], "there is no file nowhere.json"),
        (["--resume", "nowhere"], "nowhere holds no run"),
        (["--resume", "x", "--logdir", "y"], "drop --logdir and --config"),
        (["--json", "."], "it is a folder, --json takes a file"),
    ],
)
def test_train_refuses(refuse, flags, sentence):
    assert sentence in refuse(*TINY, *flags)


def test_unwritable_places_are_refused(refuse, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "is not a folder" in refuse(*TINY, "--logdir", tmp_path / "file" / "run")
    assert "is not a folder" in refuse(*TINY, "--json", tmp_path / "file" / "out.json")
    if Path("/proc").is_dir():
        assert "cannot write /proc/run" in refuse(*TINY, "--logdir", "/proc/run")


def test_folder_that_cannot_be_written_is_refused_by_permission(refuse, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    if os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("this user may write everywhere")
    assert "cannot write" in refuse(*TINY, "--logdir", tmp_path / "locked" / "run")


def test_second_run_in_the_same_folder_is_refused(refuse, made):
    assert f"continue it with --resume {made}" in refuse(*TINY, "--logdir", made)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--optimizer", "lion"], "was started with --optimizer adam, not lion"),
        (["--env", "probe:value"], "was started with --env probe:action, not probe:value"),
        (["--algo", "es"], "was started with --algo ppo, not es"),
        (["--ppo.network.policy-hidden", "4", "4"], "--ppo.network.policy-hidden 4, not 4 4"),
        (["--num-seeds", "3"], "was started with --num-seeds 1, not 3"),
    ],
)
def test_resume_with_other_settings_is_refused(refuse, made, flags, sentence):
    assert sentence in refuse("train", "--resume", made, *flags)


@pytest.mark.parametrize("damage", ["truncated", "altered"])
@pytest.mark.parametrize("verb", [("train", "--resume"), ("evaluate",)])
def test_damaged_checkpoint_is_refused(refuse, made, verb, damage):
    files = [path for path in (made / "checkpoints").rglob("*") if path.is_file()]
    file = max(files, key=lambda path: path.stat().st_size)
    good = file.read_bytes()
    middle = len(good) // 2
    flipped = good[:middle] + bytes([good[middle] ^ 4]) + good[middle + 1 :]
    file.write_bytes(good[:middle] if damage == "truncated" else flipped)
    assert "is damaged" in refuse(*verb, made)


def test_checkpoint_of_another_run_under_this_config_is_refused(refuse, made, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(made, other)
    config = json.loads((other / "config.json").read_text())
    config["ppo"]["network"]["policy_hidden"] = [5]
    (other / "config.json").write_text(json.dumps(config))
    assert "was made with" in refuse("train", "--resume", other)


def test_checkpoint_of_another_env_under_this_config_is_refused(refuse, made):
    config = made / "config.json"
    config.write_text(config.read_text().replace('"probe:action"', '"probe:value"'))
    sentence = refuse("train", "--resume", made)
    assert "was made with env 'probe:action', not 'probe:value'" in sentence
    assert "was made with env 'probe:action'" in refuse("evaluate", made)


_CART = """<mujoco><worldbody><body><joint name="rail" type="slide"/><geom size="0.1"/></body>
</worldbody><actuator><motor joint="rail" ctrlrange="-1 1"/></actuator></mujoco>"""
_PUSH = """
from envs.mujoco_task import Task
class Push(Task):
    def reward(self, data, action):
        return data.qvel[0]
"""


@pytest.mark.parametrize(
    ("model", "task", "sentence"),
    [
        (_CART[:40], _PUSH, "MuJoCo cannot read 'cart.xml'"),
        (_CART.replace("<joint ", "<jiont "), _PUSH, "cannot read 'cart.xml'"),
        (_CART, _PUSH + "    action_size = 2", "Push declares action_size 2, but 'mujoco:cart.xml"),
    ],
    ids=["no XML", "unknown element", "action size"],
)
def test_wrong_robot_is_refused(refuse, tmp_path, capsys, model, task, sentence):
    pytest.importorskip("mujoco.mjx")
    capsys.readouterr()  # its import tells what else it would like to have
    (tmp_path / "cart.xml").write_text(model)
    (tmp_path / "cart.py").write_text(task)
    assert sentence in refuse(*TINY, "--env", "mujoco:cart.xml", "--backend", "mjx")


def test_env_whose_dict_of_observations_has_no_state_is_refused(refuse, monkeypatch):
    import envs
    from envs import playground_env

    def make(name, **options):
        return playground_env._sizes({"pixels": jnp.zeros(3)}, name)

    monkeypatch.setattr(envs, "make", make)
    sentence = refuse(*TINY, "--env", "playground:Blind")
    assert "observes 'pixels', but a policy needs an observation 'state'" in sentence


def test_run_that_cannot_be_kept_alive_ends_with_its_sentence(refuse, monkeypatch):
    from robotics import run
    from robotics.recovery import DivergedError

    def train(*_, **__):
        raise DivergedError("the run stopped: seed 0: reward of environment 3 is not finite")

    monkeypatch.setattr(run, "train", train)
    assert "the run stopped: seed 0: reward of environment 3" in refuse(*TINY)


def test_damaged_config_is_refused(refuse, made):
    config = made / "config.json"
    good = config.read_text()
    config.write_text(good[: len(good) // 2])
    assert "not valid JSON" in refuse("train", "--resume", made)
    config.write_text(good.replace('"num_seeds": 1', '"num_seeds": "one"'))
    assert "'num_seeds'" in refuse("train", "--resume", made)
    config.write_text(good.replace('"num_seeds"', '"num_seed"'))
    assert "unknown field 'num_seed'; the nearest valid one is 'num_seeds'" in refuse(
        "evaluate", made
    )


def test_damaged_weights_are_refused(refuse, tmp_path):
    weights = tmp_path / "weights.safetensors"
    config = mnemosyne.MnemosyneConfig()
    theta = jax.device_get(mnemosyne.init_meta_params(jax.random.key(0), config))
    mnemosyne.save_artifact(weights, mnemosyne.Artifact(theta, config, {}, ("none",)))
    good = weights.read_bytes()
    flags = ("--optimizer", "mnemosyne", "--weights", weights)
    weights.write_bytes(good[: len(good) // 2])
    assert "weights.safetensors" in refuse(*TINY, *flags)
    weights.write_bytes(good[:-9] + bytes([good[-9] ^ 4]) + good[-8:])
    assert "weights.safetensors" in refuse(*TINY, *flags)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "unknown verb 'trian'; did you mean 'train'?"),
        (["evaluate", "nowhere"], "nowhere holds no run"),
        (["evaluate", "{made}", "--num-episodes", "0"], "--num-episodes is 0"),
        (["evaluate", "{made}", "--best"], "there is no policy"),
        (["evaluate"], "required"),
        (["render", "{made}"], "there is no policy"),
        (["render", "{made}", "--seconds", "0"], "--seconds is 0.0, but it must be above 0"),
        (["plot"], "name at least one run"),
        (["plot", "{made}"], "holds no evaluation yet"),
        (["envs", "--instaled"], "unknown flag '--instaled'; the nearest valid one is"),
        (["envs", "--json", "{made}"], "it is a folder"),
        (["doctor", "--logdirr", "x"], "the nearest valid one is '--logdir'"),
    ],
)
def test_other_verbs_refuse(refuse, made, arguments, sentence):
    assert sentence in refuse(*(argument.format(made=made) for argument in arguments))


def test_missing_extra_is_named(refuse, monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    sentence = refuse(*TINY)
    assert "'tyro' is missing" in sentence and "[cli]" in sentence


def test_traceback_on_request(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MNEMOSYNE_TRACEBACK", "1")
    assert cli.main(["plot", str(tmp_path)]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_of_ours_is_not_dressed_up_as_a_user_error(monkeypatch):
    monkeypatch.setattr(cli, "_dispatch", lambda arguments: {}["bug"])
    with pytest.raises(KeyError):
        cli.main([])


def test_full_disk_and_ctrl_c_have_their_codes(refuse, monkeypatch):
    def full(arguments):
        raise OSError(28, "No space left on device", "/disk/file")

    monkeypatch.setattr(cli, "_dispatch", full)
    assert "No space left on device: /disk/file" in refuse("train")

    def stopped(arguments):
        raise KeyboardInterrupt("interrupted at 5 env steps")

    monkeypatch.setattr(cli, "_dispatch", stopped)
    assert "interrupted at 5 env steps" in refuse("train", code=130)


def test_executable_ends_with_one_sentence_and_code_2(root):
    command = [sys.executable, "-m", "mnemosyne.cli.main", "train", "--env", "brax:hoper"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "'brax:hopper'" in done.stderr


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--budget", "20m"), "--out FOLDER"),
        (("--out", "m"), "say how long"),
        (("--out", "m", "--budget", "20x"), "90s, 20m or 1h"),
        (("--out", "m", "--outer-steps", "0"), "at least 1, got 0"),
        (("--out", "m", "--budget", "1m", "--outer-steps", "9"), "not both"),
        (("--out", "m", "--resume"), "no meta-training run to resume"),
        (("--out", "m", "--outer-steps", "9", "--rule", "lstn"), "lstm"),
        (("--out", "m", "--outer-steps", "9", "--network", "residual"), "FIELD=VALUE"),
        (("--out", "m", "--outer-steps", "9", "--network", "residul=false"), "residul"),
        (("--out", "m", "--outer-steps", "9", "--data-dir", "nowhere"), "'nowhere' does not exist"),
        (("--out", "m", "--outer-steps", "9", "--init", "mnemosyne-bas"), "mnemosyne-base"),
        (("--out", "m", "--outer-steps", "9", "--network", 'mode="paper"'), "of mode plus"),
        (("--out", "m", "--outer-steps", "9", "--recipe", "rl", "--rule", "lstm"), "leave out"),
    ],
)
def test_meta_training_mistakes_are_told_before_any_work(refuse, flags, sentence):
    assert sentence in refuse("meta-train", *flags)


def test_meta_training_does_not_start_in_the_folder_of_another_run(refuse, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "settings.json").write_text("{}")
    assert "already holds a run" in refuse("meta-train", "--out", "m", "--outer-steps", "9")
