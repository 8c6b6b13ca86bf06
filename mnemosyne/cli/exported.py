# SPDX-License-Identifier: Apache-2.0
"""Exported policies on the command line: where they lie, and the environment they act in.

A policy is found by its folder alone, be it part of a run, copied out of one, or received from
somebody else; nothing here needs the run that made it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envs.api import EpisodeWrapper


def is_exported(path: Path) -> bool:
    """Whether a path is a policy by itself, not a run that holds policies."""
    from robotics.export import TENSORS
    from robotics.run_folder import CONFIG

    if path.is_file():
        return path.name.endswith(".safetensors")
    return (path / TENSORS).is_file() and not (path / CONFIG).is_file()


def find_policy(path: Path, best: bool = True) -> Path:
    """The file of the policy that a user means.

    Args:
      path: an exported policy, a run, or a folder with runs below it (then the newest).
      best: of a run, the best policy instead of the last one.

    Raises:
      ValueError: if there is none.
    """
    from robotics.export import TENSORS
    from robotics.run_folder import find_run

    if is_exported(path):
        return path / TENSORS if path.is_dir() else path
    folder = find_run(path)
    file = (folder / "best" if best else folder) / TENSORS
    if not file.is_file() and not best and (folder / "best" / TENSORS).is_file():
        raise ValueError(f"{folder} has not ended yet, so it has no last policy; take the best one")
    return file


def make_env(header: dict[str, Any], name: str | None, backend: str | None) -> EpisodeWrapper:
    """The environment of a policy, or another one of its sizes.

    Args:
      header: the policy's.
      name: ``None`` takes the policy's own, with its physics and its time limit.
      backend: physics; ``None`` takes the policy's in its own environment, else the default.

    Raises:
      ValueError: unknown environment or backend, or sizes that do not agree.
    """
    import envs
    from envs.api import EpisodeWrapper

    options: dict[str, Any] = {"backend": backend}
    if name is None or name == header["env"]:
        options = {
            "backend": backend or header.get("backend"),
            "episode_length": header.get("episode_length"),
        }
    wanted: str = header["env"] if name is None else name
    _check_sizes(header, envs.describe(wanted))
    return EpisodeWrapper(envs.make(wanted, **options))


def _check_sizes(header: dict[str, Any], info: Any) -> None:
    """Refuses an environment that does not fit, and names one that does if there is one."""
    import envs

    ours = header["observation_size"], header["action_size"]
    if ours == (info.observation_size, info.action_size):
        return
    fitting = [
        name
        for name in envs.list_envs()
        if ours == (envs.describe(name).observation_size, envs.describe(name).action_size)
    ]
    fit = f"; {fitting[0]} would fit" if fitting else ""
    raise ValueError(
        f"the policy observes {ours[0]} numbers and gives {ours[1]} actions, but {info.name} has "
        f"{info.observation_size} and {info.action_size}{fit}"
    )


def is_gym(header: dict[str, Any], name: str | None) -> bool:
    """Whether the policy is to be played through Gymnasium, on the host."""
    from robotics.gym_play import PREFIX

    return (header["env"] if name is None else name).startswith(PREFIX)


def note_dt(header: dict[str, Any], name: str, dt: float | None) -> None:
    """Says so where an environment's step is not as long as that of the policy's own."""
    own = header.get("dt")
    if own and dt and abs(dt / own - 1.0) > 0.01:
        print(f"note: {name} takes {dt:g} s a step, the policy has learned with {own:g} s")
