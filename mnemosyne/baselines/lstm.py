# SPDX-License-Identifier: Apache-2.0
"""The coordinate-wise LSTM optimizer, "Learning to learn by gradient descent by gradient descent".

Every coordinate runs the same LSTM with a state of its own, 80 floats with the published sizes:

    x <- preprocess(g);  h1 <- LSTM1(x);  h2 <- LSTM2(h1);  update = 0.01 (w . h2 + b)

Andrychowicz et al. 2016, arXiv 1606.04474; the two published preprocessings differ for small
gradients and are both here. ``features`` is ours: to log and sign it adds what the recurrent state
forgets, ratios of slow moments and the age of the run.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from mnemosyne import features
from mnemosyne.baselines import recurrent
from mnemosyne.learned import LearnedOptimizer

Preprocessing = Literal["paper", "code", "features", "raw"]
"""``paper``: two channels, p = 10; ``code``: two channels, k = 5; ``raw``: the gradient itself."""

UNITS = (20, 20)
OUTPUT_SCALE = 0.01

MOMENTUM_DECAYS = (0.9, 0.99, 0.999)
SECOND_DECAYS = (0.99, 0.999)
AGES = (3.0, 30.0, 300.0, 3000.0)
MAX_CHUNK = 16_384
"""Coordinates that run at a time; the gates of all of them would take 240 floats a parameter."""
NUM_CHANNELS: dict[str, int] = {"paper": 2, "code": 2, "features": 11, "raw": 1}


class Chunk(NamedTuple):
    """What some coordinates remember; coordinates of all tensors in a row, in equal chunks.

    Attributes:
      hidden: outputs of every layer.
      memory: cell states of every layer.
      mu: first moments; no rows unless the preprocessing is ``features``.
      nu: second moments, likewise.
    """

    hidden: tuple[Float[Array, "*chunks units n"], ...]
    memory: tuple[Float[Array, "*chunks units n"], ...]
    mu: Float[Array, "*chunks decays n"]
    nu: Float[Array, "*chunks second_decays n"]


class ScaleByLstmState(NamedTuple):
    """State of the LSTM optimizer.

    Attributes:
      count: updates so far, int32.
      chunks: what the coordinates remember.
    """

    count: Int[Array, ""]
    chunks: Chunk


def init(
    key: Key[Array, ""], preprocessing: Preprocessing = "paper", units: tuple[int, ...] = UNITS
) -> dict[str, Any]:
    """Untrained meta-parameters: 5141 of them with two channels, 5061 with one.

    Args:
      key: typed PRNG key.
      preprocessing: decides the number of input channels.
      units: of each layer; ``()`` is a linear optimizer.
    """
    sizes = (NUM_CHANNELS[_known(preprocessing)], *units)
    keys = jax.random.split(key, len(units) + 1)
    theta: dict[str, Any] = {
        f"layer{index}": recurrent.init_cell(keys[index], sizes[index], size)
        for index, size in enumerate(units)
    }
    theta["out"] = {"w": recurrent.truncated_linear(keys[-1], sizes[-1], 1), "b": jnp.zeros(1)}
    return theta


def _layers(theta: dict[str, Any]) -> list[dict[str, Array]]:
    return [theta[f"layer{index}"] for index in range(len(theta) - 1)]


def _empty_chunks(size: int, units: Sequence[int], slow: bool) -> Chunk:
    """Memories of ``size`` coordinates before the first gradient."""
    chunks, width = _chunks(size)

    def zeros(rows: int) -> Float[Array, "chunks rows width"]:
        return jnp.zeros((chunks, rows, width), jnp.float32)

    return Chunk(
        hidden=tuple(zeros(size) for size in units),
        memory=tuple(zeros(size) for size in units),
        mu=zeros(len(MOMENTUM_DECAYS) if slow else 0),
        nu=zeros(len(SECOND_DECAYS) if slow else 0),
    )


def _step(
    theta: dict[str, Any],
    g: Float[Array, " n"],
    chunk: Chunk,
    count: Int[Array, ""],
    preprocessing: Preprocessing,
) -> tuple[Float[Array, " n"], Chunk]:
    """One step of the LSTM on the coordinates of a chunk, before the output scale."""
    if preprocessing == "features":
        chunk = chunk._replace(
            mu=_moving(chunk.mu, g, MOMENTUM_DECAYS),
            nu=_moving(chunk.nu, jnp.square(g), SECOND_DECAYS),
        )
    x, hidden, memory = preprocess(g, preprocessing, chunk, count), [], []
    for layer, h, c in zip(_layers(theta), chunk.hidden, chunk.memory, strict=True):
        x, cell_state = recurrent.cell(layer, x, h, c)
        hidden.append(x)
        memory.append(cell_state)
    out = theta["out"]["w"][:, 0] @ x + theta["out"]["b"]
    return out, chunk._replace(hidden=tuple(hidden), memory=tuple(memory))


def scale_by_lstm(
    theta: dict[str, Any],
    preprocessing: Preprocessing = "paper",
    output_scale: float = OUTPUT_SCALE,
) -> optax.GradientTransformationExtraArgs:
    """The complete update of the LSTM optimizer; neither parameters nor extras are read.

    Args:
      theta: from :func:`init` with the same preprocessing.
      preprocessing: see :data:`Preprocessing`.
      output_scale: the paper's 0.01; it takes 1 with raw gradients of the quadratics.

    Raises:
      ValueError: for an unknown preprocessing.
    """
    _known(preprocessing)
    theta = jax.tree.map(jnp.asarray, theta)
    layers = _layers(theta)

    def init_state(params: optax.Params) -> ScaleByLstmState:
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        units = [layer["b"].size // 4 for layer in layers]
        return ScaleByLstmState(
            jnp.zeros((), jnp.int32), _empty_chunks(size, units, preprocessing == "features")
        )

    def step(
        g: Float[Array, " n"], chunk: Chunk, count: Int[Array, ""]
    ) -> tuple[Float[Array, " n"], Chunk]:
        moved, chunk = _step(theta, g, chunk, count, preprocessing)
        return output_scale * moved, chunk

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByLstmState]:
        del extra_args
        gradients, treedef = jax.tree.flatten(updates)
        size = sum(leaf.size for leaf in gradients)
        if not size:
            return updates, state
        chunks, width = _chunks(size)
        flat = [leaf.reshape(-1).astype(jnp.float32) for leaf in gradients]
        g = jnp.pad(jnp.concatenate(flat), (0, chunks * width - size)).reshape(chunks, width)
        count = jnp.asarray(optax.safe_increment(state.count))
        steps, memories = jax.lax.map(lambda c: step(c[0], c[1], count), (g, state.chunks))
        like = gradients if params is None else treedef.flatten_up_to(params)
        deltas = treedef.unflatten(_split(steps.reshape(-1), gradients, like))
        return deltas, ScaleByLstmState(count, memories)

    return optax.GradientTransformationExtraArgs(init_state, update)


def lstm_rule(preprocessing: Preprocessing = "paper") -> LearnedOptimizer:
    """The LSTM optimizer for meta-training and benchmarks."""
    return LearnedOptimizer(
        "lstm" if _known(preprocessing) == "paper" else f"lstm-{preprocessing}",
        functools.partial(init, preprocessing=preprocessing),
        functools.partial(scale_by_lstm, preprocessing=preprocessing),
    )


def _known(preprocessing: str) -> str:
    if preprocessing not in NUM_CHANNELS:
        names = ", ".join(get_args(Preprocessing))
        raise ValueError(f"preprocessing must be one of {names}, got {preprocessing!r}.")
    return preprocessing


def _chunks(size: int) -> tuple[int, int]:
    """Number and width of the chunks of a row; the last one is padded by less than their number."""
    chunks = max(-(-size // MAX_CHUNK), 1)
    return chunks, -(-size // chunks)


def _split(
    steps: Float[Array, " n"], gradients: list[Array], like: list[Array]
) -> list[Float[Array, "..."]]:
    """The row of all coordinates as tensors again."""
    parts, start = [], 0
    for g, p in zip(gradients, like, strict=True):
        parts.append(steps[start : start + g.size].reshape(g.shape).astype(p.dtype))
        start += g.size
    return parts


def _moving(
    average: Float[Array, "decays n"], x: Float[Array, " n"], decays: tuple[float, ...]
) -> Float[Array, "decays n"]:
    decay = jnp.asarray(decays, jnp.float32)[:, None]
    return decay * average + (1.0 - decay) * x


def preprocess(
    g: Float[Array, " n"], preprocessing: Preprocessing, chunk: Chunk, count: Int[Array, ""]
) -> Float[Array, "channels n"]:
    """The inputs of the first layer.

    Args:
      g: gradient, any scale.
      preprocessing: see :data:`Preprocessing`.
      chunk: ``features`` reads its moments, this gradient included.
      count: updates so far, this one included.
    """
    if preprocessing == "raw":
        return g[None]
    if preprocessing == "code":
        return _clipped_log_and_sign(g)
    channels = features.log_and_sign(g).T
    if preprocessing == "paper":
        return channels
    return jnp.concatenate([channels, _slow_features(g, chunk, count)])


def _clipped_log_and_sign(g: Float[Array, " n"], k: float = 5.0) -> Float[Array, "2 n"]:
    """The preprocessing of the paper's public code."""
    eps = jnp.finfo(jnp.float32).eps
    logarithm = jnp.maximum(jnp.log(jnp.abs(g) + eps) / k, -1.0)
    return jnp.stack([logarithm, jnp.clip(g * math.exp(k), -1.0, 1.0)])


def _slow_features(
    g: Float[Array, " n"], chunk: Chunk, count: Int[Array, ""]
) -> Float[Array, "9 n"]:
    """What an LSTM cannot hold for hundreds of steps: moment ratios and the age, all bounded."""
    t = count.astype(jnp.float32)
    mu, nu = (
        average / (1.0 - jnp.asarray(decays, jnp.float32) ** t)[:, None]
        for average, decays in ((chunk.mu, MOMENTUM_DECAYS), (chunk.nu, SECOND_DECAYS))
    )
    fast, slow = nu
    known = slow > 0
    inverse = jnp.where(known, jax.lax.rsqrt(jnp.where(known, slow, 1.0)), 0.0)
    ratios = jnp.concatenate([g[None], mu]) * inverse
    trend = jnp.log(jnp.where(known, fast, 1.0) / jnp.where(known, slow, 1.0) + 1e-8)
    age = jnp.broadcast_to((t / (t + jnp.asarray(AGES)))[:, None], (len(AGES), g.size))
    bounded = ratios / (1.0 + jnp.abs(ratios))
    return jnp.concatenate([bounded, jnp.clip(trend / 4.0, -1.0, 1.0)[None], age])
