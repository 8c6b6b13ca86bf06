# SPDX-License-Identifier: Apache-2.0
"""The documentation agrees with the sources: every tag is defined, every link and target exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TAG = re.compile(
    r"(eval|training|recovery|episode|optimizer|memory|meta|seeds|histograms|video|run)/[^\s.]+"
)
IN_TABLE = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)
# Tags that the sources put together from parts.
COMPOSED = {"eval/episode_reward_std", "seeds/<>/eval/episode_reward"}
PARTS = {"seeds/<>/<>"}


def _text(node: ast.AST) -> str:
    """A string as the source has it, with ``<>`` for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.FormattedValue):
        return "<>"
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _tags_of_source(source: str) -> set[str]:
    tree = ast.parse(source)
    filled = {id(part) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for part in n.values}
    texts = {_text(node) for node in ast.walk(tree) if id(node) not in filled}
    return {text for text in texts if TAG.fullmatch(text)}


def _tags_of_page(page: str) -> set[str]:
    cells = (re.sub(r"<[^>]*>", "<>", cell) for cell in IN_TABLE.findall(page))
    return {cell for cell in cells if TAG.fullmatch(cell)}


def documented_tags() -> set[str]:
    """The tags that the documentation defines, with ``<>`` for the part that varies."""
    return _tags_of_page((ROOT / "docs" / "monitoring.md").read_text())


def test_tags_every_written_tag_is_documented_and_the_reverse() -> None:
    sources = [*(ROOT / "robotics").rglob("*.py"), *(ROOT / "mnemosyne").rglob("*.py")]
    written = set().union(*(_tags_of_source(path.read_text()) for path in sources))
    assert documented_tags() == (written - PARTS) | COMPOSED


def test_tags_are_read_from_sources_and_tables() -> None:
    source = "row['training/x']; f\"meta/loss/{task.name}\"; 'a/b'; 'memory/x.npz'; 'in eval/y'"
    table = "| `training/x` | no | no |\n| `meta/loss/<family>` | `eval/a` |\n text `eval/sps` | "
    assert _tags_of_source(source) == {"training/x", "meta/loss/<>"}
    assert _tags_of_page(table) == {"training/x", "meta/loss/<>"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_exist(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^ *)make ([a-z-]+)", page.read_text(), re.MULTILINE))
    assert named <= rules


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_of_the_executable_exist(page: Path) -> None:
    from mnemosyne.cli.main import VERBS

    named = set(re.findall(r"(?:`|^ *)mnemosyne ([a-z][a-z-]*)", page.read_text(), re.MULTILINE))
    assert named <= set(VERBS)
