# SPDX-License-Identifier: Apache-2.0
"""NNAdam: one LSTM step a tensor moves the four settings of Adam, nothing is learned below that.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2        (no bias correction)
    update = -lr (1 + eps) m / (eps + sqrt(v + 1e-10))
    (lr, b1, b2, eps) move by 0.01 (W h + b) each, in a logarithmic scale;  h <- LSTM(19 statistics)

The update uses the settings of before the LSTM has seen the gradient. ``1 + eps`` lets a large eps
turn off the normalisation without a larger rate. A fresh network starts as Adam(1e-4, 0.9, 0.999)
and stays there. Structure and constants: ``NNAdam`` of google/learned_optimization.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from mnemosyne.baselines import adafactor, recurrent
from mnemosyne.learned import LearnedOptimizer

UNITS = 32
NUM_STATISTICS = 19
CONTROL_SCALE = 0.01
MAX_GRADIENT = 1000.0
INITIAL = {"learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
"""Settings before meta-training; kept as ``0.1 log(x)``, and ``0.1 log(1 - x)`` for the betas."""

LOWEST = (0.1 * np.log(1e-8), -1.0, -1.0, 0.1 * np.log(1e-11))
HIGHEST = (0.1 * np.log(1e3), 0.0, 0.0, 0.1 * np.log(1e4))


class ScaleByNNAdamState(NamedTuple):
    """State of NNAdam: Adam's moments, and 68 floats a tensor that is not empty.

    Attributes:
      count: updates so far, int32.
      mu: first moment, float32.
      nu: second moment, float32.
      moved: how far the LSTM has moved the settings, from where meta-training puts them.
      hidden: output of the LSTM; its learned first value stands in before the first update.
      memory: its cell state, likewise.
    """

    count: Int[Array, ""]
    mu: optax.Updates
    nu: optax.Updates
    moved: Float[Array, "4 tensors"]
    hidden: Float[Array, "units tensors"]
    memory: Float[Array, "units tensors"]


class Settings(NamedTuple):
    """Adam's settings, for every tensor or for one."""

    learning_rate: Float[Array, "*tensors"]
    beta1: Float[Array, "*tensors"]
    beta2: Float[Array, "*tensors"]
    eps: Float[Array, "*tensors"]


def init(key: Key[Array, ""]) -> dict[str, Any]:
    """Untrained meta-parameters, 6856 numbers; the last layer is zero."""
    rate, beta1, beta2, eps = INITIAL.values()
    start = 0.1 * np.log([rate, 1.0 - beta1, 1.0 - beta2, eps])
    return {
        "controls": {"w": jnp.zeros((UNITS, 4), jnp.float32), "b": jnp.zeros(4, jnp.float32)},
        "lstm": recurrent.init_cell(key, NUM_STATISTICS, UNITS),
        "start": {
            "hidden": jnp.zeros(UNITS, jnp.float32),
            "memory": jnp.zeros(UNITS, jnp.float32),
            "settings": jnp.asarray(start, jnp.float32),
        },
    }


def decode(controls: Float[Array, "4 tensors"]) -> Settings:
    """Settings from the logarithmic scale in which they are stored."""
    rate, keep1, keep2, eps = jnp.exp(10.0 * _bounded(controls))
    return Settings(rate, 1.0 - keep1, 1.0 - keep2, eps)


def _bounded(controls: Float[Array, "4 tensors"]) -> Float[Array, "4 tensors"]:
    """Rates in [1e-8, 1e3], betas in [0, 1 - e^-10], eps in [1e-11, 1e4]."""
    lowest, highest = (jnp.asarray(x, jnp.float32)[:, None] for x in (LOWEST, HIGHEST))
    return jnp.clip(controls, lowest, highest)


def _mean_and_variance(x: Array) -> list[Float[Array, ""]]:
    mean = jnp.mean(x)
    return [mean, jnp.mean(jnp.square(x - mean))]


def _log_magnitude(x: Array) -> Array:
    return 0.5 * jnp.clip(jnp.log(1e-8 + jnp.abs(x)), -5.0, 5.0)


