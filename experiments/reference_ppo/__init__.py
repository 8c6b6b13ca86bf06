# SPDX-License-Identifier: Apache-2.0
"""A plain PPO that ours must not fall behind, and the command that compares the two."""

from experiments.reference_ppo.plain import Learner, train

__all__ = ["Learner", "train"]
