# SPDX-License-Identifier: Apache-2.0
"""What a run tells of itself: evaluations, the console's lines, kept policies, the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Key, PyTree

from envs.api import EpisodeWrapper, HostEnv
from robotics import programs, result, run_folder, sharding
from robotics.algorithm import Algorithm, HostAlgorithm, Policy
from robotics.evaluate import make_player, random_policy
from robotics.export import export_policy, flatten
from robotics.monitor import RETURN, Monitor
from robotics.progress import Display, Progress
from robotics.run_config import RunConfig, evaluation_keys, seed_keys

_HISTOGRAMS = 5  # between start and end of a run


class Reporter:
    """Evaluates the policies of a run, keeps the best and the last, and says what came out.

    Args:
      algorithm: what is trained.
      env: where the policy is evaluated.
      config: how the run is carried out.
      monitor: writes and prints.
      display: knows how much time is left.
      policy_info: what ``policy.json`` says about the policy's world.
    """

    def __init__(
        self,
        algorithm: Algorithm | HostAlgorithm,
        env: EpisodeWrapper | HostEnv,
        config: RunConfig,
        monitor: Monitor,
        display: Display,
        policy_info: dict[str, Any],
    ):
        self._algorithm, self._env, self._config = algorithm, env, config
        self._monitor, self._display, self._policy_info = monitor, display, policy_info
        self._keys = seed_keys(config)
        self._mesh = getattr(algorithm, "mesh", None)
        self._inference_params = jax.jit(jax.vmap(algorithm.inference_params))
        self._play: Callable[..., Any] | None = None

    def play_random(self, progress: Progress) -> None:
        """Uniform random actions in the episodes of the last evaluation of the first seed."""
        env = self._env if isinstance(self._env, HostEnv) else self._env.env
        policy = random_policy(env.action_size, getattr(env, "discrete", False))
        keys = evaluation_keys(self._keys, self._algorithm.num_epochs)[:1]
        play = self._player(policy, None, keys, progress)
        progress.random = result.evaluation(0, jax.device_get(play(None, keys)))
        spread = result.spread([progress.random], "return")
        self._monitor.say(
            f"uniform random actions: return {spread['mean']:.4g} ± {spread['std']:.3g}"
        )

    def evaluate(
        self,
        state: PyTree,
        progress: Progress,
        metrics: Mapping[str, np.ndarray],
        host: Mapping[str, float],
    ) -> None:
        """Plays fresh episodes, keeps the best policy, and writes and says what came out.

        Args:
          state: of all seeds.
          progress: gets the evaluation, and the best policy's return.
          metrics: of the chunk before, one value a seed.
          host: of the chunk before, one value for all.
        """
        params = self._policies(state)
        episodes, seconds = self._episodes(params, progress)
        entry = result.evaluation(progress.steps, episodes)
        progress.history.append(entry)
        self._warn_non_finite(progress, _finite(entry, metrics))
        self._monitor.check()  # before an export brings a folder back that somebody has removed
        self._keep_best(params, progress, entry)
        host = {
            **host,
            "eval/sps": float(np.sum(episodes["episode_length"])) / seconds,
            "eval/walltime": seconds,
        }
        self._monitor.record(progress.steps, {**metrics, **_scalars(entry)}, host)
        self._histograms(params, progress, episodes["episode_return"])
        self._say_line(progress, entry, host)

    def finish(
        self, state: PyTree, progress: Progress, optimizer: optax.GradientTransformation | None
    ) -> dict[str, Any]:
        """Exports the last policy and gathers what the run reports.

        Args:
          state: of all seeds, at the end.
          progress: of the whole run.
          optimizer: to be timed; ``None`` if there is none.
        """
        returns = progress.history[-1]["return"]
        index = int(np.nanargmax(np.nan_to_num(returns, nan=-np.inf)))
        about = self._about(progress, index, returns[index])
        self._export(self._config.folder, self._policies(state), index, about)
        trained = sharding.local(self._mesh, (state.params, state.opt_state))
        one = jax.tree.map(lambda leaf: leaf[index], trained)
        fields = {
            "seeds": self._config.seeds,
            "env_steps": progress.steps,
            "env_steps_per_seed": progress.env_steps,
            "updates": int(np.max(np.asarray(state.updates))),
            **result.summarize(progress.history, progress.random, progress.finite),
            "rollbacks": progress.rollbacks,
            "discarded_env_steps": progress.discarded_env_steps,
            "frozen": progress.frozen,
            "best_return": progress.best.get("return"),
            "best_seed": progress.best.get("seed"),
            "best_env_steps": progress.best.get("env_steps"),
            "walltime_s": progress.walltime_s,
            "compile_s": progress.compile_s,
            "env_steps_per_s": sum(progress.env_steps) / max(progress.train_s, 1e-9),
            "optimizer_us_per_update": optimizer and programs.time_optimizer(optimizer, *one),
            "devices": 1 if self._mesh is None else self._mesh.size,
        }
        return run_folder.plain(fields)

    def _policies(self, state: PyTree) -> PyTree:
        """What acting needs, of all seeds."""
        return sharding.local(self._mesh, self._inference_params(state))

    def _player(
        self, policy: Policy, params: PyTree, keys: Key[Array, " policies"], progress: Progress
    ) -> Callable[..., Any]:
        """Evaluation of policies, compiled where its environment can be."""
        play = make_player(self._env, policy, self._config.eval_episodes)
        if isinstance(self._env, HostEnv):
            return play
        play, seconds = programs.compile_timed(play, params, keys)
        progress.compile_s += seconds
        return play

    def _episodes(self, params: PyTree, progress: Progress) -> tuple[dict[str, np.ndarray], float]:
        """Fresh episodes [seeds, episodes] after the chunks so far, and the seconds they took."""
        if self._play is None:
            self._play = self._player(self._algorithm.policy, params, self._keys, progress)
        started = time.perf_counter()
        episodes = jax.device_get(self._play(params, evaluation_keys(self._keys, progress.epoch)))
        return episodes, time.perf_counter() - started

    def _warn_non_finite(self, progress: Progress, finite: Bool[np.ndarray, " seeds"]) -> None:
        """Says once which seeds have become non-finite."""
        for i, seed in enumerate(self._config.seeds):
            if progress.finite[i] and not finite[i]:
                progress.finite[i] = False
                self._monitor.say(
                    f"seed {seed} became non-finite before {progress.steps:,} env steps"
                )

    def _histograms(
        self, params: PyTree, progress: Progress, returns: Float[np.ndarray, "seeds episodes"]
    ) -> None:
        """Distributions of returns and of the best seed's policy, some six times in a run."""
        last = self._algorithm.num_epochs
        if progress.epoch % max(last // _HISTOGRAMS, 1) and progress.epoch != last:
            return
        index = int(np.argmax(np.nan_to_num(returns.mean(axis=1), nan=-np.inf)))
        values = {
            f"histograms/policy/{name}": array
            for name, array in flatten(_one_seed(params, index)).items()
        }
        self._monitor.histograms(progress.steps, values | {"histograms/return": returns})

    def _say_line(
        self, progress: Progress, entry: Mapping[str, Any], host: Mapping[str, float]
    ) -> None:
        """The console line of an evaluation."""
        spread = result.spread([entry], "return")
        parts = [
            f"{progress.steps:>12,} env steps",
            f"return {spread['mean']:>9.4g} ± {spread['std']:<8.3g}",
        ]
        if "training/sps" in host:
            parts += [
                f"{host['training/sps']:>10,.0f} steps/s",
                f"{self._display.eta(progress)} left",
            ]
        self._monitor.say(" | ".join(parts))

    def _keep_best(self, params: PyTree, progress: Progress, entry: Mapping[str, Any]) -> None:
        """Exports the policy of the best seed if it beats everything before it."""
        returns = np.where(np.isfinite(entry["return"]), entry["return"], -np.inf)
        index = int(np.argmax(returns))
        if np.isfinite(returns[index]) and returns[index] > progress.best.get("return", -np.inf):
            progress.best = self._about(progress, index, float(returns[index]))
            self._export(self._config.folder / "best", params, index, progress.best)

    def _about(self, progress: Progress, index: int, episode_return: float) -> dict[str, Any]:
        """Where a policy comes from and how good it is."""
        return {
            "return": episode_return,
            "seed": self._config.seeds[index],
            "env_steps": progress.steps,
        }

    def _export(self, folder: Path, params: PyTree, index: int, about: Mapping[str, Any]) -> None:
        """Writes one seed's policy for use without this package."""
        spec, info = self._algorithm.policy.spec, self._policy_info | dict(about)
        export_policy(folder, spec, _one_seed(params, index), info)


def _one_seed(params: PyTree, index: int) -> PyTree:
    """The parameters of one of the seeds, on the host."""
    return jax.tree.map(lambda leaf: np.asarray(leaf[index]), params)


def _finite(
    entry: Mapping[str, Any], metrics: Mapping[str, np.ndarray]
) -> Bool[np.ndarray, " seeds"]:
    """Which seeds have nothing but numbers in an evaluation and in the chunk before."""
    finite = np.isfinite(entry["return"])
    for name, values in metrics.items():
        if name.startswith("training/"):  # telemetry may be undefined where training is well
            finite = finite & np.isfinite(np.asarray(values, np.float64))
    return finite


def _scalars(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation under its tags, one value a seed."""
    scalars = {
        RETURN: entry["return"],
        f"{RETURN}_std": np.sqrt(entry["return_var"]),
        "eval/avg_episode_length": entry["length"],
    }
    if "distance" in entry:
        scalars["eval/distance_m"] = entry["distance"]
    return scalars
