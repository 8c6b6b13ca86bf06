# SPDX-License-Identifier: Apache-2.0
"""Every Python block of the page on replacing Adam runs, and what its last line claims holds."""

from __future__ import annotations

import ast
import functools
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest

PAGE = Path(__file__).parent.parent / "docs" / "replace-adam.md"
START = "Plain optax"
"""Heading of the blocks that all others go on from."""
SLOW = "Brax"
"""Heading of the block that compiles a simulator."""
QUICK_JIT = functools.partial(jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": False})
"""The emitters of fused loops take three quarters of the time that compilation takes."""


class Block(NamedTuple):
    """A block, the heading it stands under, and its lines at the numbers they have on the page."""

    heading: str
    source: str

    def run(self, names: dict[str, Any]) -> None:
        names["quick_jit"] = QUICK_JIT
        exec(compile(self.source.replace("jax.jit", "quick_jit"), str(PAGE), "exec"), names)


def _blocks(page: str) -> list[Block]:
    found = []
    for match in re.finditer(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        before = page[: match.start(1)]
        heading = re.findall(r"^#+ (.*)$", before, re.MULTILINE)[-1]
        found.append(Block(heading.replace("`", ""), "\n" * before.count("\n") + match[1]))
    return found


BLOCKS = _blocks(PAGE.read_text())


def _marked(block: Block) -> Any:
    # Brax uses a name that optax is about to drop.
    ignore = pytest.mark.filterwarnings("ignore:optax.global_norm is deprecated:DeprecationWarning")
    marks = [pytest.mark.slow, ignore] if block.heading == SLOW else []
    return pytest.param(block, id=block.heading, marks=marks)


def _skip_if_not_installed(block: Block) -> None:
    for node in ast.walk(ast.parse(block.source)):
        module = node.module if isinstance(node, ast.ImportFrom) else None
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [module]
        for name in filter(None, names):
            pytest.importorskip(name.partition(".")[0])


@pytest.fixture(scope="module")
def start() -> dict[str, Any]:
    """Names after the first blocks; what they compile is compiled once for all."""
    names: dict[str, Any] = {}
    for block in BLOCKS:
        if block.heading == START:
            block.run(names)
    return names


@pytest.mark.parametrize("block", [_marked(block) for block in BLOCKS if block.heading != START])
def test_block_does_what_its_last_line_claims(
    block: Block, start: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _skip_if_not_installed(block)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    block.run(dict(start))


def test_every_block_ends_with_a_claim() -> None:
    assert len(BLOCKS) == 13
    for block in BLOCKS:
        assert isinstance(ast.parse(block.source).body[-1], ast.Assert), block.heading


def test_the_change_at_the_top_is_that_of_the_plain_loop() -> None:
    lines = re.findall(r"^\+(.*)$", PAGE.read_text(), re.MULTILINE)
    loop = [line.strip() for b in BLOCKS if b.heading == START for line in b.source.splitlines()]
    assert len(lines) == 3
    for line in lines:
        assert line.partition("  #")[0].replace(")", "") in "\n".join(loop)
