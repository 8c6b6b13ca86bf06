# SPDX-License-Identifier: Apache-2.0
"""``plus`` mode: the transformation that joins units, features, token network and update rule."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from mnemosyne import controller, features, memory, rule, units
from mnemosyne.config import MnemosyneConfig
from mnemosyne.controller import Controls, MetaParams
from mnemosyne.features import LossState
from mnemosyne.layout import Layout, make_layout, sample_indices
from mnemosyne.memory import MemoryState
from mnemosyne.packing import Blocks, Packing, from_blocks, make_packing, take, to_blocks
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
      nu_mass: bias correction of ``nu``.
      memory: associative memory, one slot a token (shared on networks of very many tensors).
      loss: running statistics of the loss, if the host passes it.
      units: running size of the gradient, and how many were skipped.
    """

    count: Int[Array, ""]
    mu: optax.Updates
    nu: optax.Updates
    mu_mass: Float[Array, " tokens"]
    nu_mass: Float[Array, ""]
    memory: MemoryState
    loss: LossState
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
        layout = layout_of(params, config)
        heads, width = len(config.taus), config.num_features
        return ScaleByMnemosyneState(
            count=jnp.zeros((), jnp.int32),
            mu=optax.tree.zeros_like(params, dtype=jnp.float32),
            nu=optax.tree.zeros_like(params, dtype=jnp.float32),
            mu_mass=jnp.zeros(layout.num_tokens),
            nu_mass=jnp.zeros(()),
            memory=memory.init(layout.num_slots, heads, width, config.dim),
            loss=features.init_loss(),
            units=units.init(),
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByMnemosyneState]:
        return _update(theta, config, updates, state, params, check_extras(extra_args))

    return optax.GradientTransformationExtraArgs(init, update)


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


def _update(
    theta: MetaParams,
    config: MnemosyneConfig,
    updates: optax.Updates,
    state: ScaleByMnemosyneState,
    params: optax.Params | None,
    extras: dict[str, Any],
) -> tuple[optax.Updates, ScaleByMnemosyneState]:
    g, treedef = jax.tree.flatten(updates)
    if not any(leaf.size for leaf in g):
        return updates, state
    p = [jnp.zeros_like(leaf) for leaf in g] if params is None else treedef.flatten_up_to(params)
    layout = layout_of(updates, config)
    packing = make_packing(layout, config.sample)
    verdict, unit_state = units.judge(state.units, [leaf for leaf in g if leaf.size])
    groups = (g, treedef.flatten_up_to(state.mu), treedef.flatten_up_to(state.nu), p)
    tensors = _Tensors(*(to_blocks(group, packing, layout) for group in groups))
    tensors = tensors._replace(g=[jnp.where(verdict.ok, block, 0.0) for block in tensors.g])
    loss = features.update_loss(state.loss, jnp.asarray(extras.get("value", jnp.nan), jnp.float32))
    sample = _draw(tensors, packing, state, verdict)
    encoded = {
        name: features.encode_extra(name, extras.get(name), loss) for name in features.EXTRAS
    }
    controls, remembered = _control(theta, config, layout, sample, state, encoded)
    corrections = rule.Corrections(
        mu=controls.beta1 * state.mu_mass + (1.0 - controls.beta1),
        nu=rule.BETA2 * state.nu_mass + (1.0 - rule.BETA2),
    )
    deltas, mu, nu = _apply(theta, packing, tensors, controls, corrections, verdict, _rms(sample.p))

    def settle(new: Any, old: Any, keep_on_restart: float) -> Any:
        kept = jnp.where(verdict.restart, keep_on_restart, 1.0)
        return jax.tree.map(lambda n, o: jnp.where(verdict.ok, n, o * kept), new, old)

    def rebuild(blocks: Blocks) -> optax.Updates:
        return treedef.unflatten(from_blocks(blocks, packing, layout))

    new_state = ScaleByMnemosyneState(
        count=jnp.asarray(optax.safe_increment(state.count)),
        mu=rebuild(settle(mu, tensors.mu, 0.0)),
        nu=rebuild(settle(nu, tensors.nu, 0.0)),
        mu_mass=settle(corrections.mu, state.mu_mass, 0.0),
        nu_mass=settle(corrections.nu, state.nu_mass, 0.0),
        memory=settle(remembered, state.memory, 1.0),
        loss=loss,
        units=unit_state,
    )
    deltas = rebuild([jnp.where(verdict.ok, delta, 0.0) for delta in deltas])
    like = updates if params is None else params
    return jax.tree.map(lambda d, x: d.astype(x.dtype), deltas, like), new_state


