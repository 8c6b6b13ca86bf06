# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne meta-train``: trains the optimizer itself, within a wall-clock budget, resumable."""

from __future__ import annotations

import dataclasses
import json as jsonlib
import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclasses.dataclass(frozen=True)
class MetaTrain:
    """Train the optimizer itself on small networks."""

    recipe: Literal["base", "rl"] = "base"
    """What to train on: small networks (base), or PPO on cheap control tasks (rl)."""
    out: Path | None = None
    """Folder for artifacts, checkpoints and TensorBoard files; new, or a run to --resume."""
    budget: str | None = None
    """Wall-clock time for training and validation after compilation, such as 90s, 20m or 1h."""
    outer_steps: int | None = None
    """Number of outer steps instead of a budget; makes a run reproducible to the bit."""
    resume: bool = False
    """Go on with the run in --out, whose settings then hold."""
    workers: int | None = None
    """Inner problems a task family and outer step; antithetic pairs for evolution strategies.
    Default: what the recipe says."""
    estimator: Literal["bptt", "full-es", "truncated-es", "pes", "es-single"] | None = None
    """How meta-gradients are estimated; default: what the recipe says."""
    seed: int = 0
    """Meta-seed."""
    data_dir: str | None = None
    """Folder with mnist.npz; default: MNEMOSYNE_DATA_DIR, else the bundled digits."""
    init: str | None = None
    """Artifact to start from; default: what the recipe says."""
    rule: str = "mnemosyne"
    """Learned optimizer: ours, or a baseline such as lstm or adafac-mlp."""
    network: tuple[str, ...] = ()
    """Changes of the recipe's network as FIELD=VALUE in JSON, such as residual=true."""
    freeze: tuple[str, ...] = ()
    """Parts of the meta-parameters that stay as they are, by name, such as log_tau."""
    json: Path | None = None
    """File for the numbers that are printed."""
    quiet: bool = False
    """Print the final numbers only."""


def seconds(budget: str) -> float:
    """``"90s"``, ``"20m"``, ``"1.5h"`` in seconds.

    Raises:
      ValueError: for anything else, and for nothing.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget.strip())
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"--budget must look like 90s, 20m or 1h and be positive, got {budget!r}.")
    return float(match[1]) * _UNITS[match[2]]


def _check(config: MetaTrain) -> Path:
    """The folder of the run, after refusing what contradicts itself or the folder."""
    if config.out is None:
        raise ValueError("say where the run goes: --out FOLDER.")
    if config.outer_steps is not None and config.outer_steps < 1:
        raise ValueError(f"--outer-steps must be at least 1, got {config.outer_steps}.")
    if config.budget is not None:
        seconds(config.budget)
    if config.budget is not None and config.outer_steps is not None:
        raise ValueError("give either --budget or --outer-steps, not both.")
    known = (config.out / "settings.json").is_file()
    if config.resume and not known:
        raise ValueError(f"there is no meta-training run to resume in {config.out}.")
    if not config.resume and known:
        raise ValueError(f"{config.out} already holds a run; --resume goes on with it.")
    if not config.resume and config.budget is None and config.outer_steps is None:
        raise ValueError("say how long: --budget 20m, or --outer-steps 1000.")
    return config.out


def run(config: MetaTrain) -> dict[str, Any]:
    """Runs or resumes one meta-training; returns the numbers for ``--json``."""
    folder = _check(config)
    from robotics.run_folder import check_writable, read_json, versions, write_json

    check_writable(folder)
    say = (lambda *_: None) if config.quiet else (lambda line: print(line, flush=True))
    if config.resume:
        settings = read_json(folder / "settings.json")
        session, advance, start = _prepare(folder, settings)
    else:
        settings = {
            "recipe": config.recipe,
            "workers": config.workers,
            "estimator": config.estimator,
            "seed": config.seed,
            "outer_steps": config.outer_steps or 0,
            "data_dir": config.data_dir,
            "init": config.init,
            "rule": config.rule,
            "network": list(config.network),
            "freeze": list(config.freeze),
            "versions": versions(),
        }
        session, advance, start = _prepare(folder, settings)
        if config.budget is not None:
            settings["outer_steps"] = _fit(session, advance, start, seconds(config.budget), say)
            session = _with_length(session, settings)
        write_json(folder / "settings.json", settings)
    return _finish(session, advance, start, say)


def _prepare(folder: Path, settings: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Session, compiled step and first theta from the settings of a run."""
    import mnemosyne
    from experiments import data, recipes
    from mnemosyne.meta import session

    artifact = mnemosyne.load(settings["init"]) if settings["init"] else None
    network = artifact.config if artifact else _network(settings)
    rule = _rule(settings["rule"], network)
    if artifact is None:
        recipes.check_start(rule, network)
    recipe = recipes.RECIPES[settings["recipe"]](
        rule, data.data_dir(settings["data_dir"]), settings["estimator"], network
    )
    config = dataclasses.replace(
        recipe.config,
        outer_steps=max(settings["outer_steps"], 1),
        num_workers=settings["workers"] or recipe.config.num_workers,
        frozen=(*recipe.config.frozen, *settings["freeze"]),
        seed=settings["seed"],
    )
    prepared = session.Session(
        families=recipe.families,
        check=recipe.make_check(folder),
        network=network,
        config=config,
        folder=folder,
        trained_with={"content": dict(recipe.content)},
    )
    theta = artifact.meta_params if artifact else recipe.start(config)
    units = None if recipe.units is None else recipe.units(theta)
    advance = session.make_advance(recipe.families, config, units)
    return _with_length(prepared, settings), advance, theta


