# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne train``: a robot policy from start to end, or on from a checkpoint."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mnemosyne.cli import parse
from mnemosyne.cli.hosts import Hosts
from robotics.es.config import ESConfig
from robotics.ppo.config import PPOConfig

if TYPE_CHECKING:
    from mnemosyne.cli.build import Built
    from robotics.run import RunConfig

_OWN_FLAGS = ("num_timesteps", "num_evaluations")
PPOFlags = parse.flags_class(PPOConfig, omit=_OWN_FLAGS)
ESFlags = parse.flags_class(ESConfig, omit=_OWN_FLAGS)
_PPO, _ES, _HOSTS = PPOFlags(), ESFlags(), Hosts()

# What a resumed run may change: none of it has a part in what is learned.
FREE = ("logdir", "resume", "config", "json", "max_to_keep", "video", "quiet", "devices", "hosts")


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a robot policy with any optimizer; without further flags, with Mnemosyne and PPO."""

    env: str = "brax:hopper"
    """Environment; `mnemosyne envs` lists them."""
    backend: str | None = None
    """Physics backend of the environment; default: its own."""
    episode_length: int | None = None
    """Time limit of an episode in env steps, at least 1; default: the environment's own."""
    randomize: str | None = None
    """Another robot in every episode: module:function of a function (key, model) -> model, or
    `default` for what MuJoCo Playground has for the environment."""
    algo: Literal["ppo", "es"] = "ppo"
    """Policy gradient (ppo) or evolution strategies (es)."""
    optimizer: str = "mnemosyne"
    """mnemosyne, adam, sgd, ..., or module:function, a function that makes an optax optimizer; with
    --algo es also evosax:CMA_ES, evosax:SNES, ..., a strategy of evosax in place of one."""
    learning_rate: float | None = None
    """Learning rate, above 0; for mnemosyne a factor around 1. Default: the optimizer's own."""
    weights: str | None = None
    """Meta-parameters of mnemosyne, a shipped name or a file; default: mnemosyne-rl for ppo,
    mnemosyne-base for es, whose gradients are more like those it was trained on."""
    warm_start: str | None = None
    """Run to start from, whose policy, value network, normalizer and optimizer's memory are taken
    over where they fit; or weights of mnemosyne, a shipped name or a file."""
    warm_parts: tuple[Literal["policy", "value", "heads", "normalizer", "memory"], ...] = ()
    """What to take over from that run; default: all that fits, heads (last layers of policy and
    value network, spread of actions) from a run in the same environment only."""
    warm_probe: float = 0.0
    """Share of the budget, at most 0.01, of a probe in which the optimizer sees gradients and takes
    no step: it fills normalizer and memory. 0 for none."""
    hand_over: float | None = None
    """Share of the run, 0 to 1, after which mnemosyne hands over to adam, or with --optimizer adam
    the reverse, moments included; --learning-rate is that of adam then. Default: never."""
    num_timesteps: int = 1_000_000
    """Budget in env steps of one seed, at least one rollout; never exceeded."""
    num_evaluations: int = 20
    """Evaluations (and checkpoints) wanted over the run, at least 1."""
    eval_episodes: int = 64
    """Fresh episodes in an evaluation, for each seed, at least 1."""
    seed: int = 0
    """First seed, at least 0."""
    num_seeds: int = 1
    """Seeds trained side by side in one program, at least 1."""
    devices: int | None = None
    """Devices of each process that share environments or population, at least 1; default: all
    accelerators, or 1 on the CPU."""
    hosts: Hosts = _HOSTS
    """A run in several processes."""
    logdir: Path | None = None
    """Folder to write the run to; default: runs/<env>/<algo>-<optimizer>/<seed>x<seeds>-<time>."""
    resume: Path | None = None
    """Run folder to go on with; its settings are taken from it."""
    config: Path | None = None
    """A config.json whose settings are used where no flag says otherwise."""
    json: Path | None = None
    """File to write the final numbers to, besides result.json in the run folder."""
    max_to_keep: int = 3
    """Checkpoints kept on the disk, at least 1."""
    video: bool = True
    """Make a video of the best policy in the end."""
    quiet: bool = False
    """Say nothing on the console."""
    ppo: PPOFlags = _PPO  # pyright: ignore[reportInvalidTypeForm]
    """Settings of PPO."""
    es: ESFlags = _ES  # pyright: ignore[reportInvalidTypeForm]
    """Settings of evolution strategies."""


def read_config(folder: Path) -> Train:
    """The config that a run was started with.

    Raises:
      ValueError: if it is missing or damaged.
    """
    from robotics.run_folder import CONFIG, read_json

    return parse.from_json(Train, read_json(folder / CONFIG), str(folder / CONFIG))


def defaults(flags: Sequence[str]) -> Train:
    """Where flags that are not given come from: a run to resume, a config file, or a preset.

    Raises:
      ValueError: for a run or a file that cannot be read.
    """
    from robotics.es import presets as es_presets
    from robotics.ppo import presets as ppo_presets
    from robotics.run_folder import find_run, read_json

    resume, config = parse.flag_value(flags, "resume"), parse.flag_value(flags, "config")
    if resume is not None:
        if parse.flag_value(flags, "logdir") is not None or config is not None:
            raise ValueError("--resume goes on in the run's own folder; drop --logdir and --config")
        return dataclasses.replace(read_config(find_run(Path(resume))), json=None)
    if config is not None:
        base = parse.from_json(Train, read_json(Path(config)), config)
        return dataclasses.replace(base, logdir=None, resume=None, json=None)
    env = parse.flag_value(flags, "env") or Train.env
    return Train(
        ppo=parse.to_flags(PPOFlags, ppo_presets(env)), es=parse.to_flags(ESFlags, es_presets(env))
    )


