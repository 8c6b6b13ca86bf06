# SPDX-License-Identifier: Apache-2.0
"""The host side of meta-training: a killed run goes on as if nothing had happened."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne import MnemosyneConfig, artifacts
from mnemosyne.learned import LearnedOptimizer
from mnemosyne.meta import session, train
from mnemosyne.meta.estimators import System
from robotics.checkpoint import Checkpointer

TARGET = jnp.asarray([1.0, -2.0, 0.5])
RULE = LearnedOptimizer("toy", lambda key: {"w": jnp.zeros(3)}, lambda theta: None)  # type: ignore
CONFIG = train.MetaTrainConfig(outer_steps=40, num_workers=2, learning_rate=0.1, seed=3)


class Windows(NamedTuple):
    """Where a toy problem stands; its noise grows with what it has gone through."""

    noise: Any
    count: Any


def toy() -> train.Families:
    """A problem of three windows: the squared distance of theta to a noisy target."""

    def reset(theta: Any, key: Any, fraction: Any) -> Windows:
        del theta, fraction
        return Windows(0.1 * jax.random.normal(key, (3,)), jnp.zeros((), jnp.int32))

    def advance(theta: Any, state: Windows) -> tuple[Windows, jax.Array]:
        loss = jnp.sum(jnp.square(theta["w"] - TARGET - state.noise))
        return Windows(1.5 * state.noise, state.count + 1), loss

    return {"toy": System(reset, advance, lambda state: state.count >= 3)}


def check(theta: Any) -> list[dict[str, Any]]:
    distance = float(np.sum(np.square(np.asarray(theta["w"] - TARGET))))
    return [{"task": "toy", "score": distance}]


class Saved(NamedTuple):
    state: Any
    host: Mapping[str, Any]


class Memory:
    """A checkpointer in memory that pulls the plug after some saves."""

    def __init__(self, saves: int = 1000):
        self.saved: dict[int, Saved] = {}
        self.left = saves

    def steps(self) -> list[int]:
        return sorted(self.saved)

    def save(self, step: int, state: Any, host: Mapping[str, Any]) -> None:
        self.saved[step] = Saved(state, host)
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt

    def restore(self, like: Any) -> Saved:
        del like
        return self.saved[self.steps()[-1]]


def run(folder: Path, checkpointer: Any) -> dict[str, Any]:
    found = session.Session(toy(), check, MnemosyneConfig(), CONFIG, folder, {}, 10)
    advance = session.make_advance(found.families, CONFIG)
    return found.run(
        advance, checkpointer, lambda step, scalars: None, RULE.init(jax.random.key(0))
    )


def test_run_learns_and_keeps_the_best(tmp_path: Path) -> None:
    result = run(tmp_path, Memory())
    assert result["best"]["score"] < 0.5 < float(jnp.sum(jnp.square(TARGET)))
    assert result["meta_params_sha256"] == result["best"]["sha256"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.safetensors",
        "last.safetensors",
    ]


@pytest.mark.parametrize("saves", [1, 3])
def test_killed_run_ends_like_one_that_was_not(tmp_path: Path, saves: int) -> None:
    whole = run(tmp_path / "whole", Memory())
    checkpointer = Memory(saves)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", checkpointer)
    resumed = run(tmp_path / "killed", checkpointer)
    for name in ("best", "meta_params_sha256", "last_meta_params_sha256"):
        assert resumed[name] == whole[name]
    assert resumed["walltime_s"] > checkpointer.saved[10 * saves].host["walltime_s"] > 0


def test_resumed_from_the_disk_it_ends_alike_and_would_not_without_its_workers(
    tmp_path: Path,
) -> None:
    whole = run(tmp_path / "whole", Memory())
    stopped = Memory(1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", stopped)
    saved = stopped.saved[10]
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        checkpointer.save(10, saved.state, saved.host)
        resumed = run(tmp_path / "killed", checkpointer)
    assert resumed["last_meta_params_sha256"] == whole["last_meta_params_sha256"]
    lost = Memory()
    fresh = train.init(toy(), RULE.init(jax.random.key(0)), CONFIG).workers
    lost.saved[10] = Saved(saved.state._replace(workers=fresh), saved.host)
    other = run(tmp_path / "lost", lost)
    assert other["last_meta_params_sha256"] != whole["last_meta_params_sha256"]


def test_validation_without_a_number_is_told(tmp_path: Path) -> None:
    found = session.Session(
        toy(),
        lambda theta: [{"task": "toy", "score": np.nan}],
        MnemosyneConfig(),
        CONFIG,
        tmp_path,
        {},
        10,
    )
    advance = session.make_advance(found.families, CONFIG)
    with pytest.raises(ValueError, match="outer step 10 is nan"):
        found.run(advance, Memory(), lambda step, scalars: None, RULE.init(jax.random.key(0)))


def test_last_theta_that_is_worse_does_not_replace_the_best(tmp_path: Path) -> None:
    scores = iter([0.3, 0.1, 0.2, 0.4])

    def rising(theta: Any) -> list[dict[str, Any]]:
        del theta
        return [{"task": "toy", "score": next(scores)}]

    found = session.Session(toy(), rising, MnemosyneConfig(), CONFIG, tmp_path, {}, 10)
    advance = session.make_advance(found.families, CONFIG)
    start = RULE.init(jax.random.key(0))
    result = found.run(advance, Memory(), lambda step, scalars: None, start)
    assert result["best"]["outer_step"] == 20
    assert result["meta_params_sha256"] != result["last_meta_params_sha256"]


def test_outer_steps_for_fits_the_budget_in_whole_chunks() -> None:
    # 600 steps are validated every 30: 20 times 10 s.
    assert session.validation_interval(600) == 30
    assert session.outer_steps_for(500.0, pace=0.5, validation_s=10.0) == 600
    assert session.outer_steps_for(499.0, pace=0.5, validation_s=10.0) < 600
    assert session.outer_steps_for(15.0, pace=0.5, validation_s=10.0) == session.CHUNK
    with pytest.raises(ValueError, match=r"too short.*15 s"):
        session.outer_steps_for(14.0, pace=0.5, validation_s=10.0)


def test_measure_pace_sees_a_slow_step() -> None:
    families = toy()
    advance = session.make_advance(families, CONFIG)
    state = train.init(families, RULE.init(jax.random.key(0)), CONFIG)
    compile_s, pace = session.measure_pace(advance, state)
    assert 0 < pace < compile_s


def test_measure_pace_visits_every_family_and_does_not_linger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, steps = [0.0], []

    def advance(state: train.OuterState, rates: np.ndarray) -> tuple[train.OuterState, dict]:
        # Compiling takes 50 s, a step 40 s; families take turns.
        first = len(steps) < 3
        clock[0] += 40.0 + 50.0 * first
        losses = np.full(3, np.nan)
        losses[len(steps) % 3] = 1.0
        steps.append(len(rates))
        return state, {f"meta/loss/{i}": losses[i : i + 1] for i in range(3)}

    monkeypatch.setattr(session.time, "monotonic", lambda: clock[0])
    state = train.init(toy(), RULE.init(jax.random.key(0)), CONFIG)
    compile_s, pace = session.measure_pace(advance, state)
    assert (compile_s, pace) == (150.0, 40.0)
    assert steps == [1] * 6


def test_artifacts_of_a_run_say_what_it_was(tmp_path: Path) -> None:
    run(tmp_path, Memory())
    from safetensors import safe_open

    with safe_open(tmp_path / "best.safetensors", framework="numpy") as file:
        header = file.metadata()
    assert '"meta_train"' in header["trained_with"]
    assert header["format_version"] == artifacts.FORMAT_VERSION