def _network(settings: dict[str, Any]) -> Any:
    """The network of the recipe with ``FIELD=VALUE`` changes."""
    import mnemosyne
    from experiments import recipes

    fields = recipes.NETWORKS[settings["recipe"]].to_dict()
    for change in settings["network"]:
        name, equals, value = change.partition("=")
        try:
            fields |= {name: jsonlib.loads(value)}
        except ValueError:
            raise ValueError(f"--network takes FIELD=VALUE in JSON, got {change!r}.") from None
        if not equals:
            raise ValueError(f"--network takes FIELD=VALUE in JSON, got {change!r}.")
    return mnemosyne.MnemosyneConfig.from_dict(fields)


def _rule(name: str, network: Any) -> Any:
    """Our network or a baseline as a learned optimizer."""
    from mnemosyne import baselines
    from mnemosyne.learned import mnemosyne_rule

    return mnemosyne_rule(network) if name == "mnemosyne" else baselines.make(name)


def _with_length(session: Any, settings: dict[str, Any]) -> Any:
    """The session with its number of outer steps, and the command that repeats it."""
    from mnemosyne.meta.session import validation_interval

    steps = max(settings["outer_steps"], 1)
    words = ["mnemosyne", "meta-train", "--recipe", settings["recipe"]]
    words += ["--outer-steps", steps, "--seed", settings["seed"]]
    for name in ("init", "estimator", "workers"):
        if settings[name]:
            words += [f"--{name}", settings[name]]
    if settings["rule"] != "mnemosyne":
        words += ["--rule", settings["rule"]]
    for name in ("network", "freeze"):
        if settings[name]:
            words += [f"--{name}", *settings[name]]
    command = shlex.join(str(word) for word in words)
    return dataclasses.replace(
        session,
        config=dataclasses.replace(session.config, outer_steps=steps),
        trained_with={
            **session.trained_with,
            "command": command,
            "rule": settings["rule"],
            "versions": settings["versions"],
        },
        validate_every=validation_interval(steps),
    )


def _fit(
    session: Any, advance: Any, theta: Any, budget_s: float, say: Callable[[str], None]
) -> int:
    """Measures the pace of this machine and turns the budget into a number of outer steps."""
    from mnemosyne.meta import session as sessions
    from mnemosyne.meta import train

    say("compiling the outer step ...")
    session.check(theta)
    began = time.monotonic()
    session.check(theta)
    validation_s = time.monotonic() - began
    compile_s, pace = sessions.measure_pace(
        advance, train.init(session.families, theta, session.config)
    )
    steps = sessions.outer_steps_for(budget_s, pace, validation_s)
    say(f"compiled in {compile_s:.0f} s; {pace:.2f} s an outer step: {steps} fit the budget")
    return steps


def _finish(session: Any, advance: Any, start: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """Trains with checkpoints, TensorBoard and a progress line; prints the verdict."""
    from tensorboardX import SummaryWriter

    from mnemosyne.meta.session import write_json
    from robotics.checkpoint import Checkpointer
    from robotics.monitor import duration

    total: int = session.config.outer_steps
    first_chunk: dict[str, Any] = {}

    with (
        Checkpointer(session.folder / "checkpoints", max_to_keep=2) as checkpointer,
        SummaryWriter(str(session.folder)) as writer,
    ):

        def monitor(step: int, scalars: dict[str, float]) -> None:
            # The first chunk contains the compilation, so the clock of the ETA starts after it.
            first = (
                first_chunk.setdefault("step", step),
                first_chunk.setdefault("time", time.monotonic()),
            )
            for tag, value in scalars.items():
                writer.add_scalar(tag, value, step)
            if "meta/validation" in scalars:
                scores = " ".join(
                    f"{value:+.3f}" for tag, value in scalars.items() if "validation/" in tag
                )
                line = f"{step:6d}/{total} | minus Adam (low is good): {scores}"
                if step > first[0]:
                    pace = (time.monotonic() - first[1]) / (step - first[0])
                    line += f" | ETA {duration(pace * (total - step))}"
                say(line)

        result = session.run(advance, checkpointer, monitor, start)
    result["artifact"] = str(session.folder / "best.safetensors")
    for row in result["best"]["rows"]:
        numbers = ", ".join(f"{name} {value:.4f}" for name, value in row.items() if name != "task")
        print(f"{row['task']}: {numbers}")
    print(f"best at outer step {result['best']['outer_step']}: {result['artifact']}")
    print(f"meta-parameters {result['meta_params_sha256'][:12]}")
    write_json(session.folder / "result.json", result)
    return result
