# SPDX-License-Identifier: Apache-2.0
"""Checks any environment against the protocol and explains a failure in one sentence.

``check(env)`` is meant for authors of adapters and of new environments: run it once, or in a test.
It looks at attributes, at what ``reset`` and ``step`` return (structure, shapes, dtypes, weak types
are fixed, as ``scan`` requires), and at behavior (:mod:`envs.behavior_checker`). Environments that
JAX cannot trace are looked at by :mod:`envs.host_checker`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from envs import behavior_checker, host_checker
from envs.api import PRIVILEGED, Env, EpisodeWrapper, State
from envs.behavior_checker import named_leaves

RESERVED = frozenset(
    (
        *("termination", "truncation", "final_obs", "final_privileged_obs"),
        *("episode_return", "episode_steps", "steps"),
    )
)
"""Names in ``info`` that belong to :class:`envs.api.EpisodeWrapper`."""


def check(env: Any, num_steps: int = 32, seed: int = 0) -> None:
    """Raises ValueError with one sentence for the first way in which ``env`` breaks the protocol.

    Args:
      env: the environment, anything that should be an :class:`envs.api.Env` or
        :class:`envs.api.HostEnv`.
      num_steps: steps of random and of extreme actions to look at, at least 1.
      seed: seed of the keys used.

    Raises:
      ValueError: the environment breaks the protocol.

    Example:
      >>> from envs.registry import make
      >>> check(make("control:pendulum"))
    """
    for problem in problems(env, num_steps, seed):
        raise ValueError(f"{getattr(env, 'name', type(env).__name__)}: {problem}")


def problems(env: Any, num_steps: int = 32, seed: int = 0) -> list[str]:
    """What is wrong with ``env``, one sentence each; empty for a sound environment.

    A later group of checks needs the earlier ones to pass, so the list ends with the first group
    that finds something.

    Args:
      env: the environment, anything that should be an :class:`envs.api.Env` or
        :class:`envs.api.HostEnv`.
      num_steps: steps of random and of extreme actions to look at, at least 1.
      seed: seed of the keys used.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; it must be at least 1.")
    if hasattr(env, "start") and not hasattr(env, "step"):
        return list(_attributes(env)) or host_checker.problems(env, num_steps, seed)
    key = jax.random.key(seed)
    groups: tuple[Callable[[], Iterator[str]], ...] = (
        lambda: _attributes(env),
        lambda: _reset_form(env, key),
        lambda: _step_form(env, key),
        lambda: _wrapped_form(env, key),
    )
    for group in groups:
        found = list(group())
        if found:
            return found
    return behavior_checker.problems(env, key, num_steps)


