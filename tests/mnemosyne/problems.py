# SPDX-License-Identifier: Apache-2.0
"""Small trees, perturbed meta-parameters and loops shared by the tests of the optimizer.

These tests pay for compilation, little else. So they share :func:`update`, which takes everything
that varies as data, and what happens between two updates is NumPy.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mnemosyne
from mnemosyne import features

SHAPES = {"scalar": (), "bias": (10,), "matrix": (64, 33), "kernel": (3, 3, 2, 4)}
PAIR_SHAPES = {"bias": (3,), "matrix": (4, 3)}
DEFAULT = mnemosyne.MnemosyneConfig()
SMALL = mnemosyne.MnemosyneConfig(sample=16, chunk=(2, 2))
"""For what does not depend on the size of the network; has the widths of the default one."""

LEAN = dataclasses.replace(
    SMALL, taus=(0.1,), encoder=False, cross_token=False, residual=False, polar=False
)
"""For what needs any network that learns; compiles in a third of the time."""

long_jit = functools.partial(
    jax.jit,
    compiler_options={"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True},
)
"""``jit`` for the few programs that run for longer than they compile, whatever the others get."""

Step = Callable[[Any, Any, Any], tuple[Any, Any]]
"""``step(grads, state, params) -> (updates, state)``."""


def _normal(seed: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(s), np.float32) for name, s in shapes.items()}


def tree(seed: int = 0) -> dict[str, np.ndarray]:
    """A scalar, a vector, a matrix that needs several tokens, and a convolution kernel."""
    return jax.tree.map(lambda x: np.float32(0.3) * x, _normal(seed, SHAPES))


def _optimizer(config: mnemosyne.MnemosyneConfig) -> optax.GradientTransformationExtraArgs:
    """Its update is one program for all who call it with equal shapes."""
    optimizer = mnemosyne.from_meta_params(meta_params(config), config)
    return optax.GradientTransformationExtraArgs(optimizer.init, jax.jit(optimizer.update))


@functools.cache
def small() -> optax.GradientTransformationExtraArgs:
    """The small network."""
    return _optimizer(SMALL)


@functools.cache
def lean() -> optax.GradientTransformationExtraArgs:
    """The lean network."""
    return _optimizer(LEAN)


def pair(seed: int = 0) -> dict[str, jax.Array]:
    """A vector and a small matrix."""
    return jax.tree.map(lambda x: jnp.asarray(0.3 * x), _normal(seed, PAIR_SHAPES))


@functools.cache
def untrained(config: mnemosyne.MnemosyneConfig = DEFAULT) -> mnemosyne.optimizer.MetaParams:
    """Fresh meta-parameters."""
    return jax.jit(mnemosyne.init_meta_params, static_argnums=1)(jax.random.key(0), config)


@functools.cache
def meta_params(
    config: mnemosyne.MnemosyneConfig = DEFAULT, noise: float = 0.05
) -> mnemosyne.optimizer.MetaParams:
    """Meta-parameters with noise in every entry, so that no path of the network is silent."""
    rng = np.random.default_rng(1)

    def perturb(x: jax.Array) -> jax.Array:
        return jnp.asarray(np.asarray(x) + noise * rng.standard_normal(x.shape), jnp.float32)

    return jax.tree.map(perturb, untrained(config))


def noisy_gradient(params: Any, index: int, scale: float = 1.0) -> Any:
    """The gradient of half the squared norm, with noise that depends on ``index``."""
    rng = np.random.default_rng(index)

    def gradient(p: Any) -> np.ndarray:
        noise = 0.3 * rng.standard_normal(p.shape)
        return np.float32(scale) * np.asarray(np.asarray(p) + noise, np.float32)

    return jax.tree.map(gradient, params)


@jax.jit
def update(meta_params: Any, grads: Any, state: Any, params: Any, extras: dict[str, Any]) -> Any:
    """One update of the default network; compiled once without extras and once with all."""
    optimizer = mnemosyne.scale_by_mnemosyne(meta_params)
    return optimizer.update(grads, state, params, **extras)


def learned(meta_params: Any, **extras: float) -> Step:
    """The default network as a step; extras that are not given are nan if any is."""
    every = {name: np.float32(extras.get(name, np.nan)) for name in features.EXTRAS}
    return lambda *arguments: update(meta_params, *arguments, every if extras else {})


def init(params: Any) -> mnemosyne.ScaleByMnemosyneState:
    """The state of the default network before its first update."""
    return mnemosyne.scale_by_mnemosyne(meta_params()).init(params)


def trajectory(
    step: Step,
    state: Any,
    params: Any,
    steps: int = 20,
    scale: float = 1.0,
    growth: float = 1.0,
) -> tuple[Any, Any, list[Any]]:
    """Runs on :func:`noisy_gradient`, scaled by ``scale * growth**index``.

    Returns:
      Parameters, state and the updates.
    """
    history = []
    for index in range(steps):
        grads = noisy_gradient(params, index, scale * growth**index)
        updates, state = step(grads, state, params)
        history.append(jax.device_get(updates))
        params = jax.tree.map(np.add, params, history[-1])
    return params, state, history


def norm(tree: Any) -> float:
    """Euclidean norm of all entries together."""
    return float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree))))


def gap(a: Any, b: Any) -> float:
    """The largest difference of two trees of one structure; nan if there is one."""
    differences = jax.tree.map(
        lambda x, y: np.max(np.abs(np.asarray(x) - np.asarray(y)), initial=0.0), a, b
    )
    return float(np.max(jax.tree.leaves(differences)))


def all_finite(tree: Any) -> bool:
    """Whether every entry is finite."""
    return all(bool(np.all(np.isfinite(leaf))) for leaf in jax.tree.leaves(tree))


def same_program(one: Callable[..., Any], other: Callable[..., Any], *arguments: Any) -> bool:
    """Whether two functions are lowered to the same text, before any compilation."""
    texts = {jax.jit(lambda *a, f=f: f(*a)).lower(*arguments).as_text() for f in (one, other)}
    return len(texts) == 1


def two_updates(optimizer: optax.GradientTransformation, params: Any, like: Any = None) -> Any:
    """Two updates on noisy gradients.

    Args:
      optimizer: any optax transformation.
      params: of the transformation.
      like: what gradients are taken of, if not of ``params``.

    Returns:
      Parameters afterwards.
    """
    state = optimizer.init(params)
    for index in range(2):
        grads = jax.tree.map(jnp.asarray, noisy_gradient(params if like is None else like, index))
        jax.eval_shape(optimizer.update, grads, state, params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params
