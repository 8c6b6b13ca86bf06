# SPDX-License-Identifier: Apache-2.0
"""Environments by name: ``brax:hopper``, ``gym:CartPole-v1``, ``mujoco:robot.xml``, ...

A name is ``family:task``. Names, sizes and what has to be installed are known without importing any
simulator; an adapter is imported when one of its environments is made. The tasks of an *open*
family are a user's own, so that they are not listed and their sizes are known only when made.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from pathlib import Path
from typing import Any

from envs._errors import nearest, unknown
from envs._sizes import PLAYGROUND, PLAYGROUND_ROBOTS, UNKNOWN, Sizes

_PACKAGE = "mnemosyne-optimizer"  # the distribution whose extras install the simulators


@dataclasses.dataclass(frozen=True)
class EnvInfo:
    """What is known about an environment before it is made.

    Attributes:
      name: the registry name, ``family:task``.
      observation_size: number of observation entries; ``None`` if only making it would tell.
      action_size: number of action entries; ``None`` likewise.
      backends: physics backends to choose from, the default first; empty where there is nothing to
        choose.
      extra: the extra that installs what it needs; empty if nothing beyond the core is needed.
      installed: whether ``make`` can work on this machine.
      lacks: what is missing for that: ``"package"``, ``"assets"`` (files of robots), or nothing.
    """

    name: str
    observation_size: int | None
    action_size: int | None
    backends: tuple[str, ...]
    extra: str
    installed: bool
    lacks: str


@dataclasses.dataclass(frozen=True)
class _Family:
    """What one adapter module makes; ``sizes`` maps a task to (observation, action) size.

    ``own`` says what a task of an open family looks like. ``assets`` is a folder inside the package
    ``needs`` without which the tasks in ``need_assets`` cannot be made, ``get_assets`` how a user
    gets it.
    """

    module: str
    title: str
    sizes: dict[str, Sizes]
    backends: tuple[str, ...] = ()
    only_backends: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    needs: str = ""
    extra: str = ""
    own: str = ""
    assets: str = ""
    need_assets: frozenset[str] = frozenset()
    get_assets: str = ""

    def backends_of(self, task: str) -> tuple[str, ...]:
        return self.only_backends.get(task, self.backends)

    def lacks(self, task: str) -> str:
        """``"package"``, ``"assets"`` or nothing; imports nothing."""
        folders = _folders(self.needs)
        if self.needs and not folders:
            return "package"
        if task in self.need_assets and not any((each / self.assets).is_dir() for each in folders):
            return "assets"
        return ""


def _folders(package: str) -> list[Path]:
    """Where ``package`` or ``package.part`` lies; empty if it is not installed."""
    name, *parts = package.split(".")
    found = importlib.util.find_spec(name) if name else None
    # The parts are looked up as folders: asking for ``package.part`` would import ``package``.
    places = found.submodule_search_locations or () if found else ()
    folders = [Path(place, *parts) for place in places]
    return [folder for folder in folders if folder.is_dir()]


_FAMILIES = {
    "brax": _Family(
        module="envs.brax_env",
        title="Brax",
        sizes={
            "ant": (27, 8),
            "halfcheetah": (17, 6),
            "hopper": (11, 3),
            "humanoid": (244, 17),
            "humanoidstandup": (244, 17),
            "inverted_double_pendulum": (8, 1),
            "inverted_pendulum": (4, 1),
            "pusher": (23, 7),
            "reacher": (11, 2),
            "swimmer": (8, 2),
            "walker2d": (17, 6),
        },
        backends=("spring", "positional", "generalized", "mjx"),
        only_backends={"swimmer": ("generalized",)},
        needs="brax",
        extra="robotics",
    ),
    "gym": _Family(
        module="envs.gymnasium_env",
        title="Gymnasium",
        sizes={
            "Acrobot-v1": (6, 3),
            "Ant-v5": (105, 8),
            "CartPole-v1": (4, 2),
            "HalfCheetah-v5": (17, 6),
            "Hopper-v5": (11, 3),
            "Humanoid-v5": (348, 17),
            "HumanoidStandup-v5": (348, 17),
            "InvertedDoublePendulum-v5": (9, 1),
            "InvertedPendulum-v5": (4, 1),
            "MountainCar-v0": (2, 3),
            "MountainCarContinuous-v0": (2, 1),
            "Pendulum-v1": (3, 1),
            "Pusher-v5": (23, 7),
            "Reacher-v5": (10, 2),
            "Swimmer-v5": (8, 2),
            "Walker2d-v5": (17, 6),
        },
        needs="gymnasium",
        extra="robotics",
        own="<any id>",
    ),
    "control": _Family(
        module="envs.control",
        title="the control tasks",
        sizes={
            "cartpole": (4, 1),
            "cartpole-swingup": (5, 1),
            "pendulum": (3, 1),
            "pointmass": (4, 2),
        },
    ),
    "mujoco": _Family(
        module="envs.mujoco_env",
        title="MuJoCo with MJX",
        sizes={},
        backends=("mjx",),
        needs="mujoco.mjx",
        extra="robotics",
        own="path/to/model.xml",
    ),
    "playground": _Family(
        module="envs.playground_env",
        title="MuJoCo Playground",
        sizes=PLAYGROUND | PLAYGROUND_ROBOTS,
        backends=("mjx",),
        needs="mujoco_playground",
        extra="playground",
        assets="external_deps/mujoco_menagerie",
        need_assets=frozenset(PLAYGROUND_ROBOTS),
        get_assets=(
            "python -c 'from mujoco_playground._src import mjx_env; "
            "mjx_env.ensure_menagerie_exists()' downloads them"
        ),
    ),
    "probe": _Family(
        module="envs.probes",
        title="the probes",
        sizes={
            "value": (1, 1),
            "observation": (1, 1),
            "discount": (1, 1),
            "action": (1, 1),
            "observation-action": (1, 1),
            "truncation": (1, 1),
            "privileged": (1, 1),
        },
    ),
}


def list_envs() -> list[str]:
    """Every name that is known here, installed or not, sorted within each family.

    Those of :func:`open_families` come on top: they have as many names as users have robots.

    Example:
      >>> "brax:hopper" in list_envs()
      True
    """
    return [f"{name}:{task}" for name, family in _FAMILIES.items() for task in sorted(family.sizes)]


def open_families() -> list[str]:
    """What the names look like of environments that are a user's own, or too many to list.

    Example:
      >>> "mujoco:path/to/model.xml" in open_families()
      True
    """
    return [f"{name}:{family.own}" for name, family in _FAMILIES.items() if family.own]


def describe(name: str) -> EnvInfo:
    """Sizes, backends and the needed extra of one environment, without importing its simulator.

    Args:
      name: a name of :func:`list_envs`, or of an open family.

    Raises:
      ValueError: unknown name; the message names the nearest valid one.

    Example:
      >>> describe("brax:hopper").action_size
      3
    """
    family, task = _find(name)
    observation_size, action_size = family.sizes.get(task, UNKNOWN)
    lacks = family.lacks(task)
    return EnvInfo(
        name=name,
        observation_size=observation_size,
        action_size=action_size,
        backends=family.backends_of(task),
        extra=family.extra,
        installed=not lacks,
        lacks=lacks,
    )


def make(name: str, **options: Any) -> Any:
    """The environment called ``name``.

    Args:
      name: ``family:task``, one of :func:`list_envs` or of an open family.
      **options: ``episode_length`` (default time limit, steps) for every family; ``backend`` where
        there is a choice; ``randomize``, a function ``(key, model) -> model`` or its
        ``module:function`` (see :mod:`envs.randomization`), for ``brax``, ``mujoco`` and
        ``playground``; the fields of the physics parameters for ``control``, such as
        ``gravity=3.7``; keyword arguments of the environment for ``gym``. An option that is
        ``None`` counts as absent.

    Returns:
      An :class:`envs.api.Env` or, for ``gym``, an :class:`envs.api.HostEnv`.

    Raises:
      ValueError: unknown family, task, backend or option (the message names the nearest valid one),
        a randomization where there is no model, or a simulator that is not installed (the message
        names the extra).

    Example:
      >>> make("control:pendulum", episode_length=100).episode_length
      100
    """
    family, task = _find(name)
    options = {option: value for option, value in options.items() if value is not None}
    if "backend" in options:
        _check_backend(name, options["backend"], family.backends_of(task))
    if "randomize" in options:
        _check_randomize(name, options["randomize"], family)
    _check_installed(name, family, task)
    return importlib.import_module(family.module).make(task, **options)


def _check_installed(name: str, family: _Family, task: str) -> None:
    """Raises ValueError, with the remedy, if something that a task needs is missing."""
    match family.lacks(task):
        case "package":
            raise ValueError(
                f"{name!r} needs {family.title}, which is not installed: "
                f'pip install "{_PACKAGE}[{family.extra}]".'
            )
        case "assets":
            raise ValueError(
                f"{name!r} needs files of its robot that {family.title} does not bring along: "
                f"{family.get_assets}."
            )


def _check_backend(name: str, backend: str, valid: tuple[str, ...]) -> None:
    """Raises ValueError unless ``backend`` is one of ``valid``."""
    if not valid:
        raise ValueError(f"{name!r} has no backend to choose; leave out backend={backend!r}.")
    if backend not in valid:
        raise unknown("backend", str(backend), valid, where=f" for {name!r}")


def _check_randomize(name: str, randomize: Any, family: _Family) -> None:
    """Raises ValueError unless a family has models: those with a physics backend do."""
    if not family.backends:
        having = ", ".join(other for other in _FAMILIES if _FAMILIES[other].backends)
        raise ValueError(
            f"{name!r} has no model that could be randomized (only {having} have one); "
            f"leave out randomize={randomize!r}."
        )


def _find(name: str) -> tuple[_Family, str]:
    """The family and the task of a name, or a ValueError that names the nearest one."""
    family, _, task = name.partition(":")
    if family in _FAMILIES and (
        task in _FAMILIES[family].sizes or (_FAMILIES[family].own and task)
    ):
        return _FAMILIES[family], task
    raise unknown("environment", name, [_nearest_name(name)])


def _nearest_name(name: str) -> str:
    """The valid name most like ``name``; an exact task counts first, as in ``hopper``."""
    family, _, task = name.partition(":")
    if family in _FAMILIES and _FAMILIES[family].own:
        return f"{family}:{_FAMILIES[family].own}"
    if family in _FAMILIES and task:
        return f"{family}:{nearest(task, sorted(_FAMILIES[family].sizes))}"
    wanted = (task or family).lower()
    for candidate in list_envs():
        if candidate.partition(":")[2] == wanted:
            return candidate
    return nearest(name, [*list_envs(), *open_families()])
