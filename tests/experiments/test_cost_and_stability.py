# SPDX-License-Identifier: Apache-2.0
"""Measured costs count what they say, and runs that blow up late are found."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import benchmarks, rivals
from experiments.benchmarks import cost, layouts, scores, stability
from mnemosyne import features
from tests.experiments.bowl import bench

STEPS = np.asarray([0, 10, 20, 30, 40])


@pytest.mark.parametrize("layout", list(layouts.LAYOUTS))
@pytest.mark.parametrize("params", [10_000, 1_000_000])
def test_layouts_have_about_as_many_parameters_as_asked(layout: str, params: int) -> None:
    found = sum(math.prod(shape) for shape in layouts.LAYOUTS[layout](params))
    assert 0.9 * params < found < 1.1 * params


def test_cost_counts_adam_exactly_and_leaves_out_what_is_too_large() -> None:
    factories = {"adam": lambda: optax.adam(1e-3), "sgd": lambda: optax.sgd(1e-3)}
    options = benchmarks.Options(rounds=2)
    adam, sgd = cost.measure(factories, "mlp", 500, options)
    assert adam["state_bytes"] == 8 * adam["params"] + 4  # two moments and a counter
    assert (adam["ratio_to_adam"], adam["compile_ratio"], sgd["state_bytes"]) == (1.0, 1.0, 0)
    assert sgd["ns_per_param"] > 0 and adam["compile_s"] > 0
    tight = dataclasses.replace(options, max_gib=1e-9)
    for row in cost.measure(factories, "mlp", 500, tight):
        assert row["skipped"].startswith("needs") and "ns_per_param" not in row
    many = cost.measure(factories, "many-small", 10**7, options)
    assert all("tensors" in row["skipped"] for row in many)


def test_cost_growth_is_the_exponent_of_the_time() -> None:
    rows = [
        {"layout": "mlp", "optimizer": "adam", "params": n, "ns_per_param": t}
        for n, t in ((100, 8.0), (10_000, 8.0), (1_000_000, 80.0))
    ]
    exponents = [row["exponent"] for row in cost.growth(rows)]
    assert exponents == pytest.approx([1.0, 1.5])


@pytest.mark.parametrize("text", ["", "a", "1e4,,1e5", "0", "nan", "-3"])
def test_cost_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--params takes sizes"):
        cost.sizes(text)
    assert cost.sizes("1e6,1e4") == [10_000, 1_000_000]


@pytest.mark.parametrize(
    ("curve", "blown_up"),
    [
        ([8, 4, 2, 2.5, 2.1], False),  # gives back less than a tenth of 6
        ([8, 4, 2, 2.7, 1.0], True),
        ([8, 4, 2, math.nan, 1.0], True),
        ([8, 9, 8, 7, 6], True),  # gained nothing when meta-training would have ended
        ([8, 4, 2, 1, 0], False),
    ],
)
def test_stability_verdict(curve: list[float], blown_up: bool) -> None:
    assert stability.verdict(STEPS, np.asarray(curve, float), 20)["blown_up"] is blown_up


def test_stability_extras_are_told_absent_constant_and_wild() -> None:
    @jax.jit
    def every(mode: Any) -> Any:
        found = jax.vmap(lambda i: stability.extras_of(mode, i, jnp.asarray(2.0), 10))
        return jnp.stack([found(jnp.arange(30))[name] for name in features.EXTRAS], axis=1)

    def values(mode: int, index: int) -> np.ndarray:
        return np.asarray(every(jnp.asarray(mode)))[index]

    told = dict(zip(features.EXTRAS, values(0, 5), strict=True))
    assert (told["value"], told["progress"]) == (2.0, 0.5) and np.isnan(told["kl"])
    assert np.isnan(values(1, 5)).all()
    np.testing.assert_array_equal(values(2, 5), 1.0)
    wild = np.concatenate([values(3, index) for index in range(30)])
    finite = np.abs(wild[np.isfinite(wild)])
    assert finite.min() < 1e-10 and finite.max() > 1e10
    assert 0 < (~np.isfinite(wild)).sum() < 0.4 * wild.size


def test_stability_finds_a_rule_that_blows_up_late(tmp_path: Path) -> None:
    def grow(theta: Any, rate: Any, steps: int) -> optax.GradientTransformation:
        del theta, rate, steps
        return optax.sgd(lambda count: jnp.where(count < 20, 0.1, 3.0))

    bad = rivals.Line("bad", grow, (1.0,), {"rule": "bad"})
    options = benchmarks.Options(cache=tmp_path)
    rows = stability.on_task(bench(), bad, 10, 4.0, 1, options)
    assert [row["extras"] for row in rows] == list(stability.MODES)
    assert all(row["blown_up"] for row in rows)
    # Up to twice the longest run all was well.
    (file,) = tmp_path.glob("stability-bowl-*.json")
    curve = scores.finite(json.loads(file.read_text())["result"]["curves"])[0, 0]
    assert not stability.verdict(np.arange(21), curve[:21], 10)["blown_up"]
