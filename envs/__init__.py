# SPDX-License-Identifier: Apache-2.0
"""Environments behind one small protocol.

``make("brax:hopper")`` gives an :class:`~envs.api.Env`; ``list_envs()`` gives every name. Importing
this package imports no simulator: an adapter, and the library that it wraps, is imported by the
first ``make`` that needs it.
"""

from envs.api import Env, EpisodeWrapper, State
from envs.registry import EnvInfo, describe, list_envs, make, open_families

__all__ = [
    "Env",
    "EnvInfo",
    "EpisodeWrapper",
    "State",
    "describe",
    "list_envs",
    "make",
    "open_families",
]
