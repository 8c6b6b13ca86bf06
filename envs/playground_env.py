# SPDX-License-Identifier: Apache-2.0
"""MuJoCo Playground behind our protocol: ``playground:CheetahRun``, ``playground:Go1Getup``, ...

What the adapter settles (each is a known trap of Playground 0.2): the physics are those of MJX in
JAX, not Playground's default, Warp, which needs an NVIDIA GPU; typed PRNG keys become raw ones;
dict observations show their entry ``state`` to the policy and ``privileged_state`` to the critic;
nothing is ever downloaded: tasks whose robots come from MuJoCo Menagerie are refused where that is
not there; an exploded simulation ends its episode with finite numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from envs import _mujoco, randomization
from envs._errors import check_episode_length, refuse, unknown
from envs.api import PRIVILEGED, State

POLICY_OBS, CRITIC_OBS = "state", "privileged_state"
"""Playground's names, in a dict observation, for what the policy sees and the critic beside it."""
_INFO, _OTHER = "playground", "other_obs"
_OURS = (_INFO, _OTHER, PRIVILEGED, randomization.INFO)
_DEFAULT_EPISODE_LENGTH = 1000  # what most of Playground's tasks have, in environment steps


@dataclasses.dataclass(frozen=True, eq=False)
class PlaygroundEnv:
    """One Playground environment as an :class:`envs.api.Env`; build it with :func:`make`.

    ``state.physics`` is an ``mjx.Data``. ``metrics["diverged"]`` is 1.0 in a step that ended
    because the simulation exploded.

    Attributes:
      name: the registry name, such as ``"playground:CheetahRun"``.
      observation_size: number of entries that the policy sees.
      action_size: number of action entries, each in [-1, 1].
      episode_length: default time limit in environment steps.
      dt: seconds of simulated time per environment step.
      playground_env: the wrapped ``mujoco_playground.MjxEnv``.
      privileged_observation_size: number of entries that only the critic sees, 0 if there are
        none; ``info["privileged_obs"]`` holds them.
      randomize: draws the model of an episode, if it is to be drawn.
      forward_at: where ``qpos`` holds the forward position, if the body moves.
      backend: ``"mjx"``.
    """

    name: str
    observation_size: int
    action_size: int
    episode_length: int
    dt: float
    playground_env: Any
    privileged_observation_size: int = 0
    randomize: randomization.Randomize | None = None
    forward_at: int | None = None
    backend: str = "mjx"

    @property
    def model(self) -> Any:
        """The ``mujoco.MjModel``, for rendering with :meth:`qpos`."""
        return self.playground_env.mj_model

    def reset(self, key: Key[Array, ""]) -> State:
        """A fresh episode from a typed key."""
        changed = {}
        if self.randomize is not None:
            changed = randomization.draw(self.randomize, key, self.playground_env.mjx_model)
        with _quiet(), self._model(changed):
            state = self.playground_env.reset(jax.random.key_data(key))
        return self._convert(state, _mujoco.strong(state.data), changed)

    def step(self, state: State, action: Float[Array, " action"]) -> State:
        """One environment step; actions in [-1, 1]."""
        zero = jnp.zeros((), jnp.float32)
        # Wrappers keep their own entries in ``info``, which are not ours to pass on.
        ours = {name: state.info[name] for name in _OURS if name in state.info}
        state = state.replace(info=ours)
        changed = ours.get(randomization.INFO, {})
        obs = _parts(state)
        metrics = {name: value for name, value in state.metrics.items() if name not in self._added}
        # Playground writes into the dicts that it is given.
        info = jax.tree.map(lambda leaf: leaf, state.info[_INFO])
        before = importlib.import_module("mujoco_playground").State(
            state.physics, obs, zero, zero, metrics, info
        )
        with _quiet(), self._model(changed):
            stepped = self.playground_env.step(before, action)
        physics = jax.tree.map(_mujoco.cast_like, stepped.data, state.physics)
        after = self._convert(stepped, physics, changed)
        info = jax.tree.map(_mujoco.cast_like, after.info, state.info)
        return _mujoco.hold_if_diverged(state, after.replace(info=info), physics.qpos, physics.qvel)

    def qpos(self, physics: Any) -> np.ndarray:
        """Generalized positions [..., nq], for the ``qpos`` of an ``MjData``."""
        return np.asarray(physics.qpos)

    def segments(self, physics: Any) -> tuple[np.ndarray, np.ndarray]:
        """The body of ONE environment as line segments; see :func:`envs._mujoco.segments`."""
        return _mujoco.segments(self.model, self.qpos(physics))

    @property
    def _added(self) -> tuple[str, ...]:
        """Metrics that are ours."""
        return ("diverged",) if self.forward_at is None else ("diverged", "x_position")

    def _model(self, changed: dict[str, Array]) -> contextlib.AbstractContextManager[None]:
        """Traces with the model of this episode."""
        if not changed:
            return contextlib.nullcontext()
        model = randomization.put(self.playground_env.mjx_model, changed)
        return randomization.swapped(self.playground_env.unwrapped, "_mjx_model", model)

    def _convert(self, state: Any, physics: Any, changed: dict[str, Array]) -> State:
        """Our state from Playground's; ``physics`` is its data, already strongly typed."""
        obs, info = state.obs, {_INFO: _mujoco.strong(state.info)}
        if isinstance(obs, Mapping):
            others = {name: _mujoco.float32(value) for name, value in obs.items()}
            obs = others.pop(POLICY_OBS)
            if CRITIC_OBS in others:
                info[PRIVILEGED] = others.pop(CRITIC_OBS)
            info[_OTHER] = others
        if changed:
            info[randomization.INFO] = changed
        metrics = {name: _mujoco.float32(value) for name, value in state.metrics.items()}
        metrics["diverged"] = jnp.zeros((), jnp.float32)
        if self.forward_at is not None:
            metrics["x_position"] = _mujoco.float32(physics.qpos[self.forward_at])
        return State(
            physics=physics,
            obs=_mujoco.float32(obs),
            reward=_mujoco.float32(state.reward),
            done=_mujoco.float32(state.done),
            metrics=metrics,
            info=info,
        )


