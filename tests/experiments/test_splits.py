# SPDX-License-Identifier: Apache-2.0
"""Nothing that judges the optimizer ever trains it."""

import fnmatch
from pathlib import Path

import numpy as np
import pytest

import mnemosyne
from experiments import data, splits


def _names() -> list[str]:
    tasks = splits.meta_train_tasks(None) + splits.validation_tasks(None)
    return [task.name for task in tasks]


def test_supervised_splits_name_no_hold_out_data() -> None:
    for name in _names():
        assert not any(held in name.lower() for held in splits.HOLD_OUT_DATA), name


def test_policy_splits_are_disjoint() -> None:
    groups = (splits.META_TRAIN_ENVS, splits.VALIDATION_ENVS, splits.HOLD_OUT_ENVS)
    for i, first in enumerate(groups):
        for second in groups[i + 1 :]:
            for name in second:
                assert not any(fnmatch.fnmatch(name, pattern) for pattern in first), name


@pytest.mark.parametrize("name", mnemosyne.list_weights())
def test_shipped_weights_were_not_trained_on_hold_out_or_validation(name: str) -> None:
    held = [*splits.HOLD_OUT_DATA, *(env.split(":")[1] for env in splits.HOLD_OUT_ENVS)]
    for task in mnemosyne.load(name).tasks:
        assert not any(word in task.lower() for word in held), task
        assert "[40000:60000]" not in task


def test_digits_validation_rows_follow_the_training_rows() -> None:
    training, held = splits.meta_train_tasks(None)[0], splits.validation_tasks(None)[0]
    whole = data.digits()
    labels = np.concatenate([training.labels, held.labels])
    np.testing.assert_array_equal(labels, whole.labels)


def test_mnist_pooling_keeps_the_mean(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (50, 28, 28)).astype(np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=images, y_train=np.arange(50) % 10)
    for side in (8, 14, 28):
        loaded = data.mnist(tmp_path, side, 10, 50)
        assert loaded.inputs.shape == (40, side * side)
        np.testing.assert_allclose(loaded.inputs.std(), 1.0, rtol=1e-4)
        assert loaded.labels.tolist() == [i % 10 for i in range(10, 50)]


@pytest.mark.parametrize("side", [5, 9])
def test_mnist_other_sizes_are_refused(tmp_path: Path, side: int) -> None:
    np.savez(tmp_path / "mnist.npz", x_train=np.zeros((3, 28, 28)), y_train=np.zeros(3))
    with pytest.raises(ValueError, match="side must be"):
        data.mnist(tmp_path, side)


def test_data_dir_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        data.data_dir(str(tmp_path / "nowhere"))
