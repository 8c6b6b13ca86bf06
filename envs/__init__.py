# SPDX-License-Identifier: Apache-2.0
"""Environments behind two small protocols.

``make("brax:hopper")`` gives an :class:`~envs.api.Env`, ``make("gym:HalfCheetah-v5")`` a
:class:`~envs.api.HostEnv`; ``list_envs()`` gives the names that are known. Importing
this package imports no simulator: an adapter, and the library that it wraps, is imported by the
first ``make`` that needs it.
"""

from envs.api import Env, EpisodeWrapper, HostBatch, HostEnv, HostStep, State
from envs.registry import EnvInfo, describe, list_envs, make, open_families

__all__ = [
    "Env",
    "EnvInfo",
    "EpisodeWrapper",
    "HostBatch",
    "HostEnv",
    "HostStep",
    "State",
    "describe",
    "list_envs",
    "make",
    "open_families",
]
