# SPDX-License-Identifier: Apache-2.0
"""Our JAX environments for Gymnasium's users: a ``VectorEnv`` of many, or an ``Env`` of one.

Episodes that end are restarted in the same step (``AutoresetMode.SAME_STEP``) by a full reset with
keys of their own; the observation before it is in ``infos["final_obs"]``. Termination and time
limit are told apart. An environment of a batch that was reset with seed s does what a single one
that was reset with s does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Key, UInt32

from envs.api import Env, EpisodeWrapper, HostEnv, State

if TYPE_CHECKING:
    pass

_Step = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]
_NUM_SEEDS = 2**32


def make_vector_env(env: Env | HostEnv, num_envs: int, episode_length: int | None = None) -> Any:
    """``num_envs`` copies of a JAX environment as a ``gymnasium.vector.VectorEnv``.

    Args:
      env: such as ``envs.make("brax:hopper")``.
      num_envs: at least 1.
      episode_length: time limit in environment steps; ``None`` takes the environment's own.

    Raises:
      ValueError: for an environment that does not run inside JAX, or fewer than 1 copy.

    Example:
      >>> from envs.registry import make
      >>> vector = make_vector_env(make("control:pendulum"), 3)
      >>> vector.reset(seed=0)[0].shape, vector.single_action_space.shape
      ((3, 3), (1,))
    """
    _check(env)
    if num_envs < 1:
        raise ValueError(f"num_envs is {num_envs}; it must be at least 1.")
    return _vector_class()(env, num_envs, episode_length)


def make_single_env(env: Env | HostEnv, episode_length: int | None = None) -> Any:
    """A JAX environment as a ``gymnasium.Env``; arguments as for :func:`make_vector_env`.

    A call for every step of one environment is slow: prefer :func:`make_vector_env`.
    """
    _check(env)
    return _single_class()(env, episode_length)


def _check(env: Any) -> None:
    if isinstance(env, HostEnv):
        raise ValueError(
            f"{env.name!r} runs outside of JAX already; use gymnasium.make or gymnasium.make_vec."
        )


class _Programs(NamedTuple):
    """Compiled functions of several environments.

    Attributes:
      seed: seeds to keys.
      start: keys to (first states, next keys).
      step: (states, actions) to states; an episode that ends is not restarted.
      restart: (states, keys, which) to the same with fresh episodes there.
    """

    seed: Callable[[Any], Key[Array, " envs"]]
    start: Callable[..., tuple[State, Key[Array, " envs"]]]
    step: Callable[..., State]
    restart: Callable[..., tuple[State, Key[Array, " envs"]]]


def _compile(env: Env, episode_length: int | None) -> _Programs:
    """Every environment draws from a key of its own, whatever happens in the others."""
    wrapped = EpisodeWrapper(env, episode_length)

    def start(key: Key[Array, ""]) -> tuple[State, Key[Array, ""]]:
        key_reset, key = jax.random.split(key)
        return wrapped.reset(key_reset), key

    def restart(
        state: State, key: Key[Array, ""], done: Bool[Array, ""]
    ) -> tuple[State, Key[Array, ""]]:
        return jax.tree.map(lambda new, old: jnp.where(done, new, old), start(key), (state, key))

    # An ended state is given as its own restart: full resets are made apart, only when needed.
    step = jax.vmap(lambda state, action: wrapped.step(state, action, state))
    return _Programs(
        seed=jax.jit(jax.vmap(jax.random.key)),
        start=jax.jit(jax.vmap(start)),
        step=jax.jit(step),
        restart=jax.jit(jax.vmap(restart)),
    )


def _boxes(env: Env) -> tuple[Any, Any]:
    """Observation and action space of one environment."""
    from gymnasium.spaces import Box

    return (
        Box(-np.inf, np.inf, (env.observation_size,), np.float32),
        Box(-1.0, 1.0, (env.action_size,), np.float32),
    )


def _flags(state: State) -> tuple[Bool[np.ndarray, " envs"], Bool[np.ndarray, " envs"]]:
    """Where episodes ended by themselves, and by their time limit."""
    return np.asarray(state.info["termination"]) > 0, np.asarray(state.info["truncation"]) > 0


def _seeds(
    seed: int | Sequence[int] | None, num_envs: int, rng: np.random.Generator, name: str
) -> UInt32[np.ndarray, " envs"]:
    """One seed an environment.

    Raises:
      ValueError: for another number of seeds than of environments.
    """
    if seed is None:
        return rng.integers(_NUM_SEEDS, size=num_envs, dtype=np.uint32)
    if isinstance(seed, int):
        seed = [seed + i for i in range(num_envs)]
    if len(seed) != num_envs:
        raise ValueError(f"{name!r} runs {num_envs} environments and got {len(seed)} seeds.")
    return np.asarray([one % _NUM_SEEDS for one in seed], np.uint32)


@functools.cache
def _vector_class() -> Any:
    """The class; Gymnasium is imported by its first use."""
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space

    class JaxVectorEnv(VectorEnv):
        """Environments of this package in one jitted program."""

        metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012

        def __init__(self, env: Env, num_envs: int, episode_length: int | None):
            self.env, self.num_envs = env, num_envs
            self.single_observation_space, self.single_action_space = _boxes(env)
            self.observation_space = batch_space(self.single_observation_space, num_envs)
            self.action_space = batch_space(self.single_action_space, num_envs)
            self._programs = _compile(env, episode_length)
            self._keys: Any = None
            self._state: Any = None

        def reset(
            self,
            *,
            seed: int | Sequence[int] | None = None,
            options: dict[str, Any] | None = None,
        ) -> tuple[np.ndarray, dict[str, Any]]:
            super().reset(seed=seed if isinstance(seed, int) else None)
            if seed is not None or self._keys is None:
                seeds = _seeds(seed, self.num_envs, self.np_random, self.env.name)
                self._keys = self._programs.seed(seeds)
            self._state, self._keys = self._programs.start(self._keys)
            return np.array(self._state.obs), {}

        def step(self, actions: Any) -> _Step:
            if self._state is None:
                raise ValueError(f"{self.env.name!r} must be reset before its first step.")
            actions = np.asarray(actions, np.float32)
            if actions.shape != self.action_space.shape:
                raise ValueError(
                    f"{self.env.name!r} takes actions of shape {self.action_space.shape}, not "
                    f"{actions.shape}."
                )
            self._state = self._programs.step(self._state, actions)
            reward = np.asarray(self._state.reward, np.float64)
            terminated, truncated = _flags(self._state)
            infos = self._restart(terminated | truncated)
            return np.array(self._state.obs), reward, terminated, truncated, infos

        def _restart(self, done: np.ndarray) -> dict[str, Any]:
            """Begins new episodes where one ended; what is known of those that did."""
            if not done.any():
                return {}
            final = np.full(self.num_envs, None, object)
            for i in np.flatnonzero(done):
                final[i] = np.array(self._state.info["final_obs"][i])
            self._state, self._keys = self._programs.restart(self._state, self._keys, done)
            return {"final_obs": final, "_final_obs": done}

    return JaxVectorEnv


@functools.cache
def _single_class() -> Any:
    """The class; Gymnasium is imported by its first use."""
    import gymnasium

    class JaxEnv(gymnasium.Env):
        """One environment of this package."""

        metadata = {"render_modes": []}  # noqa: RUF012

        def __init__(self, env: Env, episode_length: int | None):
            self._vector = _vector_class()(env, 1, episode_length)
            self.observation_space = self._vector.single_observation_space
            self.action_space = self._vector.single_action_space
            self._waiting: np.ndarray | None = None  # first observation of an episode to come

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[np.ndarray, dict[str, Any]]:
            super().reset(seed=seed)
            waiting, self._waiting = self._waiting, None
            if waiting is not None and seed is None:
                return waiting, {}
            return self._vector.reset(seed=seed, options=options)[0][0], {}

        def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            obs, reward, terminated, truncated, infos = self._vector.step(np.asarray(action)[None])
            seen = obs[0]
            if terminated[0] or truncated[0]:
                seen, self._waiting = infos["final_obs"][0], obs[0]
            return seen, float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}

    return JaxEnv
