# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests.

Nothing of JAX is configured here: 64-bit mode is a fixture of the test that needs it, and
seeds are literals where they are used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What an earlier run has compiled must not decide what a test sees, nor may tests fill a home.
os.environ["MNEMOSYNE_CACHE_DIR"] = ""


@pytest.fixture(scope="session")
def root() -> Path:
    """Folder of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the larger data sets; skips, saying so, where there is none."""
    value = os.environ.get("MNEMOSYNE_DATA_DIR")
    if not value:
        pytest.skip("MNEMOSYNE_DATA_DIR is not set")
    folder = Path(value)
    if not folder.is_dir():
        pytest.fail(f"MNEMOSYNE_DATA_DIR names {value}, which is not a folder")
    return folder


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision for one test, for finite differences and reference sums."""
    import jax

    with jax.enable_x64(True):
        yield
