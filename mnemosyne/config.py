# SPDX-License-Identifier: Apache-2.0
"""Shape and mode of the optimizer; stored in every artifact and enough to rebuild the network."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

from mnemosyne.kernels import FEATURE_MAPS, KernelName

Mode = Literal["plus", "paper", "paper-coordinate"]
Moments = Literal["float32", "bfloat16-mu", "lean"]


@dataclasses.dataclass(frozen=True)
class MnemosyneConfig:
    """Configuration of one optimizer network. The three modes are settings of the same modules."""

    mode: Mode = "plus"
    """``plus``: Adam's moments are the nominal direction and the network decides step sizes and a
    bounded residual;
    ``paper``: the pure learned update; ``paper-coordinate``: one memory a coordinate, for small
    problems only."""
    dim: int = 16
    """Width of a token and of the memory's values."""
    key_dim: int = 8
    """Width of keys and queries."""
    num_features: int = 16
    """Random features of the memory and of every attention, ``r``; even."""
    kernel: KernelName = "cosh"
    """Feature map; the others are ablations."""
    taus: tuple[float, ...] = (0.2, 0.03, 0.003)
    """Decay rates of the memory heads, a step; a head remembers about ``1 / tau`` steps."""
    encoder_width: int = 8
    """Width of the coordinate encoder."""
    chunk: tuple[int, int] = (4, 4)
    """Coordinates a chunk and chunks a token that the encoder reads. ``paper`` covers every
    coordinate this way."""
    sample: int = 128
    """``plus``: at most this many coordinates of a token, evenly spread, enter its statistics."""
    token_size: int = 1024
    """``plus``: coordinates a token covers before the cap of ``max_tokens`` a tensor makes tokens
    larger."""
    max_tokens: int = 16
    """``plus``: most tokens a tensor is cut into."""
    encoder: bool = True
    """``plus``: the two-level encoder of sampled coordinates, beside the tokens' statistics."""
    cross_token: bool = True
    """``plus``: attention over the tokens of the whole network."""
    residual: bool = True
    """``plus``: the per-coordinate residual."""
    polar: bool = True
    """``plus``: matrices may follow their momentum orthogonalised tile by tile, as Muon does with
    whole ones."""
    adaptive: bool = True
    """``plus``: the network is told of the recent path of the weights, from which it can find step
    sizes along the way."""
    eigenbasis: bool = False
    """``plus``: matrices are seen in the eigenbasis of their gradients' second moments, as in
    Shampoo; for networks of narrow layers, such as policies."""
    max_gain_change: float = 0.2
    """``plus``: by how much an update can change what step sizes are multiplied by, as a
    logarithm."""
    moments: Moments = "float32"
    """``plus``: how the moments are stored. ``float32``; ``bfloat16-mu``: the first one in half;
    ``lean``: both in half, the second with stochastic rounding, about 1.1 floats a parameter."""

    def __post_init__(self) -> None:
        """Refuses what cannot be built."""
        if self.mode not in ("plus", "paper", "paper-coordinate"):
            raise ValueError(f"mode must be plus, paper or paper-coordinate, got {self.mode!r}.")
        if self.moments not in get_args(Moments):
            raise ValueError(f"moments must be one of {get_args(Moments)}, got {self.moments!r}.")
        if self.kernel not in FEATURE_MAPS:
            raise ValueError(f"kernel must be one of {sorted(FEATURE_MAPS)}, got {self.kernel!r}.")
        if not self.taus or min(self.taus) < 0:
            raise ValueError(f"taus must be non-empty and non-negative, got {self.taus}.")
        if not self.max_gain_change >= 0:
            raise ValueError(f"max_gain_change must be at least 0, got {self.max_gain_change}.")

    @property
    def memory_floats(self) -> int:
        """Floats of memory state a slot: ``heads * r * (dim + 1)``."""
        return len(self.taus) * self.num_features * (self.dim + 1)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> MnemosyneConfig:
        """The inverse of :meth:`to_dict`; an unknown field is a ValueError."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise ValueError(f"unknown optimizer configuration fields {unknown}.")
        # JSON has no tuples.
        restored: dict[str, Any] = {
            name: tuple(value) if name in ("taus", "chunk") else value
            for name, value in fields.items()
        }
        return cls(**restored)


def paper_config(coordinate: bool = False) -> MnemosyneConfig:
    """The faithful system, with two decays.

    Args:
      coordinate: give every coordinate a memory of its own, instead of every 32 x 32 of them.
    """
    if coordinate:
        return MnemosyneConfig("paper-coordinate", dim=8, taus=(0.1, 0.01), chunk=(1, 1))
    return MnemosyneConfig("paper", dim=16, num_features=32, taus=(0.1, 0.01), chunk=(32, 32))
