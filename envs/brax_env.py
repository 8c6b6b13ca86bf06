# SPDX-License-Identifier: Apache-2.0
"""Brax environments behind our protocol, without Brax's wrappers.

What the adapter settles (each is a known trap of Brax 0.14): typed PRNG keys become the raw uint32
keys that Brax expects; ``State`` keeps one structure, dtype and weak type from ``reset`` on;
``x_position`` is the torso's from the first state on (Brax leaves it at 0 after ``reset``, and some
bodies report their center of mass instead); Brax writes into the metrics of the state it is given,
so it gets a copy; ``done`` never leaks from one step into the next; warnings that Brax raises about
itself stay inside the adapter.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from envs import _mujoco, randomization
from envs._errors import check_episode_length, refuse, unknown
from envs.api import State

BACKENDS = ("spring", "positional", "generalized", "mjx")
DEFAULT_EPISODE_LENGTH = 1000  # Brax's own default for every task, in environment steps


@dataclasses.dataclass(frozen=True, eq=False)
class BraxEnv:
    """One Brax environment as an :class:`envs.api.Env`; build it with :func:`make`.

    ``state.physics`` is Brax's pipeline state of the chosen backend.

    Attributes:
      name: the registry name, such as ``"brax:hopper"``.
      backend: ``"spring"``, ``"positional"``, ``"generalized"`` or ``"mjx"``.
      observation_size: number of observation entries.
      action_size: number of action entries, each in [-1, 1].
      episode_length: default time limit in environment steps.
      dt: seconds of simulated time per environment step.
      brax_env: the wrapped ``brax.envs.PipelineEnv``.
      randomize: draws the ``System`` of an episode, if it is to be drawn.
    """

    name: str
    backend: str
    observation_size: int
    action_size: int
    episode_length: int
    dt: float
    brax_env: Any
    randomize: randomization.Randomize | None = None

    @property
    def system(self) -> Any:
        """Brax's ``System``: the kinematic tree and its parameters."""
        return self.brax_env.sys

    @property
    def model(self) -> Any:
        """The ``mujoco.MjModel`` behind the system, for rendering with :meth:`qpos`."""
        return self.brax_env.sys.mj_model

    def reset(self, key: Key[Array, ""]) -> State:
        """A fresh episode from a typed key; start position and velocity are drawn from it."""
        changed = {}
        if self.randomize is not None:
            changed = randomization.draw(self.randomize, key, self.system)
        with _quiet(), self._system(changed):
            brax_state = self.brax_env.reset(jax.random.key_data(key))
        return self._convert(brax_state, _mujoco.strong(brax_state.pipeline_state), changed)

    def step(self, state: State, action: Float[Array, " action"]) -> State:
        """One environment step (several simulator steps); actions in [-1, 1], unclipped."""
        from brax.envs.base import State as BraxState

        zero = jnp.zeros((), jnp.float32)
        changed = state.info.get(randomization.INFO, {})
        before = BraxState(
            pipeline_state=state.physics,
            obs=state.obs,
            reward=zero,
            # Several tasks hand ``done`` through unchanged: a 1 left by a time limit would end
            # every later step too.
            done=zero,
            metrics=dict(state.metrics),
            info={},
        )
        with _quiet(), self._system(changed):
            after = self.brax_env.step(before, action)
        physics = jax.tree.map(_mujoco.cast_like, after.pipeline_state, state.physics)
        return self._convert(after, physics, changed)

    def qpos(self, physics: Any) -> np.ndarray:
        """Generalized positions [..., nq] in MuJoCo's order, for the ``qpos`` of an ``MjData``."""
        return np.asarray(physics.q)

    def skeleton(self, physics: Any) -> tuple[np.ndarray, tuple[int, ...]]:
        """Link origins [..., links, 3] in meters, and the parent of each link (-1: the world)."""
        parents = tuple(int(parent) for parent in self.system.link_parents)
        return np.asarray(physics.x.pos), parents

    def segments(self, physics: Any) -> tuple[np.ndarray, np.ndarray]:
        """The body as thick line segments, for drawing it without OpenGL.

        Args:
          physics: ``state.physics`` of ONE environment at one time (no batch axes).

        Returns:
          End points [segments, 2, 3] and radii [segments], in meters. A capsule or cylinder gives
          its axis, any other shape a segment of length 0; planes are left out.
        """
        return _mujoco.segments(self.model, self.qpos(physics))

    def _system(self, changed: dict[str, Array]) -> contextlib.AbstractContextManager[None]:
        """Traces with the system of this episode."""
        if not changed:
            return contextlib.nullcontext()
        system = randomization.put(self.system, changed)
        return randomization.swapped(self.brax_env, "sys", system)

    def _convert(self, brax_state: Any, physics: Any, changed: dict[str, Array]) -> State:
        """Our state from Brax's; ``physics`` is its pipeline state, already strongly typed."""
        metrics = {name: _mujoco.float32(value) for name, value in brax_state.metrics.items()}
        if "x_position" in metrics:
            metrics["x_position"] = _mujoco.float32(physics.x.pos[0, 0])
        return State(
            physics=physics,
            obs=_mujoco.float32(brax_state.obs),
            reward=_mujoco.float32(brax_state.reward),
            done=_mujoco.float32(brax_state.done),
            metrics=metrics,
            # Brax's only entry, ``time_out`` of inverted_pendulum, marks the fall, which is a
            # termination for us.
            info={randomization.INFO: changed} if changed else {},
        )


