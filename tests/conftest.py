# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests.

Nothing of JAX is configured here: 64-bit mode is a fixture of the test that needs it, and
seeds are literals where they are used.
"""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
QUICK += "--xla_cpu_parallel_codegen_split_count=1"
"""Programs here are compiled more than they run: that takes a tenth of the time with these."""


def _share_compiled_programs() -> None:
    """Has all processes of one run of the suite compile each program once, and quickly.

    Most of the suite's time would be XLA's. The folder begins empty and goes with the run: what an
    earlier one has compiled must not decide what a test sees, nor may tests fill a home.
    """
    os.environ["MNEMOSYNE_CACHE_DIR"] = ""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # a worker, or the user's own wish
        return
    folder = tempfile.mkdtemp(prefix="mnemosyne-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.03"
    os.environ.setdefault("XLA_FLAGS", QUICK)


_share_compiled_programs()


def pytest_collection_finish() -> None:
    """What has been imported by now stays: no search for garbage has to look at it again."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


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
