# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne envs``: environments, their sizes, and whether they can be used here.

The last lines show what the names of a user's own environments look like.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Envs:
    """List the environments."""

    installed: bool = False
    """Leave out what is not installed."""
    json: Path | None = None
    """File to write the list to."""


def run(config: Envs) -> dict[str, Any]:
    """Prints one line an environment."""
    import envs

    def described(names: list[str]) -> list[dict[str, Any]]:
        found = [dataclasses.asdict(envs.describe(name)) for name in names]
        return [row for row in found if row["installed"] or not config.installed]

    rows, own = described(envs.list_envs()), described(envs.open_families())
    width = max(len(row["name"]) for row in rows + own)
    print(f"{'name':<{width}}  {'obs':>4}  {'act':>4}  {'here':<12}  backends")
    for row in rows + own:
        backends = ", ".join(row["backends"]) or "-"
        sizes = f"{_size(row['observation_size'])}  {_size(row['action_size'])}"
        print(f"{row['name']:<{width}}  {sizes}  {_here(row):<12}  {backends}")
    return {"envs": rows, "own": own}


def _size(size: int | None) -> str:
    """A size, or a question mark where only making the environment would tell."""
    return f"{'?' if size is None else size:>4}"


def _here(row: dict[str, Any]) -> str:
    """Whether an environment can be made here, and if not, what it wants."""
    return {"": "yes", "package": f"[{row['extra']}]"}.get(row["lacks"], f"no {row['lacks']}")
