# SPDX-License-Identifier: Apache-2.0
"""Artifacts survive the round trip, and anything else is refused with a sentence."""

import dataclasses
import json
import struct
from pathlib import Path

import jax
import numpy as np
import pytest

import mnemosyne
from mnemosyne import artifacts
from tests.mnemosyne import problems


@pytest.fixture
def path(tmp_path: Path) -> Path:
    artifact = mnemosyne.Artifact(
        problems.meta_params(), mnemosyne.MnemosyneConfig(), {"outer_steps": 3}, ("a", "b")
    )
    target = tmp_path / "mine.safetensors"
    artifacts.save_artifact(target, artifact)
    return target


def _rewrite_header(path: Path, **changes: str) -> None:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def test_load_returns_what_was_saved(path: Path) -> None:
    loaded = mnemosyne.load(path)
    jax.tree.map(np.testing.assert_array_equal, loaded.meta_params, problems.meta_params())
    assert loaded.config == mnemosyne.MnemosyneConfig()
    assert loaded.trained_with == {"outer_steps": 3}
    assert loaded.tasks == ("a", "b")
    assert loaded.tensor_sha256 == artifacts.tensor_sha256(problems.meta_params())


def test_save_is_deterministic_and_leaves_no_partial_file(path: Path) -> None:
    first = path.read_bytes()
    artifacts.save_artifact(path, mnemosyne.load(path))
    assert path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_load_altered_tensor_is_refused(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(ValueError, match="was altered"):
        mnemosyne.load(path)


@pytest.mark.parametrize("keep", [0, 5, 300, -10])
def test_load_truncated_file_is_refused(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="damaged"):
        mnemosyne.load(path)


@pytest.mark.parametrize("field", ["feature_contract", "format_version"])
def test_load_unknown_contract_is_refused(path: Path, field: str) -> None:
    _rewrite_header(path, **{field: "999"})
    with pytest.raises(ValueError, match=f"{field} '999'"):
        mnemosyne.load(path)


def test_load_tensors_of_another_network_are_refused(path: Path) -> None:
    artifact = mnemosyne.load(path)
    artifacts.save_artifact(
        path, dataclasses.replace(artifact, config=mnemosyne.MnemosyneConfig(dim=8))
    )
    with pytest.raises(ValueError, match="another network or optimizer"):
        mnemosyne.load(path)


def test_load_foreign_safetensors_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"x": np.ones(3)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="no Mnemosyne artifact"):
        mnemosyne.load(tmp_path / "x.safetensors")


def test_load_unknown_name_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'mnemosyne-base'"):
        mnemosyne.load("mnemosyne-bas")


@pytest.mark.parametrize("name", artifacts.list_weights())
def test_shipped_artifact_is_complete(name: str) -> None:
    artifact = mnemosyne.load(name)
    untrained = mnemosyne.init_meta_params(jax.random.key(0), artifact.config)
    assert jax.tree.structure(untrained) == jax.tree.structure(artifact.meta_params)
    assert jax.tree.map(np.shape, untrained) == jax.tree.map(np.shape, artifact.meta_params)
    assert artifact.tasks
    assert "command" in artifact.trained_with
    card = artifacts.FOLDER / f"{name}.md"
    assert artifact.tensor_sha256[:12] in card.read_text(encoding="utf-8")
