# SPDX-License-Identifier: Apache-2.0
"""Data sets: scikit-learn's bundled digits, and Keras-style ``.npz`` files in a given folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

DATA_DIR_VARIABLE = "MNEMOSYNE_DATA_DIR"


class Images(NamedTuple):
    """Flattened images in about unit scale, and their classes.

    Attributes:
      name: data set, resolution and slice.
      inputs: rows of pixels, standardised over the whole slice, float32.
      labels: classes, int32.
    """

    name: str
    inputs: Float[np.ndarray, "rows pixels"]
    labels: Int[np.ndarray, " rows"]


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
    path = folder / "mnist.npz"
    if not path.is_file():
        raise ValueError(f"{folder} has no mnist.npz.")
    with np.load(path, allow_pickle=False) as arrays:
        images, labels = arrays["x_train"][first:last], arrays["y_train"][first:last]
    if side == 8:
        images = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    factor = images.shape[1] // side
    if side * factor != images.shape[1]:
        raise ValueError(f"side must be 8, 14 or 28, got {side}.")
    pooled = images.reshape(len(images), side, factor, side, factor).mean(axis=(2, 4))
    name = f"mnist{side}[{first}:{last}]"
    return Images(name, *_prepare(pooled.reshape(len(images), -1), labels))


def _prepare(inputs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inputs = inputs.astype(np.float32)
    return (inputs - inputs.mean()) / inputs.std(), labels.astype(np.int32)
