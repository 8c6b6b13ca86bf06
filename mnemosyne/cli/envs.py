# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne envs``: environments, their sizes, and whether they can be used here."""

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

    rows = [dataclasses.asdict(envs.describe(name)) for name in envs.list_envs()]
    rows = [row for row in rows if row["installed"] or not config.installed]
    width = max((len(row["name"]) for row in rows), default=0)
    print(f"{'name':<{width}}  {'obs':>4}  {'act':>4}  {'here':<9}  backends")
    for row in rows:
        here = "yes" if row["installed"] else f"[{row['extra']}]"
        backends = ", ".join(row["backends"]) or "-"
        sizes = f"{row['observation_size']:>4}  {row['action_size']:>4}"
        print(f"{row['name']:<{width}}  {sizes}  {here:<9}  {backends}")
    for family, title in envs.open_families().items():
        print(f"{family}:<id> takes any id of {title}, those above are some")
    return {"envs": rows}
