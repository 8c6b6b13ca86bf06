# SPDX-License-Identifier: Apache-2.0
"""An exported policy as one ONNX graph, for robots whose software knows neither JAX nor NumPy.

The graph takes what the sensors give and returns what the motors take: the observation normalizer
and the scaling of actions are inside. Opset 17 and IR version 8, which ONNX Runtime 1.13 (2022) and
everything since can read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from robotics import run_folder
from robotics.export import PolicyFile, mlp_layers, mlp_network

_OPSET, _IR_VERSION = 17, 8
_NODES: dict[str, tuple[str, ...]] = {
    "tanh": ("Tanh",),
    "relu": ("Relu",),
    "elu": ("Elu",),
    "swish": ("Sigmoid", "Mul"),
}
INPUT, OUTPUT = "obs", "action"


class _Graph:
    """Nodes in the order of their evaluation, each fed by the one before it."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.last = INPUT

    def constant(self, name: str, value: np.ndarray) -> str:
        """A stored float32 array; returns its name."""
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def add(self, kind: str, *others: str, output: str | None = None, **attributes: Any) -> None:
        """``last = kind(last, *others)``."""
        from onnx import helper

        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [self.last, *others], [output], **attributes))
        self.last = output


def write_onnx(
    path: Path, policy: PolicyFile, action_range: tuple[float, float] = (-1.0, 1.0)
) -> Path:
    """Writes the deterministic policy: ``obs`` [batch, obs] to ``action`` [batch, action], float32.

    Where actions are choices, ``action`` [batch] is the number of the choice, int64.

    Args:
      path: file to write, atomically.
      policy: from :func:`robotics.export.read_policy`.
      action_range: what the outermost actions of the policy, -1 and 1, are sent to.

    Returns:
      The path.

    Raises:
      ImportError: without ``onnx``.
      ValueError: for an unknown kind of network, a range that is empty, or a range for choices.
      OSError: if the file cannot be written.
    """
    import onnx

    low, high = action_range
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"the action range {low:g} to {high:g} is empty; try -1 to 1")
    if policy.header["network"].get("squash") == "argmax" and action_range != (-1.0, 1.0):
        raise ValueError("the policy chooses among actions, which have no range; give none")
    model = _model(policy, (low, high))
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    run_folder.write_atomic(path, model.SerializeToString())
    return path


def _model(policy: PolicyFile, action_range: tuple[float, float]) -> Any:
    from onnx import TensorProto, helper

    network = mlp_network(policy.header)
    graph = _graph(policy.tensors, network, action_range)
    chooses = network["squash"] == "argmax"
    obs = ["batch", network["observation_size"]]
    inputs = [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, obs)]
    action = ["batch"] if chooses else ["batch", network["action_size"]]
    kind = TensorProto.INT64 if chooses else TensorProto.FLOAT
    outputs = [helper.make_tensor_value_info(OUTPUT, kind, action)]
    made = helper.make_graph(graph.nodes, "policy", inputs, outputs, graph.constants)
    opsets = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(
        made, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="mnemosyne"
    )
    about = policy.header if chooses else {**policy.header, "action_range": list(action_range)}
    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in about.items()
    }
    helper.set_model_props(model, texts)
    return model


def _graph(
    tensors: Mapping[str, np.ndarray], network: Mapping[str, Any], action_range: tuple[float, float]
) -> _Graph:
    """Normalizer, layers, and the choice or tanh and, unless it is -1 to 1, the range."""
    graph = _Graph()
    graph.add("Sub", graph.constant("mean", tensors["normalizer/mean"]))
    graph.add("Div", graph.constant("std", tensors["normalizer/std"]))
    clip = network["obs_clip"]
    bounds = (
        graph.constant("clip_low", np.array(-clip)),
        graph.constant("clip_high", np.array(clip)),
    )
    graph.add("Clip", *bounds)
    layers = mlp_layers(tensors, network)
    for i, (kernel, bias) in enumerate(layers):
        if i == len(layers) - 1:  # what lies behind the means of the actions is noise
            kernel, bias = kernel[:, : network["action_size"]], bias[: network["action_size"]]
        names = graph.constant(f"kernel_{i}", kernel), graph.constant(f"bias_{i}", bias)
        graph.add("Gemm", *names)
        if i < len(layers) - 1:
            _activate(graph, network["activation"])
    if network["squash"] == "argmax":
        graph.add("ArgMax", output=OUTPUT, axis=1, keepdims=0)
        return graph
    if action_range == (-1.0, 1.0):
        graph.add("Tanh", output=OUTPUT)
        return graph
    low, high = action_range
    graph.add("Tanh")
    graph.add("Mul", graph.constant("half_range", np.array((high - low) / 2)))
    graph.add("Add", graph.constant("middle", np.array((high + low) / 2)), output=OUTPUT)
    return graph


def _activate(graph: _Graph, activation: str) -> None:
    before = graph.last
    for kind in _NODES[activation]:
        graph.add(kind, *((before,) if kind == "Mul" else ()))


def run_onnx(path: Path, obs: Float[np.ndarray, "batch obs"]) -> np.ndarray:
    """Actions [batch, action] or choices [batch] of a written graph, by ONNX Runtime on the CPU.

    Raises:
      ImportError: without ``onnxruntime``.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (actions,) = session.run([OUTPUT], {INPUT: np.asarray(obs, np.float32)})
    return np.asarray(actions)
