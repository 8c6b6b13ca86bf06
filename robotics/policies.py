# SPDX-License-Identifier: Apache-2.0
"""Exported policies back in JAX, with nothing of the run that made them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robotics.algorithm import Policy, PolicyParams
from robotics.export import PolicyFile, mlp_network, read_policy, unflatten
from robotics.networks import NetworkConfig, make_policy


class LoadedPolicy(NamedTuple):
    """A policy that can act, and where it is at home.

    Attributes:
      policy: how to act.
      params: with these.
      header: ``policy.json``: env, sizes, dt, where it comes from.
    """

    policy: Policy
    params: PolicyParams
    header: dict[str, Any]


def load_policy(path: Path) -> LoadedPolicy:
    """Reads an exported policy.

    Args:
      path: ``policy.safetensors`` or its folder.

    Raises:
      ValueError: if the file is missing, damaged, or holds an unknown kind of network.
    """
    return from_file(read_policy(path))


def from_file(policy_file: PolicyFile) -> LoadedPolicy:
    """A policy that has been read as one that can act in JAX.

    Raises:
      ValueError: for an unknown kind of network.
    """
    network = mlp_network(policy_file.header)
    config = NetworkConfig(
        policy_hidden=tuple(network["hidden"]),
        activation=network["activation"],
        noise=network["noise"],
    )
    sizes = network["observation_size"], network["action_size"]
    policy = make_policy(*sizes, config, discrete=network["squash"] == "argmax")
    if policy.spec["obs_clip"] != network["obs_clip"]:
        raise ValueError(
            f"the policy clips observations at {network['obs_clip']} standard deviations, "
            f"this program at {policy.spec['obs_clip']}"
        )
    params = jax.tree.map(jnp.asarray, unflatten(policy_file.tensors))
    return LoadedPolicy(policy, params, policy_file.header)
