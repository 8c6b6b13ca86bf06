# SPDX-License-Identifier: Apache-2.0
"""Training runs of one cell, several side by side in one compiled program.

A lane is one run: the numbers of its rule and its seed. The host steps all lanes from one
evaluation to the next; what it keeps of a run are curves.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from experiments.benchmarks.policies.cells import Cell, make_cell
from experiments.benchmarks.policies.rules import Rule
from robotics.evaluate import make_evaluate, random_policy
from robotics.run import evaluation_keys

TAIL = 0.95
"""The final return is the mean of the evaluations after this fraction of a run."""
RANDOM_EPISODES = 256


class Runs(NamedTuple):
    """Curves of several runs.

    Attributes:
      env_steps: taken before each evaluation, the mean over runs.
      returns: of the deterministic policy, mean of an evaluation.
      lengths: env steps of those episodes.
      distance: metres along x in them, ``None`` where the environment does not say.
      training_returns: of the episodes that ended in a chunk, with exploration.
      kl: mean over the updates of a chunk; ``None`` under ES.
      finite: whether everything that was measured in a run is a number.
      updates: of the optimizer.
      train_s: seconds of training of all runs together, compilation apart.
    """

    env_steps: Float[np.ndarray, " points"]
    returns: Float[np.ndarray, "runs points"]
    lengths: Float[np.ndarray, "runs points"]
    distance: Float[np.ndarray, "runs points"] | None
    training_returns: Float[np.ndarray, "runs chunks"]
    kl: Float[np.ndarray, "runs chunks"] | None
    finite: np.ndarray
    updates: int
    train_s: float


def seed_keys(seeds: Sequence[int]) -> Array:
    """Keys of runs, as ``mnemosyne train --seed`` makes them."""
    return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


def final_return(env_steps: Float[np.ndarray, " points"], returns: np.ndarray) -> np.ndarray:
    """Mean over the evaluations of the last 5 % of the run, over the last axis."""
    return returns[..., env_steps > TAIL * env_steps[-1]].mean(axis=-1)


class Runner:
    """Trains lanes of one cell; rules of one kind share programs.

    Args:
      cell: what to train.

    Attributes:
      state: training state of all lanes at the end of the last runs; ``None`` before.
    """

    def __init__(self, cell: Cell):
        self.cell = cell
        self.state: Any = None
        self._env = cell.env()
        self._programs: dict[Any, _Programs] = {}
        self._init: Any = None
        self._play: Any = None

    def __call__(self, rules: Sequence[Rule], seeds: Sequence[int], lanes: int) -> list[Runs]:
        """Every rule with every seed; rules must be of one kind and fit into the lanes together.

        Args:
          rules: with equal ``make`` and ``theta``.
          seeds: of each rule.
          lanes: runs of the program; fewer are filled up with copies of the first.

        Returns:
          One entry a rule.
        """
        count = len(rules) * len(seeds)
        which = [i if i < count else 0 for i in range(lanes)]
        hypers = [rule.hyper for rule in rules for _ in seeds]
        hyper = {
            name: jnp.asarray([hypers[i][name] for i in which], jnp.float32) for name in hypers[0]
        }
        keys = seed_keys([(list(seeds) * len(rules))[i] for i in which])
        found = self._train(rules[0], hyper, keys)
        portions = [slice(i * len(seeds), (i + 1) * len(seeds)) for i in range(len(rules))]
        return [_portion(found, rows, lanes / len(seeds)) for rows in portions]

    def time(self, rules: Sequence[Rule], seeds: Sequence[int], rounds: int = 3) -> list[float]:
        """Seconds that an env step of training takes under each rule, the least of some rounds.

        Rules take turns, so that whatever else the machine does hits them alike. The first chunk
        of each, which may compile, does not count.
        """
        keys = seed_keys(seeds)
        parts = []
        for rule in rules:
            hyper = {name: jnp.full(len(seeds), x) for name, x in rule.hyper.items()}
            programs = self._of_kind(rule)
            parts.append((programs, rule, hyper, self._start(programs, rule, hyper, keys)))
        seconds: list[list[float]] = [[] for _ in rules]
        for _ in range(rounds + 1):
            for i, (programs, rule, hyper, state) in enumerate(parts):
                started = time.perf_counter()
                state, _ = jax.block_until_ready(programs.epoch(rule.theta, hyper, state))
                seconds[i].append(time.perf_counter() - started)
                parts[i] = (programs, rule, hyper, state)
        steps = parts[0][0].env_steps_per_epoch * len(seeds)
        return [min(times[1:]) / steps for times in seconds]

    def random(self) -> Float[np.ndarray, " episodes"]:
        """Returns of uniform random actions."""
        policy = random_policy(self._env.env.action_size)
        play = jax.jit(make_evaluate(self._env, policy, RANDOM_EPISODES))
        return np.asarray(play(None, jax.random.key(0))["episode_return"], np.float64)

    def _train(self, rule: Rule, hyper: dict[str, Array], keys: Array) -> Runs:
        """All lanes from start to end."""
        programs = self._of_kind(rule)
        state = self._start(programs, rule, hyper, keys)
        points = [self._evaluate(programs, state, keys, 0)]
        chunks: list[dict[str, np.ndarray]] = []
        seconds = 0.0
        for epoch in range(programs.num_epochs):
            started = time.perf_counter()
            state, metrics = jax.block_until_ready(programs.epoch(rule.theta, hyper, state))
            # The first one compiles; it counts as long as the others.
            seconds += (time.perf_counter() - started) if epoch else 0.0
            chunks.append({name: np.asarray(value) for name, value in metrics.items()})
            points.append(self._evaluate(programs, state, keys, epoch + 1))
            print(".", end="", flush=True)
        self.state = state
        seconds *= programs.num_epochs / max(programs.num_epochs - 1, 1)
        return _collect(points, chunks, int(np.max(np.asarray(state.updates))), seconds)

    def _start(self, programs: _Programs, rule: Rule, hyper: dict[str, Array], keys: Array) -> Any:
        """States before training: all but the optimizer's is made by one program for all rules."""
        if self._init is None:
            self._init = jax.jit(jax.vmap(self.cell.algorithm(self._env, optax.identity()).init))
        state = self._init(keys)
        return state._replace(opt_state=programs.init(rule.theta, hyper, state.params))

    def _evaluate(
        self, programs: _Programs, state: Any, keys: Array, epoch: int
    ) -> dict[str, np.ndarray]:
        """Means over the episodes of one evaluation, one entry a lane."""
        if self._play is None:
            play = make_evaluate(self._env, programs.policy, self.cell.episodes)
            self._play = jax.jit(jax.vmap(play))
        episodes = self._play(programs.inference_params(state), evaluation_keys(keys, epoch))
        return {name: np.asarray(value).mean(axis=1) for name, value in episodes.items()}

    def _of_kind(self, rule: Rule) -> _Programs:
        kind = (rule.make, tuple(rule.hyper))
        if kind not in self._programs:
            self._programs[kind] = _compile(self.cell, self._env, rule)
        return self._programs[kind]


