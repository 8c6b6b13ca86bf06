# SPDX-License-Identifier: Apache-2.0
"""The host loop of a training run: compile, train in chunks, evaluate, save, resume, report.

All seeds run in one program (``vmap``), one chunk of env steps between two evaluations. After every
evaluation the run is saved; a run that is killed and resumed gives, on a CPU, the same numbers to
the last bit as one that was not, because a checkpoint holds everything that the next chunk depends
on and the evaluation episodes depend on seed and chunk only.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Key, PyTree

from envs.api import EpisodeWrapper, HostEnv
from robotics import limits, programs, result, run_folder, sharding
from robotics.algorithm import Algorithm, HostAlgorithm, Policy
from robotics.checkpoint import Checkpointer
from robotics.evaluate import make_player, random_policy
from robotics.export import export_policy, flatten
from robotics.monitor import RETURN, Monitor, duration
from robotics.panel import sparkline

_EVAL_STREAM = (
    0x6576616C  # keeps evaluation episodes apart from what training draws from the same seed
)
_HISTOGRAMS = 5  # between start and end of a run
_WORK_COPIES = 3  # state, gradient and temporary copies: a lower bound on what a step needs


WarmUp = Callable[[PyTree, Callable[[str], None]], tuple[PyTree, int]]
"""``warm_up(state, say)``: the state of all seeds before their first update as something else has
prepared it, and the env steps that this took of each."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How a run is carried out; nothing in here changes what is learned, seeds aside."""

    folder: Path
    """Run folder."""
    seed: int = 0
    """First seed."""
    num_seeds: int = 1
    """Number of seeds trained side by side, at least 1."""
    eval_episodes: int = 64
    """Fresh episodes per evaluation and seed, at least 1."""
    max_to_keep: int = 3
    """Checkpoints kept on the disk, at least 1."""
    quiet: bool = False
    """Say nothing on the console."""

    @property
    def seeds(self) -> list[int]:
        """The seed numbers, in the order of the leading axis of all arrays."""
        return list(range(self.seed, self.seed + self.num_seeds))


@dataclasses.dataclass
class _Progress:
    """What the host knows about a run besides its arrays; saved with every checkpoint as JSON."""

    epoch: int = 0
    env_steps: list[int] = dataclasses.field(
        default_factory=list
    )  # one a seed, Python ints never overflow
    walltime_s: float = 0.0
    compile_s: float = 0.0
    train_s: float = 0.0
    finite: list[bool] = dataclasses.field(default_factory=list)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    random: dict[str, Any] = dataclasses.field(default_factory=dict)
    best: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Env steps of one seed; the mean where seeds differ."""
        return round(sum(self.env_steps) / len(self.env_steps))


def seed_keys(config: RunConfig) -> Key[Array, " seeds"]:
    """One typed key a seed; a seed's key does not depend on how many others run beside it."""
    return jax.vmap(jax.random.key)(jnp.asarray(config.seeds, jnp.uint32))


def evaluation_keys(keys: Key[Array, " seeds"], epoch: int) -> Key[Array, " seeds"]:
    """Keys of the fresh episodes that are played after ``epoch`` chunks."""
    return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, _EVAL_STREAM), epoch))(
        keys
    )


def state_template(algorithm: Algorithm | HostAlgorithm, config: RunConfig) -> PyTree:
    """Shapes of the training state of all seeds; refuses a state that cannot fit into memory.

    Raises:
      ValueError: if it cannot fit.
    """
    key = jax.eval_shape(jax.random.key, 0)
    one = limits.tree_bytes(jax.eval_shape(algorithm.init, key))
    limits.check_memory(_WORK_COPIES * one * config.num_seeds, "training this", programs.SMALLER)
    keys = jax.ShapeDtypeStruct((config.num_seeds,), key.dtype)
    return jax.eval_shape(jax.vmap(algorithm.init), keys)


