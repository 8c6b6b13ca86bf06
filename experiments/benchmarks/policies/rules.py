# SPDX-License-Identifier: Apache-2.0
"""The optimizers of the policy benchmark: rules by hand, ours, learned rivals.

Numbers of Adam are data of its compiled program and not part of it, so default, tuned and all
trials of a search share one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array

import mnemosyne
from experiments import rivals
from experiments.benchmarks.policies.cells import Algo, Cell
from robotics import optimizers

Hyper = dict[str, Array]
Make = Callable[[Any, Hyper, Cell], optax.GradientTransformation]
"""``make(theta, hyper, cell)``."""

HAND_DESIGNED = ("adam-rel", "sgd", "rmsprop", "lion", "muon")
"""Beside the Adams: each at the default rate of ``mnemosyne train --optimizer``."""


class Rule(NamedTuple):
    """One optimizer with all of its numbers.

    Attributes:
      name: column in tables.
      make: builds the transformation; one function object for all rules of a kind, so that they
        share compiled programs.
      description: everything its numbers depend on besides the cell and the seeds.
      hyper: scalars of the rule, traced.
      theta: meta-parameters, ``None`` for rules by hand.
    """

    name: str
    make: Make
    description: dict[str, Any]
    hyper: dict[str, float]
    theta: Any = None


class AdamSettings(NamedTuple):
    """What a search for the best Adam varies.

    Attributes:
      rate: at the start.
      b1: decay of the first moment.
      b2: decay of the second moment.
      anneal: whether the rate falls linearly to 0.
      clip: largest norm of the whole gradient; infinite for no clipping.
    """

    rate: float
    b1: float = 0.9
    b2: float = 0.999
    anneal: bool = False
    clip: float = math.inf

    def text(self) -> str:
        """For tables.

        Example:
          >>> AdamSettings(1e-3, 0.9, 0.99, anneal=True).text()
          '0.001 (0.9, 0.99) annealed'
        """
        clipped = f" clip {self.clip:g}" if math.isfinite(self.clip) else ""
        return f"{self.rate:.3g} ({self.b1:g}, {self.b2:g}){' annealed' * self.anneal}{clipped}"


def _make_adam(theta: Any, hyper: Hyper, cell: Cell) -> optax.GradientTransformation:
    """Adam whose every number may be traced; see :class:`AdamSettings`."""
    del theta
    return optax.chain(
        optax.clip_by_global_norm(hyper["clip"]),
        optax.scale_by_adam(hyper["b1"], hyper["b2"]),
        optimizers.scale_by_annealed_rate(
            hyper["rate"], cell.num_updates, final=1.0 - hyper["anneal"]
        ),
    )


def adam(name: str, settings: AdamSettings) -> Rule:
    """Adam with the settings of one trial.

    Infinity is no JSON, so an absent clip is ``None`` in the description.
    """
    numbers = {key: float(value) for key, value in settings._asdict().items()}
    clip = settings.clip if math.isfinite(settings.clip) else None
    return Rule(name, _make_adam, {"rule": "adam", **settings._asdict(), "clip": clip}, numbers)


@functools.cache
def _by_name(name: str, algo: Algo) -> Make:
    def make(theta: Any, hyper: Hyper, cell: Cell) -> optax.GradientTransformation:
        del theta, hyper
        return optimizers.make_optimizer(name, None, cell.num_updates, algo)

    return make


def named(name: str, algo: Algo) -> Rule:
    """A rule by hand at its documented rate: one of ``mnemosyne train --optimizer``."""
    rate = optimizers.default_learning_rate(name, algo)
    description = {"rule": name, "rate": rate, "version": _VERSIONS.get(name, 1)}
    return Rule(name, _by_name(name, algo), description, {})


_VERSIONS: dict[str, int] = {}
"""Raised for a rule of :mod:`robotics.optimizers` that changes its meaning."""


@functools.cache
def _from_line(make_line: rivals.Make) -> Make:
    def make(theta: Any, hyper: Hyper, cell: Cell) -> optax.GradientTransformation:
        del hyper
        told = None if cell.withheld else cell.num_updates
        return make_line(theta, jnp.ones(()), told)  # pyright: ignore[reportArgumentType]

    return make


def from_line(line: rivals.Line) -> Rule:
    """A line of the supervised benchmark that has nothing to tune: ours, or a learned rival."""
    return Rule(line.name, _from_line(line.make), line.description, {}, line.theta)


def hand_designed(algo: Algo) -> list[Rule]:
    """Rivals with one setting each: default Adam, KL-adaptive Adam, and further rules.

    Evolution strategies have Adam and SGD, which is what they are run with; those that follow a
    policy's KL divergence or its rollouts have no meaning there.
    """
    rate = optimizers.default_learning_rate("adam", algo)
    assert rate is not None
    names = [*HAND_DESIGNED, "adam-kl"] if algo == "ppo" else ["sgd"]
    return [adam("adam", AdamSettings(rate)), *(named(name, algo) for name in names)]


def judged(weights: str, learned: tuple[str, ...]) -> list[Rule]:
    """Ours first, then what was given by ``--rival``.

    Raises:
      ValueError: for weights that are not there, or a name given twice.
    """
    names = [*TAKEN, *(spec.partition("=")[0] for spec in learned)]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ValueError(f"--rival {name}=...: that name is taken, choose another.")
    found = [from_line(rivals.ours("ours", mnemosyne.load(weights)))]
    return found + [from_line(rivals.learned(spec)) for spec in learned]


def untrained(weights: str) -> Rule:
    """The mode of these weights before any meta-training."""
    return from_line(rivals.untrained(mnemosyne.load(weights).config))


TAKEN = ("ours", "untrained", "adam", "adam-m", "oracle", "adam-kl", "random", *HAND_DESIGNED)
"""Names that a learned rival cannot have."""
