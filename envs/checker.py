# SPDX-License-Identifier: Apache-2.0
"""Checks any environment against the protocol and explains a failure in one sentence.

``check(env)`` is meant for authors of adapters and of new environments: run it once, or in a test.
It looks at attributes, at what ``reset`` and ``step`` return (structure, shapes, dtypes, weak types
are fixed, as ``scan`` requires), and at behavior: the same under ``vmap``, the same for the same
key, finite, ``done`` meaning termination and nothing else. Environments that JAX cannot trace are
looked at by :mod:`envs.host_checker`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree

from envs import host_checker
from envs.api import Env, State

RESERVED = frozenset(
    ("termination", "truncation", "final_obs", "episode_return", "episode_steps", "steps")
)
"""Names in ``info`` that belong to :class:`envs.api.EpisodeWrapper`."""

_KINDS = ("uniform random", "extreme", "zero")  # the actions of each lane
_LANES = len(_KINDS)
_COMPARED = 8  # steps; chaotic contacts drift apart after more
_TOLERANCE = 1e-3  # vmapped contacts round differently; a wrong lane is off by far more


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
    alone = _jitted(env)  # two groups share the compiled programs
    groups: tuple[Callable[[], Iterator[str]], ...] = (
        lambda: _attributes(env),
        lambda: _reset_form(env, key),
        lambda: _step_form(env, key),
        lambda: _leftovers(env, alone, key),
        lambda: _behavior(env, alone, key, num_steps),
    )
    for group in groups:
        found = list(group())
        if found:
            return found
    return []


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
    expected = {"obs": (env.observation_size,), "reward": (), "done": ()}
    leaves = [(name, getattr(state, name), shape) for name, shape in expected.items()]
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
        before, form = _named_leaves(state), jax.tree.structure(state)
        after = env.step(state, action)
        now = _named_leaves(state)
        written = [name for name in now if now[name] is not before.get(name)]
        if written:
            found.append(f"step writes into the state it is given ({written[0]}); return a copy.")
            return
        found.extend(_state_form(env, after, "step"))
        found.extend(_form_changes(before, _named_leaves(after)))
        if not found and form != jax.tree.structure(after):
            found.append("the pytree structure of the state changes from reset to step.")

    try:
        _abstractly(look, key, jax.ShapeDtypeStruct((env.action_size,), jnp.float32))
    except Exception as error:  # whatever a broken environment raises is the finding
        found = [f"step fails under jit with {env.action_size} float32 actions: {_brief(error)}"]
    yield from found


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


def _leftovers(env: Env, alone: Programs, key: Key[Array, ""]) -> Iterator[str]:
    """``reward`` and ``done`` after a step must not depend on those before it."""
    start = alone.reset(key)
    action = jnp.zeros((env.action_size,), jnp.float32)
    marked = start.replace(done=start.done + 1.0, reward=start.reward + 17.0)
    clean, again = alone.step(start, action), alone.step(start, action)
    marked = alone.step(marked, action)
    for name in ("reward", "done"):
        if float(getattr(start, name)) != 0.0:
            yield f"{name} after reset is {float(getattr(start, name))}; it must be 0."
        values = (float(getattr(state, name)) for state in (clean, again, marked))
        was, repeated, now = values
        # An environment that does not even repeat itself is left to the check of behavior.
        if was == repeated and abs(was - now) > _TOLERANCE * (1.0 + abs(was)):
            yield (
                f"{name} after step depends on the {name} of the state before; "
                "a step after a time limit would inherit it."
            )


def _behavior(env: Env, alone: Programs, key: Key[Array, ""], num_steps: int) -> Iterator[str]:
    """Runs lanes with different actions and looks at numbers, purity, ``vmap`` and ``done``."""
    keys = jax.random.split(key, _LANES)
    actions = _actions(env, key, max(num_steps, _COMPARED, env.episode_length + 1))
    together = jax.jit(jax.vmap(lambda key, actions: _rollout(env, key, actions)))
    seen = together(keys, actions)
    yield from _numbers(env, seen)
    if not _close(seen, together(keys, actions), 0.0):
        yield "the same key and actions give different numbers in a second run."
        return
    few = actions[0, :_COMPARED]
    first_lane = Seen(*(leaf[0, : _COMPARED + 1] for leaf in seen[:3]), finite={})
    single = _loop(alone, keys[0], few)
    if _close(single, first_lane):
        return
    if _close(single, _loop(_jitted(env), keys[0], few)):
        yield "an environment gives other numbers under vmap than alone."
    else:
        yield (
            "the same key and actions give different numbers each time it is traced; "
            "does it draw from NumPy or keep Python state?"
        )


def _numbers(env: Env, seen: Seen) -> Iterator[str]:
    """Non-finite values, values of ``done`` and ends at the time limit, in [lane, time] arrays."""
    done = np.asarray(seen.done)
    if not np.isin(done, (0.0, 1.0)).all():
        odd = done[~np.isin(done, (0.0, 1.0))][0]
        yield f"done takes the value {odd}; it must be 0.0 or 1.0."
        return
    # Steps beyond the end of an episode are nobody's business.
    running = np.cumsum(done, axis=1) - done == 0
    broken = [
        (step, lane, name)
        for name, finite in seen.finite.items()
        for lane, step in np.argwhere(~np.asarray(finite) & running)
    ]
    if broken:
        step, lane, name = min(broken)
        yield f"{name} is not finite after {step} steps of {_KINDS[lane]} actions."
        return
    ends = np.where(done.any(axis=1), done.argmax(axis=1), -1)
    if env.episode_length > 1 and (ends == env.episode_length).all():
        yield (
            f"done is 1 after exactly episode_length = {env.episode_length} steps whatever the "
            "actions; time limits belong to EpisodeWrapper, done to terminations."
        )


class Programs(NamedTuple):
    """``reset`` and ``step`` of one environment, jitted."""

    reset: Callable[[Key[Array, ""]], State]
    step: Callable[[State, Float[Array, " action"]], State]


def _jitted(env: Any) -> Programs:
    """Fresh programs; the lambdas make JAX trace the Python code of ``env`` once more."""
    return Programs(
        reset=jax.jit(lambda key: env.reset(key)),
        step=jax.jit(lambda state, action: env.step(state, action)),
    )


class Seen(NamedTuple):
    """What is kept of each state of a rollout."""

    obs: Float[Array | np.ndarray, "*time obs"]
    reward: Float[Array | np.ndarray, "*time"]
    done: Float[Array | np.ndarray, "*time"]
    finite: dict[str, Bool[Array, "*time"]]


def _rollout(env: Env, key: Key[Array, ""], actions: Float[Array, "time action"]) -> Seen:
    """The states from ``reset`` on, [time + 1, ...]; episodes are not restarted."""

    def advance(state: State, action: Float[Array, " action"]) -> tuple[State, Seen]:
        state = env.step(state, action)
        return state, _look(state)

    first = env.reset(key)
    _, rest = jax.lax.scan(advance, first, actions)
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), _look(first), rest)


def _loop(alone: Programs, key: Key[Array, ""], actions: Float[Array, "time action"]) -> Seen:
    """The same as :func:`_rollout` by one call a step, without ``finite``."""
    states = [alone.reset(key)]
    for action in np.asarray(actions):
        states.append(alone.step(states[-1], action))
    obs, reward, done = (
        np.stack([np.asarray(getattr(state, name)) for state in states])
        for name in ("obs", "reward", "done")
    )
    return Seen(obs, reward, done, finite={})


def _look(state: State) -> Seen:
    """The parts of a state that are compared, and where it is finite."""
    floats = {
        name: leaf
        for name, leaf in _named_leaves(state).items()
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    finite = {name: jnp.isfinite(leaf).all() for name, leaf in floats.items()}
    return Seen(state.obs, state.reward, state.done, finite)


def _actions(env: Env, key: Key[Array, ""], num_steps: int) -> Float[Array, "lane time action"]:
    """Uniform, extreme and zero actions, one kind a lane."""
    shape = (num_steps, env.action_size)
    uniform = jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0)
    return jnp.stack([uniform, jnp.sign(uniform), jnp.zeros(shape, jnp.float32)])


def _close(a: Seen, b: Seen, tolerance: float = _TOLERANCE) -> bool:
    """Whether observations, rewards and dones agree up to a relative tolerance, NaN with NaN."""
    return all(
        np.allclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True)
        for x, y in zip(a[:3], b[:3], strict=True)
    )


def _named_leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves by a readable path, such as ``physics.angle`` or ``info['key']``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path).removeprefix("."): leaf for path, leaf in leaves}


def _brief(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
