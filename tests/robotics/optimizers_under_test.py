# SPDX-License-Identifier: Apache-2.0
"""Optimizers that must solve the probes; every entry runs through all of them."""

from __future__ import annotations

from collections.abc import Callable

import optax

import mnemosyne

Factory = Callable[[], optax.GradientTransformation]

# Annealed like the learned one: at a constant rate every other seed ends up beside
# the answer, and which ones do is a matter of rounding.
PPO_FACTORIES: dict[str, Factory] = {
    "adam": lambda: optax.adam(optax.linear_schedule(3e-3, 0.0, 3200)),
    "mnemosyne": lambda: mnemosyne.mnemosyne("mnemosyne-rl"),
}
ES_FACTORIES: dict[str, Factory] = {
    "adam": lambda: optax.adam(3e-2),
    "mnemosyne": mnemosyne.mnemosyne,
}