class _Programs(NamedTuple):
    """What is compiled for one kind of rule; ``init`` makes the optimizer's state."""

    init: Callable[..., Any]
    epoch: Callable[..., Any]
    inference_params: Callable[..., Any]
    policy: Any
    num_epochs: int
    env_steps_per_epoch: int


def _compile(cell: Cell, env: Any, rule: Rule) -> _Programs:
    def init(theta: Any, hyper: dict[str, Array], params: Any) -> Any:
        return rule.make(theta, hyper, cell).init(params)

    def epoch(theta: Any, hyper: dict[str, Array], state: Any) -> Any:
        return cell.algorithm(env, rule.make(theta, hyper, cell)).epoch(state)

    fixed = cell.algorithm(env, optax.identity())
    return _Programs(
        init=jax.jit(jax.vmap(init, (None, 0, 0))),
        epoch=jax.jit(jax.vmap(epoch, (None, 0, 0)), donate_argnums=2),
        inference_params=jax.jit(jax.vmap(fixed.inference_params)),
        policy=fixed.policy,
        num_epochs=fixed.num_epochs,
        env_steps_per_epoch=fixed.env_steps_per_epoch,
    )


def _collect(
    points: Sequence[dict[str, np.ndarray]],
    chunks: Sequence[dict[str, np.ndarray]],
    updates: int,
    seconds: float,
) -> Runs:
    """Curves from what each chunk left."""

    def curve(parts: Sequence[dict[str, np.ndarray]], name: str) -> np.ndarray | None:
        return np.stack([part[name] for part in parts], axis=1) if name in parts[0] else None

    taken = np.cumsum(np.stack([chunk["env_steps"] for chunk in chunks]), axis=0).mean(axis=1)
    training = [np.stack([c[name] for c in chunks]) for name in chunks[0] if _watched(name)]
    returns = curve(points, "episode_return")
    lengths = curve(points, "episode_length")
    training_returns = curve(chunks, "episode/sum_reward")
    assert returns is not None and lengths is not None and training_returns is not None
    measured = np.isfinite(np.stack(training)).all(axis=(0, 1))
    finite = np.logical_and(np.isfinite(returns).all(axis=1), measured)
    return Runs(
        env_steps=np.concatenate([[0.0], taken]),
        returns=returns,
        lengths=lengths,
        distance=curve(points, "distance"),
        training_returns=training_returns,
        kl=curve(chunks, "training/kl_mean"),
        finite=np.asarray(finite),
        updates=updates,
        train_s=seconds,
    )


def _watched(name: str) -> bool:
    return name.startswith("training/")


def _portion(found: Runs, rows: slice, parts: float) -> Runs:
    """The runs of one rule out of all lanes."""
    taken = {
        name: value[rows]
        for name, value in found._asdict().items()
        if isinstance(value, np.ndarray) and name != "env_steps"
    }
    return found._replace(**taken, train_s=found.train_s / parts)


@functools.cache
def fingerprint() -> tuple[float, ...]:
    """A few numbers of two rollouts with SGD: they change if the trainer comes to mean another.

    Stored beside every result, so that rows of different trainers are told from each other.
    """
    cell = make_cell("control:pendulum", "ppo", 1, num_evaluations=2)
    algorithm = cell.algorithm(cell.env(), optax.sgd(1e-2))
    epoch = jax.jit(algorithm.epoch)
    state, _ = epoch(jax.jit(algorithm.init)(jax.random.key(0)))
    state, metrics = epoch(state)
    names = ("training/policy_loss", "training/v_loss", "training/entropy")
    size = optax.tree.norm(state.params)
    return tuple(float(f"{float(x):.4g}") for x in [*(metrics[name] for name in names), size])