def train(
    algorithm: Algorithm | HostAlgorithm,
    env: EpisodeWrapper | HostEnv,
    optimizer: optax.GradientTransformation | None,
    config: RunConfig,
    identity: Mapping[str, Any] | None = None,
    policy_info: Mapping[str, Any] | None = None,
    begin: Callable[[], None] | None = None,
    warm_up: WarmUp | None = None,
) -> dict[str, Any]:
    """Trains to the algorithm's last chunk, from the newest checkpoint if there is one.

    Args:
      algorithm: what to train, as pure functions of one seed.
      env: where the policy is evaluated.
      optimizer: the transformation in the algorithm's slot, to be timed apart; ``None`` if it has
        none.
      config: how to carry the run out.
      identity: settings that checkpoints of this folder must agree on.
      policy_info: what ``policy.json`` says about the policy's world, such as env and dt.
      begin: called when nothing stands in the way any more, before the first file is written.
      warm_up: changes the first state of a run; one that goes on from a checkpoint has it there.

    Returns:
      The fields of ``result.json`` that come from the run itself, as JSON knows them.

    Raises:
      Interrupted: after Ctrl-C; the last complete chunk is saved.
      OSError: the folder is full, unwritable or gone; the message says what is saved.
      ValueError: damaged or foreign checkpoint, or too little memory.
    """
    template = state_template(algorithm, config)
    with Checkpointer(
        config.folder / run_folder.CHECKPOINTS, config.max_to_keep, identity
    ) as checkpointer:
        restored = checkpointer.restore(template) if checkpointer.steps() else None
        resume_at = None if restored is None else restored.step
        if begin is not None:
            begin()
        config.folder.mkdir(parents=True, exist_ok=True)
        try:
            with Monitor(
                config.folder, config.seeds, resume_at, config.quiet, settings=identity
            ) as monitor:
                loop = _Loop(algorithm, env, config, checkpointer, monitor, dict(policy_info or {}))
                state, progress = loop.start(restored, warm_up)
                with programs.interruptible(monitor.say) as interrupted:
                    state = loop.run(state, progress, interrupted)
                return loop.finish(state, progress, optimizer)
        except OSError as error:
            raise OSError(_cannot_go_on(config.folder, checkpointer, error)) from error


def _cannot_go_on(folder: Path, checkpointer: Checkpointer, error: OSError) -> str:
    """Why a run that can no longer write has stopped, and what is left of it."""
    why = error.strerror or str(error)
    if error.filename and str(error.filename) not in why:
        why = f"{why}: {error.filename}"
    saved = checkpointer.steps()
    if not saved:
        return f"the run stopped: {why}; nothing of it was saved yet"
    return (
        f"the run stopped: {why}; all before {saved[-1]:,} env steps is saved, "
        f"continue with --resume {folder}"
    )


