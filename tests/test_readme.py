# SPDX-License-Identifier: Apache-2.0
"""The README's example, taken from the README and run."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp

ROOT = Path(__file__).parent.parent


def test_readme_example_trains() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    # The same statements; only the two calls of the loop are compiled, or it would take minutes.
    source = blocks[0].replace("jax.value_and_grad(loss_fn)(", "gradient(")
    source = source.replace("opt.update(", "update(")
    compiled = "gradient, update = jax.jit(jax.value_and_grad(loss_fn)), jax.jit(opt.update)\n"
    assert source.count("gradient(") == source.count("update(") == 1
    names: dict = {}
    exec(source.replace("for step", f"{compiled}for step"), names)
    first = float(jnp.mean(jnp.square(names["y"])))
    assert isinstance(names["loss"], jax.Array)
    assert float(names["loss"]) < 0.2 * first
