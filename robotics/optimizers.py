# SPDX-License-Identifier: Apache-2.0
"""Optimizers by name: hand-designed rivals, and any factory written ``module:function``."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from robotics.algorithm import check_positive, nearest

Make = Callable[[float], optax.GradientTransformation]

_KL_BAND = 2.0  # half the target and twice the target
_KL_FACTOR = 1.5
_KL_RATES = (1e-5, 1e-2)
_KL_ZERO = 1e-7  # the first minibatch of a rollout has none, which says nothing about the rate


class ScaleByKLState(NamedTuple):
    """State of :func:`scale_by_kl_adaptive_rate`."""

    learning_rate: Float[Array, ""]


class ScaleByProgressState(NamedTuple):
    """State of :func:`scale_by_annealed_rate`."""

    count: Int[Array, ""]


class ScaleByRelativeAdamState(NamedTuple):
    """State of :func:`scale_by_relative_adam`; epoch and variance are those of the last update."""

    adam: optax.ScaleByAdamState
    epoch: Float[Array, ""]
    explained_variance: Float[Array, ""]


def scale_by_kl_adaptive_rate(
    learning_rate: float = 1e-3, target: float = 0.01
) -> optax.GradientTransformationExtraArgs:
    """Multiplies by minus a rate that keeps the KL divergence per update near a target.

    Before each update: KL above twice the target divides the rate by 1.5, KL between 0 and half the
    target multiplies it by 1.5; the rate stays in [1e-5, 1e-2]. Without ``kl``, or with one that is
    not finite, it stays as it is. The rule of Schulman et al. 2017 (arXiv 1707.06347, section 4)
    applied to the rate, as in Rudin et al. 2022 (arXiv 2109.11978).

    Args:
      learning_rate: at the start, in [1e-5, 1e-2].
      target: desired KL divergence from the policy that collected the data, above 0.
    """
    low, high = _KL_RATES

    def init(params: optax.Params) -> ScaleByKLState:
        return ScaleByKLState(jnp.asarray(learning_rate, jnp.float32))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        kl: Float[Array, ""] | float | None = None,
        **extras: Any,
    ) -> tuple[optax.Updates, ScaleByKLState]:
        rate = state.learning_rate
        if kl is not None:
            too_fast = kl > _KL_BAND * target
            too_slow = (kl > _KL_ZERO) & (kl < target / _KL_BAND)
            factor = jnp.where(too_fast, 1.0 / _KL_FACTOR, jnp.where(too_slow, _KL_FACTOR, 1.0))
            rate = jnp.where(jnp.isfinite(kl), jnp.clip(rate * factor, low, high), rate)
        return optax.tree.scale(-rate, updates), ScaleByKLState(rate)

    return optax.GradientTransformationExtraArgs(init, update)


def scale_by_annealed_rate(
    learning_rate: Float[Array, ""] | float,
    num_updates: int | None = None,
    final: Float[Array, ""] | float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies by minus a rate that falls linearly over the run.

    Args:
      learning_rate: at the start, above 0.
      num_updates: length of the run in updates, used where the host passes no ``progress``.
      final: share of the rate that is left at the end, in [0, 1].
    """

    def init(params: optax.Params) -> ScaleByProgressState:
        return ScaleByProgressState(jnp.zeros((), jnp.int32))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        progress: Float[Array, ""] | float | None = None,
        **extras: Any,
    ) -> tuple[optax.Updates, ScaleByProgressState]:
        if progress is None and num_updates is None:
            raise ValueError("adam-anneal needs progress= in its update, or num_updates.")
        done = state.count / (num_updates or 1) if progress is None else progress
        rate = learning_rate * (1.0 - (1.0 - final) * jnp.clip(done, 0.0, 1.0))
        return optax.tree.scale(-rate, updates), ScaleByProgressState(state.count + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def scale_by_relative_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """Adam-Rel (Ellis et al. 2024, arXiv 2412.17113): Adam whose time starts over with a rollout.

    The moments are kept; only the number of updates in the bias correction begins at 1 again, so
    the first step after a jump of the gradient's size stays bounded. A rollout is new where
    ``epoch``, the share of its updates that are done, falls back, or ``explained_variance``, of
    which a rollout has one, changes: with a single update only the latter tells. Without both
    it is Adam.

    Args:
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root of the second moment.
    """
    adam = optax.scale_by_adam(b1, b2, eps)

    def init(params: optax.Params) -> ScaleByRelativeAdamState:
        start: Any = adam.init(params)
        return ScaleByRelativeAdamState(start, jnp.zeros(()), jnp.zeros(()))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        epoch: Float[Array, ""] | float | None = None,
        explained_variance: Float[Array, ""] | float | None = None,
        **extras: Any,
    ) -> tuple[optax.Updates, ScaleByRelativeAdamState]:
        now = jnp.asarray(state.epoch if epoch is None else epoch, jnp.float32)
        told = state.explained_variance if explained_variance is None else explained_variance
        # Not finite is not equal to itself, which says nothing about the rollout.
        variance = jnp.where(jnp.isfinite(told), told, state.explained_variance)
        new = (now < state.epoch) | (variance != state.explained_variance)
        inner: Any = state.adam._replace(count=jnp.where(new, 0, state.adam.count))
        updates, inner = adam.update(updates, inner, params)
        return updates, ScaleByRelativeAdamState(inner, now, jnp.asarray(variance, jnp.float32))

    return optax.GradientTransformationExtraArgs(init, update)


