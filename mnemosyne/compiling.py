# SPDX-License-Identifier: Apache-2.0
"""Options of XLA for long programs on processors, where compiling can outlast what is compiled."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax


def on_processors(options: Mapping[str, Any]) -> dict[str, Any]:
    """The compiler options where JAX runs on processors, none elsewhere.

    Args:
      options: by XLA's names; those that ``XLA_FLAGS`` speaks of are left to it.

    Example:
      >>> step = jax.jit(jax.numpy.sin, compiler_options=on_processors(QUICK))
    """
    if jax.default_backend() != "cpu":
        return {}
    flags = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in options.items() if name not in flags}


QUICK = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}
"""For meta-gradients: a third of the time to compile."""
