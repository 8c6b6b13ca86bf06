# SPDX-License-Identifier: Apache-2.0
"""Results of rivals, kept by content: computed once, committed, never computed again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnemosyne.artifacts import write_atomically

COMMITTED = Path(__file__).parent / "envelopes"


def key_hash(description: Any) -> str:
    """Hash of anything JSON can say; arrays are to be described by their own hash."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


def array_hash(*arrays: Any) -> str:
    """Hash of array contents."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def cached(
    name: str, description: Any, compute: Callable[[], dict[str, Any]], folder: Path
) -> dict[str, Any]:
    """Numbers for ``description``: committed, found in ``folder``, or computed and stored there.

    Args:
      name: readable start of the file name.
      description: everything the numbers depend on.
      compute: called if neither folder has them; returns JSON-able numbers.
      folder: where new results are written.
    """
    file = f"{name}-{key_hash(description)}.json"
    for place in (COMMITTED, folder):
        if (place / file).is_file():
            return json.loads((place / file).read_text())["result"]
    result = compute()
    record = {"description": description, "result": result}
    write_atomically(folder / file, (json.dumps(record, indent=1) + "\n").encode())
    return result
