# SPDX-License-Identifier: Apache-2.0
"""``plus`` mode: the transformation that joins units, features, token network and update rule."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from mnemosyne import (
    controller,
    features,
    foresight,
    halves,
    memory,
    observe,
    path,
    polar,
    rule,
    units,
)
from mnemosyne.config import MnemosyneConfig
from mnemosyne.controller import MetaParams
from mnemosyne.features import LossState
from mnemosyne.foresight import ForesightState
from mnemosyne.layout import Layout, make_layout
from mnemosyne.memory import MemoryState
from mnemosyne.packing import Blocks, Packing, from_blocks, make_packing, to_blocks
from mnemosyne.path import PathState
from mnemosyne.rule import Coefficients, Controls
from mnemosyne.units import UnitState


class ScaleByMnemosyneState(NamedTuple):
    """State of ``plus`` mode; arrays only, structure and dtypes fixed from ``init`` on.

    ``mu`` and ``nu`` mirror the parameters, so ``optax.tree.map_params`` finds them; the rest is
    per token.

    Attributes:
      count: updates so far, skipped ones included, int32.
      mu: first moment, in units of ``units.scale``.
      nu: second moment, in units of ``units.scale ** 2``.
      mu_mass: bias correction of ``mu``, one a token.
      nu_mass: bias correction of ``nu``, one a token.
      memory: associative memory, one slot a token (shared on networks of very many tensors).
      path: what step sizes have been multiplied by, and the recent path of the weights unless the
        network is not told of it.
      loss: running statistics of the loss, if the host passes it.
      foresight: whether the loss does what gradients say; of networks of few coordinates only.
      units: running size of the gradient, and how many were skipped.
    """

    count: Int[Array, ""]
    mu: optax.Updates
    nu: optax.Updates
    mu_mass: Float[Array, " tokens"]
    nu_mass: Float[Array, " tokens"]
    memory: MemoryState
    path: PathState
    loss: LossState
    foresight: ForesightState
    units: UnitState


class _Tensors(NamedTuple):
    """What an update reads, as blocks of rows."""

    g: Blocks
    mu: Blocks
    nu: Blocks
    p: Blocks


def layout_of(tree: Any, config: MnemosyneConfig) -> Layout:
    """The tokens and slots that ``tree`` (parameters or gradients) is given."""
    return make_layout(tuple(leaf.shape for leaf in jax.tree.leaves(tree)), config)


def scale_by_plus(
    theta: MetaParams, config: MnemosyneConfig
) -> optax.GradientTransformationExtraArgs:
    """See :func:`mnemosyne.scale_by_mnemosyne`."""

    def init(params: optax.Params) -> ScaleByMnemosyneState:
        if any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(params)):
            raise ValueError("complex parameters are not supported; optimize their real parts.")
        layout = layout_of(params, config)
        heads, width = len(config.taus), config.num_features
        return ScaleByMnemosyneState(
            count=jnp.zeros((), jnp.int32),
            mu=optax.tree.zeros_like(params, dtype=halves.MU_DTYPES[config.moments]),
            nu=optax.tree.zeros_like(params, dtype=halves.NU_DTYPES[config.moments]),
            mu_mass=jnp.zeros(layout.num_tokens),
            nu_mass=jnp.zeros(layout.num_tokens),
            memory=memory.init(layout.num_slots, heads, width, config.dim),
            path=path.init(layout.num_tokens, config.adaptive),
            loss=features.init_loss(),
            foresight=foresight.init(_few(layout, config)),
            units=units.init(),
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByMnemosyneState]:
        acting = _acting(extra_args.get("policy"), updates)
        return _update(theta, config, updates, state, params, check_extras(extra_args), acting)

    return optax.GradientTransformationExtraArgs(init, update)


def _few(layout: Layout, config: MnemosyneConfig) -> int:
    """Coordinates of a network whose loss is compared with what gradients say, else 0."""
    count = sum(math.prod(shape) for shape in layout.shapes)
    return count if config.adaptive and count < path.TOLD_APART else 0


def check_extras(extras: dict[str, Any]) -> dict[str, Any]:
    """Drops what the contract does not know, as optax asks.

    Raises:
      ValueError: for an extra that is no scalar.
    """
    known = {name: extras[name] for name in features.EXTRAS if extras.get(name) is not None}
    for name, value in known.items():
        if jnp.shape(value) != ():
            raise ValueError(f"{name}= must be a scalar, got shape {jnp.shape(value)}.")
    return known


def _acting(policy: Any, updates: optax.Updates) -> Float[Array, " tensors"] | None:
    """1 for each tensor that actions depend on, 0 for others; ``None`` if nothing is said.

    Raises:
      ValueError: if ``policy`` is no prefix of the tree of updates.
    """
    if policy is None:
        return None
    try:
        flags = jax.tree.leaves(jax.tree.broadcast(policy, updates))
    except ValueError as error:
        raise ValueError(
            "policy= must have a truth value for every subtree of the parameters, such as "
            f"{{'policy': True, 'value': False}}, got {policy!r}."
        ) from error
    return jnp.stack([jnp.asarray(flag, jnp.float32) for flag in flags])


def _update(
    theta: MetaParams,
    config: MnemosyneConfig,
    updates: optax.Updates,
    state: ScaleByMnemosyneState,
    params: optax.Params | None,
    extras: dict[str, Any],
    acting: Float[Array, " tensors"] | None,
) -> tuple[optax.Updates, ScaleByMnemosyneState]:
    g, treedef = jax.tree.flatten(updates)
    if not any(leaf.size for leaf in g):
        return updates, state
    p = [jnp.zeros_like(leaf) for leaf in g] if params is None else treedef.flatten_up_to(params)
    layout = layout_of(updates, config)
    packing = make_packing(layout, config.sample)
    groups = (g, treedef.flatten_up_to(state.mu), treedef.flatten_up_to(state.nu), p)
    tensors = _Tensors(*(to_blocks(group, packing, layout) for group in groups))
    verdict, unit_state = units.judge(state.units, tensors.g)
    tensors = tensors._replace(
        g=[jnp.where(verdict.ok, block * verdict.inverse, 0.0) for block in tensors.g]
    )
    loss, foreseen = observe.notice(state.loss, state.foresight, extras.get("value"), g)
    if acting is not None:
        acting = acting[np.repeat(np.arange(len(g)), layout.tokens)]
    told = observe.Told(features.encode_extras(extras, loss), acting, foresight.trust(foreseen))
    sample = observe.draw(tensors, packing, (state.mu_mass, state.nu_mass), verdict)
    inputs = observe.show(config, layout, sample, state.path, state.count, told)
    controls, remembered = controller.control(
        theta, config, layout, state.memory, *inputs, state.path.log_gain
    )
    coefficients, masses = _coefficients(controls, state, verdict, features.rms(sample.p), layout)
    deltas, mu, nu = _apply(packing, layout, tensors, coefficients, config)
    trodden = observe.tread(config, layout, packing, state.path, deltas, controls.log_gain)
    if "value" in extras and foreseen.step.size:
        step = observe.flat(from_blocks(deltas, packing, layout))
        value = jnp.asarray(extras["value"], jnp.float32)
        foreseen = foresight.remember(foreseen, observe.flat(g), step, value)

    def rebuild(blocks: Blocks, like: optax.Updates) -> optax.Updates:
        leaves = treedef.unflatten(from_blocks(blocks, packing, layout))
        return jax.tree.map(lambda new, old: new.astype(old.dtype), leaves, like)

    new_state = ScaleByMnemosyneState(
        count=jnp.asarray(optax.safe_increment(state.count)),
        mu=rebuild(mu, state.mu),
        nu=rebuild(nu, state.nu),
        mu_mass=masses[0],
        nu_mass=masses[1],
        memory=jax.tree.map(lambda n, o: jnp.where(verdict.ok, n, o), remembered, state.memory),
        path=jax.tree.map(lambda n, o: jnp.where(verdict.ok, n, o), trodden, state.path),
        loss=loss,
        foresight=jax.tree.map(lambda n, o: jnp.where(verdict.ok, n, o), foreseen, state.foresight),
        units=unit_state,
    )
    return rebuild(deltas, updates if params is None else params), new_state


def _coefficients(
    controls: Controls,
    state: ScaleByMnemosyneState,
    verdict: units.Verdict,
    rms_p: Float[Array, " tokens"],
    layout: Layout,
) -> tuple[Coefficients, tuple[Array, Array]]:
    """Row coefficients of each token, and the weight its moments have gathered.

    A skipped gradient is a matter of coefficients, so that nothing has to be chosen coordinate by
    coordinate: it keeps the moments, or drops them at a restart, and takes no step.
    """
    idle = jnp.where(verdict.restart, 0.0, 1.0)
    keep_mu, keep_nu = (jnp.where(verdict.ok, x, idle) for x in (controls.beta1, controls.beta2))
    add_mu, add_nu = (jnp.where(verdict.ok, 1.0 - x, 0.0) for x in (controls.beta1, controls.beta2))
    mu_mass, nu_mass = keep_mu * state.mu_mass + add_mu, keep_nu * state.nu_mass + add_nu
    step = jnp.where(verdict.ok, rule.BASE_STEP * jnp.exp(controls.log_step), 0.0)
    unknown = rms_p <= 0
    matrices = np.repeat([polar.is_matrix(shape) for shape in layout.shapes], layout.tokens)
    coefficients = Coefficients(
        keep_mu=(keep_mu * verdict.ratio)[:, None],
        add_mu=add_mu[:, None],
        keep_nu=(keep_nu * jnp.square(verdict.ratio))[:, None],
        add_nu=add_nu[:, None],
        correct_mu=(1.0 / jnp.maximum(mu_mass, observe.TINY))[:, None],
        correct_nu=(1.0 / jnp.maximum(nu_mass, observe.TINY))[:, None],
        step=step[:, None],
        nesterov=controls.nesterov[:, None],
        polar=jnp.where(matrices, controls.polar, 0.0)[:, None],
        inverse_rms_p=jnp.where(unknown, 0.0, 1.0 / jnp.where(unknown, 1.0, rms_p))[:, None],
        momentum_gates=controls.momentum_gates,
        gradient_gates=controls.gradient_gates,
    )
    return coefficients, (mu_mass, nu_mass)


def _apply(
    packing: Packing,
    layout: Layout,
    tensors: _Tensors,
    coefficients: Coefficients,
    config: MnemosyneConfig,
) -> tuple[Blocks, Blocks, Blocks]:
    """Runs the rule on every block; returns updates and moments."""
    rows = [coefficients.rows(tokens) for tokens in packing.row_tokens]
    mus = [rule.momentum(*block) for block in zip(tensors.g, tensors.mu, rows, strict=True)]
    polars: list[Any] = [None] * len(rows)
    if config.polar:
        ahead = [rule.lookahead(*block) for block in zip(tensors.g, mus, rows, strict=True)]
        polars = to_blocks(polar.factors(from_blocks(ahead, packing, layout)), packing, layout)
    deltas, nus = [], []
    for g, mu, nu, p, direction, row in zip(
        tensors.g, mus, tensors.nu, tensors.p, polars, rows, strict=True
    ):
        delta, second = rule.update_rows(g, rule.Moments(mu, nu), p, direction, row)
        if config.moments == "lean":
            second = halves.round_stochastically(second, g, mu)
        deltas.append(delta)
        nus.append(second)
    return deltas, mus, nus
