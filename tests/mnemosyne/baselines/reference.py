# SPDX-License-Identifier: Apache-2.0
"""The baselines once more, in plain NumPy and double precision, one tensor at a time."""

from collections.abc import Callable
from typing import Any

import numpy as np

Tree = dict[str, np.ndarray]
Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""``rule(g, p) -> update`` of one tensor; remembers its own past."""


def run(make: Callable[[], Rule], params: Tree, gradients: list[Tree]) -> list[Tree]:
    """Applies one rule a tensor; returns the updates."""
    rules = {name: make() for name in params}
    params, history = {k: np.asarray(p, np.float64) for k, p in params.items()}, []
    for g in gradients:
        history.append({k: rules[k](np.asarray(g[k], np.float64), p) for k, p in params.items()})
        params = {k: p + history[-1][k] for k, p in params.items()}
    return history


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lstm_cell(
    weights: dict[str, Any], x: np.ndarray, h: np.ndarray, c: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One row a coordinate."""
    gates = np.concatenate([x, h], axis=1) @ np.asarray(weights["w"]) + np.asarray(weights["b"])
    write, candidate, forget, read = np.split(gates, 4, axis=1)
    c = _sigmoid(forget + 1) * c + _sigmoid(write) * np.tanh(candidate)
    return _sigmoid(read) * np.tanh(c), c


class Lstm:
    """``kind`` is a preprocessing of the LSTM optimizer."""

    def __init__(self, theta: dict[str, Any], kind: str) -> None:
        self.theta, self.kind, self.t, self.state = theta, kind, 0, None
        self.m, self.v = [0.0] * 3, [0.0] * 2

    def inputs(self, g: np.ndarray) -> np.ndarray:
        large = np.abs(g) >= np.exp(-10)
        log = np.where(large, np.log(np.abs(np.where(large, g, 1))) / 10, -1)
        paper = [log, np.where(large, np.sign(g), np.exp(10) * g)]
        if self.kind == "code":
            eps = np.finfo(np.float32).eps
            log = np.maximum(np.log(np.abs(g) + eps) / 5, -1)
            paper = [log, np.clip(np.exp(5) * g, -1, 1)]
        if self.kind != "features":
            return np.stack(paper, axis=1)
        decays, seconds = (0.9, 0.99, 0.999), (0.99, 0.999)
        self.m = [d * m + (1 - d) * g for d, m in zip(decays, self.m, strict=True)]
        self.v = [d * v + (1 - d) * g * g for d, v in zip(seconds, self.v, strict=True)]
        m = [m / (1 - d**self.t) for d, m in zip(decays, self.m, strict=True)]
        fast, slow = (v / (1 - d**self.t) for d, v in zip(seconds, self.v, strict=True))
        ratios = [x / np.sqrt(slow) for x in (g, *m)]
        bounded = [r / (1 + np.abs(r)) for r in ratios]
        trend = np.clip(np.log(fast / slow + 1e-8) / 4, -1, 1)
        ages = [np.full_like(g, self.t / (self.t + k)) for k in (3, 30, 300, 3000)]
        return np.stack([*paper, *bounded, trend, *ages], axis=1)

    def __call__(self, g: np.ndarray, p: np.ndarray) -> np.ndarray:
        self.t += 1
        x, layers = self.inputs(g.reshape(-1)), len(self.theta) - 1
        if self.state is None:
            self.state = [(np.zeros((g.size, 20)), np.zeros((g.size, 20)))] * layers
        for i, (h, c) in enumerate(list(self.state)):
            x, c = lstm_cell(self.theta[f"layer{i}"], x, h, c)
            self.state[i] = (x, c)
        out = x @ np.asarray(self.theta["out"]["w"]) + np.asarray(self.theta["out"]["b"])
        return 0.01 * out.reshape(g.shape)


