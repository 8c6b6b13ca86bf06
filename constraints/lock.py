# SPDX-License-Identifier: Apache-2.0
"""Writes ``pyXY.txt`` for the running Python: names and versions of what resolves today."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

EXTRAS = "all,test,lint"
PROJECT = "mnemosyne-optimizer"
HERE = Path(__file__).parent


def resolve() -> list[tuple[str, str]]:
    """Lets pip resolve without installing.

    Returns:
      Normalized name and version of every distribution, sorted, without the project itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--report", str(report), f"{HERE.parent}[{EXTRAS}]"]
        subprocess.run(command, check=True)
        installs = json.loads(report.read_text())["install"]
    rows = ((i["metadata"]["name"], i["metadata"]["version"]) for i in installs)
    named = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in rows}
    named.pop(PROJECT, None)
    return sorted(named.items())


def main() -> None:
    """Replaces the constraints file of this Python."""
    major, minor = sys.version_info[:2]
    target = HERE / f"py{major}{minor}.txt"
    target.write_text("".join(f"{name}=={version}\n" for name, version in resolve()))
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
