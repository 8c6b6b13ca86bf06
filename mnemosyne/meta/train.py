# SPDX-License-Identifier: Apache-2.0
"""The outer loop: a step advances inner problems by a truncation, and moves theta."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from mnemosyne.learned import LearnedOptimizer, Theta
from mnemosyne.meta import compiling, estimators
from mnemosyne.meta.estimators import EstimatorName, System


@dataclasses.dataclass(frozen=True)
class MetaTrainConfig:
    """Everything that decides a meta-training run, besides the tasks."""

    outer_steps: int = 1000
    """Updates of the meta-parameters; the schedule follows them."""
    estimator: EstimatorName = "bptt"
    """How meta-gradients are estimated."""
    num_workers: int = 8
    """Inner problems (for evolution strategies: antithetic pairs) a task family."""
    families_per_step: int = 1000
    """Task families that an outer step works on, drawn anew every time; at most all of them."""
    sigma: float = 0.01
    """Standard deviation of the perturbations of evolution strategies."""
    shortest_fraction: float = 1.0
    """Problems that start in an outer step are cut to one share of their length, drawn
    log-uniformly from this to 1: lengths vary, and no worker waits for another."""
    learning_rate: float = 3e-3
    """Peak rate of the outer Adam; decays to a tenth along a cosine."""
    clip: float = 3.0
    """Bound of a pair's difference (``bptt``: of the norm of a worker's gradient, whose median is
    the unit of its family's), in multiples of the median one."""
    average: float = 0.98
    """Decay of the running average of theta, which is what is validated and shipped."""
    frozen: tuple[str, ...] = ()
    """Parts of theta, by name, that stay as they are."""
    seed: int = 0
    """Meta-seed."""

    def __post_init__(self) -> None:
        """Refuses sizes that cannot run."""
        for name in ("outer_steps", "num_workers", "families_per_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.sigma <= 0 or self.learning_rate <= 0:
            raise ValueError("sigma and learning_rate must be positive.")
        if not 0 < self.shortest_fraction <= 1:
            raise ValueError(f"shortest_fraction must be in (0, 1], got {self.shortest_fraction}.")


class OuterState(NamedTuple):
    """Everything that a resumed run needs.

    Attributes:
      theta: meta-parameters.
      average: their running average.
      opt_state: of the outer Adam.
      workers: states of the estimator, one batch a family.
      key: drives all later draws.
      step: outer updates made.
    """

    theta: Theta
    average: Theta
    opt_state: optax.OptState
    workers: tuple[Any, ...]
    key: Key[Array, ""]
    step: Int[Array, ""]


Families = Mapping[str, System]
"""The inner problems that theta is trained on, by name."""


def trainable(theta: Theta, frozen: Sequence[str], units: Theta | None = None) -> Theta:
    """Units in which meta-training changes theta; 0 at parts whose name is in ``frozen``.

    Args:
      theta: meta-parameters.
      frozen: names of parts.
      units: like theta; ``None`` for 1 everywhere.

    Raises:
      ValueError: for a name that no part has.
    """
    known = {name for path, _ in jax.tree.leaves_with_path(theta) for name in _names(path)}
    if unknown := sorted(set(frozen) - known):
        raise ValueError(f"theta has no part {unknown[0]!r} to freeze; it has {sorted(known)}.")

    def entry(path: Any, leaf: Array, unit: Array) -> Array:
        return jnp.zeros_like(leaf) if set(_names(path)) & set(frozen) else unit

    return jax.tree_util.tree_map_with_path(
        entry, theta, jax.tree.map(jnp.ones_like, theta) if units is None else units
    )


def _names(path: Any) -> list[str]:
    """Names of the parts that a leaf belongs to, of dictionaries and of named tuples."""
    named = (getattr(part, "key", getattr(part, "name", None)) for part in path)
    return [name for name in named if isinstance(name, str)]


OUTER_ADAM = optax.scale_by_adam(b1=0.9, b2=0.999)
"""The outer optimizer's direction; its rate comes from :func:`outer_rates`.

Meta-gradients shrink tenfold in the first thirty steps and are mostly noise from then on. A long
memory of their size makes the steps shrink along; a short one would walk at random.
"""


def outer_rates(config: MetaTrainConfig, first: int, count: int) -> Float[np.ndarray, " count"]:
    """Rates of ``count`` outer steps from ``first``: a cosine from the peak to a tenth of it.

    They enter the compiled step as data, so that fixing the length of a run late costs no
    compilation.
    """
    fraction = np.minimum((first + np.arange(count)) / config.outer_steps, 1.0)
    cosine = 0.1 + 0.9 * 0.5 * (1.0 + np.cos(np.pi * fraction))
    return (config.learning_rate * cosine).astype(np.float32)


def init_theta(config: MetaTrainConfig, rule: LearnedOptimizer) -> Theta:
    """Untrained meta-parameters, drawn from the run's own seed."""
    _, key_theta, _ = jax.random.split(jax.random.key(config.seed), 3)
    return rule.init(key_theta)


def _estimator(config: MetaTrainConfig) -> estimators.Estimator:
    return estimators.make_estimator(config.estimator, config.sigma, config.clip)


def init(families: Families, theta: Theta, config: MetaTrainConfig) -> OuterState:
    """The state before the first outer step; inner problems start at scattered phases.

    Args:
      families: what to train on.
      theta: where to start.
      config: of the run.
    """
    key, _, key_workers = jax.random.split(jax.random.key(config.seed), 3)
    keys = jax.random.split(key_workers, len(families))
    workers = tuple(
        _init_workers(system, theta, key_family, config)
        for system, key_family in zip(families.values(), keys, strict=True)
    )
    opt_state = OUTER_ADAM.init(theta)
    return OuterState(theta, theta, opt_state, workers, key, jnp.zeros((), jnp.int32))


def _init_workers(
    system: System, theta: Theta, key: Key[Array, ""], config: MetaTrainConfig
) -> Any:
    keys = jax.random.split(key, config.num_workers)
    fractions = jnp.linspace(1.0 / config.num_workers, 1.0, config.num_workers)
    init_one = _estimator(config).init
    return jax.jit(jax.vmap(lambda k, f: init_one(system, theta, k, f)))(keys, fractions)


def make_outer_step(
    families: Families, config: MetaTrainConfig, units: Theta | None = None
) -> Callable[[OuterState, jax.typing.ArrayLike], tuple[OuterState, dict[str, Array]]]:
    """Builds the outer step: (state, rate) -> (state, metrics).

    It is a program a family, which is compiled at the first visit, and one that moves theta: XLA
    takes far longer to compile all families in one program than one after another. The loss of a
    family that an outer step leaves out is nan in its metrics.

    Args:
      families: what to train on.
      config: of the run.
      units: in which theta changes, see :func:`trainable`.
    """
    options = compiling.compiler_options()
    visits = [
        jax.jit(_make_visit(system, config, units), compiler_options=options)
        for system in families.values()
    ]
    num_active = min(config.families_per_step, len(families))
    draw = jax.jit(functools.partial(_draw, len(families), num_active, config.shortest_fraction))
    move = jax.jit(functools.partial(_move, config, units))

    def outer_step(
        state: OuterState, rate: jax.typing.ArrayLike
    ) -> tuple[OuterState, dict[str, Array]]:
        key, active, keys, fraction = draw(state.key)
        workers, gradients = list(state.workers), []
        losses = {f"meta/loss/{name}": jnp.full((), jnp.nan) for name in families}
        for index, name in enumerate(families):
            if active[index]:
                workers[index], gradient, loss = visits[index](
                    state.theta, workers[index], keys[index], fraction
                )
                losses[f"meta/loss/{name}"] = loss
                gradients.append(gradient)
        state = state._replace(workers=tuple(workers), key=key)
        moved, norm = move(state, rate, gradients)
        outer_loss = jnp.nanmean(jnp.stack(list(losses.values())))
        return moved, losses | {"meta/outer_loss": outer_loss, "meta/outer_grad_norm": norm}

    return outer_step


def _draw(
    num_families: int, num_active: int, shortest: float, key: Key[Array, ""]
) -> tuple[Key[Array, ""], Bool[Array, " families"], Key[Array, " families"], Float[Array, ""]]:
    """What an outer step begins with.

    Returns:
      The key of the next one, the families that it visits, a key for each, and the fraction of
      their length that problems which start now are cut to.
    """
    key, key_active, key_workers = jax.random.split(key, 3)
    active = jax.random.permutation(key_active, num_families) < num_active
    folded = jax.vmap(jax.random.fold_in, (None, 0))(key_workers, jnp.arange(num_families))
    key_fraction = jax.random.fold_in(key_workers, num_families)
    fraction = shortest ** jax.random.uniform(key_fraction)
    return key, active, folded, fraction


def _move(
    config: MetaTrainConfig,
    units: Theta | None,
    state: OuterState,
    rate: jax.typing.ArrayLike,
    gradients: list[Theta],
) -> tuple[OuterState, Float[Array, ""]]:
    """Moves theta along the mean gradient, its average along; returns the gradient's norm."""
    gradient = jax.tree.map(lambda *xs: sum(xs) / len(gradients), *gradients)
    direction, opt_state = OUTER_ADAM.update(gradient, state.opt_state)
    mask = trainable(state.theta, config.frozen, units)
    theta = jax.tree.map(lambda t, m, d: t - rate * m * d, state.theta, mask, direction)
    # The average forgets its start quickly, then slowly.
    decay = jnp.minimum(config.average, (1.0 + state.step) / (10.0 + state.step))
    moved = state._replace(
        theta=theta,
        average=optax.tree.update_moment(theta, state.average, decay, 1),
        opt_state=opt_state,
        step=state.step + 1,
    )
    return moved, optax.tree.norm(gradient)


_Visit = Callable[..., tuple[Any, Theta, Float[Array, ""]]]
"""From theta, the workers of a family, a key and the fraction of a length to the workers, their
gradient and mean loss."""


def _make_visit(system: System, config: MetaTrainConfig, units: Theta | None) -> _Visit:
    """Advances the workers of one family."""

    def visit(
        theta: Theta, workers: Any, key: Key[Array, ""], fraction: Float[Array, ""]
    ) -> tuple[Any, Theta, Float[Array, ""]]:
        moved, gradient, losses = estimators.estimate(
            _estimator(config),
            system,
            theta,
            trainable(theta, config.frozen, units),
            workers,
            jax.random.split(key, config.num_workers),
            fraction,
        )
        return moved, gradient, jnp.mean(losses)

    return visit