@dataclasses.dataclass(frozen=True)
class _Named:
    """Default rates for PPO and for ES (``None``: no use there), and how to build it from one."""

    ppo: float
    es: float | None
    make: Make


def _adam_kl(rate: float) -> optax.GradientTransformation:
    low, high = _KL_RATES
    if not low <= rate <= high:
        raise ValueError(f"learning_rate of adam-kl is {rate}, but it must lie in [{low}, {high}].")
    return optax.chain(optax.scale_by_adam(), scale_by_kl_adaptive_rate(rate))


def _adam_rel(rate: float) -> optax.GradientTransformation:
    return optax.chain(scale_by_relative_adam(), optax.scale_by_learning_rate(rate))


def _muon(rate: float) -> optax.GradientTransformation:
    from optax import contrib

    # Matrices move by a fifth of the rate a coordinate, as they do under Adam: a rate of Adam's
    # size is then right for both halves (Liu et al. 2025, arXiv 2502.16982, section 2.2).
    return contrib.muon(rate, consistent_rms=0.2)


_NAMED = {
    "adam": _Named(3e-4, 1e-2, optax.adam),
    # Within the 16 updates of a rollout its steps are 0.15 to 0.3 times those of Adam.
    "adam-rel": _Named(1e-3, None, _adam_rel),
    "adam-kl": _Named(1e-3, 1e-2, _adam_kl),
    "adamw": _Named(3e-4, 1e-2, lambda rate: optax.adamw(rate, weight_decay=1e-4)),
    "sgd": _Named(1e-2, 1e-1, lambda rate: optax.sgd(rate, momentum=0.9)),
    "rmsprop": _Named(3e-4, 1e-2, lambda rate: optax.rmsprop(rate, decay=0.99, eps=1e-5)),
    "lion": _Named(1e-4, 3e-3, lambda rate: optax.lion(rate, b1=0.9, b2=0.99, weight_decay=0.0)),
    "muon": _Named(3e-4, 1e-2, _muon),
}
_ANNEAL = "adam-anneal"


def list_optimizers() -> list[str]:
    """Names that :func:`make_optimizer` knows, besides ``module:function``."""
    return sorted([*_NAMED, _ANNEAL])


def default_learning_rate(name: str, algo: Literal["ppo", "es"] = "ppo") -> float | None:
    """The rate an optimizer gets if none is asked for; ``None`` where it has no such rate."""
    if name == _ANNEAL:
        name = "adam"
    return getattr(_NAMED[name], algo) if name in _NAMED else None


def make_optimizer(
    name: str,
    learning_rate: float | None = None,
    num_updates: int | None = None,
    algo: Literal["ppo", "es"] = "ppo",
) -> optax.GradientTransformationExtraArgs:
    """The optimizer called ``name``.

    Args:
      name: one of :func:`list_optimizers`, or ``module:function``, a factory without arguments.
      learning_rate: above 0; ``None`` means :func:`default_learning_rate`; ``adam-kl`` only
        starts with it.
      num_updates: length of the run in updates, for ``adam-anneal`` where the host passes no
        ``progress``.
      algo: whose default rate to take: gradients of ES need larger steps than those of PPO.

    Raises:
      ValueError: unknown name (the message has the nearest one), a factory that cannot be imported
        or that makes no optax transformation, a rate that is not above 0, one for a factory, or
        ``adam-rel`` for ES.

    Example:
      >>> make_optimizer("adam", learning_rate=1e-3).init({"w": jnp.zeros(2)})[0].count
      Array(0, dtype=int32)
    """
    if ":" in name:
        if learning_rate is not None:
            raise ValueError(f"{name!r} takes no learning rate: set it inside the factory.")
        return optax.with_extra_args_support(_from_factory(name))
    if name not in list_optimizers():
        raise ValueError(
            f"Unknown optimizer {name!r}; the nearest valid one is "
            f"{nearest(name, list_optimizers())!r}."
        )
    default = default_learning_rate(name, algo)
    if default is None:
        raise ValueError(
            f"{name!r} follows the rollouts of PPO, which ES does not have: use 'adam'."
        )
    rate = default if learning_rate is None else learning_rate
    check_positive(name, learning_rate=rate)
    if name == _ANNEAL:
        return optax.chain(optax.scale_by_adam(), scale_by_annealed_rate(rate, num_updates))
    return optax.with_extra_args_support(_NAMED[name].make(rate))


def _from_factory(name: str) -> optax.GradientTransformation:
    """Imports ``module:function`` and calls it."""
    module_name, _, function_name = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"optimizer {name!r} cannot be imported: {error}.") from error
    try:
        optimizer = factory()
    except TypeError as error:
        raise ValueError(
            f"optimizer {name!r} must be a function without arguments: {error}."
        ) from error
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(f"optimizer {name!r} does not make an optax transformation.")
    return optimizer
