# SPDX-License-Identifier: Apache-2.0
"""Small stand-ins for the data sets, learnable and in the same form."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images whose color tells their class, and a text that repeats itself."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    tints = rng.integers(40, 215, (10, 1, 1, 3))
    arrays = {}
    for split, rows in (("train", 200), ("test", 50)):
        labels = np.arange(rows) % 10
        noise = rng.integers(-40, 40, (rows, 32, 32, 3))
        arrays[f"x_{split}"] = (tints[labels] + noise).astype(np.uint8)
        arrays[f"y_{split}"] = labels.astype(np.uint8)
    np.savez(folder / "cifar10_small.npz", **arrays)
    alphabet = "".join(chr(ord("!") + i) for i in range(65))
    (folder / "shakespeare.txt").write_text(alphabet * 4, encoding="utf-8")
    return folder
