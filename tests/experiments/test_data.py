# SPDX-License-Identifier: Apache-2.0
"""Data sets arrive in the promised form; what is missing is named."""

from pathlib import Path

import numpy as np
import pytest

from experiments import data


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


def test_cifar10_is_pooled_and_both_splits_share_the_training_scale(stand_ins: Path) -> None:
    train, test = data.cifar10(stand_ins, 8), data.cifar10(stand_ins, 8, "test")
    assert train.inputs.shape == (200, 8, 8, 3)
    np.testing.assert_allclose([train.inputs.mean(), train.inputs.std()], [0, 1], atol=1e-5)
    with np.load(stand_ins / "cifar10_small.npz", allow_pickle=False) as arrays:
        first, all_train = arrays["x_test"][0].astype(float), arrays["x_train"].astype(float)
    corner = first[:4, :4].mean(axis=(0, 1))
    pooled = all_train.reshape(200, 8, 4, 8, 4, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(
        test.inputs[0, 0, 0], (corner - pooled.mean()) / pooled.std(), rtol=1e-4
    )
    assert test.name != train.name


def test_shakespeare_tokens_spell_the_text(stand_ins: Path) -> None:
    text = data.shakespeare(stand_ins)
    spelled = "".join(text.alphabet[token] for token in text.tokens)
    assert spelled == (stand_ins / "shakespeare.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("load", [lambda f: data.cifar10(f, 8), data.shakespeare])
def test_missing_files_are_named(load, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no (cifar10_small\.npz|shakespeare\.txt)"):
        load(tmp_path)
    with pytest.raises(ValueError, match="--data-dir"):
        load(None)


@pytest.mark.parametrize(("side", "split"), [(7, "train"), (8, "validation")])
def test_cifar10_other_sizes_and_splits_are_refused(stand_ins: Path, side: int, split: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        data.cifar10(stand_ins, side, split)


def test_data_dir_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        data.data_dir(str(tmp_path / "nowhere"))