def statistics(
    tensors: list[tuple[Array, Array, Array, Array]], controls: Float[Array, "4 tensors"]
) -> Float[Array, "19 tensors"]:
    """What the LSTM reads of every tensor.

    Args:
      tensors: gradient, first and second moment (this gradient included) and parameter of each.
      controls: the settings that were used, as stored.

    Returns:
      Magnitude and sign of the means of g, m, v, p; magnitudes of their variances and of mean
      ``|g|``; whether scalar, whether vector; the controls.
    """
    raw = [
        jnp.stack([*(s for x in each for s in _mean_and_variance(x)), jnp.mean(jnp.abs(each[0]))])
        for each in tensors
    ]
    columns = jnp.stack(raw, axis=1)
    ranks = np.asarray([each[0].ndim for each in tensors])
    kinds = np.where(np.stack([ranks == 0, ranks == 1]), 1.0, -1.0).astype(np.float32)
    signs = jnp.sign(columns[0:8:2])
    return jnp.concatenate([_log_magnitude(columns), signs, kinds, 0.2 * controls])


def _adam(g: Array, mu: Array, nu: Array, own: Settings) -> tuple[Array, Array, Array]:
    """Update and moments of one tensor under its own settings, without bias correction."""
    mu = own.beta1 * mu + (1.0 - own.beta1) * g
    nu = own.beta2 * nu + (1.0 - own.beta2) * jnp.square(g)
    return -own.learning_rate * (1.0 + own.eps) * mu / (own.eps + jnp.sqrt(nu + 1e-10)), mu, nu


def init_state(params: optax.Params) -> ScaleByNNAdamState:
    """The state before the first update; all zero, whatever the meta-parameters are."""
    num = sum(leaf.size > 0 for leaf in jax.tree.leaves(params))
    return ScaleByNNAdamState(
        count=jnp.zeros((), jnp.int32),
        mu=optax.tree.zeros_like(params, dtype=jnp.float32),
        nu=optax.tree.zeros_like(params, dtype=jnp.float32),
        moved=jnp.zeros((4, num), jnp.float32),
        hidden=jnp.zeros((UNITS, num), jnp.float32),
        memory=jnp.zeros((UNITS, num), jnp.float32),
    )


def scale_by_nn_adam(theta: dict[str, Any]) -> optax.GradientTransformationExtraArgs:
    """The complete NNAdam update; extras are ignored.

    Args:
      theta: from :func:`init`.

    Raises:
      ValueError: from ``update``, without ``params``.
    """
    theta = jax.tree.map(jnp.asarray, theta)
    start = theta["start"]

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByNNAdamState]:
        del extra_args
        params = adafactor.require_params("nn-adam", params)
        gradients, treedef = jax.tree.flatten(updates)
        mu, nu, p = (treedef.flatten_up_to(tree) for tree in (state.mu, state.nu, params))
        filled = [i for i, g in enumerate(gradients) if g.size]
        if not filled:
            return updates, state
        controls = start["settings"][:, None] + state.moved
        settings, deltas = decode(controls), [jnp.zeros(leaf.shape, leaf.dtype) for leaf in p]
        read = []
        for index, i in enumerate(filled):
            own = Settings(*(setting[index] for setting in settings))
            g = jnp.clip(jnp.asarray(gradients[i], jnp.float32), -MAX_GRADIENT, MAX_GRADIENT)
            step, mu[i], nu[i] = _adam(g, mu[i], nu[i], own)
            deltas[i] = step.astype(p[i].dtype)
            read.append((g, mu[i], nu[i], jnp.asarray(p[i], jnp.float32)))
        first = state.count == 0
        hidden, memory = recurrent.cell(
            theta["lstm"],
            statistics(read, controls),
            jnp.where(first, start["hidden"][:, None], state.hidden),
            jnp.where(first, start["memory"][:, None], state.memory),
        )
        change = theta["controls"]["w"].T @ hidden + theta["controls"]["b"][:, None]
        bounded = _bounded(controls + CONTROL_SCALE * change)
        return treedef.unflatten(deltas), ScaleByNNAdamState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            mu=treedef.unflatten(mu),
            nu=treedef.unflatten(nu),
            moved=bounded - start["settings"][:, None],
            hidden=hidden,
            memory=memory,
        )

    return optax.GradientTransformationExtraArgs(init_state, update)


def nn_adam_rule() -> LearnedOptimizer:
    """NNAdam for meta-training and benchmarks."""
    return LearnedOptimizer("nn-adam", init, scale_by_nn_adam)
