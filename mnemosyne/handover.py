# SPDX-License-Identifier: Apache-2.0
"""Mnemosyne for the first part of a run and Adam after it, or the reverse, without a new start.

The one that takes over begins with the moments that the other has gathered. Mnemosyne keeps them in
units of a power of two and knows for each token the weight they have; Adam knows one count. With
``s`` the units, ``c1, c2`` the weights, and ``t`` updates,

    mu_adam = (1 - b1^t) (s mu / c1)          nu_adam = (1 - b2^t) (s^2 nu / c2)

have the same bias-corrected values; the reverse sets ``c1 = 1 - b1^t`` and ``c2 = 1 - b2^t``. Where
Mnemosyne sees matrices in their eigenbasis, Adam gets first moments in the coordinates of the
weights, and second ones as if rotated coordinates were independent.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from mnemosyne import eigenbasis, plus, units, warmstart
from mnemosyne.config import MnemosyneConfig
from mnemosyne.layout import Layout
from mnemosyne.packing import from_blocks, make_packing, to_blocks
from mnemosyne.telemetry import find_state


class HandOverState(NamedTuple):
    """State of :func:`hand_over`.

    Attributes:
      count: updates so far, int32.
      handed_over: whether the second optimizer is at work.
      ours: state of Mnemosyne; stands still while Adam is at work.
      adam: state of ``optax.adam``; stands still while Mnemosyne is at work.
    """

    count: Int[Array, ""]
    handed_over: Bool[Array, ""]
    ours: Any
    adam: Any


def hand_over(
    ours: optax.GradientTransformation,
    config: MnemosyneConfig,
    share: float,
    learning_rate: float,
    total_steps: int | None = None,
    adam_first: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
) -> optax.GradientTransformationExtraArgs:
    """One optimizer for a share of the run, then the other with its moments.

    Under ``vmap``, where lanes may hand over at different times, both are computed at every update.

    Args:
      ours: Mnemosyne in ``plus`` mode, alone or inside other transformations.
      config: the configuration of its network.
      share: of the run, in [0, 1], before the hand-over.
      learning_rate: of Adam, above 0.
      total_steps: length of the run in updates, where the host passes no ``progress``.
      adam_first: whether Adam hands over to Mnemosyne.
      betas: decays of Adam.

    Raises:
      ValueError: for a share outside [0, 1], a mode without moments, and, from ``update``, where
        neither ``progress`` nor ``total_steps`` is known.
    """
    _check(share, config)
    ours = optax.with_extra_args_support(ours)
    adam = optax.with_extra_args_support(optax.adam(learning_rate, *betas))

    def init(params: optax.Params) -> HandOverState:
        count, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        return HandOverState(count, no, ours.init(params), adam.init(params))

    def receive(state: HandOverState) -> HandOverState:
        if adam_first:
            return state._replace(ours=to_mnemosyne(state.adam, state.ours, betas))
        return state._replace(adam=to_adam(state.ours, state.adam, config, betas))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extras: Any,
    ) -> tuple[optax.Updates, HandOverState]:
        # Once is for ever: a progress that is missing or falls back hands nothing back.
        now = state.handed_over | (_progress(state.count, total_steps, extras) >= share)
        begun = now & ~state.handed_over
        state = jax.lax.cond(begun, receive, lambda state: state, state)

        def step_ours() -> tuple[optax.Updates, Any, Any]:
            moved, new = ours.update(updates, state.ours, params, **extras)
            return moved, new, state.adam

        def step_adam() -> tuple[optax.Updates, Any, Any]:
            moved, new = adam.update(updates, state.adam, params)
            # The branches of a condition must agree, and ours has the dtypes of the parameters.
            moved = optax.tree.cast_like(moved, updates if params is None else params)
            return moved, state.ours, new

        moved, new_ours, new_adam = jax.lax.cond(now != adam_first, step_adam, step_ours)
        count = jnp.asarray(optax.safe_increment(state.count))
        return moved, HandOverState(count, now, new_ours, new_adam)

    return optax.GradientTransformationExtraArgs(init, update)


def _check(share: float, config: MnemosyneConfig) -> None:
    """Raises ValueError, in one sentence, for what cannot be handed over."""
    if not 0 <= share <= 1:
        raise ValueError(f"the share of the run before the hand-over is {share}, not in [0, 1].")
    if config.mode != "plus":
        raise ValueError(f"the mode {config.mode!r} of Mnemosyne has no moments to hand over.")


def _progress(
    count: Int[Array, ""], total_steps: int | None, extras: dict[str, Any]
) -> Float[Array, ""] | float:
    """The host's progress if it is a number, else that of the count; nan is never enough."""
    counted = jnp.nan if total_steps is None else count / total_steps
    told = extras.get("progress")
    if told is None:
        if total_steps is None:
            raise ValueError("a hand-over needs progress= in its update, or total_steps.")
        return counted
    return jnp.where(jnp.isfinite(told), told, counted)


