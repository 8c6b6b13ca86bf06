# SPDX-License-Identifier: Apache-2.0
"""What the optimizer is held against: hand-designed rules with a grid of rates, and learned ones.

Every rival is a :class:`Line`: one recipe at several rates. A tuned line is judged by its best
rate, chosen on the very task; a learned line has a single entry and nothing to tune.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from optax import contrib

import mnemosyne
from experiments import cache
from mnemosyne import artifacts, eigenbasis

Make = Callable[[Any, Array, int], optax.GradientTransformation]
"""``make(theta, rate, steps)`` for a run of that many updates."""
Read = Callable[[Any, Any], Any]
"""``read(opt_state, params)``: the weights that are judged."""


def last_weights(opt_state: Any, params: Any) -> Any:
    """The weights as they are."""
    del opt_state
    return params


class Line(NamedTuple):
    """One recipe at several rates.

    Attributes:
      name: column in tables, such as ``"adam"``.
      make: builds the transformation; one function object for all lines of a kind, so that they
        share compiled programs.
      rates: what is tried; a single 1.0 where there is nothing to tune.
      description: everything its numbers depend on besides rates, task, length and seeds.
      theta: meta-parameters, ``None`` for hand-designed rules.
      read: weights to judge; schedule-free rules keep others than they show.
    """

    name: str
    make: Make
    rates: tuple[float, ...]
    description: dict[str, Any]
    theta: Any = None
    read: Read = last_weights

    @property
    def tuned(self) -> bool:
        """Whether the line is judged by the best of several rates."""
        return len(self.rates) > 1


def rate_grid(low: float, high: float, count: int) -> tuple[float, ...]:
    """Rates from ``10**low`` to ``10**high``, evenly spaced in the logarithm, four digits.

    Example:
      >>> rate_grid(-3, -1, 3)
      (0.001, 0.01, 0.1)
    """
    return tuple(float(f"{rate:.4g}") for rate in np.logspace(low, high, count))


ADAM_RATES = rate_grid(-5, 1, 15)
"""Fifteen rates, a factor 2.7 apart; wide enough that the best one is not at an end, which every
row of a result states."""
SHORT_RATES = rate_grid(-4, 0, 9)
"""Half a decade apart, for the lines beside the envelope."""


def _cosine(count: jax.typing.ArrayLike, steps: int) -> Array:
    return 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(jnp.asarray(count) / steps, 1.0)))


def _adam(theta: Any, rate: Array, steps: int) -> optax.GradientTransformation:
    del theta, steps
    # A traced rate: one compilation serves the whole grid.
    return optax.adam(lambda _: rate)


def _adam_cosine(theta: Any, rate: Array, steps: int) -> optax.GradientTransformation:
    del theta
    return optax.adam(lambda count: rate * _cosine(count, steps))


def _muon_cosine(theta: Any, rate: Array, steps: int) -> optax.GradientTransformation:
    del theta
    return contrib.muon(lambda count: rate * _cosine(count, steps))


def _schedule_free(theta: Any, rate: Array, steps: int) -> optax.GradientTransformation:
    del theta
    return contrib.schedule_free_adamw(rate, warmup_steps=max(1, steps // 20))


def _averaged_weights(opt_state: Any, params: Any) -> Any:
    return contrib.schedule_free_eval_params(opt_state, params)


def hand_designed(adam: tuple[float, ...], short: tuple[float, ...]) -> list[Line]:
    """Adam's envelope first, then the further lines, each with defaults for all but the rate.

    Args:
      adam: rates of the envelope.
      short: rates of the others; constant Adam is a weak reference, they are stronger ones.
    """
    adam_words = {"rule": "optax.adam", "b1": 0.9, "b2": 0.999, "eps": 1e-8}
    cosine = {"schedule": "cosine to 0"}
    free = {"rule": "optax.contrib.schedule_free_adamw", "b1": 0.9, "warmup": "steps // 20"}
    muon = {"rule": "optax.contrib.muon", "beta": 0.95, "adam rate": "the same", **cosine}
    return [
        Line("adam", _adam, adam, adam_words | {"schedule": "constant"}),
        Line("adam-cosine", _adam_cosine, short, adam_words | cosine),
        Line("schedule-free", _schedule_free, short, free, read=_averaged_weights),
        Line("muon-cosine", _muon_cosine, short, muon),
    ]


def annealed(rates: tuple[float, ...]) -> Line:
    """Adam with a cosine at given rates: the longer runs that estimate a task's lowest loss."""
    return hand_designed(ADAM_RATES, SHORT_RATES)[1]._replace(name="floor", rates=rates)


