# SPDX-License-Identifier: Apache-2.0
"""The meta-training task protocol: small pure objects whose shapes are fixed and whose randomness is a key."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float, Key

Params = Any
Batch = Any


@runtime_checkable
class Task(Protocol):
    """One family of optimization problems that share array shapes, so that many can be vmapped.

    Attributes:
      name: stable name, such as ``"mlp-64-32-10-relu/mnist8"``; goes into artifact headers.
    """

    name: str

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters."""
        ...

    def sample(self, key: Key[Array, ""]) -> Batch:
        """One minibatch of training data."""
        ...

    def loss(self, params: Params, batch: Batch) -> Float[Array, ""]:
        """The scalar that the inner optimizer minimises."""
        ...

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """The loss on a scale that is comparable between tasks, clipped above chance; lower is better."""
        ...
