# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: what comes back is what went in, and everything else is refused in a sentence."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robotics.checkpoint import Checkpointer


class Inner(NamedTuple):
    keys: jax.Array
    none: None
    empty: jax.Array


def make_state(seed: int = 0) -> dict:
    params = {
        "w": jax.random.normal(jax.random.key(seed), (3, 2)),
        "half": jnp.ones(2, jnp.bfloat16),
    }
    return {
        "params": params,
        "opt_state": optax.adam(1e-3).init(params),
        "inner": Inner(jax.random.split(jax.random.key(7, impl="rbg"), 3), None, jnp.zeros((0, 4))),
        "flag": jnp.array(True),
        "count": jnp.int32(5),
    }


def assert_same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpointer(folder, max_to_keep=2, identity={"optimizer": "adam"}) as checkpointer:
        for step in (10, 20, 30):
            checkpointer.save(step, make_state(step), {"epoch": step, "return": float("nan")})
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_restore_gives_back_every_leaf_and_the_record(saved):
    template = jax.eval_shape(make_state)
    state, host, step = Checkpointer(saved, identity={"optimizer": "adam"}).restore(template)
    assert step == 30 and host["epoch"] == 30 and np.isnan(host["return"])
    assert_same(state, make_state(30))


def test_restored_keys_draw_the_same_numbers(saved):
    state = Checkpointer(saved).restore(jax.eval_shape(make_state)).state
    ours, theirs = state["inner"].keys[1], make_state(30)["inner"].keys[1]
    assert jax.random.uniform(ours) == jax.random.uniform(theirs)


def test_max_to_keep_leaves_the_newest(saved):
    assert Checkpointer(saved).steps() == [20, 30]
    assert Checkpointer(saved).restore(make_state(), step=20).host["epoch"] == 20


def test_saved_arrays_do_not_follow_a_donated_buffer(tmp_path):
    donating = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    state = {"w": jnp.zeros(1000)}
    with Checkpointer(tmp_path / "c") as checkpointer:
        checkpointer.save(1, state, {})
        donating(state)
        restored = checkpointer.restore({"w": jnp.zeros(1000)}).state
    np.testing.assert_array_equal(np.asarray(restored["w"]), np.zeros(1000))


def test_missing_checkpoint_is_not_found_and_creates_nothing(tmp_path):
    checkpointer = Checkpointer(tmp_path / "none")
    assert checkpointer.steps() == [] and checkpointer.host_record() is None
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        checkpointer.restore(make_state())
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("kind", ["truncated", "altered", "removed"])
def test_every_damaged_file_is_noticed_and_nothing_is_lost(saved, tmp_path, kind):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    files = sorted(path for path in (folder / f"{30:012d}").rglob("*") if path.is_file())
    checkpointer = Checkpointer(folder)
    assert len(files) > 5
    for file in files:
        good = file.read_bytes()
        if kind == "removed":
            if file.name == "files.sha256":  # as after a kill between commit and listing
                continue
            file.unlink()
        else:
            middle = len(good) // 2
            flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
            file.write_bytes(good[:middle] if kind == "truncated" else flipped)
        before = files_of(folder)
        with pytest.raises(ValueError, match=r"is damaged .* to continue from step 20"):
            checkpointer.restore(make_state())
        assert files_of(folder) == before
        file.write_bytes(good)
    assert checkpointer.restore(make_state()).step == 30


@pytest.mark.parametrize("part", ["arrays", "record"])
def test_without_file_list_altered_contents_are_still_noticed(saved, tmp_path, part):
    """Orbax's own record is rewritten consistently, so only the hash over the contents can tell."""
    import json

    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    step = folder / f"{30:012d}"
    (step / "files.sha256").unlink()
    if part == "record":
        path = step / "record" / "metadata"
        record = json.loads(path.read_text())
        record["host"]["epoch"] = 31
        path.write_text(json.dumps(record))
    else:
        shutil.rmtree(step / "arrays")
        shutil.copytree(folder / f"{20:012d}" / "arrays", step / "arrays")
    with pytest.raises(ValueError, match="do not match its hash"):
        Checkpointer(folder).restore(make_state())


def test_checkpoint_of_another_network_is_refused_by_name(saved):
    other = make_state()
    other["params"]["w"] = jnp.zeros((3, 4))
    with pytest.raises(
        ValueError, match=r"another network.*'(opt_state|params)/.*w' is float32\[3, 2\]"
    ):
        Checkpointer(saved).restore(other)


def test_checkpoint_of_another_optimizer_is_refused(saved):
    other = make_state()
    other["opt_state"] = optax.sgd(1e-3).init(other["params"])
    with pytest.raises(ValueError, match="another network, optimizer or environment"):
        Checkpointer(saved).restore(other)
    with pytest.raises(ValueError, match="optimizer 'adam', not 'lion'"):
        Checkpointer(saved, identity={"optimizer": "lion"}).restore(make_state())


def test_interrupted_write_is_not_taken_for_a_checkpoint(saved, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    half = folder / f"{40:012d}.orbax-checkpoint-tmp"
    shutil.copytree(folder / f"{30:012d}", half)
    with Checkpointer(folder) as checkpointer:
        assert checkpointer.restore(make_state()).step == 30
        checkpointer.save(40, make_state(40), {})
        assert_same(checkpointer.restore(make_state()).state, make_state(40))


def test_step_must_rise_and_at_least_one_must_be_kept(tmp_path):
    with Checkpointer(tmp_path / "c") as checkpointer:
        checkpointer.save(5, {"w": jnp.zeros(1)}, {})
        with pytest.raises(ValueError, match="must come after that at 5"):
            checkpointer.save(5, {"w": jnp.zeros(1)}, {})
    with pytest.raises(ValueError, match="max_to_keep is 0"):
        Checkpointer(tmp_path / "c", max_to_keep=0)
