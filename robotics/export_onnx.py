# SPDX-License-Identifier: Apache-2.0
"""An exported policy as one ONNX graph, for robots whose software knows neither JAX nor NumPy.

The graph takes what the sensors give and returns what the motors take: the observation normalizer
and the scaling of each action to its own range are inside. Opset 17 and IR version 8, which ONNX
Runtime 1.13 (2022) and everything since can read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from robotics import run_folder
from robotics.export import PolicyFile, action_bounds, mlp_layers, mlp_network

_OPSET, _IR_VERSION = 17, 8
_NODES: dict[str, tuple[str, ...]] = {
    "tanh": ("Tanh",),
    "relu": ("Relu",),
    "elu": ("Elu",),
    "swish": ("Sigmoid", "Mul"),
}
INPUT, OUTPUT = "obs", "action"
Bounds = tuple[Float[np.ndarray, " action"], Float[np.ndarray, " action"]]


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


def write_onnx(path: Path, policy: PolicyFile, action_range: tuple[Any, Any] | None = None) -> Path:
    """Writes the deterministic policy: ``obs`` [batch, obs] to ``action`` [batch, action], float32.

    Where actions are choices, ``action`` [batch] is the number of the choice, int64.

    Args:
      path: file to write, atomically.
      policy: from :func:`robotics.export.read_policy`.
      action_range: what the outermost actions of the policy, -1 and 1, are sent to: two numbers,
        or two arrays [action]; ``None`` takes the range of the policy's own environment.

    Returns:
      The path.

    Raises:
      ImportError: without ``onnx``.
      ValueError: for an unknown kind of network, a range that is empty or does not fit the
        actions, or a range for choices.
      OSError: if the file cannot be written.
    """
    import onnx

    model = _model(policy, output_bounds(policy, action_range))
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    run_folder.write_atomic(path, model.SerializeToString())
    return path


def output_bounds(policy: PolicyFile, action_range: tuple[Any, Any] | None = None) -> Bounds | None:
    """What a graph's actions lie between.

    Args:
      policy: from :func:`robotics.export.read_policy`.
      action_range: lowest and highest, numbers or arrays [action]; ``None`` takes the range of the
        policy's own environment.

    Returns:
      Lowest and highest actions, float64 [action]; ``None`` where actions are choices.

    Raises:
      ValueError: for a range that is empty or does not fit the actions, or a range for choices.
    """
    network = mlp_network(policy.header)
    if network["squash"] == "argmax":
        if action_range is not None:
            raise ValueError("the policy chooses among actions, which have no range; give none")
        return None
    if action_range is None:
        return action_bounds(policy.header)
    size = network["action_size"]
    counts = {np.size(bound) for bound in action_range} - {1, size}
    if counts:
        raise ValueError(
            f"{counts.pop()} action ranges are given, but the policy has {size} actions; give one "
            "for all of them, or one for each"
        )
    low, high = (np.broadcast_to(np.asarray(bound, np.float64), (size,)) for bound in action_range)
    for a, b in zip(low, high, strict=True):
        # Only an environment may hold an action fixed: from a user it is a slip.
        if not (np.isfinite([a, b]).all() and a < b):
            raise ValueError(f"the action range {a:g} to {b:g} is empty; try -1 to 1")
    return low, high


def _model(policy: PolicyFile, bounds: Bounds | None) -> Any:
    from onnx import TensorProto, helper

    network = mlp_network(policy.header)
    graph = _graph(policy.tensors, network, bounds)
    chooses = bounds is None
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
    about = policy.header
    if bounds is not None:
        low, high = (bound.tolist() for bound in bounds)
        about = {**about, "action_range": {"low": low, "high": high}}
    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in about.items()
    }
    helper.set_model_props(model, texts)
    return model


def _graph(
    tensors: Mapping[str, np.ndarray], network: Mapping[str, Any], bounds: Bounds | None
) -> _Graph:
    """Normalizer, layers, and the choice or tanh and, unless it is -1 to 1, the range."""
    graph = _Graph()
    graph.add("Sub", graph.constant("mean", tensors["normalizer/mean"]))
    graph.add("Div", graph.constant("std", tensors["normalizer/std"]))
    clip = network["obs_clip"]
    ends = (
        graph.constant("clip_low", np.array(-clip)),
        graph.constant("clip_high", np.array(clip)),
    )
    graph.add("Clip", *ends)
    layers = mlp_layers(tensors, network)
    for i, (kernel, bias) in enumerate(layers):
        if i == len(layers) - 1:  # what lies behind the means of the actions is noise
            kernel, bias = kernel[:, : network["action_size"]], bias[: network["action_size"]]
        names = graph.constant(f"kernel_{i}", kernel), graph.constant(f"bias_{i}", bias)
        graph.add("Gemm", *names)
        if i < len(layers) - 1:
            _activate(graph, network["activation"])
    if bounds is None:
        graph.add("ArgMax", output=OUTPUT, axis=1, keepdims=0)
    elif (bounds[0] == -1.0).all() and (bounds[1] == 1.0).all():
        graph.add("Tanh", output=OUTPUT)
    else:
        _stretch(graph, *bounds)
    return graph


def _stretch(graph: _Graph, low: np.ndarray, high: np.ndarray) -> None:
    graph.add("Tanh")
    graph.add("Mul", graph.constant("half_range", (high - low) / 2))
    graph.add("Add", graph.constant("middle", (high + low) / 2))
    # In float32 the sum may end up beyond a limit by its last bit, which strict receivers refuse.
    graph.add("Max", graph.constant("low", low))
    graph.add("Min", graph.constant("high", high), output=OUTPUT)


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