def _attributes(env: Any) -> Iterator[str]:
    """The attributes of the protocol."""
    for name in ("name", "observation_size", "action_size", "episode_length", "dt"):
        if not hasattr(env, name):
            yield f"the attribute {name!r} is missing."
            return
    if not isinstance(env.name, str) or not env.name:
        yield f"name is {env.name!r}; it must be a text such as 'family:task'."
    for name in ("observation_size", "action_size", "episode_length"):
        value = getattr(env, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            yield f"{name} is {value!r}; it must be a Python int of at least 1."
    value = getattr(env, "privileged_observation_size", 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        yield f"privileged_observation_size is {value!r}; it must be a Python int of at least 0."
    if not isinstance(env.dt, float) or not (math.isfinite(env.dt) and env.dt > 0):
        yield f"dt is {env.dt!r}; it must be a Python float above 0, in seconds."


def _reset_form(env: Env, key: Key[Array, ""]) -> Iterator[str]:
    """What ``reset`` returns, abstractly."""
    found = []
    try:
        _abstractly(lambda key: found.extend(_state_form(env, env.reset(key), "reset")), key)
    except Exception as error:  # whatever a broken environment raises is the finding
        found = [f"reset fails under jit with a typed key: {_brief(error)}"]
    yield from found


def _abstractly(look: Callable[..., None], *inputs: Any) -> None:
    """Calls ``look`` with tracers, so that it sees forms without any computation."""

    def nothing(*inputs: Any) -> tuple[()]:
        look(*inputs)
        return ()

    jax.eval_shape(nothing, *inputs)


def _state_form(env: Env, state: Any, where: str) -> Iterator[str]:
    """Type, shapes and dtypes of a traced state."""
    if not isinstance(state, State):
        yield f"{where} returns a {type(state).__name__} instead of an envs.api.State."
        return
    for name in ("metrics", "info"):
        if not isinstance(getattr(state, name), dict):
            yield f"{name} after {where} is a {type(getattr(state, name)).__name__}, not a dict."
            return
    size = getattr(env, "privileged_observation_size", 0)
    if (PRIVILEGED in state.info) != (size > 0):
        found = "there" if size == 0 else "missing"
        yield (
            f"info[{PRIVILEGED!r}] is {found} after {where}, but privileged_observation_size is "
            f"{size}."
        )
        return
    expected = {"obs": (env.observation_size,), "reward": (), "done": ()}
    leaves = [(name, getattr(state, name), shape) for name, shape in expected.items()]
    if size:
        leaves.append((f"info[{PRIVILEGED!r}]", state.info[PRIVILEGED], (size,)))
    leaves += [(f"metrics[{name!r}]", value, ()) for name, value in state.metrics.items()]
    for name, leaf, shape in leaves:
        if not isinstance(leaf, jax.Array):
            yield f"{name} after {where} is a {type(leaf).__name__}, not a JAX array."
        elif leaf.shape != shape:
            yield f"{name} after {where} has shape {leaf.shape}; it must be {shape}."
        elif leaf.dtype != jnp.float32:
            yield f"{name} after {where} has dtype {leaf.dtype}; it must be float32."
    for name in sorted(RESERVED.intersection(state.info)):
        yield f"info[{name!r}] is reserved for the episode wrapper; use another name."


def _step_form(env: Env, key: Key[Array, ""]) -> Iterator[str]:
    """What ``step`` returns, abstractly, against what ``reset`` returned."""
    found = []

    def look(key: Key[Array, ""], action: Float[Array, " action"]) -> None:
        state = env.reset(key)
        before, form = named_leaves(state), jax.tree.structure(state)
        after = env.step(state, action)
        now = named_leaves(state)
        written = [name for name in now if now[name] is not before.get(name)]
        if written:
            found.append(f"step writes into the state it is given ({written[0]}); return a copy.")
            return
        found.extend(_state_form(env, after, "step"))
        found.extend(_form_changes(before, named_leaves(after)))
        if not found and form != jax.tree.structure(after):
            found.append("the pytree structure of the state changes from reset to step.")

    try:
        _abstractly(look, key, jax.ShapeDtypeStruct((env.action_size,), jnp.float32))
    except Exception as error:  # whatever a broken environment raises is the finding
        found = [f"step fails under jit with {env.action_size} float32 actions: {_brief(error)}"]
    yield from found


def _wrapped_form(env: Env, key: Key[Array, ""]) -> Iterator[str]:
    """Whether ``step`` takes a state to whose ``info`` a wrapper has added entries."""
    wrapped = EpisodeWrapper(env)

    def look(key: Key[Array, ""], action: Float[Array, " action"]) -> None:
        state = wrapped.reset(key)
        wrapped.step(wrapped.step(state, action, state), action, state)

    try:
        _abstractly(look, key, jax.ShapeDtypeStruct((env.action_size,), jnp.float32))
    except Exception as error:  # whatever a broken environment raises is the finding
        yield f"step fails where a wrapper has added entries to info: {_brief(error)}"


def _form_changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """How leaves change from ``reset`` to ``step``; ``scan`` allows no change."""
    for name in old:
        if name not in new:
            yield f"{name} is there after reset but missing after step."
    for name, leaf in new.items():
        if name not in old:
            yield f"{name} appears only after step; reset must return it too."
            continue
        before, after = jax.typeof(old[name]), jax.typeof(leaf)
        for what in ("shape", "dtype", "weak_type"):
            was, now = getattr(before, what), getattr(after, what)
            if was != now:
                yield f"{what} of {name} changes from {was} after reset to {now} after step."


def _brief(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
