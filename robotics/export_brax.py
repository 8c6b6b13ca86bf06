# SPDX-License-Identifier: Apache-2.0
"""An exported policy as a checkpoint of Brax's PPO, which Brax's own functions load.

Brax keeps ``(normalizer, policy)`` parameters: running statistics, and an MLP of flax whose output
holds the mean of each action and then a number ``s`` for its standard deviation
``softplus(s) + 0.001``. Two things differ from ours, and neither matters for the deterministic
action of a policy at home in its environment: Brax does not clip normalized observations, and it
cannot state a standard deviation ``0.001 + exp(log_std)`` that depends on the observation.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from robotics.export import PolicyFile, mlp_layers, mlp_network
from robotics.run_folder import check_writable

_NO_NOISE = -20.0  # softplus of it is 2e-9, so that Brax's smallest deviation, 0.001, is left
_LOG_STD_RANGE = (-7.0, 2.0)  # of robotics.networks


def brax_params(policy: PolicyFile) -> tuple[Any, dict[str, Any]]:
    """``(normalizer, policy)`` parameters for ``ppo_networks.make_inference_fn``.

    Args:
      policy: from :func:`robotics.export.read_policy`.

    Raises:
      ImportError: without ``brax``.
      ValueError: for an unknown kind of network, or one that chooses among actions.
    """
    from brax.training.acme import running_statistics

    types: Any = importlib.import_module("brax.training.types")  # a flax dataclass has no types
    network = _network(policy)
    mean, std = (policy.tensors[f"normalizer/{name}"] for name in ("mean", "std"))
    # As many samples as the run had, so that a run that goes on in Brax keeps what it has seen.
    count = max(int(policy.header.get("env_steps", 0)), 1)
    limbs: Any = types.UInt64  # a class made by flax, whose fields no type checker sees
    normalizer = running_statistics.RunningStatisticsState(
        count=limbs(hi=count >> 32, lo=count & 0xFFFFFFFF),
        mean=mean,
        std=std,
        summed_variance=np.square(std) * np.float32(count),
    )
    layers = mlp_layers(policy.tensors, network)
    layers[-1] = _with_noise(*layers[-1], network, policy.tensors.get("policy/log_std"))
    named = {
        f"hidden_{i}": {"kernel": kernel, "bias": bias} for i, (kernel, bias) in enumerate(layers)
    }
    return normalizer, {"params": named}


def _network(policy: PolicyFile) -> dict[str, Any]:
    """The description of a network that Brax can have."""
    network = mlp_network(policy.header)
    if network["squash"] == "argmax":
        raise ValueError(
            "the policy chooses among actions, which Brax's PPO cannot; ONNX or NumPy can hold it"
        )
    return network


def _with_noise(
    kernel: Float[np.ndarray, "inputs outputs"],
    bias: Float[np.ndarray, " outputs"],
    network: Mapping[str, Any],
    log_std: Float[np.ndarray, " action"] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The last layer with two outputs an action, as Brax wants it."""
    if network["noise"] == "network":
        return kernel, bias
    scale = np.full(network["action_size"], _NO_NOISE, np.float32)
    if network["noise"] == "parameter" and log_std is not None:
        # softplus(s) = exp(log_std), solved for s.
        std = np.exp(np.clip(np.asarray(log_std, np.float64), *_LOG_STD_RANGE))
        scale = np.log(np.expm1(std)).astype(np.float32)
    columns = np.zeros((len(kernel), len(scale)), np.float32)
    return np.concatenate([kernel, columns], axis=1), np.concatenate([bias, scale])


def write_brax(folder: Path, policy: PolicyFile) -> Path:
    """Writes a checkpoint that ``brax.training.agents.ppo.checkpoint.load_policy`` reads.

    Args:
      folder: new or empty; the checkpoint is the folder numbered by env steps in it.
      policy: from :func:`robotics.export.read_policy`.

    Returns:
      The checkpoint's folder.

    Raises:
      ImportError: without ``brax``.
      ValueError: for an unknown kind of network, one that chooses among actions, or a place that
        is taken or cannot be written.
    """
    from brax.training.agents.ppo import checkpoint
    from ml_collections import config_dict

    network = _network(policy)
    step = int(policy.header.get("env_steps", 0))
    written = folder.absolute() / f"{step:012d}"
    if written.exists():
        raise ValueError(f"{written} exists already; choose another --out")
    check_writable(folder)
    # Only what differs from Brax's defaults: its reader stumbles over entries that are None.
    kwargs = {
        "policy_hidden_layer_sizes": tuple(network["hidden"]),
        "activation": network["activation"],
    }
    config = config_dict.create(
        network_factory_kwargs=kwargs,
        normalize_observations=True,
        observation_size=network["observation_size"],
        action_size=network["action_size"],
    )
    checkpoint.save(str(folder.absolute()), step, brax_params(policy), config)
    return written


def run_brax(
    folder: Path, obs: Float[np.ndarray, "batch obs"]
) -> Float[np.ndarray, "batch action"]:
    """The deterministic actions of a written checkpoint, by Brax's own loader and functions.

    Raises:
      ImportError: without ``brax``.
    """
    import jax
    from brax.training.agents.ppo import checkpoint

    act = checkpoint.load_policy(str(folder.absolute()), deterministic=True)
    actions, _ = jax.jit(act)(np.asarray(obs, np.float32), jax.random.PRNGKey(0))
    return np.asarray(actions)
