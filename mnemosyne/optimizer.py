# SPDX-License-Identifier: Apache-2.0
"""Mnemosyne as an optax transformation: Adam's interface, no learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from mnemosyne import artifacts, controller, eigenbasis, paper, plus
from mnemosyne.config import MnemosyneConfig
from mnemosyne.controller import MetaParams


def init_meta_params(key: Key[Array, ""], config: MnemosyneConfig | None = None) -> MetaParams:
    """Untrained meta-parameters.

    Args:
      key: typed PRNG key.
      config: shape and mode; ``None`` means the default ``plus`` network.

    Returns:
      A nested dictionary of float32 arrays. In ``plus`` mode it acts exactly like
      ``optax.adam(1e-3, b1=0.9, b2=0.99, eps=1e-16)``, but for coordinates whose gradients have
      stayed below 1e-12 of the largest one, which do not move, and with ``eigenbasis`` in another
      basis; in the paper modes nothing moves.
    """
    config = config or MnemosyneConfig()
    module = controller if config.mode == "plus" else paper
    return module.init(key, config)


def scale_by_mnemosyne(
    meta_params: MetaParams, config: MnemosyneConfig | None = None
) -> optax.GradientTransformationExtraArgs:
    """The learned update itself, step size and sign included.

    Args:
      meta_params: from :func:`init_meta_params` or an artifact; may be traced and vmapped.
      config: the configuration they belong to; ``None`` means the default ``plus`` network.

    Returns:
      A transformation whose ``update(grads, state, params=None, **extras)`` takes any of
      :data:`mnemosyne.features.EXTRAS` as optional float32 scalars; absent and non-finite mean the
      same, unknown ones are dropped. Where ``policy``, a tree prefix of the parameters with truth
      values such as ``{"policy": True, "value": False}``, is false, the tensors are not told
      :data:`mnemosyne.features.OF_ACTIONS`. Without ``params`` the features of the parameters are
      neutral.

    Raises:
      ValueError: from ``update``, for an extra that is not a scalar, or a ``policy`` that is no
        prefix of the parameters.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> opt = scale_by_mnemosyne(init_meta_params(jax.random.key(0)))
      >>> state = opt.init({"w": jnp.ones(3)})
      >>> updates, state = opt.update({"w": jnp.ones(3)}, state)
      >>> bool(jnp.allclose(updates["w"], -1e-3))
      True

    References:
      Jain et al. 2023, "Mnemosyne: Learning to Train Transformers with Transformers",
      arXiv 2302.01128.
    """
    config = config or MnemosyneConfig()
    # Artifacts come as NumPy arrays; what is traced stays as it is.
    meta_params = jax.tree.map(jnp.asarray, meta_params)
    if config.mode == "plus":
        core = plus.scale_by_plus(meta_params, config)
        return eigenbasis.in_eigenbasis(core) if config.eigenbasis else core
    return paper.scale_by_paper(meta_params, config)


def mnemosyne(
    weights: str = "mnemosyne-base",
    total_steps: int | None = None,
    weight_decay: float = 0.0,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    learning_rate: optax.ScalarOrSchedule = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """The shipped optimizer: no learning rate to find.

    Args:
      weights: name of a shipped artifact (see :func:`list_weights`) or a path to one.
      total_steps: length of the run in updates, if known; fills in ``progress`` where the host
        passes none.
      weight_decay: decoupled decay per update relative to 1e-3, as in ``optax.adamw(1e-3)``.
      mask: which parameters decay, a pytree of bools or a function to one.
      learning_rate: global multiplier around 1, for people who insist; a schedule is accepted.

    Returns:
      A transformation for ``optax.apply_updates``.

    Raises:
      ValueError: for an unknown or damaged artifact, or a negative argument.

    Example:
      >>> opt = mnemosyne(total_steps=1_000)
    """
    artifact = artifacts.load(weights)
    return from_meta_params(
        artifact.meta_params, artifact.config, total_steps, weight_decay, mask, learning_rate
    )


def from_meta_params(
    meta_params: MetaParams,
    config: MnemosyneConfig | None = None,
    total_steps: int | None = None,
    weight_decay: float = 0.0,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    learning_rate: optax.ScalarOrSchedule = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """:func:`mnemosyne` as a function of its meta-parameters, for meta-training and ablations.

    The arguments are those of :func:`mnemosyne`.
    """
    if total_steps is not None and total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, got {total_steps}.")
    if weight_decay < 0:
        raise ValueError(f"weight_decay must not be negative, got {weight_decay}.")
    core = scale_by_mnemosyne(meta_params, config)
    if total_steps is not None:
        core = _with_progress(core, total_steps)
    parts: list[optax.GradientTransformation] = [core]
    if weight_decay > 0:
        # The core already has the sign of a descent step, hence the minus.
        parts.append(optax.add_decayed_weights(-1e-3 * weight_decay, mask))
    # Under optax.inject_hyperparams it is traced, and cannot be compared.
    if not (isinstance(learning_rate, int | float) and learning_rate == 1.0):
        parts.append(optax.scale_by_learning_rate(learning_rate, flip_sign=False))
    return optax.with_extra_args_support(optax.chain(*parts)) if len(parts) > 1 else core


def _with_progress(
    core: optax.GradientTransformationExtraArgs, total_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Passes ``count / total_steps`` as ``progress``, unless the host passes its own."""

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extras: Any
    ) -> tuple[optax.Updates, Any]:
        if extras.get("progress") is None:
            extras["progress"] = state.count / total_steps
        return core.update(updates, state, params, **extras)

    return optax.GradientTransformationExtraArgs(core.init, update)