class Adafac:
    """The accumulators of the MLP rules; statistics are spread out to the tensor's shape."""

    def __init__(self, momentum: list[float], second: float, factored: list[float]) -> None:
        self.momentum, self.second, self.factored = momentum, second, factored
        self.t, self.m, self.v, self.row, self.col = 0, [0.0] * 3, 0.0, [0.0] * 3, [0.0] * 3

    def add(self, g: np.ndarray) -> None:
        self.t += 1
        self.m = [d * m + (1 - d) * g for d, m in zip(self.momentum, self.m, strict=True)]
        self.v = self.second * self.v + (1 - self.second) * g * g
        square, self.axes = g * g + 1e-30, None
        rows, cols = square, square
        if g.ndim > 1:
            second, largest = self.axes = np.argsort(g.shape, kind="stable")[-2:]
            ones = np.ones_like(g)
            rows = square.mean(largest, keepdims=True) * ones
            cols = square.mean(second, keepdims=True) * ones
        mix = [
            (d * r + (1 - d) * rows, d * c + (1 - d) * cols)
            for d, r, c in zip(self.factored, self.row, self.col, strict=True)
        ]
        self.row, self.col = [r for r, _ in mix], [c for _, c in mix]

    def scales(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        if self.axes is None:
            return (
                [1 / np.sqrt(np.maximum(r + 1e-9, 1e-9)) for r in self.row],
                [1 / np.sqrt(r + 1e-6) for r in self.row],
            )
        both = []
        for r, c in zip(self.row, self.col, strict=True):
            mean = r.mean(self.axes[0], keepdims=True)
            left = np.maximum(r / (mean + 1e-9), 1e-9)
            both.append(1 / np.sqrt(left) / np.sqrt(np.maximum(c, 1e-9)))
        return both, both


def normalize(x: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(eps + np.mean(x * x))


def mlp(weights: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """Features along the last axis."""
    for i in range(3):
        x = x @ np.asarray(weights[f"w{i}"], np.float64) + np.asarray(weights[f"b{i}"])
        x = np.maximum(x, 0) if i < 2 else x
    return x


def _shared_features(a: Adafac, g: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Factored directions of ``g``; then everything from the row statistics on."""
    scale_g, scale_m = a.scales()
    rest = [
        *a.row,
        *a.col,
        *(1 / np.sqrt(r + 1e-8) for r in a.row),
        *(1 / np.sqrt(c + 1e-8) for c in a.col),
        *(m * s for m, s in zip(a.m, scale_m, strict=True)),
    ]
    return [g * s for s in scale_g], rest


class AdafacMlp:
    """AdafacMLP, or STAR if ``nominal`` is not 0."""

    def __init__(
        self,
        theta: dict[str, Any],
        nominal: float = 0.0,
        decay: float = 0.0,
        preconditioner: str = "none",
    ) -> None:
        d0 = {
            "momentum": (0.9, 0.99, 0.999),
            "second": (0.999,),
            "factored": (0.9, 0.99, 0.999),
        }
        offsets = {name: np.asarray(theta["decays"][name], np.float64) for name in d0}
        decays = {
            name: list(1 - np.exp(10 * (np.log(1 - np.asarray(d)) / 10 + offsets[name])))
            for name, d in d0.items()
        }
        self.a = Adafac(decays["momentum"], decays["second"][0], decays["factored"])
        self.theta, self.nominal, self.decay = theta, nominal, decay
        self.preconditioner = preconditioner

    def __call__(self, g: np.ndarray, p: np.ndarray) -> np.ndarray:
        a = self.a
        times = np.tanh(a.t / np.asarray([1, 3, 10, 30, 1e2, 3e2, 1e3, 3e3, 1e4, 3e4, 1e5]) - 1)
        a.add(g)
        inverse = 1 / np.sqrt(a.v + 1e-6)
        factored, rest = _shared_features(a, g)
        every = [g, p, *a.m, a.v, *(m * inverse for m in a.m), inverse, *factored, *rest]
        assert len(every) == 28
        x = [normalize(f, 1e-5) for f in every] + [np.full_like(g, t) for t in times]
        out = mlp(self.theta["network"], np.stack(x, axis=-1))
        precondition = {"none": 1.0, "inverse": inverse, "momentum": np.abs(a.m[1]) * inverse}
        step = 1e-3 * out[..., 0] * np.exp(1e-3 * out[..., 1]) * precondition[self.preconditioner]
        if self.nominal:
            step = step + self.nominal * np.exp(1e-3 * out[..., 2]) * np.mean(a.m, 0) * inverse
        if self.decay:
            step = step + self.decay * np.exp(1e-3 * out[..., 3]) * p
        return -step


class Celo2:
    """``rate`` is a function of the updates made before."""

    def __init__(self, theta: dict[str, Any], rate: Callable[[int], float]) -> None:
        self.rate = rate
        self.a, self.theta = Adafac([0.9, 0.99, 0.999], 0.95, [0.9, 0.99, 0.999]), theta

    def __call__(self, g: np.ndarray, p: np.ndarray) -> np.ndarray:
        a = self.a
        a.add(g)
        inverse = 1 / np.sqrt(a.v + 1e-8)
        factored, rest = _shared_features(a, g)
        momenta = [m * inverse for m in a.m]
        every = [g, np.clip(g, -0.1, 0.1), p, *a.m, a.v, *momenta, inverse]
        every += [*factored, g * inverse, *rest]
        assert len(every) == 30
        x = np.stack([normalize(f, 1e-9) for f in every], axis=-1)
        return -self.rate(a.t - 1) * normalize(mlp(self.theta["network"], x)[..., 0], 1e-9)


class NNAdam:
    def __init__(self, theta: dict[str, Any]) -> None:
        start = {k: np.asarray(v, np.float64) for k, v in theta["start"].items()}
        self.theta, self.m, self.v, self.controls = theta, 0.0, 0.0, start["settings"]
        self.h, self.c = start["hidden"][None], start["memory"][None]

    def __call__(self, g: np.ndarray, p: np.ndarray) -> np.ndarray:
        rate, keep1, keep2, eps = np.exp(10 * self.controls)
        self.m = (1 - keep1) * self.m + keep1 * g
        self.v = (1 - keep2) * self.v + keep2 * g * g
        step = rate * (1 + eps) * self.m / (eps + np.sqrt(self.v + 1e-10))

        def log(x: np.ndarray) -> float:
            return float(np.clip(np.log(1e-8 + np.abs(x)), -5, 5) / 2)

        tensors = (g, self.m, self.v, p)
        magnitudes = [log(s) for x in tensors for s in (x.mean(), x.var())]
        signs = [np.sign(x.mean()) for x in tensors]
        kinds = [1 if g.ndim == 0 else -1, 1 if g.ndim == 1 else -1]
        x = [*magnitudes, log(np.abs(g).mean()), *signs, *kinds, *(0.2 * self.controls)]
        self.h, self.c = lstm_cell(self.theta["lstm"], np.asarray(x)[None], self.h, self.c)
        out = self.h @ np.asarray(self.theta["controls"]["w"]) + self.theta["controls"]["b"]
        lowest = 0.1 * np.log([1e-8, np.exp(-10), np.exp(-10), 1e-11])
        highest = 0.1 * np.log([1e3, 1, 1, 1e4])
        self.controls = np.clip(self.controls + 0.01 * np.asarray(out)[0], lowest, highest)
        return -step
