# SPDX-License-Identifier: Apache-2.0
"""Options of XLA for meta-gradients on processors, where compiling can outlast what is compiled."""

from __future__ import annotations

import os
from typing import Any

import jax

_ON_PROCESSORS = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 2}
"""Half the time to compile, programs no slower to run; the numbers are in ``docs/decisions.md``."""


def compiler_options() -> dict[str, Any]:
    """For ``jax.jit``, on processors only; what ``XLA_FLAGS`` says is left to it.

    Example:
      >>> step = jax.jit(jax.numpy.sin, compiler_options=compiler_options())
    """
    if jax.default_backend() != "cpu":
        return {}
    flags = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in _ON_PROCESSORS.items() if name not in flags}
