# SPDX-License-Identifier: Apache-2.0
"""What AdafacMLP, STAR and Celo2 share: accumulators, blocks of coordinates, a tiny network.

A network of a dozen small tensors is one block of short rows, so that the unrolled network is
compiled once for all of them; a large tensor is a block of its own in its natural shape, where
factored statistics broadcast and no ``n x features`` array is ever stored.

Metz et al. 2022, "Practical tradeoffs between memory, compute, and performance in learned
optimizers", arXiv 2203.11860; factored moments: Shazeer & Stern 2018, arXiv 1804.04235.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from mnemosyne.baselines.recurrent import truncated_linear
from mnemosyne.layout import MAX_PACKED, ROW, Layout, Shape
from mnemosyne.packing import from_blocks, make_packing, to_blocks

NUM_DECAYS = 3
"""Momenta, and factored second moments, of every coordinate."""
MAX_ONE_HOT = 2**18
"""Up to this many entries, rows are summed a tensor by a matrix product instead of a scatter."""


class AdafacState(NamedTuple):
    """Accumulators of the MLP rules, float32: 4 floats a parameter and 3 a row and column.

    Attributes:
      count: updates so far, int32.
      mu: first moments, ``[3, *shape]`` a tensor.
      nu: second moment, ``shape``.
      row: means of ``g**2`` over the largest axis, which has length 1; the unfactored moments
        where a tensor has fewer than two axes. ``[3, ...]``.
      col: means over the second largest axis; empty where there are fewer than two.
    """

    count: Int[Array, ""]
    mu: optax.Updates
    nu: optax.Updates
    row: optax.Updates
    col: optax.Updates


class Decays(NamedTuple):
    """Decay rates of the accumulators; no bias correction anywhere."""

    momentum: Float[Array, "3"]
    second: Float[Array, ""]
    factored: Float[Array, "3"]


class Signals(NamedTuple):
    """What a rule may read; everything broadcasts to the shape of ``g``.

    Attributes:
      g: gradient.
      p: parameter.
      m: first moments, after this gradient as all that follow; leading axis 3.
      v: second moment.
      row: row means, or the unfactored moments, of ``g**2``; leading axis 3.
      col: column means, likewise.
      scale_g: what turns ``g`` into the Adafactor direction; leading axis 3.
      scale_m: what turns ``m`` into it; the published code treats vectors differently here.
    """

    g: Array
    p: Array
    m: Array
    v: Array
    row: Array
    col: Array
    scale_g: Array
    scale_m: Array


class Rows(NamedTuple):
    """The static plan of a block of small tensors: the tensor and the use of every entry."""

    owners: Int[np.ndarray, " rows"]
    used: Bool[np.ndarray, "rows width"]
    sizes: Float[np.ndarray, " tensors"]


class Block(NamedTuple):
    """One large tensor in its natural shape (``rows`` is None), or rows of many small ones."""

    signals: Signals
    rows: Rows | None


def factored_axes(shape: Shape) -> tuple[int, int] | None:
    """The second largest and the largest axis, or ``None`` below two axes."""
    if len(shape) < 2:
        return None
    second, largest = np.argsort(shape, kind="stable")[-2:]
    return int(second), int(largest)


def init_state(params: optax.Params) -> AdafacState:
    """All accumulators at zero."""

    def stacked(shape: Shape) -> Float[Array, "3 ..."]:
        return jnp.zeros((NUM_DECAYS, *shape), jnp.float32)

    def reduced(shape: Shape, which: int) -> Float[Array, "3 ..."]:
        axes = factored_axes(shape)
        if axes is None:
            return stacked((0,) if which == 0 else shape)
        return stacked(tuple(1 if i == axes[which] else n for i, n in enumerate(shape)))

    return AdafacState(
        count=jnp.zeros((), jnp.int32),
        mu=jax.tree.map(lambda p: stacked(p.shape), params),
        nu=optax.tree.zeros_like(params, dtype=jnp.float32),
        row=jax.tree.map(lambda p: reduced(p.shape, 1), params),
        col=jax.tree.map(lambda p: reduced(p.shape, 0), params),
    )


def accumulate(state: AdafacState, updates: optax.Updates, decays: Decays) -> AdafacState:
    """Adds one gradient to every accumulator."""

    def mix(old: Array, new: Array, decay: Array) -> Array:
        decay = decay.reshape(-1, *(1,) * (old.ndim - 1)) if decay.ndim else decay
        return decay * old + (1.0 - decay) * new

    def reduced(old: Array, g: Array, which: int) -> Array:
        squared, axes = jnp.square(g) + 1e-30, factored_axes(g.shape)
        if axes is None:
            return mix(old, squared, decays.factored) if which else old
        return mix(old, jnp.mean(squared, axes[which], keepdims=True), decays.factored)

    g = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), updates)
    return AdafacState(
        count=jnp.asarray(optax.safe_increment(state.count)),
        mu=jax.tree.map(lambda old, x: mix(old, x, decays.momentum), state.mu, g),
        nu=jax.tree.map(lambda old, x: mix(old, jnp.square(x), decays.second), state.nu, g),
        row=jax.tree.map(lambda old, x: reduced(old, x, 1), state.row, g),
        col=jax.tree.map(lambda old, x: reduced(old, x, 0), state.col, g),
    )


def _safe_rsqrt(x: Array) -> Array:
    return jax.lax.rsqrt(jnp.maximum(x, 1e-9))


def _signals(g: Array, p: Array, m: Array, v: Array, row: Array, col: Array) -> Signals:
    """The signals of one tensor from its accumulators."""
    axes = factored_axes(g.shape)
    if axes is None:
        scale_g = _safe_rsqrt(row + 1e-9)
        return Signals(g, p, m, v, row, row, scale_g, jax.lax.rsqrt(row + 1e-6))
    mean = jnp.mean(row, axis=1 + axes[0], keepdims=True)
    scale = _safe_rsqrt(row / (mean + 1e-9)) * _safe_rsqrt(col)
    return Signals(g, p, m, v, row, col, scale, scale)


@functools.lru_cache(maxsize=256)
def _plan_rows(shapes: tuple[Shape, ...]) -> tuple[Layout, Rows]:
    layout = Layout(shapes, (1,) * len(shapes), np.arange(len(shapes), dtype=np.int32), len(shapes))
    owners = make_packing(layout, 1).row_tokens[0]
    sizes = [math.prod(shape) for shape in shapes]
    used = np.zeros((len(owners), ROW), bool)
    for index, size in enumerate(sizes):
        first = int(np.argmax(owners == index))
        used[first:].reshape(-1)[:size] = True
    return layout, Rows(owners, used, np.asarray(sizes, np.float32))


def _pack(signals: list[Signals], layout: Layout) -> Signals:
    """Small tensors as one array of rows a signal."""
    packing = make_packing(layout, 1)

    def rows(leaves: list[Array]) -> Array:
        return to_blocks(leaves, packing, layout)[0]

    packed = []
    for field, leaves in zip(Signals._fields, zip(*signals, strict=True), strict=True):
        if field in ("g", "p", "v"):
            packed.append(rows(list(leaves)))
            continue
        full = [
            jnp.broadcast_to(leaf, (NUM_DECAYS, *shape))
            for leaf, shape in zip(leaves, layout.shapes, strict=True)
        ]
        packed.append(jax.vmap(rows)(full))
    return Signals(*packed)


def apply_rule(
    rule: Callable[[Block], Array],
    updates: optax.Updates,
    state: AdafacState,
    params: optax.Params,
) -> optax.Updates:
    """Runs a rule on every coordinate.

    Args:
      rule: the update of a block, in the shape of its gradient.
      updates: gradients.
      state: accumulators, these gradients included.
      params: parameters; they decide the dtype of the result.
    """
    gradients, treedef = jax.tree.flatten(updates)
    trees = (updates, params, state.mu, state.nu, state.row, state.col)
    groups = [
        [jnp.asarray(leaf, jnp.float32) for leaf in treedef.flatten_up_to(tree)] for tree in trees
    ]
    shapes = [g.shape for g in gradients]
    deltas = {i: jnp.zeros(shape) for i, shape in enumerate(shapes) if not math.prod(shape)}
    small = [i for i, shape in enumerate(shapes) if 0 < math.prod(shape) <= MAX_PACKED]
    if small:
        layout, rows = _plan_rows(tuple(shapes[i] for i in small))
        signals = [_signals(*(group[i] for group in groups)) for i in small]
        delta = rule(Block(_pack(signals, layout), rows))
        leaves = from_blocks([delta], make_packing(layout, 1), layout)
        deltas |= dict(zip(small, leaves, strict=True))
    for i, shape in enumerate(shapes):
        # One after the other: a loop over tensors of one shape compiles little faster, and inside
        # of it XLA takes three times as long.
        if math.prod(shape) > MAX_PACKED:
            deltas[i] = rule(Block(_signals(*(group[i] for group in groups)), None))
    like = treedef.flatten_up_to(params)
    return treedef.unflatten([deltas[i].astype(p.dtype) for i, p in enumerate(like)])


def normalize(xs: Sequence[Array], rows: Rows | None, eps: float) -> list[Array]:
    """Every feature over its root mean square in its tensor, ``x / sqrt(eps + mean(x**2))``."""
    if rows is None:
        # Statistics of rows and columns are not spread out: each of them counts equally often.
        return [x * jax.lax.rsqrt(eps + jnp.mean(jnp.square(x))) for x in xs]
    # Small tensors afford storing the features, which halves the time to compile.
    stacked, num = jnp.stack(xs), len(rows.sizes)
    sums = jnp.sum(jnp.where(rows.used, jnp.square(stacked), 0.0), axis=-1)
    if len(rows.owners) * num <= MAX_ONE_HOT:
        one_hot = (rows.owners[:, None] == np.arange(num)).astype(np.float32)
        totals = jnp.matmul(sums, one_hot, precision="highest")
    else:
        totals = jax.ops.segment_sum(sums.T, rows.owners, num, indices_are_sorted=True).T
    inverse = jax.lax.rsqrt(eps + totals / rows.sizes)
    return list(stacked * inverse[:, rows.owners, None])


def init_network(key: Key[Array, ""], sizes: Sequence[int]) -> dict[str, Array]:
    """Weights ``w0, w1, ...`` of scale ``1 / sqrt(fan_in)`` and biases ``b0, b1, ...`` of zero."""
    keys = jax.random.split(key, len(sizes) - 1)
    weights = {f"w{i}": truncated_linear(keys[i], sizes[i], sizes[i + 1]) for i in range(len(keys))}
    return weights | {f"b{i}": jnp.zeros(sizes[i + 1], jnp.float32) for i in range(len(keys))}


def mlp(
    weights: dict[str, Array],
    inputs: Sequence[Array],
    constants: Float[Array, " constants"] | None = None,
    outputs: int | None = None,
) -> list[Array]:
    """The per-coordinate network with ReLU, as scalar arithmetic that XLA fuses into one loop.

    Args:
      weights: from :func:`init_network`.
      inputs: features that vary over coordinates, one array each, of rank at least 1.
      constants: further inputs, the same for all coordinates.
      outputs: how many of the output units to compute; all by default.

    Returns:
      The output units.
    """
    last, units = len(weights) // 2 - 1, list(inputs)
    for layer in range(last + 1):
        w, b = weights[f"w{layer}"], weights[f"b{layer}"]
        if layer == 0 and constants is not None:
            b = b + constants @ w[len(inputs) :]
        w = w[: len(units), : outputs if layer == last else None]
        fan_in, fan_out = w.shape
        # One operation yields all scalars; indexing would trace several for each of them.
        scalars = jax.lax.split(w.reshape(-1), (1,) * w.size)
        biases = jax.lax.split(b[:fan_out], (1,) * fan_out)
        sums = []
        for j in range(fan_out):
            total = biases[j]
            for i in range(fan_in):
                total = total + scalars[i * fan_out + j] * units[i]
            sums.append(total if layer == last else jnp.maximum(total, 0.0))
        units = sums
    return units


def require_params(name: str, params: optax.Params | None) -> optax.Params:
    """Raises ValueError if the host does not pass the parameters that a rule reads."""
    if params is None:
        raise ValueError(
            f"{name} reads the parameters; pass them: update(gradients, state, params)."
        )
    return params


def transformation(
    name: str,
    decays: Decays,
    rule: Callable[[Block, Int[Array, ""]], Array],
    clip: float = float("inf"),
) -> optax.GradientTransformationExtraArgs:
    """A rule on blocks as an optax transformation; extras are ignored.

    Args:
      name: of the rule, for the error.
      decays: of the accumulators.
      rule: ``rule(block, count)`` is the update of a block, in the shape of its gradient; ``count``
        is the number of updates before this one.
      clip: bound of every entry of the gradient.

    Raises:
      ValueError: from ``update``, without ``params``.
    """

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AdafacState]:
        del extra_args
        params = require_params(name, params)
        if clip < float("inf"):
            updates = jax.tree.map(lambda g: jnp.clip(g, -clip, clip), updates)
        moved = accumulate(state, updates, decays)
        return apply_rule(lambda block: rule(block, state.count), updates, moved, params), moved

    return optax.GradientTransformationExtraArgs(init_state, update)
