# SPDX-License-Identifier: Apache-2.0
"""Environments by name: ``brax:hopper``, ``gym:CartPole-v1``, ``control:pendulum``, ...

A name is ``family:task``. Names, sizes and what has to be installed are known without importing any
simulator; an adapter is imported when one of its environments is made.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from typing import Any

from envs._errors import nearest, unknown

_PACKAGE = "mnemosyne-optimizer"  # the distribution whose extras install the simulators


@dataclasses.dataclass(frozen=True)
class EnvInfo:
    """What is known about an environment before it is made.

    Attributes:
      name: the registry name, ``family:task``.
      observation_size: number of observation entries.
      action_size: number of action entries.
      backends: physics backends to choose from, the default first; empty where there is nothing to
        choose.
      extra: the extra that installs what it needs; empty if nothing beyond the core is needed.
      installed: whether ``make`` can work on this machine.
    """

    name: str
    observation_size: int
    action_size: int
    backends: tuple[str, ...]
    extra: str
    installed: bool


@dataclasses.dataclass(frozen=True)
class _Family:
    """What one adapter module makes; ``sizes`` maps a task to (observation, action) size.

    An ``open`` family makes more than its ``sizes`` list; its adapter judges other names.
    """

    module: str
    title: str
    sizes: dict[str, tuple[int, int]]
    backends: tuple[str, ...] = ()
    only_backends: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    needs: str = ""
    extra: str = ""
    open: bool = False

    def backends_of(self, task: str) -> tuple[str, ...]:
        return self.only_backends.get(task, self.backends)

    def installed(self) -> bool:
        return not self.needs or importlib.util.find_spec(self.needs) is not None


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
        open=True,
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
        },
    ),
}


def list_envs() -> list[str]:
    """Every name that is known here, installed or not, sorted within each family.

    ``make`` takes further ones in the families of :func:`open_families`.

    Example:
      >>> "brax:hopper" in list_envs()
      True
    """
    return [f"{name}:{task}" for name, family in _FAMILIES.items() for task in sorted(family.sizes)]


def open_families() -> dict[str, str]:
    """Families that take more names than are listed, and what makes them.

    Example:
      >>> open_families()["gym"]
      'Gymnasium'
    """
    return {name: family.title for name, family in _FAMILIES.items() if family.open}


def describe(name: str) -> EnvInfo:
    """Sizes, backends and the needed extra of one environment, without importing its simulator.

    Args:
      name: a name of :func:`list_envs`.

    Raises:
      ValueError: unknown name; the message names the nearest valid one.

    Example:
      >>> describe("brax:hopper").action_size
      3
    """
    family, task = _find(name, listed=True)
    observation_size, action_size = family.sizes[task]
    return EnvInfo(
        name=name,
        observation_size=observation_size,
        action_size=action_size,
        backends=family.backends_of(task),
        extra=family.extra,
        installed=family.installed(),
    )


def make(name: str, **options: Any) -> Any:
    """The environment called ``name``.

    Args:
      name: ``family:task``, one of :func:`list_envs`.
      **options: ``episode_length`` (default time limit, steps) for every family; ``backend`` for
        ``brax``; the fields of the physics parameters for ``control``, such as ``gravity=3.7``;
        keyword arguments of the environment for ``gym``. An option that is ``None`` counts as
        absent.

    Returns:
      An :class:`envs.api.Env` or, for ``gym``, an :class:`envs.api.HostEnv`.

    Raises:
      ValueError: unknown family, task, backend or option (the message names the nearest valid one),
        or a simulator that is not installed (the message names the extra).

    Example:
      >>> make("control:pendulum", episode_length=100).episode_length
      100
    """
    family, task = _find(name)
    options = {option: value for option, value in options.items() if value is not None}
    if "backend" in options:
        _check_backend(name, options["backend"], family.backends_of(task))
    if not family.installed():
        raise ValueError(
            f"{name!r} needs {family.title}, which is not installed: "
            f'pip install "{_PACKAGE}[{family.extra}]".'
        )
    return importlib.import_module(family.module).make(task, **options)


def _check_backend(name: str, backend: str, valid: tuple[str, ...]) -> None:
    """Raises ValueError unless ``backend`` is one of ``valid``."""
    if not valid:
        raise ValueError(f"{name!r} has no backend to choose; leave out backend={backend!r}.")
    if backend not in valid:
        raise unknown("backend", str(backend), valid, where=f" for {name!r}")


def _find(name: str, listed: bool = False) -> tuple[_Family, str]:
    """The family and the task of a name, or a ValueError that names the nearest one."""
    family, _, task = name.partition(":")
    found = _FAMILIES.get(family)
    if found is not None and (task in found.sizes or (found.open and task and not listed)):
        return found, task
    raise unknown("environment", name, [_nearest_name(name)])


def _nearest_name(name: str) -> str:
    """The valid name most like ``name``; an exact task counts first, as in ``hopper``."""
    family, _, task = name.partition(":")
    if family in _FAMILIES and task:
        return f"{family}:{nearest(task, sorted(_FAMILIES[family].sizes))}"
    wanted = (task or family).lower()
    for candidate in list_envs():
        if candidate.partition(":")[2] == wanted:
            return candidate
    return nearest(name, list_envs())
