# SPDX-License-Identifier: Apache-2.0
"""What the token network of ``plus`` mode is shown of an update, and what is kept to show it later.

A sample of coordinates, the path so far and what the host tells become one row of inputs a token;
after the update, its steps are added to the path.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mnemosyne import features, foresight, path
from mnemosyne.config import MnemosyneConfig
from mnemosyne.features import LossState
from mnemosyne.foresight import ForesightState
from mnemosyne.layout import Layout, sample_indices
from mnemosyne.packing import Blocks, Packing, take
from mnemosyne.path import PathState
from mnemosyne.units import Verdict

TINY = 1e-30


class Told(NamedTuple):
    """What the host tells beside gradients.

    Attributes:
      extras: features of the optional scalars, see :func:`mnemosyne.features.encode_extras`.
      acting: 1 where actions depend on a token, else 0; ``None`` if nothing is said.
      trust: how far the fall of the loss may be followed, see :mod:`mnemosyne.foresight`.
    """

    extras: Float[Array, " extras"]
    acting: Float[Array, " tokens"] | None
    trust: Float[Array, ""]


class Inputs(NamedTuple):
    """What :func:`mnemosyne.controller.control` reads.

    Attributes:
      tokens: features of each token, of its network, of time, and the extras.
      coordinates: what the encoder reads.
      counts: coordinates that each token stands for.
    """

    tokens: Float[Array, "tokens inputs"]
    coordinates: Float[Array, "tokens chunks size f"]
    counts: Float[Array, " tokens"]


def draw(
    blocks: tuple[Blocks, Blocks, Blocks, Blocks],
    packing: Packing,
    masses: tuple[Float[Array, " tokens"], Float[Array, " tokens"]],
    verdict: Verdict,
) -> features.Sample:
    """Coordinates for statistics and encoder, bias-corrected, in the units of this step.

    Args:
      blocks: gradient, first and second moment before it, and parameters.
      packing: where the coordinates lie.
      masses: weight that the two moments have gathered.
      verdict: gives the change of units.
    """
    g, mu, nu, p = (take(part, packing) for part in blocks)
    return features.Sample(
        g=g,
        m=mu * (verdict.ratio / jnp.maximum(masses[0], TINY))[:, None],
        v=nu * (jnp.square(verdict.ratio) / jnp.maximum(masses[1], TINY))[:, None],
        p=p,
    )


@functools.lru_cache(maxsize=256)
def _static(shapes: tuple[tuple[int, ...], ...], tokens: tuple[int, ...]) -> tuple[Any, Any]:
    """Shape features of each token, and the coordinates that it stands for."""
    pairs = [(shape, count) for shape, count in zip(shapes, tokens, strict=True) if count]
    known = np.concatenate([features.shape_features(shape, count) for shape, count in pairs])
    sizes = [np.full(count, math.prod(shape) / count, np.float32) for shape, count in pairs]
    return known, np.concatenate(sizes)


def show(
    config: MnemosyneConfig,
    layout: Layout,
    sample: features.Sample,
    trodden: PathState,
    count: Int[Array, ""],
    told: Told,
) -> Inputs:
    """Sample, path, time and extras as inputs of the token network.

    Args:
      config: says what is read.
      layout: tokens of this network.
      sample: from :func:`draw`.
      trodden: the path before this update.
      count: updates so far.
      told: what the host tells.
    """
    shapes, sizes = _static(layout.shapes, layout.tokens)
    counts = jnp.asarray(sizes)
    per_token, network = features.token_features(sample, counts, jnp.asarray(shapes), told.acting)
    own, common = _look_back(config, sample, trodden, counts, told)
    common = jnp.concatenate([common, features.time_features(count)])
    context = jnp.broadcast_to(common, (layout.num_tokens, common.size))
    acting = jnp.ones(layout.num_tokens) if told.acting is None else told.acting
    extras = features.tell(told.extras, acting)
    chunk_size, num_chunks = config.chunk
    read = sample_indices(config.sample, chunk_size * num_chunks)
    coordinates = features.coordinate_features(jax.tree.map(lambda x: x[:, read], sample))
    return Inputs(
        tokens=jnp.concatenate([per_token, own, network, context, extras], axis=-1),
        coordinates=coordinates.reshape(layout.num_tokens, num_chunks, chunk_size, -1),
        counts=counts,
    )


def _path_sample(config: MnemosyneConfig) -> np.ndarray:
    """Which of the sampled coordinates of a token its path is kept of."""
    return sample_indices(config.sample, path.WIDTH)


def _look_back(
    config: MnemosyneConfig,
    sample: features.Sample,
    trodden: PathState,
    counts: Float[Array, " tokens"],
    told: Told,
) -> tuple[Float[Array, "tokens 3"], Float[Array, " 2"]]:
    """Features of the path, of tokens and of the network; 0 but for the gain if it is not kept."""
    if not config.adaptive:
        gain = jnp.zeros((counts.size, 3)).at[:, 2].set(path.gain(trodden))
        return gain, jnp.zeros(features.NUM_PATH_FEATURES)
    fall = features.loss_fall(told.extras)
    return path.features(trodden, sample.g[:, _path_sample(config)], counts, fall, told.trust)


def tread(
    config: MnemosyneConfig,
    layout: Layout,
    packing: Packing,
    trodden: PathState,
    deltas: Blocks,
    log_gain: Float[Array, " tokens"],
) -> PathState:
    """The path with this update; of a network that is not told of it, only the gain."""
    if not config.adaptive:
        return trodden._replace(log_gain=log_gain)
    _, counts = _static(layout.shapes, layout.tokens)
    moved = take(deltas, packing)[:, _path_sample(config)]
    return path.advance(trodden, moved, log_gain, jnp.asarray(counts))


def notice(
    loss: LossState, foreseen: ForesightState, value: Any, g: list[Array]
) -> tuple[LossState, ForesightState]:
    """What a loss says; nothing if the host passes none.

    Args:
      loss: running statistics of the loss.
      foreseen: of networks of few coordinates, whether losses were foreseen.
      value: the loss, or ``None``.
      g: gradients in the host's units.
    """
    if value is None:
        return loss, foreseen
    value = jnp.asarray(value, jnp.float32)
    if foreseen.step.size:
        foreseen = foresight.compare(foreseen, flat(g), value)
    return features.update_loss(loss, value), foreseen


def flat(tensors: list[Array]) -> Float[Array, " coordinates"]:
    """All coordinates in a row; of networks of few of them."""
    return jnp.concatenate([tensor.astype(jnp.float32).ravel() for tensor in tensors])
