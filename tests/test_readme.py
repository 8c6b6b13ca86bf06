# SPDX-License-Identifier: Apache-2.0
"""The README's example, taken from the README and run."""

import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp

ROOT = Path(__file__).parent.parent


def test_readme_example_trains() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    first = float(jnp.mean(jnp.square(names["y"])))
    assert int(names["state"].count) == 200
    assert float(names["loss_fn"](names["params"])) < 0.2 * first
