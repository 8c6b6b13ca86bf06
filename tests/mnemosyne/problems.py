# SPDX-License-Identifier: Apache-2.0
"""Small trees, perturbed meta-parameters and loops shared by the tests of the optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import mnemosyne

SHAPES = {"scalar": (), "bias": (10,), "matrix": (64, 33), "kernel": (3, 3, 2, 4)}


def tree(seed: int = 0, scale: float = 0.3) -> dict[str, jax.Array]:
    """A tree with a scalar, a vector, a matrix that needs several tokens, and a convolution kernel."""
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    return {
        name: scale * jax.random.normal(key, shape)
        for (name, shape), key in zip(SHAPES.items(), keys, strict=True)
    }


def meta_params(
    config: mnemosyne.MnemosyneConfig | None = None, noise: float = 0.05
) -> mnemosyne.optimizer.MetaParams:
    """Meta-parameters with noise in every entry, so that no path of the network is silent."""
    theta = mnemosyne.init_meta_params(jax.random.key(0), config)
    leaves, treedef = jax.tree.flatten(theta)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + noise * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(treedef, noisy)


def noisy_gradient(params: Any, key: jax.Array, scale: float | jax.Array = 1.0) -> Any:
    """The gradient of half the squared norm, with noise."""
    noise = optax.tree.random_like(key, params)
    return jax.tree.map(lambda p, n: scale * (p + 0.3 * n).astype(p.dtype), params, noise)


def trajectory(
    optimizer: optax.GradientTransformation,
    params: Any,
    steps: int = 20,
    scale: float = 1.0,
    **extras: Any,
) -> tuple[Any, Any, Any]:
    """Runs on :func:`noisy_gradient`; returns parameters, state and the stacked updates."""
    optimizer = optax.with_extra_args_support(optimizer)

    # The scale is traced: as a constant it would be compiled into different roundings.
    def step(carry: tuple[Any, Any], index: jax.Array, scale: jax.Array) -> tuple[Any, Any]:
        params, state = carry
        grads = noisy_gradient(params, jax.random.fold_in(jax.random.key(7), index), scale)
        updates, state = optimizer.update(grads, state, params, **extras)
        return (optax.apply_updates(params, updates), state), updates

    @jax.jit
    def run(carry: tuple[Any, Any], scale: jax.Array) -> tuple[tuple[Any, Any], Any]:
        return jax.lax.scan(lambda c, i: step(c, i, scale), carry, jnp.arange(steps))

    (params, state), updates = run((params, optimizer.init(params)), jnp.asarray(scale))
    return params, state, updates