@functools.cache
def _make_ours(config: mnemosyne.MnemosyneConfig) -> Make:
    def make(theta: Any, rate: Array, steps: int) -> optax.GradientTransformation:
        del rate
        return mnemosyne.from_meta_params(theta, config, total_steps=steps)

    return make


def ours(name: str, artifact: mnemosyne.Artifact) -> Line:
    """An artifact of ours, with zero tuning; its results are void when the package changes."""
    description = {
        "rule": "mnemosyne",
        "config": artifact.config.to_dict(),
        "tensors": artifacts.tensor_sha256(artifact.meta_params),
        "sources": cache.sources_hash(Path(mnemosyne.__file__).parent),
    }
    make = _make_ours(artifact.config)
    return Line(name, make, (1.0,), description, jax.tree.map(jnp.asarray, artifact.meta_params))


def untrained(config: mnemosyne.MnemosyneConfig) -> Line:
    """Our own mode before any meta-training: no claim unless trained weights beat it.

    It is Adam at a fixed rate by contract, which has tests, so its results outlive changes of the
    sources; in the eigenbasis of the gradients where the configuration asks for that.
    """
    init = jax.jit(mnemosyne.init_meta_params, static_argnums=1)
    theta = init(jax.random.key(0), config)
    # Of the configuration, only mode and basis matter to an identity, none of the features does.
    description = {"rule": "untrained", "mode": config.mode, "contract": "2"}
    if config.eigenbasis:
        description["eigenbasis"] = f"{eigenbasis.DECAY:g}, {eigenbasis.INTERVAL}"
    return Line("untrained", _make_ours(config), (1.0,), description, theta)


def learned(spec: str) -> Line:
    """A learned rival or an ablation of ours, from the command line.

    Args:
      spec: ``NAME=PATH``. A name of :data:`mnemosyne.baselines.BASELINES` reads the tensors of
        that baseline from PATH; any other name labels one of our own artifacts.

    Raises:
      ValueError: if it is no such pair, or the file does not fit the name.
    """
    from mnemosyne.baselines import BASELINES

    name, equals, path = spec.partition("=")
    if not (name and equals and path):
        raise ValueError(f"--rival takes NAME=PATH, such as lstm=lstm.safetensors, got {spec!r}.")
    if name not in BASELINES:
        return ours(name, mnemosyne.load(path))
    theta = read_theta(Path(path), jax.eval_shape(BASELINES[name]().init, jax.random.key(0)))
    package = Path(mnemosyne.__file__).parent
    description = {
        "rule": name,
        "tensors": cache.tree_hash(theta),
        "sources": cache.sources_hash(package / "baselines"),
    }
    return Line(name, _make_baseline(name), (1.0,), description, theta)


@functools.cache
def _make_baseline(name: str) -> Make:
    from mnemosyne.baselines import BASELINES

    rule = BASELINES[name]()

    def make(theta: Any, rate: Array, steps: int) -> optax.GradientTransformation:
        del rate, steps
        return rule.transform(theta)

    return make


def read_theta(path: Path, like: Any) -> Any:
    """Meta-parameters of a baseline from a file of named tensors.

    Args:
      path: a safetensors file, or a meta-training folder with ``best.safetensors``; names are the
        keys of nested dictionaries joined by ``/``.
      like: pytree of nested dictionaries with the shapes that are expected.

    Raises:
      ValueError: if the file is missing, damaged, or holds other tensors.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = path / "best.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"there is no file {path}.")
    try:
        theta = artifacts.unflatten(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no artifact: {error}.") from error
    found, expected = (jax.tree.map(lambda x: tuple(x.shape), tree) for tree in (theta, like))
    if found != expected:
        raise ValueError(f"{path} holds the meta-parameters of another rule.")
    return jax.tree.map(jnp.asarray, theta)