def to_adam(ours: Any, adam: Any, config: MnemosyneConfig, betas: tuple[float, float]) -> Any:
    """A state of ``optax.adam`` with the moments that Mnemosyne has gathered.

    Args:
      ours: optax state with a :class:`mnemosyne.ScaleByMnemosyneState` inside.
      adam: optax state with a ``ScaleByAdamState`` inside; its moments are replaced.
      config: of Mnemosyne's network.
      betas: decays of Adam.
    """
    state = find_state(ours)
    assert state is not None
    layout = plus.layout_of(state.mu, config)
    # Before a first gradient, or after a restart, there is nothing; Adam then begins anew.
    known = jnp.max(state.mu_mass, initial=0.0) > 0
    count = jnp.where(known, state.count, 0)
    scale = state.units.scale
    mu = _per_token(state.mu, _inverse(state.mu_mass), layout, config)
    nu = _per_token(state.nu, _inverse(state.nu_mass), layout, config)
    if (bases := eigenbasis.find_bases(ours)) is not None:
        mu, nu = eigenbasis.rotate_back(mu, bases), eigenbasis.second_moment_back(nu, bases)
    # One factor at a time: the square of the units may be no float32 where the product is.
    mu = jax.tree.map(lambda leaf: leaf * scale * (1.0 - betas[0] ** count), mu)
    nu = jax.tree.map(lambda leaf: leaf * scale * scale * (1.0 - betas[1] ** count), nu)

    def place(leaf: Any) -> Any:
        if not isinstance(leaf, optax.ScaleByAdamState):
            return leaf
        return optax.ScaleByAdamState(count, _cast(mu, leaf.mu), _cast(nu, leaf.nu))

    return jax.tree.map(place, adam, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))


def to_mnemosyne(adam: Any, ours: Any, betas: tuple[float, float]) -> Any:
    """A state of Mnemosyne with the moments of Adam; its memory is kept.

    The units are those of the largest gradient that the moments know of.

    Args:
      adam: optax state with a ``ScaleByAdamState`` inside.
      ours: optax state with a :class:`mnemosyne.ScaleByMnemosyneState` inside.
      betas: decays of Adam.
    """
    is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)  # noqa: E731
    moments: Any = next(x for x in jax.tree.leaves(adam, is_leaf=is_adam) if is_adam(x))
    state = find_state(ours)
    assert state is not None
    masses = [1.0 - beta**moments.count for beta in betas]
    first, second = (_largest(tree) for tree in (moments.mu, moments.nu))
    peak = jnp.maximum(first * _inverse(masses[0]), jnp.sqrt(second * _inverse(masses[1])))
    size = units.from_peak(peak)
    inverse = _inverse(size.scale)
    mu = jax.tree.map(lambda leaf: leaf * inverse, moments.mu)
    nu = jax.tree.map(lambda leaf: leaf * inverse * inverse, moments.nu)
    if (bases := eigenbasis.find_bases(ours)) is not None:
        mu, nu = eigenbasis.rotate(mu, bases), eigenbasis.second_moment(nu, bases)
    filled = state._replace(
        count=moments.count,
        mu=_cast(mu, state.mu),
        nu=_cast(nu, state.nu),
        mu_mass=jnp.full_like(state.mu_mass, masses[0]),
        nu_mass=jnp.full_like(state.nu_mass, masses[1]),
        units=size,
    )
    return warmstart.replace_state(ours, filled)


def _inverse(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """``1 / x``, 0 where that is 0."""
    return jnp.where(x > 0, 1.0 / jnp.where(x > 0, x, 1.0), 0.0)


def _largest(tree: Any) -> Float[Array, ""]:
    sizes = [jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(tree)]
    return jnp.max(jnp.stack(sizes)).astype(jnp.float32)


def _cast(tree: Any, like: Any) -> Any:
    return jax.tree.map(lambda leaf, old: leaf.astype(old.dtype), tree, like)


def _per_token(
    tree: Any, factors: Float[Array, " tokens"], layout: Layout, config: MnemosyneConfig
) -> Any:
    """Every coordinate times the factor of its token, float32."""
    leaves, treedef = jax.tree.flatten(tree)
    packing = make_packing(layout, config.sample)
    blocks = [
        block * factors[tokens][:, None]
        for block, tokens in zip(
            to_blocks(leaves, packing, layout), packing.row_tokens, strict=True
        )
    ]
    return treedef.unflatten(from_blocks(blocks, packing, layout))
