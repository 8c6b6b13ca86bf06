# SPDX-License-Identifier: Apache-2.0
"""The outer loop: one jitted step advances all inner problems by a truncation, and theta."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from mnemosyne.config import MnemosyneConfig
from mnemosyne.meta import estimators, unroll
from mnemosyne.meta.task import Task
from mnemosyne.optimizer import MetaParams, init_meta_params

UNSEEN_EXTRAS = ("kl", "clip_fraction", "entropy", "explained_variance", "epoch")
"""Inputs that supervised tasks never give; their weights stay at zero instead of drifting with the
noise."""


@dataclasses.dataclass(frozen=True)
class MetaTrainConfig:
    """Everything that decides a meta-training run, besides the tasks."""

    outer_steps: int = 4000
    """Updates of the meta-parameters; the schedule follows them."""
    num_pairs: int = 8
    """Antithetic pairs a task family."""
    sigma: float = 0.01
    """Standard deviation of the perturbations."""
    learning_rate: float = 1e-3
    """Peak rate of the outer Adam; decays to a tenth along a cosine."""
    clip: float = 3.0
    """Bound of a pair's loss difference, in multiples of the median."""
    average: float = 0.99
    """Decay of the running average of theta, which is what is validated and shipped."""
    truncation: int = 50
    """Inner updates between two outer updates."""
    shortest: int = 100
    """Shortest inner horizon, updates."""
    longest: int = 2000
    """Longest inner horizon, updates; horizons are log-uniform."""
    max_log_scale: float = 3.4
    """Half of the trials are reparametrised by a factor up to ``exp(max_log_scale)`` either way."""
    seed: int = 0
    """Meta-seed."""

    def __post_init__(self) -> None:
        """Refuses sizes that cannot run."""
        for name in ("outer_steps", "num_pairs", "truncation", "shortest", "longest"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.sigma <= 0 or self.learning_rate <= 0:
            raise ValueError("sigma and learning_rate must be positive.")
        if not self.truncation <= self.shortest <= self.longest:
            raise ValueError(
                f"need truncation <= shortest <= longest, got {self.truncation}, {self.shortest}, "
                f"{self.longest}."
            )

    @property
    def horizon(self) -> unroll.Horizon:
        """Distribution of the inner horizons."""
        return unroll.Horizon(self.shortest, self.longest, self.truncation)


class Running(NamedTuple):
    """One inner problem on its way; the state of :class:`estimators.System`."""

    inner: unroll.Inner
    trial: unroll.Trial
    step: Int[Array, ""]


class OuterState(NamedTuple):
    """Everything that a resumed run needs.

    Attributes:
      theta: meta-parameters.
      average: their running average.
      opt_state: of the outer Adam.
      pairs: one batch of antithetic pairs a family.
      key: drives all later draws.
      step: outer updates made.
    """

    theta: MetaParams
    average: MetaParams
    opt_state: optax.OptState
    pairs: tuple[estimators.PESState, ...]
    key: Key[Array, ""]
    step: Int[Array, ""]


def trainable(theta: MetaParams) -> MetaParams:
    """1 where meta-training may change theta; 0 at fixed directions and unseen inputs' weights."""

    def entry(path: Any, leaf: Array) -> Array:
        names = {getattr(part, "key", None) for part in path}
        return jnp.full_like(leaf, 0.0 if names & {"directions", *UNSEEN_EXTRAS} else 1.0)

    return jax.tree_util.tree_map_with_path(entry, theta)


def make_system(task: Task, network: MnemosyneConfig, config: MetaTrainConfig) -> estimators.System:
    """A task under the learned optimizer, as the estimators see it."""

    def reset(theta: MetaParams, key: Key[Array, ""]) -> Running:
        trial = unroll.draw_trial(key, config.horizon, config.max_log_scale)
        return Running(unroll.start(task, trial, network, theta), trial, jnp.zeros((), jnp.int32))

    def advance(theta: MetaParams, state: Running) -> tuple[Running, Float[Array, ""]]:
        inner, losses = unroll.unroll(
            task, network, theta, state.inner, state.trial, state.step, config.truncation
        )
        moved = Running(inner, state.trial, state.step + config.truncation)
        return moved, jnp.mean(jax.vmap(task.normalize)(losses))

    def finished(state: Running) -> Array:
        return state.step >= state.trial.horizon

    return estimators.System(reset, advance, finished)


OUTER_ADAM = optax.scale_by_adam(b1=0.9, b2=0.99)
"""The outer optimizer's direction; its rate comes from :func:`outer_rates`."""


def outer_rates(config: MetaTrainConfig, first: int, count: int) -> Float[np.ndarray, " count"]:
    """Rates of ``count`` outer steps from ``first``: a cosine from the peak to a tenth of it.

    They enter the jitted step as data, so that fixing the length of a run late costs no
    compilation.
    """
    fraction = np.minimum((first + np.arange(count)) / config.outer_steps, 1.0)
    cosine = 0.1 + 0.9 * 0.5 * (1.0 + np.cos(np.pi * fraction))
    return (config.learning_rate * cosine).astype(np.float32)


def init(
    tasks: Sequence[Task],
    network: MnemosyneConfig,
    config: MetaTrainConfig,
    theta: MetaParams | None = None,
) -> OuterState:
    """The state before the first outer step; inner problems start at scattered phases.

    Args:
      tasks: the families.
      network: the optimizer network to train.
      config: of the run.
      theta: where to start; ``None`` means Adam.
    """
    key, key_theta, key_pairs = jax.random.split(jax.random.key(config.seed), 3)
    theta = init_meta_params(key_theta, network) if theta is None else theta
    pairs = tuple(
        _init_pairs(make_system(task, network, config), theta, key_family, config)
        for task, key_family in zip(tasks, jax.random.split(key_pairs, len(tasks)), strict=True)
    )
    opt_state = OUTER_ADAM.init(theta)
    # A copy: one buffer in two places could not be donated.
    average = jax.tree.map(jnp.copy, theta)
    return OuterState(theta, average, opt_state, pairs, key, jnp.zeros((), jnp.int32))


def _init_pairs(
    system: estimators.System, theta: MetaParams, key: Key[Array, ""], config: MetaTrainConfig
) -> estimators.PESState:
    keys = jax.random.split(key, config.num_pairs)
    pairs = jax.jit(jax.vmap(lambda k: estimators.pes_init(system, theta, k)))(keys)
    # Scattered phases: the first horizon of each pair is cut to another fraction, so that resets
    # do not coincide.
    fraction = jnp.linspace(1.0 / config.num_pairs, 1.0, config.num_pairs)

    def cut(member: Running) -> Running:
        trial = member.trial
        pieces = jnp.ceil(fraction * trial.horizon / config.truncation)
        shorter = (pieces * config.truncation).astype(jnp.int32)
        return member._replace(trial=trial._replace(horizon=shorter))

    return pairs._replace(plus=cut(pairs.plus), minus=cut(pairs.minus))


def make_outer_step(
    tasks: Sequence[Task], network: MnemosyneConfig, config: MetaTrainConfig
) -> Callable[[OuterState, Array], tuple[OuterState, dict[str, Array]]]:
    """Builds the jittable outer step: (state, rate) -> (state, metrics)."""
    systems = [make_system(task, network, config) for task in tasks]

    def outer_step(state: OuterState, rate: Array) -> tuple[OuterState, dict[str, Array]]:
        key, key_pairs = jax.random.split(state.key)
        mask = trainable(state.theta)
        gradients, losses, pairs = [], {}, []
        for index, (task, system) in enumerate(zip(tasks, systems, strict=True)):
            keys = jax.random.split(jax.random.fold_in(key_pairs, index), config.num_pairs)
            advance = jax.vmap(
                lambda pair, k, system=system: estimators.pes_advance(
                    system, state.theta, mask, config.sigma, pair, k
                )
            )
            moved, pair_losses = advance(state.pairs[index], keys)
            pairs.append(moved)
            gradients.append(
                estimators.pes_gradient(moved.accumulated, pair_losses, config.sigma, config.clip)
            )
            losses[f"meta/loss/{task.name}"] = jnp.mean(pair_losses)
        gradient = jax.tree.map(lambda *xs: sum(xs) / len(xs), *gradients)
        norm = optax.tree.norm(gradient)
        direction, opt_state = OUTER_ADAM.update(gradient, state.opt_state)
        theta = jax.tree.map(lambda t, d: t - rate * d, state.theta, direction)
        # The average forgets its start quickly, then slowly.
        decay = jnp.minimum(config.average, (1.0 + state.step) / (10.0 + state.step))
        average = optax.tree.update_moment(theta, state.average, decay, 1)
        metrics = losses | {
            "meta/outer_loss": sum(losses.values()) / len(losses),
            "meta/outer_grad_norm": norm,
        }
        moved = OuterState(theta, average, opt_state, tuple(pairs), key, state.step + 1)
        return moved, metrics

    return outer_step