def make(
    task: str,
    backend: str | None = None,
    episode_length: int | None = None,
    randomize: str | randomization.Randomize | None = None,
    **options: object,
) -> BraxEnv:
    """The environment ``brax:<task>``.

    Args:
      task: Brax's own name, such as ``"hopper"``.
      backend: physics backend; ``None`` takes ``"spring"`` (fast on a CPU), for ``swimmer`` its
        only one, ``"generalized"``.
      episode_length: default time limit in environment steps, at least 1; ``None`` takes 1000.
      randomize: a function ``(key, system) -> system`` or its ``module:function``; ``None`` for the
        same robot always.
      **options: none; refused with a sentence.

    Raises:
      ValueError: unknown task, backend or option.
    """
    name = f"brax:{task}"
    refuse(options, ["backend", "episode_length", "randomize"], name)
    if episode_length is None:
        episode_length = DEFAULT_EPISODE_LENGTH
    check_episode_length(episode_length, name)
    valid = ("generalized",) if task == "swimmer" else BACKENDS
    backend = valid[0] if backend is None else backend
    if backend not in valid:
        raise unknown("backend", backend, valid, where=f" for {name!r}")
    with _quiet(), _mujoco.no_messages():
        brax_env = _build(task, backend)
        # ``eval_shape`` because Brax's own ``observation_size`` runs a whole reset, op by op.
        observation = jax.eval_shape(brax_env.reset, jax.random.PRNGKey(0)).obs
    return BraxEnv(
        name=name,
        backend=backend,
        observation_size=observation.shape[-1],
        action_size=int(brax_env.action_size),
        episode_length=episode_length,
        dt=float(str(np.float32(brax_env.dt))),  # 0.008, not float32's 0.00800000037997961
        brax_env=brax_env,
        randomize=randomization.load(randomize),
    )


def _build(task: str, backend: str) -> Any:
    """The unwrapped Brax environment."""
    from brax import envs as brax_envs

    if task == "swimmer":
        _repair_fluid()
    try:
        return brax_envs.get_environment(task, backend=backend)
    except KeyError:
        raise unknown("Brax task", task, sorted(brax_envs._envs)) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps inside what Brax warns about itself: its age, its use of old MuJoCo and JAX names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield


def _repair_fluid() -> None:
    """Lets Brax 0.14's fluid forces run: they call ``jnp.clip(a_min=...)``, which JAX dropped."""
    from brax import fluid

    class _OldClip:
        """``jax.numpy`` whose ``clip`` still takes ``a_min``."""

        def __getattr__(self, name: str) -> Any:
            return getattr(jnp, name)

        @staticmethod
        def clip(array: Array, a_min: float) -> Array:
            return jnp.maximum(array, a_min)

    fluid.jp = _OldClip()
