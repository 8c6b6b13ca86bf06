# SPDX-License-Identifier: Apache-2.0
"""The host loop of a training run: compile, train a chunk, evaluate, save, and so on to the end."""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array, PyTree

from envs.api import EpisodeWrapper, HostEnv
from robotics import programs, sharding
from robotics.algorithm import Algorithm, HostAlgorithm
from robotics.checkpoint import Checkpointer, Restored
from robotics.chunks import Chunks, CompiledChunks, HostChunks
from robotics.monitor import Monitor, duration
from robotics.progress import Display, Progress
from robotics.recovery import Recovery
from robotics.reporter import Reporter
from robotics.restarts import Episodes, make_episodes
from robotics.run_config import RunConfig, WarmUp, seed_keys, state_template


class Loop:
    """The parts of a run with what they share.

    Args:
      algorithm: what to train.
      env: where the policy is evaluated.
      config: how to carry the run out.
      checkpointer: keeps the state after every chunk.
      monitor: writes and prints.
      policy_info: what ``policy.json`` says about the policy's world.
    """

    def __init__(
        self,
        algorithm: Algorithm | HostAlgorithm,
        env: EpisodeWrapper | HostEnv,
        config: RunConfig,
        checkpointer: Checkpointer,
        monitor: Monitor,
        policy_info: dict[str, Any],
    ):
        self._algorithm, self._config = algorithm, config
        self._checkpointer, self._monitor = checkpointer, monitor
        self._mesh = getattr(algorithm, "mesh", None)
        template = state_template(algorithm, config)
        self._shardings = sharding.state_shardings(self._mesh, template)
        self._display = Display(str(config.folder), algorithm.num_epochs, monitor)
        self._reporter = Reporter(algorithm, env, config, monitor, self._display, policy_info)
        self._chunk_started = time.perf_counter()

    def start(self, restored: Restored | None, warm_up: WarmUp | None) -> tuple[PyTree, Progress]:
        """The first state, evaluated before it learns, or the restored one; with its record."""
        if restored is not None:
            progress = Progress.of_seeds(self._config.num_seeds, **restored.host)
            folder = self._config.folder
            self._monitor.say(f"continuing at {progress.steps:,} env steps of {folder}")
            return sharding.put(self._mesh, restored.state, self._shardings), progress
        progress = Progress.of_seeds(self._config.num_seeds)
        started = time.perf_counter()
        state = self._first_state(progress, warm_up)
        self._reporter.play_random(progress)
        self._reporter.evaluate(state, progress, {}, {})
        progress.walltime_s += time.perf_counter() - started
        return state, progress

    def _first_state(self, progress: Progress, warm_up: WarmUp | None) -> PyTree:
        """The state of all seeds before their first update."""
        count = self._config.num_seeds
        self._monitor.say(f"compiling for {count} seed(s) ...")
        self._display.say("compiling the evaluation")
        keys = sharding.put(self._mesh, seed_keys(self._config))
        start = () if self._episodes is None else (self._episodes.start(keys),)
        init, seconds = programs.compile_timed(
            jax.vmap(self._algorithm.init), keys, *start, out_shardings=self._shardings
        )
        progress.compile_s += seconds
        state = init(keys, *start)
        if warm_up is not None:
            state, taken = warm_up(state, self._monitor.say)
            state = sharding.moved(self._mesh, state, self._shardings)
            progress.env_steps = [taken] * count
        return state

    def run(self, state: PyTree, progress: Progress, interrupted: threading.Event) -> PyTree:
        """All remaining chunks."""
        if progress.epoch >= self._algorithm.num_epochs:
            return state
        started = time.perf_counter()
        recovery = self._open(state, progress)
        walltime_s = progress.walltime_s
        self._display.begin(progress)
        while progress.epoch < self._algorithm.num_epochs:
            state = self._chunk(recovery, state, progress)
            progress.walltime_s = walltime_s + time.perf_counter() - started
            self._save(state, progress)
            self._stop_if(interrupted, progress)
        return state

    def finish(
        self, state: PyTree, progress: Progress, optimizer: optax.GradientTransformation | None
    ) -> dict[str, Any]:
        """Exports the last policy and gathers what the run reports."""
        return self._reporter.finish(state, progress, optimizer)

    def _open(self, state: PyTree, progress: Progress) -> Recovery:
        """What does the chunks of this run, compiled."""
        self._display.say("compiling the training")
        chunks, folder, say = self._chunks(state, progress), self._config.folder, self._monitor.say
        recovery = Recovery(self._algorithm, chunks, self._config.seeds, folder, say)
        recovery.write_faults(progress)  # without those that a resumed run has not met yet
        progress.compile_s += chunks.compile_s
        say(f"compiled in {duration(progress.compile_s)}, training ...")
        return recovery

    def _chunks(self, state: PyTree, progress: Progress) -> Chunks:
        """How the chunks are done: on the device, or with environments on the host."""
        if isinstance(self._algorithm, HostAlgorithm):
            return HostChunks(self._algorithm, state, lambda: self._tick(progress))

        def wait(metrics: Mapping[str, Array]) -> None:
            self._wait(metrics, progress)

        if self._episodes is not None:
            progress.compile_s += self._episodes.compile_s
        return CompiledChunks(self._algorithm, state, wait, self._monitor.say, self._episodes)

    @functools.cached_property
    def _episodes(self) -> Episodes | None:
        """What draws fresh episodes, compiled when it is first needed."""
        return make_episodes(self._algorithm, seed_keys(self._config))

    def _chunk(self, recovery: Recovery, state: PyTree, progress: Progress) -> PyTree:
        """One chunk of training and the evaluation after it."""
        self._chunk_started = time.perf_counter()
        state, metrics = recovery.advance(state, progress)
        train_s = time.perf_counter() - self._chunk_started
        steps = metrics.pop(
            "env_steps", np.full(self._config.num_seeds, self._algorithm.env_steps_per_epoch)
        )
        progress.env_steps = [
            old + int(new) for old, new in zip(progress.env_steps, steps, strict=True)
        ]
        progress.train_s += train_s
        progress.epoch += 1
        told = {
            "recovery/rollbacks": progress.rollbacks,
            "recovery/step_scale": progress.step_scale,
            "recovery/discarded_env_steps": progress.discarded_env_steps,
        }
        metrics |= {tag: np.asarray(each, np.float64) for tag, each in told.items()}
        host = {"training/sps": float(steps.sum()) / train_s, "training/walltime": progress.train_s}
        self._reporter.evaluate(state, progress, metrics, host)
        return state

    def _save(self, state: PyTree, progress: Progress) -> None:
        """Writes a checkpoint."""
        saved = sharding.whole(self._mesh, state)
        if jax.process_index() == 0:  # of several processes, all of which hold the same
            self._checkpointer.save(progress.steps, saved, dataclasses.asdict(progress))

    def _stop_if(self, interrupted: threading.Event, progress: Progress) -> None:
        """Ends a run between two chunks, after Ctrl-C in any of its processes."""
        if (
            sharding.any_process(interrupted.is_set())
            and progress.epoch < self._algorithm.num_epochs
        ):
            raise programs.Interrupted(
                f"interrupted at {progress.steps:,} env steps; "
                f"continue with --resume {self._config.folder}"
            )

    def _wait(self, metrics: Mapping[str, Array], progress: Progress) -> None:
        """Waits for a chunk while the live line moves and Ctrl-C is heard."""
        marker: Any = next(iter(metrics.values()))
        while not marker.is_ready():
            time.sleep(0.05)
            self._tick(progress)
        jax.block_until_ready(metrics)

    def _tick(self, progress: Progress) -> None:
        """Moves the live panel during a chunk."""
        self._display.update(progress, self._chunk_started)