def make(
    task: str,
    backend: str | None = None,
    episode_length: int | None = None,
    randomize: str | randomization.Randomize | None = None,
    **options: object,
) -> PlaygroundEnv:
    """The environment ``playground:<task>``.

    Args:
      task: Playground's own name, such as ``"CheetahRun"``.
      backend: ``None`` or ``"mjx"``.
      episode_length: default time limit in environment steps, at least 1; ``None`` takes
        Playground's.
      randomize: a function ``(key, model) -> model``, its ``module:function``, or ``"default"``
        for what Playground itself has for the task; ``None`` for the same robot always.
      **options: none; refused with a sentence.

    Raises:
      ValueError: unknown task, backend or option; a task whose robot is not there; a dict
        observation without ``state``; no default randomization.
    """
    name = f"playground:{task}"
    refuse(options, ["backend", "episode_length", "randomize"], name)
    if backend not in (None, "mjx"):
        raise unknown("backend", str(backend), ["mjx"], where=f" for {name!r}")
    with _quiet(), _mujoco.no_messages():
        registry = _registry()
        made, config = _build(registry, task)
        drawn = registry.get_domain_randomizer(task) if randomize == "default" else None
        obs = jax.eval_shape(made.reset, jax.random.PRNGKey(0)).obs
    if randomize == "default" and drawn is None:
        raise ValueError(
            f"Playground has no randomization of its own for {name!r}; give a function "
            "(key, model) -> model, or leave it out."
        )
    sizes = _sizes(obs, name)
    if episode_length is None:
        episode_length = int(config.get("episode_length", _DEFAULT_EPISODE_LENGTH))
    return PlaygroundEnv(
        name=name,
        observation_size=sizes[POLICY_OBS],
        action_size=int(made.action_size),
        episode_length=check_episode_length(episode_length, name),
        dt=float(made.dt),
        playground_env=made,
        privileged_observation_size=sizes.get(CRITIC_OBS, 0),
        randomize=randomization.from_batched(drawn) if drawn else randomization.load(randomize),
        forward_at=_forward_at(made.mj_model, task),
    )


def _build(registry: Any, task: str) -> tuple[Any, Any]:
    """Playground's environment with the physics of JAX, and its settings."""
    if task not in registry.ALL_ENVS:
        raise unknown("Playground task", task, sorted(registry.ALL_ENVS))
    suite = importlib.import_module("mujoco_playground").dm_control_suite
    mjx_env = importlib.import_module("mujoco_playground._src.mjx_env")
    if task not in suite.ALL_ENVS and not mjx_env.MENAGERIE_PATH.exists():
        # ``load`` would clone it, gigabytes, without asking.
        raise ValueError(f"'playground:{task}' needs MuJoCo Menagerie in {mjx_env.MENAGERIE_PATH}.")
    config = registry.get_default_config(task)
    overrides = {"impl": "jax"} if "impl" in config else None
    return registry.load(task, config=config, config_overrides=overrides), config


def _sizes(obs: Any, name: str) -> dict[str, int]:
    """Number of entries of each observation, under ``state`` where there is only one."""
    parts = dict(obs) if isinstance(obs, Mapping) else {POLICY_OBS: obs}
    if POLICY_OBS not in parts:
        raise ValueError(
            f"{name!r} observes {', '.join(map(repr, parts))}, but a policy needs an observation "
            f"{POLICY_OBS!r}."
        )
    return {part: value.shape[-1] for part, value in parts.items()}


def _parts(state: State) -> Any:
    """The observation of one of our states as Playground has it."""
    if _OTHER not in state.info:
        return state.obs
    parts = {POLICY_OBS: state.obs, **state.info[_OTHER]}
    if PRIVILEGED in state.info:
        parts[CRITIC_OBS] = state.info[PRIVILEGED]
    return parts


def _forward_at(model: Any, task: str) -> int | None:
    """Index in ``qpos`` of the forward position of a body that runs along x."""
    for joint in range(model.njnt):
        if model.joint(joint).name == "rootx":
            return int(model.jnt_qposadr[joint])
    free = model.njnt and model.jnt_type[0] == _mujoco.module().mjtJoint.mjJNT_FREE
    locomotion = importlib.import_module("mujoco_playground").locomotion
    return 0 if free and task in locomotion.ALL_ENVS else None


def _registry() -> Any:
    """Playground's registry; the import takes seconds."""
    return importlib.import_module("mujoco_playground").registry


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps inside what Playground and what it imports warn about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield
