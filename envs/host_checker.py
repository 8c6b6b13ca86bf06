# SPDX-License-Identifier: Apache-2.0
"""What :mod:`envs.checker` looks at in an environment that JAX cannot trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from envs.api import HostBatch, HostEnv, HostStep

_NUM_ENVS = 3


def problems(env: HostEnv, num_steps: int, seed: int) -> list[str]:
    """What is wrong with a host environment, one sentence each; empty for a sound one.

    Args:
      env: the environment.
      num_steps: steps of random actions to look at, at least 1.
      seed: seed of episodes and actions.
    """
    groups: tuple[Callable[[], Iterator[str]], ...] = (
        lambda: _attributes(env),
        lambda: _behavior(env, num_steps, seed),
    )
    for group in groups:
        found = list(group())
        if found:
            return found
    return []


def _attributes(env: HostEnv) -> Iterator[str]:
    """What host environments have beyond the attributes that all share."""
    discrete = getattr(env, "discrete", None)
    if not isinstance(discrete, bool):
        yield f"discrete is {discrete!r}; it must be True or False."


def _behavior(env: HostEnv, num_steps: int, seed: int) -> Iterator[str]:
    """Runs a batch twice from the same seeds and looks at every step."""
    seeds = [seed + i for i in range(_NUM_ENVS)]
    actions = _actions(env, num_steps, seed)
    first: list[HostStep] = []
    again: list[HostStep] = []
    for steps in (first, again):
        try:
            _run(env, seeds, actions, steps)
        except Exception as error:  # whatever a broken environment raises is the finding
            doing = "reset" if not steps else f"step {len(steps)}"
            yield f"{doing} fails with {_described(env)}: {_brief(error)}"
            return
        for number, step in enumerate(steps):
            found = list(_form(env, step, "reset" if not number else f"step {number}"))
            yield from found
            if found:
                return
    yield from _too_long(env, first)
    for number, (one, other) in enumerate(zip(first, again, strict=True)):
        if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, other, strict=True)):
            yield f"the same seeds and actions give different numbers after {number} steps."
            return


def _run(
    env: HostEnv, seeds: Sequence[int], actions: Sequence[np.ndarray], steps: list[HostStep]
) -> None:
    """Appends the batch after ``reset`` and after every action."""
    batch: HostBatch = env.start(len(seeds))
    try:
        steps.append(batch.reset(seeds))
        for action in actions:
            steps.append(batch.step(action))  # noqa: PERF401 - keeps what came before a failure
    finally:
        batch.close()


def _actions(env: HostEnv, num_steps: int, seed: int) -> list[np.ndarray]:
    """Uniform actions or choices, and extreme ones in the end."""
    rng = np.random.default_rng(seed)
    if env.discrete:
        return list(rng.integers(0, env.action_size, (num_steps, _NUM_ENVS)))
    drawn = rng.uniform(-1.0, 1.0, (num_steps, _NUM_ENVS, env.action_size)).astype(np.float32)
    drawn[num_steps // 2 :] = np.sign(drawn[num_steps // 2 :])
    return list(drawn)


def _form(env: HostEnv, step: Any, where: str) -> Iterator[str]:
    """Type, shapes, dtypes and values of one step."""
    if not isinstance(step, HostStep):
        yield f"{where} returns a {type(step).__name__} instead of an envs.api.HostStep."
        return
    for name, value in step._asdict().items():
        shape = (_NUM_ENVS, env.observation_size) if name.endswith("obs") else (_NUM_ENVS,)
        if not isinstance(value, np.ndarray):
            yield f"{name} after {where} is a {type(value).__name__}, not a NumPy array."
        elif value.shape != shape:
            yield f"{name} after {where} has shape {value.shape}; it must be {shape}."
        elif value.dtype != np.float32:
            yield f"{name} after {where} has dtype {value.dtype}; it must be float32."
        elif not name.endswith("x_position") and not np.isfinite(value).all():
            yield f"{name} is not finite after {where}."
        else:
            continue
        return
    yield from _flags(step, where)


def _flags(step: HostStep, where: str) -> Iterator[str]:
    """Values of the flags, and observations where no episode ended."""
    for name in ("termination", "truncation"):
        value = getattr(step, name)
        if not np.isin(value, (0.0, 1.0)).all():
            yield f"{name} after {where} takes other values than 0.0 and 1.0."
            return
    done = step.termination + step.truncation
    if (done > 1).any():
        yield f"an episode ends by termination and truncation both in {where}; it is one of them."
    elif not np.array_equal(step.obs[done == 0], step.final_obs[done == 0]):
        yield f"final_obs after {where} differs from obs although the episode goes on."


def _too_long(env: HostEnv, steps: Sequence[HostStep]) -> Iterator[str]:
    """Episodes beyond the time limit."""
    length = np.zeros(_NUM_ENVS, int)
    for step in steps[1:]:
        length += 1
        if (length > env.episode_length).any():
            yield f"an episode goes on after episode_length = {env.episode_length} steps."
            return
        length[step.termination + step.truncation > 0] = 0


def _described(env: HostEnv) -> str:
    """The actions that were tried."""
    if env.discrete:
        return f"choices from 0 to {env.action_size - 1}"
    return f"{env.action_size} float32 action entries"


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
