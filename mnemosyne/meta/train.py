# SPDX-License-Identifier: Apache-2.0
"""The outer loop: one jitted step advances all inner problems by a truncation, and theta."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from mnemosyne.config import MnemosyneConfig
from mnemosyne.controller import MetaParams
from mnemosyne.meta import estimators
from mnemosyne.optimizer import init_meta_params

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
    frozen: tuple[str, ...] = UNSEEN_EXTRAS
    """Parts of theta, by name, that stay as they are."""
    seed: int = 0
    """Meta-seed."""

    def __post_init__(self) -> None:
        """Refuses sizes that cannot run."""
        for name in ("outer_steps", "num_pairs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.sigma <= 0 or self.learning_rate <= 0:
            raise ValueError("sigma and learning_rate must be positive.")


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


Families = Mapping[str, estimators.System]
"""The inner problems that theta is trained on, by name."""


def trainable(theta: MetaParams, frozen: Sequence[str]) -> MetaParams:
    """1 where meta-training may change theta; 0 at fixed directions and parts in ``frozen``."""

    def entry(path: Any, leaf: Array) -> Array:
        names = {getattr(part, "key", None) for part in path}
        return jnp.full_like(leaf, 0.0 if names & {"directions", *frozen} else 1.0)

    return jax.tree_util.tree_map_with_path(entry, theta)


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


def init_theta(config: MetaTrainConfig, network: MnemosyneConfig) -> MetaParams:
    """Untrained meta-parameters, drawn from the run's own seed."""
    _, key_theta, _ = jax.random.split(jax.random.key(config.seed), 3)
    return init_meta_params(key_theta, network)


def init(families: Families, theta: MetaParams, config: MetaTrainConfig) -> OuterState:
    """The state before the first outer step; inner problems start at scattered phases.

    Args:
      families: what to train on.
      theta: where to start.
      config: of the run.
    """
    key, _, key_pairs = jax.random.split(jax.random.key(config.seed), 3)
    # A copy: the outer step donates its state, and the caller goes on using theta.
    theta = jax.tree.map(lambda x: jnp.array(x, copy=True), theta)
    pairs = tuple(
        _init_pairs(system, theta, key_family, config.num_pairs)
        for system, key_family in zip(
            families.values(), jax.random.split(key_pairs, len(families)), strict=True
        )
    )
    opt_state = OUTER_ADAM.init(theta)
    # A copy: one buffer in two places could not be donated.
    average = jax.tree.map(jnp.copy, theta)
    return OuterState(theta, average, opt_state, pairs, key, jnp.zeros((), jnp.int32))


def _init_pairs(
    system: estimators.System, theta: MetaParams, key: Key[Array, ""], num_pairs: int
) -> estimators.PESState:
    keys = jax.random.split(key, num_pairs)
    fractions = jnp.linspace(1.0 / num_pairs, 1.0, num_pairs)
    return jax.jit(jax.vmap(lambda k, f: estimators.pes_init(system, theta, k, f)))(keys, fractions)


def make_outer_step(
    families: Families, config: MetaTrainConfig
) -> Callable[[OuterState, Array], tuple[OuterState, dict[str, Array]]]:
    """Builds the jittable outer step: (state, rate) -> (state, metrics)."""

    def outer_step(state: OuterState, rate: Array) -> tuple[OuterState, dict[str, Array]]:
        key, key_pairs = jax.random.split(state.key)
        mask = trainable(state.theta, config.frozen)
        gradients, losses, pairs = [], {}, []
        for index, (name, system) in enumerate(families.items()):
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
            losses[f"meta/loss/{name}"] = jnp.mean(pair_losses)
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
