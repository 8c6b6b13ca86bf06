# SPDX-License-Identifier: Apache-2.0
"""What happens to the disk during a run, and what is left then: the last good checkpoint loads."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from robotics import events, run_folder
from robotics.checkpoint import Checkpointer
from tests.robotics import test_run

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")
# How tensorstore puts it, behind Orbax.
TENSORSTORE = ValueError(
    "RESOURCE_EXHAUSTED: Error writing file [OS error 28: No space left on it]"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, test_run.run(folder, seeds=1)


def failing(function, error: Exception, after: int):
    """``function``, of which all calls but the first few fail."""
    calls = []

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) > after:
            raise error
        return function(*args, **kwargs)

    return fail


@pytest.mark.parametrize(
    ("owner", "name", "error", "after", "saved"),
    [
        (events.EventFile, "flush", FULL, 6, 100),
        (Checkpointer, "_write", TENSORSTORE, 2, 200),
        (run_folder, "write_atomic", FULL, 0, None),
    ],
    ids=["events", "checkpoint", "at the start"],
)
def test_full_disk_ends_in_a_sentence_and_the_last_checkpoint_goes_on(
    whole, tmp_path, monkeypatch, owner, name, error, after, saved
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing(getattr(owner, name), error, after))
        with pytest.raises(OSError) as caught:
            test_run.run(folder, seeds=1)
    sentence = str(caught.value)
    assert sentence.startswith("the run stopped: ") and "\n" not in sentence
    assert "No space left on device" in sentence or "the disk is full" in sentence
    if saved is None:
        assert sentence.endswith("nothing of it was saved yet")
        assert Checkpointer(folder / "checkpoints").steps() == []
        return
    assert f"all before {saved} env steps is saved, continue with --resume {folder}" in sentence
    assert Checkpointer(folder / "checkpoints").host_record() is not None
    test_run.assert_same_run(folder, test_run.run(folder, seeds=1), whole)


def test_removed_folder_ends_in_a_sentence_and_does_not_come_back(tmp_path, monkeypatch):
    folder, save = tmp_path / "run", Checkpointer.save

    def save_then_remove(self, step, state, host):
        save(self, step, state, host)
        if step == 200:
            shutil.rmtree(folder)

    monkeypatch.setattr(Checkpointer, "save", save_then_remove)
    with pytest.raises(OSError, match=r"metrics\.jsonl was moved or removed; nothing of it"):
        test_run.run(folder, seeds=1)
    assert not folder.exists()


def test_moved_folder_ends_in_a_sentence_and_can_be_resumed(whole, tmp_path, monkeypatch):
    folder, save = tmp_path / "run", Checkpointer.save

    def save_then_move(self, step, state, host):
        save(self, step, state, host)
        if step == 200:
            folder.rename(tmp_path / "moved")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", save_then_move)
        with pytest.raises(OSError, match="was moved or removed"):
            test_run.run(folder, seeds=1)
    assert not folder.exists()
    test_run.assert_same_run(tmp_path / "moved", test_run.run(tmp_path / "moved", seeds=1), whole)


_KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from robotics import checkpoint, checkpoint_record

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def write(folder, step):
    with checkpoint.Checkpointer(folder, max_to_keep=2) as checkpointer:
        checkpointer.save(step, {"w": np.full((64, 64), step, np.float32)}, {"epoch": step})

folder = Path(sys.argv[1])
for step in (10, 20):
    write(folder, step)
if sys.argv[2] == "manifest":
    checkpoint_record.write_manifest = die
else:
    real = getattr(os, sys.argv[2])
    def at_commit(source, target, *args, **kwargs):
        if Path(os.fspath(target)).name == "0" * 10 + "30":
            die()
        return real(source, target, *args, **kwargs)
    setattr(os, sys.argv[2], at_commit)
write(folder, 30)
"""


@pytest.mark.parametrize(("point", "newest"), [("rename", 20), ("manifest", 30)])
def test_kill_9_inside_a_checkpoint_write_leaves_one_that_loads(tmp_path, root, point, newest):
    """Once before the rename that makes it a checkpoint, once between that and its file list."""
    import numpy as np

    folder = tmp_path / "checkpoints"
    command = [sys.executable, "-c", _KILLED, str(folder), point]
    done = subprocess.run(
        command,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -9, done.stderr
    with Checkpointer(folder, max_to_keep=2) as checkpointer:
        restored = checkpointer.restore({"w": np.zeros((64, 64), np.float32)})
        assert restored.step == newest == restored.host["epoch"]
        assert (np.asarray(restored.state["w"]) == newest).all()
        checkpointer.save(40, {"w": np.zeros((64, 64), np.float32)}, {})
        assert checkpointer.steps() == [newest, 40]
    assert [path.name for path in folder.iterdir() if "tmp" in path.name] == []


_ON_A_SMALL_DISK = """
import sys
from pathlib import Path
from tests.robotics import test_run
folder = Path(sys.argv[1]) / "run"
try:
    test_run.run(folder, seeds=1, num_epochs=400)
except OSError as error:
    print(error)
    (folder / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text())
    print(test_run.Checkpointer(folder / "checkpoints").host_record()["epoch"])
"""


@pytest.mark.slow
def test_really_full_disk_ends_in_a_sentence(tmp_path, root):
    """A file system of its own, as small as the run's first checkpoints."""
    inside = f'mount -t tmpfs -o size=600k none {tmp_path} && exec "$@"'
    unshare = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, inside, "-", "true"]).returncode
    ):
        pytest.skip("this user may not mount a small disk")
    done = subprocess.run(
        [*unshare, inside, "-", sys.executable, "-c", _ON_A_SMALL_DISK, str(tmp_path)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    sentence, epoch = done.stdout.splitlines()[-2:]
    assert sentence.startswith("the run stopped: ") and "--resume" in sentence
    assert f"all before {int(epoch) * 100:,} env steps is saved" in sentence
