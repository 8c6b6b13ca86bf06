# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the optimizer's tests."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """For modules of many or large programs that run for a moment and do not turn on rounding."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
