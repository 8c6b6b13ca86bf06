# SPDX-License-Identifier: Apache-2.0
"""Where the time of PPO goes: environment, acting, optimizer, all other learning, compilation.

A chunk is one fused program, which no clock can look into. Its parts are compiled by themselves and
timed in turns: steps with fixed actions, rollouts with the policy, updates from a rollout, updates
of the optimizer alone. Acting and learning are differences of two of them. Compilation comes once a
run, so that its share is told beside the others, for a run of the length that is raced.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mnemosyne
from experiments.benchmarks.throughput import ours
from experiments.benchmarks.throughput.settings import Course
from robotics import programs, rollout
from robotics.ppo import learn, make_ppo
from robotics.ppo.learn import Setup

Row = dict[str, Any]


def measure(
    course: Course, optimizers: Mapping[str, optax.GradientTransformation], rounds: int
) -> list[Row]:
    """One row an optimizer; seconds of a rollout and its updates, by part, and of compilation.

    Args:
      course: where; one seed.
      optimizers: in the slot, by name.
      rounds: turns of each part.
    """
    compiled = {name: _compile_s(course, optimizer) for name, optimizer in optimizers.items()}
    setups = {name: _setup(course, optimizer) for name, optimizer in optimizers.items()}
    parts, states = _programs(course, setups)
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds + 1):
        for name, run in parts.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - began)
    medians = {name: float(np.median(times[1:])) for name, times in seconds.items()}
    return [
        _row(course, name, setups[name], states[name], medians)
        | _compilation(course, compiled[name], medians["rollout"] + medians[name])
        for name in setups
    ]


def _compile_s(course: Course, optimizer: optax.GradientTransformation) -> float:
    """Seconds that the fused program of training takes to compile, as in a race."""
    algorithm = make_ppo(course.wrapped, course.config, optimizer, mnemosyne.telemetry)
    seconds = ours.Ours(course, algorithm, [0], judged=False).compile_s
    assert seconds is not None  # ours compiles before its first turn
    return seconds


def _setup(course: Course, optimizer: optax.GradientTransformation) -> Setup:
    sizes = course.inner.observation_size, course.inner.action_size
    slot = optax.with_extra_args_support(optimizer)
    privileged = course.wrapped.privileged_observation_size
    return Setup(sizes, False, course.config, slot, None, privileged_size=privileged)


def _programs(
    course: Course, setups: Mapping[str, Setup]
) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
    """What to time, by name, and the first state under each optimizer."""
    env, config = course.wrapped, course.config
    key = jax.random.key(0)
    first = next(iter(setups.values()))
    env_state = jax.jit(lambda key: rollout.reset(env, key, config.num_envs))(key)
    noise = learn.draw_noise(first, key)
    states = {name: learn.init(setup, key, env_state) for name, setup in setups.items()}
    params = learn.inference_params(next(iter(states.values())))

    def step_only(state: Any, noise: Any) -> Any:
        restarts = rollout.reset(env, key, config.num_envs)
        fixed: Any = lambda obs, x: (jnp.tanh(x), ())  # noqa: E731
        return rollout.collect(env, fixed, state, restarts, noise)

    def collect(state: Any, params: Any, noise: Any) -> Any:
        restarts = rollout.reset(env, key, config.num_envs)
        return rollout.collect(env, learn.make_act(first, params), state, restarts, noise)

    step_only, collect = jax.jit(step_only), jax.jit(collect)
    batch = collect(env_state, params, noise)[1]
    found: dict[str, Callable[[], Any]] = {
        "env": lambda: step_only(env_state, noise),
        "rollout": lambda: collect(env_state, params, noise),
    }
    for name, setup in setups.items():
        improve = jax.jit(lambda state, setup=setup: learn.improve(setup, state, None, batch, key))
        found[name] = lambda improve=improve, state=states[name]: improve(state)
    return found, states


def _row(course: Course, name: str, setup: Setup, state: Any, seconds: dict[str, float]) -> Row:
    """Seconds and shares of one optimizer."""
    updates = course.config.updates_per_rollout
    microseconds = programs.time_optimizer(setup.optimizer, state.params, state.opt_state)
    whole = seconds["rollout"] + seconds[name]
    optimizer = min(1e-6 * microseconds * updates, seconds[name])
    parts = {
        "env": min(seconds["env"], seconds["rollout"]),
        "acting": max(seconds["rollout"] - seconds["env"], 0.0),
        "optimizer": optimizer,
        "other learning": seconds[name] - optimizer,
    }
    return {
        "who": name,
        "seconds_per_rollout": whole,
        "shares": {part: value / whole for part, value in parts.items()},
        "optimizer_us": microseconds,
    }


def _compilation(course: Course, compile_s: float, seconds_per_rollout: float) -> Row:
    """Compilation against the training of a whole run of the race, evaluations aside."""
    steps = course.config.total_env_steps
    training = seconds_per_rollout * steps / course.config.batch_size
    share = compile_s / (compile_s + training)
    return {"compile_s": compile_s, "compile_share": share, "env_steps": steps}