def run(config: Train) -> dict[str, Any]:
    """Trains and reports; the files of a run folder are listed in ``docs/train-a-robot.md``.

    Raises:
      ValueError: for any setting that cannot be, before anything is written.
      Interrupted: after Ctrl-C.
    """
    from mnemosyne.cli import hosts, warm
    from robotics import run_folder
    from robotics.run import train

    config = warm.settle(config)
    built, run_config = prepare(config)
    folder = run_config.folder
    warm_up = warm.make_warm_up(config, built, folder)

    def begin() -> None:
        if config.resume is None:
            stored = dataclasses.replace(config, logdir=None, resume=None, config=None, json=None)
            stored = dataclasses.replace(stored, devices=None, hosts=_HOSTS)
            run_folder.describe(folder, dataclasses.asdict(stored), run_folder.command_line())
        else:
            run_folder.append_command(folder, run_folder.command_line())

    parts = (built.algorithm, built.env, built.optimizer)
    fields = train(*parts, run_config, built.identity, built.policy_info, begin, warm_up)
    if not hosts.is_first():
        return {}
    names = {"env": config.env, "algo": config.algo, "optimizer": config.optimizer}
    measured = {**names, "backend": built.backend, **fields, "run": str(folder)}
    run_folder.write_json(folder / run_folder.RESULT, measured)
    _pictures(config, built, folder, measured)
    return measured


def prepare(config: Train) -> tuple[Built, RunConfig]:
    """Builds a run and refuses what cannot be; writes nothing and allocates nothing large.

    Raises:
      ValueError: for any setting that cannot be.
    """
    from mnemosyne.cli import hosts
    from mnemosyne.cli.build import build
    from robotics.run import RunConfig, state_template

    check(config)
    hosts.connect(config.hosts)
    folder = _folder(config) if hosts.is_first() else hosts.scratch(config.resume)
    built = build(config)
    run_config = RunConfig(
        folder=folder,
        seed=config.seed,
        num_seeds=config.num_seeds,
        eval_episodes=config.eval_episodes,
        max_to_keep=config.max_to_keep,
        quiet=config.quiet or not hosts.is_first(),
    )
    state_template(built.algorithm, run_config)
    return built, run_config


def check(config: Train) -> None:
    """Refuses settings that cannot be, in one sentence.

    Raises:
      ValueError: naming the flag and the smallest valid value.
    """
    names = ("num_timesteps", "num_evaluations", "eval_episodes", "num_seeds", "max_to_keep")
    for name in names:
        if getattr(config, name) < 1:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} is {getattr(config, name)}, but it must be at least 1")
    if not 0 <= config.seed <= 2**32 - config.num_seeds:
        raise ValueError(f"--seed is {config.seed}, but it must lie between 0 and 2^32 - seeds")
    if config.learning_rate is not None and not 0 < config.learning_rate < float("inf"):
        raise ValueError(f"--learning-rate is {config.learning_rate}, but it must be above 0")


def _folder(config: Train) -> Path:
    """Where the run is written, checked to be free or, for a resumed run, to be this run's."""
    from robotics import run_folder

    if config.resume is not None:
        folder = run_folder.find_run(config.resume)
        _check_same(read_config(folder), config, folder)
        run_folder.check_writable(folder)
        return folder
    folder = config.logdir
    if folder is None:
        names = (config.env, config.algo, config.optimizer, config.seed, config.num_seeds)
        folder = run_folder.default_folder(Path("runs"), *names, time.strftime("%Y%m%d-%H%M%S"))
    run_folder.check_new(folder)
    return folder


def _check_same(saved: Train, wanted: Train, folder: Path) -> None:
    """Refuses to go on with a run under other settings than those it was started with."""
    for name, old, new in _differences(dataclasses.asdict(saved), dataclasses.asdict(wanted)):
        if name.partition(".")[0] not in FREE:
            flag = name.replace("_", "-")
            raise ValueError(
                f"{folder} was started with --{flag} {_shown(old)}, not {_shown(new)}; "
                "drop that flag to resume, or start a new run"
            )


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[tuple]:
    """``(name, old, new)`` of every field in which two nested configs differ."""
    found: list[tuple] = []
    for name, value in old.items():
        if isinstance(value, dict):
            found += _differences(value, new[name], f"{prefix}{name}.")
        elif value != new[name]:
            found.append((prefix + name, value, new[name]))
    return found


def _pictures(config: Train, built: Any, folder: Path, measured: dict[str, Any]) -> None:
    """Learning curve and video; without them the run is still a good one, so they may fail."""
    from mnemosyne.cli.render import render_policy
    from robotics.monitor import add_video
    from robotics.plots import plot_runs

    made = {}
    try:
        made["picture"] = plot_runs([folder], folder / "summary.png")
        if config.video:
            made["video"] = render_policy(folder / "best", folder / "video")
            add_video(folder, made["video"], measured["best_env_steps"])
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        print(f"no picture or video: {' '.join(str(error).split())}")
    if config.quiet:
        return
    print(_summary(measured))
    for name, path in made.items():
        print(f"{name}: {path}")
    print(f"run: {folder}\nwatch: tensorboard --logdir {folder}")


def _summary(measured: dict[str, Any]) -> str:
    """The last line about a run's return."""
    low, high = measured["return_ci95"]
    text = (
        f"return {measured['return_mean']:.4g} (95 % over episodes: {low:.4g} to {high:.4g}), "
        f"uniform random actions {measured['return_random']:.4g}"
    )
    if "distance_m" in measured:
        ours, random = measured["distance_m"], measured["distance_random_m"]
        text += f"; distance {ours:.3g} m, random {random:.3g} m"
    return text
