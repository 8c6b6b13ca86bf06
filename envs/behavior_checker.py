# SPDX-License-Identifier: Apache-2.0
"""What :mod:`envs.checker` looks at in an environment of sound form: the numbers it gives.

Whether they are finite, the same for the same key and the same under ``vmap``, whether ``done``
means termination and nothing else, and whether a step inherits what it should not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree

from envs.api import Env, State

_KINDS = ("uniform random", "extreme", "zero")  # the actions of each lane
_LANES = len(_KINDS)
_COMPARED = 8  # steps; chaotic contacts drift apart after more
_TOLERANCE = 1e-3  # vmapped contacts round differently; a wrong lane is off by far more


class _Programs(NamedTuple):
    """``reset`` and ``step`` of one environment, jitted."""

    reset: Callable[[Key[Array, ""]], State]
    step: Callable[[State, Float[Array, " action"]], State]


class _Seen(NamedTuple):
    """What is kept of each state of a rollout."""

    obs: Float[Array | np.ndarray, "*time obs"]
    reward: Float[Array | np.ndarray, "*time"]
    done: Float[Array | np.ndarray, "*time"]
    finite: dict[str, Bool[Array, "*time"]]


def problems(env: Env, key: Key[Array, ""], num_steps: int) -> list[str]:
    """What is wrong with the behavior of an environment, one sentence each.

    Args:
      env: the environment.
      key: decides episodes and actions.
      num_steps: steps of random and of extreme actions to look at, at least 1.
    """
    alone = _jitted(env)  # both groups share the compiled programs
    return list(_leftovers(env, alone, key)) or list(_behavior(env, alone, key, num_steps))


def _leftovers(env: Env, alone: _Programs, key: Key[Array, ""]) -> Iterator[str]:
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


def _behavior(env: Env, alone: _Programs, key: Key[Array, ""], num_steps: int) -> Iterator[str]:
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
    first_lane = _Seen(*(leaf[0, : _COMPARED + 1] for leaf in seen[:3]), finite={})
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


def _numbers(env: Env, seen: _Seen) -> Iterator[str]:
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


def _rollout(env: Env, key: Key[Array, ""], actions: Float[Array, "time action"]) -> _Seen:
    """The states from ``reset`` on, [time + 1, ...]; episodes are not restarted."""

    def advance(state: State, action: Float[Array, " action"]) -> tuple[State, _Seen]:
        state = env.step(state, action)
        return state, _look(state)

    first = env.reset(key)
    _, rest = jax.lax.scan(advance, first, actions)
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), _look(first), rest)


def _loop(alone: _Programs, key: Key[Array, ""], actions: Float[Array, "time action"]) -> _Seen:
    """The same as :func:`_rollout` by one call a step, without ``finite``."""
    states = [alone.reset(key)]
    for action in np.asarray(actions):
        states.append(alone.step(states[-1], action))
    obs, reward, done = (
        np.stack([np.asarray(getattr(state, name)) for state in states])
        for name in ("obs", "reward", "done")
    )
    return _Seen(obs, reward, done, finite={})


def _look(state: State) -> _Seen:
    """The parts of a state that are compared, and where it is finite."""
    floats = {
        name: leaf
        for name, leaf in named_leaves(state).items()
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    finite = {name: jnp.isfinite(leaf).all() for name, leaf in floats.items()}
    return _Seen(state.obs, state.reward, state.done, finite)


def _actions(env: Env, key: Key[Array, ""], num_steps: int) -> Float[Array, "lane time action"]:
    """Uniform, extreme and zero actions, one kind a lane."""
    shape = (num_steps, env.action_size)
    uniform = jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0)
    return jnp.stack([uniform, jnp.sign(uniform), jnp.zeros(shape, jnp.float32)])


def _close(a: _Seen, b: _Seen, tolerance: float = _TOLERANCE) -> bool:
    """Whether observations, rewards and dones agree up to a relative tolerance, NaN with NaN."""
    return all(
        np.allclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True)
        for x, y in zip(a[:3], b[:3], strict=True)
    )


def _jitted(env: Any) -> _Programs:
    """Fresh programs; the lambdas make JAX trace the Python code of ``env`` once more."""
    return _Programs(
        reset=jax.jit(lambda key: env.reset(key)),
        step=jax.jit(lambda state, action: env.step(state, action)),
    )


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves by a readable path, such as ``physics.angle`` or ``info['key']``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path).removeprefix("."): leaf for path, leaf in leaves}
