# SPDX-License-Identifier: Apache-2.0
"""Entry point: finds the verb, parses its flags, turns every user error into one sentence.

A verb is a module with a frozen dataclass, whose field docstrings are the help text, and
``run(config) -> dict``. What ``run`` returns is what it measured: with ``--json FILE`` it is
written there. Exit codes: 0 done, 1 a check of ``doctor`` failed, 2 a user error (one sentence on
the standard error stream), 130 interrupted. ``MNEMOSYNE_TRACEBACK=1`` shows where an error came
from.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

DISTRIBUTION = "mnemosyne-optimizer"
USER_ERROR, INTERRUPTED = 2, 130


class Verb(NamedTuple):
    """Where a verb lives, what it does, and whether it compiles programs worth keeping."""

    module: str
    config: str
    summary: str
    compiles: bool = False


VERBS: Mapping[str, Verb] = {
    "train": Verb("mnemosyne.cli.train", "Train", "train a robot policy", True),
    "evaluate": Verb(
        "mnemosyne.cli.evaluate", "Evaluate", "play fresh episodes with a trained policy", True
    ),
    "demo": Verb("mnemosyne.cli.demo", "Demo", "train a hopper with Mnemosyne and with Adam", True),
    "meta-train": Verb("mnemosyne.cli.meta_train", "MetaTrain", "train the optimizer itself", True),
    "benchmark": Verb(
        "mnemosyne.cli.benchmark", "Benchmark", "measure the optimizer against rivals"
    ),
    "analyze": Verb("mnemosyne.cli.analyze", "Analyze", "check the memory's theory, measure chaos"),
    "plot": Verb("mnemosyne.cli.plot", "Plot", "draw the learning curves of runs"),
    "render": Verb("mnemosyne.cli.render", "Render", "make a video of a trained policy"),
    "export": Verb("mnemosyne.cli.export", "Export", "write a policy for ONNX, Brax or NumPy"),
    "envs": Verb("mnemosyne.cli.envs", "Envs", "list the environments"),
    "info": Verb("mnemosyne.cli.info", "Info", "show shipped weights and what the optimizer costs"),
    "doctor": Verb("mnemosyne.cli.doctor", "Doctor", "check this machine and say what is missing"),
}
# Which extra brings a package that a verb may miss.
_EXTRAS = {
    **dict.fromkeys(("tyro", "rich", "orbax", "tensorboardX", "matplotlib", "sklearn"), "cli"),
    **dict.fromkeys(("brax", "mujoco", "gymnasium", "imageio", "PIL"), "robotics"),
    "flax": "supervised",
    **dict.fromkeys(("evosax", "dotmap"), "evo"),
    **dict.fromkeys(("onnx", "onnxruntime"), "export"),
}


def usage() -> str:
    """The text of ``mnemosyne --help``; needs no package beyond Python's own."""
    width = max(len(name) for name in VERBS)
    verbs = "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items())
    return (
        "usage: mnemosyne VERB [FLAGS]\n\nA learned optimizer for robot learning.\n\nverbs:\n"
        f"{verbs}\n\n`mnemosyne VERB --help` lists the flags of a verb.\n\n"
        "example: mnemosyne train --env brax:hopper --num-timesteps 1000000 --logdir runs/hopper"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: arguments without the program's name; ``None`` takes those of the process.

    Returns:
      The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt as error:
        _complain(str(error) or "interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain once more when it flushes at exit.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - stays open until the process ends
        return 0
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        if os.environ.get("MNEMOSYNE_TRACEBACK") == "1":
            traceback.print_exc()
        _complain(sentence)
        return USER_ERROR


def _dispatch(arguments: list[str]) -> int:
    """Runs the verb that the first argument names."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else USER_ERROR
    if arguments[0] == "--version":
        import importlib.metadata

        print(importlib.metadata.version(DISTRIBUTION))
        return 0
    name, *flags = arguments
    if name not in VERBS:
        from mnemosyne.cli.parse import nearest

        raise ValueError(f"unknown verb {name!r}; did you mean {nearest(name, list(VERBS))!r}?")
    return _run(name, VERBS[name], flags)


def _run(name: str, verb: Verb, flags: list[str]) -> int:
    """Parses a verb's flags, runs it, and writes what it measured."""
    from mnemosyne.cli import compiled, parse

    parse.require_tyro()
    module = importlib.import_module(verb.module)
    config_class = getattr(module, verb.config)
    defaults = getattr(module, "defaults", None)
    help_only = any(flag in ("-h", "--help") for flag in flags)
    default = None if defaults is None or help_only else defaults(flags)
    config = parse.parse(config_class, flags, f"mnemosyne {name}", verb.summary, default)
    if config is None:
        return 0
    json_file = getattr(config, "json", None)
    if json_file is not None:
        _check_json_file(Path(json_file))
    if verb.compiles:
        compiled.enable()
    measured = module.run(config)
    if json_file is not None and measured:  # of several processes, one has measured
        from robotics.run_folder import write_json

        write_json(Path(json_file), measured)
    return int(measured.get("exit_code", 0))


def _check_json_file(path: Path) -> None:
    """Refuses a ``--json`` file that could not be written in the end, before any work is done."""
    from robotics.run_folder import check_writable

    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder, --json takes a file")
    check_writable(path.absolute().parent)


def _sentence(error: Exception) -> str | None:
    """One sentence for an error that is the user's to mend, ``None`` for one that is ours."""
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        extra = _EXTRAS.get(package)
        if extra is None:
            return None
        return f"the package {package!r} is missing: pip install '{DISTRIBUTION}[{extra}]'"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return (
            "this machine has too little memory for it; "
            "use a smaller network, fewer environments or fewer seeds"
        )
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{where}"
    if isinstance(error, ValueError):
        return " ".join(str(error).split())
    return None


def _complain(sentence: str) -> None:
    print(f"mnemosyne: {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
