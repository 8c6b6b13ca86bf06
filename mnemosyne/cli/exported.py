# SPDX-License-Identifier: Apache-2.0
"""Exported policies on the command line: where they lie, and the environment they act in.

A policy is found by its folder alone, be it part of a run, copied out of one, or received from
somebody else; nothing here needs the run that made it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envs.api import EpisodeWrapper, HostEnv


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


def make_env(
    header: dict[str, Any], name: str | None, backend: str | None, randomize: str | None = None
) -> EpisodeWrapper | HostEnv:
    """The environment of a policy, or another one that it fits.

    Args:
      header: the policy's.
      name: ``None`` takes the policy's own, with its physics and its time limit.
      backend: physics; ``None`` takes the policy's in its own environment, else the default.
      randomize: how the policy's own environment draws another robot in every episode.

    Raises:
      ValueError: unknown environment or backend, or one that the policy does not fit.
    """
    import envs
    from envs.api import EpisodeWrapper, HostEnv

    options: dict[str, Any] = {"backend": backend}
    if name is None or name == header["env"]:
        options = {
            "backend": backend or header.get("backend"),
            "episode_length": header.get("episode_length"),
            "randomize": randomize,
        }
    wanted: str = header["env"] if name is None else name
    env = envs.make(wanted, **options)
    _check_fit(header, env)
    return env if isinstance(env, HostEnv) else EpisodeWrapper(env)


def _check_fit(header: dict[str, Any], env: Any) -> None:
    """Refuses an environment that does not fit, and names one that does if there is one."""
    import envs

    ours = header["observation_size"], header["action_size"]
    ours_chooses = header["network"].get("squash") == "argmax"
    chooses = getattr(env, "discrete", False)
    if ours == (env.observation_size, env.action_size) and ours_chooses == chooses:
        return
    # Sizes do not tell which of Gymnasium's environments take choices.
    names = [name for name in envs.list_envs() if not name.startswith("gym:")]
    infos = [] if ours_chooses else [envs.describe(name) for name in names]
    fitting = [info.name for info in infos if ours == (info.observation_size, info.action_size)]
    fit = f"; {fitting[0]} would fit" if fitting else ""
    raise ValueError(
        f"the policy observes {ours[0]} numbers and {_acts(ours[1], ours_chooses)}, but "
        f"{env.name} has {env.observation_size} and {_actions(env.action_size, chooses)}{fit}"
    )


def _acts(action_size: int, chooses: bool) -> str:
    return f"chooses one of {action_size} actions" if chooses else f"gives {action_size} actions"


def _actions(action_size: int, chooses: bool) -> str:
    return f"{action_size} choices" if chooses else f"{action_size}"


def note_dt(header: dict[str, Any], name: str, dt: float | None) -> None:
    """Says so where an environment's step is not as long as that of the policy's own."""
    own = header.get("dt")
    if own and dt and abs(dt / own - 1.0) > 0.01:
        print(f"note: {name} takes {dt:g} s a step, the policy has learned with {own:g} s")
