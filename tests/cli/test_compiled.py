# SPDX-License-Identifier: Apache-2.0
"""Compiled programs are kept where they should be, and never without bound."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mnemosyne.cli import compiled

PROGRAM = """
import jax
from mnemosyne.cli import compiled
print(compiled.enable())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(float(jax.jit(lambda x: x * 2.0)(21.0)))
"""


def test_folder_follows_the_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(compiled.VARIABLE)
    default = compiled.folder()
    assert default is not None and default.parent == tmp_path / "mnemosyne"
    monkeypatch.setenv(compiled.VARIABLE, str(tmp_path / "own"))
    assert compiled.folder() == tmp_path / "own"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "jax"))
    assert compiled.folder() is None
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv(compiled.VARIABLE, "")
    assert compiled.folder() is None


def test_programs_are_kept_and_read_again(tmp_path: Path) -> None:
    environment = os.environ | {compiled.VARIABLE: str(tmp_path)}
    del environment["JAX_COMPILATION_CACHE_DIR"]
    for _ in range(2):
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [str(tmp_path), "42.0"]
    assert list(tmp_path.glob("*-cache"))


def test_a_folder_that_cannot_be_made_is_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv(compiled.VARIABLE, str(tmp_path / "file" / "below"))
    assert compiled.enable() is None


def test_the_oldest_programs_go_first(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "middle", "old")):
        file = tmp_path / f"{name}-cache"
        file.write_bytes(b"x" * 10)
        os.utime(file, (1000 - age, 1000 - age))
    compiled.prune(tmp_path, 25)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["middle-cache", "new-cache"]
