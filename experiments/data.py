# SPDX-License-Identifier: Apache-2.0
"""Data sets: scikit-learn's bundled digits; images and text from files in a given folder."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

DATA_DIR_VARIABLE = "MNEMOSYNE_DATA_DIR"


class Images(NamedTuple):
    """Images in about unit scale, and their classes.

    Attributes:
      name: data set, resolution and slice.
      inputs: rows of pixels, standardised over the whole slice, float32; grey images are flat,
        color images ``[rows, side, side, 3]``.
      labels: classes, int32.
    """

    name: str
    inputs: Float[np.ndarray, "rows *pixels"]
    labels: Int[np.ndarray, " rows"]


class Text(NamedTuple):
    """Characters as numbers.

    Attributes:
      name: of the text.
      tokens: index into the alphabet, uint8.
      alphabet: the distinct characters, sorted.
    """

    name: str
    tokens: UInt8[np.ndarray, " length"]
    alphabet: str


def data_dir(given: str | None = None) -> Path | None:
    """The folder with larger data sets: the argument, else the environment variable, else none.

    Raises:
      ValueError: if it is named but does not exist.
    """
    name = given or os.environ.get(DATA_DIR_VARIABLE)
    if not name:
        return None
    if not Path(name).is_dir():
        raise ValueError(f"data folder {name!r} does not exist.")
    return Path(name)


def digits(first: int = 0, last: int | None = None) -> Images:
    """The 1,797 real 8x8 digits that scikit-learn carries."""
    from sklearn.datasets import load_digits

    inputs, labels = load_digits(return_X_y=True)
    name = f"digits[{first}:{last or len(labels)}]"
    return Images(name, *_prepare(inputs[first:last], labels[first:last]))


def mnist(folder: Path, side: int, first: int = 0, last: int = 40_000) -> Images:
    """MNIST training images, mean-pooled to ``side`` x ``side`` (8, 14 or 28).

    Args:
      folder: holds ``mnist.npz`` in the Keras layout.
      side: pixels along an edge.
      first: first row of the slice of the training set.
      last: end of the slice. Meta-training may use ``[0:40000]`` only.
    """
    with np.load(_file(folder, "mnist.npz"), allow_pickle=False) as arrays:
        images, labels = arrays["x_train"][first:last], arrays["y_train"][first:last]
    if side == 8:
        images = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    factor = images.shape[1] // side
    if side * factor != images.shape[1]:
        raise ValueError(f"side must be 8, 14 or 28, got {side}.")
    pooled = images.reshape(len(images), side, factor, side, factor).mean(axis=(2, 4))
    name = f"mnist{side}[{first}:{last}]"
    return Images(name, *_prepare(pooled.reshape(len(images), -1), labels))


@functools.lru_cache(maxsize=8)
def cifar10(folder: Path | None, side: int, split: str = "train") -> Images:
    """A part of CIFAR-10, mean-pooled to ``side`` x ``side`` (8, 16 or 32). Hold-out data.

    Args:
      folder: holds ``cifar10_small.npz`` in the Keras layout, channels last.
      side: pixels along an edge.
      split: ``"train"`` or ``"test"``; both are standardised by the training images.

    Returns:
      Color images; the arrays are shared and read-only.
    """
    if side not in (8, 16, 32):
        raise ValueError(f"side must be 8, 16 or 32, got {side}.")
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}.")
    with np.load(_file(folder, "cifar10_small.npz"), allow_pickle=False) as arrays:
        train = _pool(arrays["x_train"], side)
        images = train if split == "train" else _pool(arrays["x_test"], side)
        labels = arrays[f"y_{split}"].reshape(-1).astype(np.int32)
    inputs = (images - train.mean()) / train.std()
    for array in (inputs, labels):
        array.setflags(write=False)
    return Images(f"cifar10-{side}" + ("" if split == "train" else "-test"), inputs, labels)


@functools.lru_cache(maxsize=2)
def shakespeare(folder: Path | None) -> Text:
    """The characters of ``shakespeare.txt``. Hold-out data; the array is shared and read-only."""
    text = _file(folder, "shakespeare.txt").read_text(encoding="utf-8")
    alphabet, tokens = np.unique(np.array(list(text)), return_inverse=True)
    tokens = tokens.astype(np.uint8)
    tokens.setflags(write=False)
    return Text("shakespeare", tokens, "".join(alphabet))


def _file(folder: Path | None, name: str) -> Path:
    if folder is None:
        raise ValueError(f"{name} is needed: name its folder by --data-dir or {DATA_DIR_VARIABLE}.")
    if not (folder / name).is_file():
        raise ValueError(f"{folder} has no {name}.")
    return folder / name


def _pool(images: np.ndarray, side: int) -> Float[np.ndarray, "rows side side channels"]:
    rows, full, _, channels = images.shape
    blocks = images.reshape(rows, side, full // side, side, full // side, channels)
    return blocks.mean(axis=(2, 4), dtype=np.float32)


def _prepare(inputs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inputs = inputs.astype(np.float32)
    return (inputs - inputs.mean()) / inputs.std(), labels.astype(np.int32)