def _rms(x: Float[Array, "tokens sample"]) -> Float[Array, " tokens"]:
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=-1))


def _draw(
    tensors: _Tensors, packing: Packing, state: ScaleByMnemosyneState, verdict: units.Verdict
) -> features.Sample:
    """Coordinates for statistics and encoder, bias-corrected, in the units of this step."""
    g, mu, nu, p = (take(blocks, packing) for blocks in tensors)
    ratio, tiny = verdict.ratio, 1e-30
    return features.Sample(
        g=g * verdict.inverse,
        m=mu * (ratio / jnp.maximum(state.mu_mass, tiny))[:, None],
        v=nu * (jnp.square(ratio) / jnp.maximum(state.nu_mass, tiny)),
        p=p,
    )


@functools.lru_cache(maxsize=256)
def _static(layout_key: tuple[tuple[int, ...], ...], tokens: tuple[int, ...]) -> tuple[Any, Any]:
    pairs = [(shape, count) for shape, count in zip(layout_key, tokens, strict=True) if count]
    shapes = np.concatenate([features.shape_features(shape, count) for shape, count in pairs])
    sizes = [np.full(count, math.prod(shape) / count, np.float32) for shape, count in pairs]
    return shapes, np.concatenate(sizes)


def _control(
    theta: MetaParams,
    config: MnemosyneConfig,
    layout: Layout,
    sample: features.Sample,
    state: ScaleByMnemosyneState,
    extras: dict[str, Float[Array, " 3"]],
) -> tuple[Controls, MemoryState]:
    """Sample -> features -> token network -> controls."""
    shapes, counts = _static(layout.shapes, layout.tokens)
    per_token, network = features.token_features(sample, jnp.asarray(counts), jnp.asarray(shapes))
    network = jnp.concatenate([network, features.time_features(state.count)])
    context = jnp.broadcast_to(network, (layout.num_tokens, network.size))
    chunk_size, num_chunks = config.chunk
    read = sample_indices(config.sample, chunk_size * num_chunks)
    coordinates = features.coordinate_features(jax.tree.map(lambda x: x[:, read], sample))
    return controller.control(
        theta,
        config,
        layout,
        state.memory,
        jnp.concatenate([per_token, context], axis=-1),
        coordinates.reshape(layout.num_tokens, num_chunks, chunk_size, -1),
        jnp.asarray(counts),
        extras,
    )


def _apply(
    theta: MetaParams,
    packing: Packing,
    tensors: _Tensors,
    controls: Controls,
    corrections: rule.Corrections,
    verdict: units.Verdict,
    rms_p: Float[Array, " tokens"],
) -> tuple[Blocks, Blocks, Blocks]:
    """Runs the rule on every block; returns updates and moments."""
    inverse_rms_p = jnp.where(rms_p > 0, 1.0 / jnp.where(rms_p > 0, rms_p, 1.0), 0.0)
    ratio, results = verdict.ratio, []
    for tokens, g, mu, nu, p in zip(packing.row_tokens, *tensors, strict=True):
        delta, moments = rule.update_rows(
            g * verdict.inverse,
            rule.Moments(mu * ratio, nu * jnp.square(ratio)),
            p,
            Controls(*(control[tokens] for control in controls)),
            rule.Corrections(corrections.mu[tokens], corrections.nu),
            theta.get("residual"),
            inverse_rms_p[tokens],
        )
        results.append((delta, *moments))
    deltas, mus, nus = (list(group) for group in zip(*results, strict=True))
    return deltas, mus, nus