class _Loop:
    """The parts of :func:`train` with what they share."""

    def __init__(
        self,
        algorithm: Algorithm | HostAlgorithm,
        env: EpisodeWrapper | HostEnv,
        config: RunConfig,
        checkpointer: Checkpointer,
        monitor: Monitor,
        policy_info: dict[str, Any],
    ):
        self.algorithm, self.env, self.config = algorithm, env, config
        self.checkpointer, self.monitor, self.policy_info = checkpointer, monitor, policy_info
        self.keys = seed_keys(config)
        self.mesh = getattr(algorithm, "mesh", None)
        self.shardings: Any = None
        if self.mesh is not None:
            template = state_template(algorithm, config)
            self.shardings = sharding.state_shardings(self.mesh, template)
        self.inference_params = jax.jit(jax.vmap(algorithm.inference_params))
        self.play: Callable[..., Any] | None = None
        self.started, self.first_epoch = time.perf_counter(), 0

    def start(self, restored: Any, warm_up: WarmUp | None) -> tuple[PyTree, _Progress]:
        """The first state, evaluated before it learns, or the restored one; with its record."""
        if restored is not None:
            progress = _Progress(**restored.host)
            self.monitor.say(f"continuing at {progress.steps:,} env steps of {self.config.folder}")
            return sharding.put(self.mesh, restored.state, self.shardings), progress
        count = self.config.num_seeds
        progress = _Progress(env_steps=[0] * count, finite=[True] * count)
        started = time.perf_counter()
        self.monitor.say(f"compiling for {count} seed(s) ...")
        self.monitor.live(str(self.config.folder), None, {"now": "compiling the evaluation"})
        keys = sharding.put(self.mesh, self.keys)
        init, seconds = programs.compile_timed(
            jax.vmap(self.algorithm.init), keys, out_shardings=self.shardings
        )
        progress.compile_s += seconds
        state = init(keys)
        if warm_up is not None:
            state, taken = warm_up(state, self.monitor.say)
            state = sharding.put(self.mesh, state, self.shardings)
            progress.env_steps = [taken] * count
        progress.random = self.play_random(progress)
        self.evaluate(state, progress, {}, {})
        progress.walltime_s += time.perf_counter() - started
        return state, progress

    def play_random(self, progress: _Progress) -> dict[str, Any]:
        """Uniform random actions in the episodes of the last evaluation of the first seed."""
        env = self.env if isinstance(self.env, HostEnv) else self.env.env
        policy = random_policy(env.action_size, getattr(env, "discrete", False))
        keys = evaluation_keys(self.keys, self.algorithm.num_epochs)[:1]
        play = self.player(policy, None, keys, progress)
        entry = result.evaluation(0, jax.device_get(play(None, keys)))
        spread = result.spread([entry], "return")
        self.monitor.say(
            f"uniform random actions: return {spread['mean']:.4g} ± {spread['std']:.3g}"
        )
        return entry

    def player(
        self, policy: Policy, params: PyTree, keys: Key[Array, " policies"], progress: _Progress
    ) -> Callable[..., Any]:
        """Evaluation of policies, compiled where its environment can be."""
        play = make_player(self.env, policy, self.config.eval_episodes)
        if isinstance(self.env, HostEnv):
            return play
        play, seconds = programs.compile_timed(play, params, keys)
        progress.compile_s += seconds
        return play

    def run(self, state: PyTree, progress: _Progress, interrupted: threading.Event) -> PyTree:
        """All remaining chunks."""
        if progress.epoch >= self.algorithm.num_epochs:
            return state
        started = time.perf_counter()
        self.monitor.live(str(self.config.folder), None, {"now": "compiling the training"})
        epoch, seconds = self.open(state, progress)
        progress.compile_s += seconds
        self.monitor.say(f"compiled in {duration(progress.compile_s)}, training ...")
        walltime_s = progress.walltime_s
        self.started, self.first_epoch = time.perf_counter(), progress.epoch
        while progress.epoch < self.algorithm.num_epochs:
            state = self.chunk(epoch, state, progress)
            progress.walltime_s = walltime_s + time.perf_counter() - started
            saved = sharding.whole(self.mesh, state)
            if jax.process_index() == 0:  # of several processes, all of which hold the same
                self.checkpointer.save(progress.steps, saved, dataclasses.asdict(progress))
            if (
                sharding.any_process(interrupted.is_set())
                and progress.epoch < self.algorithm.num_epochs
            ):
                raise programs.Interrupted(
                    f"interrupted at {progress.steps:,} env steps; "
                    f"continue with --resume {self.config.folder}"
                )
        return state

    def open(self, state: PyTree, progress: _Progress) -> tuple[Callable[..., Any], float]:
        """One chunk of all seeds as a function of the state, and the seconds to compile it."""
        if isinstance(self.algorithm, HostAlgorithm):
            host_epoch, seconds = self.algorithm.open(state)

            def epoch(state: PyTree) -> tuple[PyTree, dict[str, Array]]:
                started = time.perf_counter()
                return host_epoch(state, lambda: self.live(progress, started))

            return epoch, seconds
        outputs = None if self.mesh is None else (self.shardings, NamedSharding(self.mesh, P()))
        chunk = jax.vmap(self.algorithm.epoch)
        return programs.compile_timed(chunk, state, donate=True, out_shardings=outputs)

    def chunk(self, epoch: Callable[[PyTree], Any], state: PyTree, progress: _Progress) -> PyTree:
        """One chunk of training and the evaluation after it."""
        started = time.perf_counter()
        state, metrics = epoch(state)
        self.wait(metrics, progress, started)
        train_s = time.perf_counter() - started
        metrics = {name: np.asarray(value) for name, value in metrics.items()}
        steps = metrics.pop(
            "env_steps", np.full(self.config.num_seeds, self.algorithm.env_steps_per_epoch)
        )
        progress.env_steps = [
            old + int(new) for old, new in zip(progress.env_steps, steps, strict=True)
        ]
        progress.train_s += train_s
        progress.epoch += 1
        host = {"training/sps": float(steps.sum()) / train_s, "training/walltime": progress.train_s}
        self.evaluate(state, progress, metrics, host)
        return state

    def wait(self, metrics: Mapping[str, Array], progress: _Progress, started: float) -> None:
        """Waits for a chunk while the live line moves and Ctrl-C is heard."""
        marker: Any = next(iter(metrics.values()))
        while not marker.is_ready():
            time.sleep(0.05)
            self.live(progress, started)
        jax.block_until_ready(metrics)

    def live(self, progress: _Progress, started: float) -> None:
        """Moves the live panel during a chunk."""
        seconds = time.perf_counter() - started
        number = f"{progress.epoch + 1} of {self.algorithm.num_epochs}"
        fields = self.curve(progress) | {
            "chunk": f"{number}, running for {duration(seconds)}",
            "time left": self.eta(progress, seconds),
        }
        usual = self.pace(progress, seconds) or float("inf")
        done = (progress.epoch + min(seconds / usual, 1.0)) / self.algorithm.num_epochs
        self.monitor.live(str(self.config.folder), done, fields)

    def curve(self, progress: _Progress) -> dict[str, str]:
        """What the live panel shows of the evaluations so far."""
        means = [float(np.mean(entry["return"])) for entry in progress.history]
        fields = {
            "env steps": f"{progress.steps:,}",
            "return": f"{means[-1]:.4g}   best {max(means):.4g}   "
            f"random {np.mean(progress.random['return']):.4g}",
            "": sparkline(means),
        }
        if progress.train_s:
            fields["speed"] = f"{sum(progress.env_steps) / progress.train_s:,.0f} env steps/s"
        return fields

    def pace(self, progress: _Progress, running_s: float = 0.0) -> float | None:
        """Seconds that a chunk with its evaluation has taken on average in this process.

        Args:
          progress: so far.
          running_s: how long the chunk has been running that is not complete.

        Returns:
          ``None`` before the first chunk is complete.
        """
        done = progress.epoch - self.first_epoch
        return (time.perf_counter() - self.started - running_s) / done if done > 0 else None

    def eta(self, progress: _Progress, running_s: float = 0.0) -> str:
        """Time left, from the time of the chunks so far."""
        pace = self.pace(progress, running_s)
        if pace is None:
            return "?"
        left = self.algorithm.num_epochs - progress.epoch
        return duration(left * pace - running_s)

    def evaluate(
        self,
        state: PyTree,
        progress: _Progress,
        metrics: dict[str, np.ndarray],
        host: dict[str, float],
    ) -> None:
        """Plays fresh episodes, keeps the best policy, and writes and says what came out."""
        params = sharding.local(self.mesh, self.inference_params(state))
        if self.play is None:
            self.play = self.player(self.algorithm.policy, params, self.keys, progress)
        started = time.perf_counter()
        episodes = jax.device_get(self.play(params, evaluation_keys(self.keys, progress.epoch)))
        seconds = time.perf_counter() - started
        entry = result.evaluation(progress.steps, episodes)
        progress.history.append(entry)
        finite = np.isfinite(entry["return"])
        for name, values in metrics.items():
            if name.startswith("training/"):  # telemetry may be undefined where training is well
                finite = finite & np.isfinite(np.asarray(values, np.float64))
        self.warn_non_finite(progress, finite)
        self.monitor.check()  # before an export brings a folder back that somebody has removed
        self.keep_best(params, progress, entry)
        scalars = metrics | {
            RETURN: entry["return"],
            f"{RETURN}_std": np.sqrt(entry["return_var"]),
            "eval/avg_episode_length": entry["length"],
        }
        if "distance" in entry:
            scalars["eval/distance_m"] = entry["distance"]
        host = host | {
            "eval/sps": float(np.sum(episodes["episode_length"])) / seconds,
            "eval/walltime": seconds,
        }
        self.monitor.record(progress.steps, scalars, host)
        self.histograms(params, progress, episodes["episode_return"])
        self.say_line(progress, entry, host)

    def histograms(
        self, params: PyTree, progress: _Progress, returns: Float[np.ndarray, "seeds episodes"]
    ) -> None:
        """Distributions of returns and of the best seed's policy, some six times in a run."""
        last = self.algorithm.num_epochs
        if progress.epoch % max(last // _HISTOGRAMS, 1) and progress.epoch != last:
            return
        index = int(np.argmax(np.nan_to_num(returns.mean(axis=1), nan=-np.inf)))
        one = flatten(jax.tree.map(lambda leaf: np.asarray(leaf[index]), params))
        values = {f"histograms/policy/{name}": array for name, array in one.items()}
        self.monitor.histograms(progress.steps, values | {"histograms/return": returns})

    def warn_non_finite(self, progress: _Progress, finite: np.ndarray) -> None:
        """Says once which seeds have become non-finite."""
        for i, seed in enumerate(self.config.seeds):
            if progress.finite[i] and not finite[i]:
                progress.finite[i] = False
                self.monitor.say(
                    f"seed {seed} became non-finite before {progress.steps:,} env steps"
                )

    def say_line(
        self, progress: _Progress, entry: Mapping[str, Any], host: Mapping[str, float]
    ) -> None:
        """The console line of an evaluation."""
        spread = result.spread([entry], "return")
        parts = [
            f"{progress.steps:>12,} env steps",
            f"return {spread['mean']:>9.4g} ± {spread['std']:<8.3g}",
        ]
        if "training/sps" in host:
            parts += [f"{host['training/sps']:>10,.0f} steps/s", f"{self.eta(progress)} left"]
        self.monitor.say(" | ".join(parts))

    def keep_best(self, params: PyTree, progress: _Progress, entry: Mapping[str, Any]) -> None:
        """Exports the policy of the best seed if it beats everything before it."""
        returns = np.where(np.isfinite(entry["return"]), entry["return"], -np.inf)
        index = int(np.argmax(returns))
        if np.isfinite(returns[index]) and returns[index] > progress.best.get("return", -np.inf):
            progress.best = {
                "return": float(returns[index]),
                "seed": self.config.seeds[index],
                "env_steps": progress.steps,
            }
            self.export(self.config.folder / "best", params, index, progress.best)

    def export(self, folder: Path, params: PyTree, index: int, about: Mapping[str, Any]) -> None:
        """Writes one seed's policy for use without this package."""
        one = jax.tree.map(lambda leaf: np.asarray(leaf[index]), params)
        export_policy(folder, self.algorithm.policy.spec, one, self.policy_info | dict(about))

    def finish(
        self, state: PyTree, progress: _Progress, optimizer: optax.GradientTransformation | None
    ) -> dict[str, Any]:
        """Exports the last policy and gathers what the run reports."""
        last = progress.history[-1]
        index = int(np.nanargmax(np.nan_to_num(last["return"], nan=-np.inf)))
        about = {
            "return": last["return"][index],
            "seed": self.config.seeds[index],
            "env_steps": progress.steps,
        }
        params = sharding.local(self.mesh, self.inference_params(state))
        self.export(self.config.folder, params, index, about)
        trained = sharding.local(self.mesh, (state.params, state.opt_state))
        one = jax.tree.map(lambda leaf: leaf[index], trained)
        fields = {
            "seeds": self.config.seeds,
            "env_steps": progress.steps,
            "env_steps_per_seed": progress.env_steps,
            "updates": int(np.max(np.asarray(state.updates))),
            **result.summarize(progress.history, progress.random, progress.finite),
            "best_return": progress.best.get("return"),
            "best_seed": progress.best.get("seed"),
            "best_env_steps": progress.best.get("env_steps"),
            "walltime_s": progress.walltime_s,
            "compile_s": progress.compile_s,
            "env_steps_per_s": sum(progress.env_steps) / max(progress.train_s, 1e-9),
            "optimizer_us_per_update": optimizer and programs.time_optimizer(optimizer, *one),
            "devices": 1 if self.mesh is None else self.mesh.size,
        }
        return run_folder.plain(fields)
