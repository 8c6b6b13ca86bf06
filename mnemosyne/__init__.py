# SPDX-License-Identifier: Apache-2.0
"""Mnemosyne: a learned optimizer with an associative memory, as an optax transformation."""

from mnemosyne.artifacts import Artifact, list_weights, load, save_artifact
from mnemosyne.config import MnemosyneConfig, paper_config
from mnemosyne.handover import hand_over
from mnemosyne.optimizer import (
    from_meta_params,
    init_meta_params,
    mnemosyne,
    scale_by_mnemosyne,
)
from mnemosyne.plus import ScaleByMnemosyneState
from mnemosyne.telemetry import telemetry
from mnemosyne.warmstart import make_warm_start

__all__ = [
    "Artifact",
    "MnemosyneConfig",
    "ScaleByMnemosyneState",
    "from_meta_params",
    "hand_over",
    "init_meta_params",
    "list_weights",
    "load",
    "make_warm_start",
    "mnemosyne",
    "paper_config",
    "save_artifact",
    "scale_by_mnemosyne",
    "telemetry",
]
