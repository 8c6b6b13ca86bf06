# SPDX-License-Identifier: Apache-2.0
"""Proximal policy optimization as one scan, with any optax transformation."""

from robotics.ppo.config import PPOConfig, presets
from robotics.ppo.host import make_host_ppo
from robotics.ppo.train import make_ppo

__all__ = ["PPOConfig", "make_host_ppo", "make_ppo", "presets"]
