# SPDX-License-Identifier: Apache-2.0
"""Compiled programs of a run: compile time told apart, memory checked before use."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from robotics import limits

SMALLER = "use a smaller network, fewer environments or fewer seeds"
CPU_OPTIONS = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 2}
"""For simulators on processors: a third less time to compile, programs no slower to run."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended a run; all complete chunks are saved. The message says how to go on."""


def compile_timed(
    function: Callable[..., Any], *args: Any, donate: bool = False, out_shardings: PyTree = None
) -> tuple[Callable[..., Any], float]:
    """Compiles ahead of time and refuses a program that cannot fit into memory.

    Args:
      function: what to compile.
      *args: arguments, or their shapes.
      donate: let the program reuse the memory of its first argument.
      out_shardings: where the results lie; ``None`` leaves it to the compiler.

    Returns:
      The program and the seconds that compiling took.

    Raises:
      ValueError: if the program needs more memory than there is.
    """
    started = time.perf_counter()
    jitted = jax.jit(function, donate_argnums=0 if donate else (), out_shardings=out_shardings)
    compiled = jitted.lower(*args).compile(compiler_options=compiler_options())
    seconds = time.perf_counter() - started
    analysis = compiled.memory_analysis()
    if analysis is not None:
        needed = analysis.temp_size_in_bytes + analysis.argument_size_in_bytes
        needed += analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        limits.check_memory(needed, "training this", SMALLER)
    return compiled, seconds


def compiler_options() -> dict[str, Any]:
    """Of the programs of a run; what ``XLA_FLAGS`` says is left to it."""
    if jax.default_backend() != "cpu":
        return {}
    flags = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in CPU_OPTIONS.items() if name not in flags}


def time_optimizer(
    optimizer: optax.GradientTransformation, params: PyTree, opt_state: PyTree, updates: int = 20
) -> float:
    """Microseconds of one ``optimizer.update`` on these parameters, best of three runs.

    Args:
      optimizer: the transformation.
      params: parameters of one seed.
      opt_state: its state for them.
      updates: updates a run, at least 1.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def one(carry: PyTree, _: None) -> tuple[PyTree, None]:
        params, opt_state = carry
        # Gradients depend on the carry, or the compiler could take work out of the loop.
        grads = jax.tree.map(lambda leaf: jnp.cos(leaf) * 1e-3, params)
        steps, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, steps), opt_state), None

    @jax.jit
    def many(params: PyTree, opt_state: PyTree) -> PyTree:
        return jax.lax.scan(one, (params, opt_state), None, length=updates)[0]

    jax.block_until_ready(many(params, opt_state))
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        jax.block_until_ready(many(params, opt_state))
        seconds.append(time.perf_counter() - started)
    return 1e6 * min(seconds) / updates


@contextmanager
def interruptible(say: Callable[[str], None]) -> Iterator[threading.Event]:
    """Turns the first Ctrl-C into an event, so that a chunk can end and be saved.

    The second one raises :class:`Interrupted` at once. Outside of the main thread, where Python
    delivers no signals, the event is never set.

    Args:
      say: prints a line.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise Interrupted("interrupted; what the last checkpoint holds is saved")
        event.set()
        say("stopping after this chunk; Ctrl-C again stops at once and keeps the last checkpoint")

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
