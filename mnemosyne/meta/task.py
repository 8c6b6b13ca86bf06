# SPDX-License-Identifier: Apache-2.0
"""Tasks and families of tasks: small pure objects with fixed shapes, random only by a key."""

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

    @property
    def name(self) -> str:
        """See above; a field serves as well."""
        ...

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
        """The loss on a scale common to all tasks, clipped above chance; lower is better."""
        ...


@runtime_checkable
class Family(Protocol):
    """Tasks of equal shapes, of which each inner problem is given one.

    Attributes:
      name: see :class:`Task`.
    """

    @property
    def name(self) -> str:
        """See above; a field serves as well."""
        ...

    def draw(self, key: Key[Array, ""]) -> Task:
        """One task; a function of the key alone."""
        ...


def draw_task(task: Task | Family, key: Key[Array, ""]) -> Task:
    """A task of the family; a task is a family of one."""
    return task.draw(key) if isinstance(task, Family) else task
