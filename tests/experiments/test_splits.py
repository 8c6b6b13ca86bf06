# SPDX-License-Identifier: Apache-2.0
"""Nothing that judges the optimizer ever trains it."""

import fnmatch
from pathlib import Path

import numpy as np
import pytest

import mnemosyne
from experiments import data, splits


def _training_and_validation(folder: Path | None) -> list:
    return splits.meta_train_families(folder) + [
        b.task for b in splits.validation_benchmarks(folder)
    ]


def test_supervised_splits_name_no_hold_out_data() -> None:
    for task in _training_and_validation(None):
        assert not any(held in task.name.lower() for held in splits.HOLD_OUT_DATA), task.name


def test_every_hold_out_and_stress_name_says_so() -> None:
    for name in [*splits.HOLD_OUT, *splits.stress.STRESS]:
        assert any(held in name for held in splits.HOLD_OUT_DATA), name


def test_hold_out_has_sixteen_tasks_of_every_family(stand_ins: Path) -> None:
    tasks = splits.hold_out_tasks(stand_ins)
    assert [b.name for b in tasks] == list(splits.HOLD_OUT)
    assert len(tasks) >= 16
    assert {b.group for b in tasks} >= {
        "mlp", "conv", "vit", "autoencoder", "rnn", "transformer", "quadratic", "function",
    }  # fmt: skip
    assert all(1000 <= b.steps <= 2000 for b in tasks)


def test_stress_is_apart_from_the_hold_out(stand_ins: Path) -> None:
    tasks = splits.stress_tasks(stand_ins)
    assert [b.name for b in tasks] == list(splits.stress.STRESS)
    assert {b.group for b in tasks} == {"stress"}
    assert not set(splits.HOLD_OUT) & set(splits.stress.STRESS)


def test_names_are_unique() -> None:
    names = [task.name for task in _training_and_validation(None)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("real", [False, True])
def test_no_content_is_shared(real: bool, stand_ins: Path, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue("data_dir") if real else None
    seen = splits.record(_training_and_validation(folder)).values()
    judges = splits.hold_out_tasks(folder or stand_ins) + splits.stress_tasks(folder or stand_ins)
    hashes = [*seen, *splits.record(b.task for b in judges).values()]
    # The long stress runs are hold-out tasks, for more steps.
    longer = sum(b.name.endswith("/10x") for b in judges)
    assert len(set(hashes)) == len(hashes) - longer


def test_policy_splits_are_disjoint() -> None:
    groups = (splits.META_TRAIN_ENVS, splits.VALIDATION_ENVS, splits.HOLD_OUT_ENVS)
    for i, first in enumerate(groups):
        for second in groups[i + 1 :]:
            for name in second:
                assert not any(fnmatch.fnmatch(name, pattern) for pattern in first), name


@pytest.mark.parametrize("name", mnemosyne.list_weights())
def test_shipped_weights_were_not_trained_on_hold_out_or_validation(name: str) -> None:
    held = [*splits.HOLD_OUT_DATA, *(env.split(":")[1] for env in splits.HOLD_OUT_ENVS)]
    for task in mnemosyne.load(name).tasks:
        assert not any(word in task.lower() for word in held), task
        assert "[40000:60000]" not in task


@pytest.mark.parametrize("name", mnemosyne.list_weights())
def test_shipped_weights_record_no_hold_out_content(name: str, data_dir: Path) -> None:
    recorded = mnemosyne.load(name).trained_with.get("content", {})
    held = splits.record(b.task for b in splits.hold_out_tasks(data_dir))
    assert not set(recorded.values()) & set(held.values())


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="nearest is 'rosenbrock-2'"):
        splits.hold_out_tasks(None, ["rosenbrok-2"])


def test_tasks_with_data_ask_for_it_by_name() -> None:
    with pytest.raises(ValueError, match=r"cifar10_small\.npz.*--data-dir"):
        splits.hold_out_tasks(None)
    analytic = [n for n in splits.HOLD_OUT if "/" not in n]
    assert len(splits.hold_out_tasks(None, analytic)) == len(analytic) >= 5


def test_digits_validation_rows_follow_the_training_rows() -> None:
    mixture = splits.meta_train_families(None)[0].source
    training, held = mixture.sources[0], splits.validation_tasks(None)[0]
    whole = data.digits()
    labels = np.concatenate([training.labels, held.targets])
    np.testing.assert_array_equal(labels, whole.labels)


def test_policies_are_trained_on_m_and_chosen_on_v() -> None:
    trained, chosen = splits.meta_train_problems(), splits.validation_problems()
    assert {splits.env_split(problem.env.env.name) for problem in trained} == {"meta-train"}
    assert {splits.env_split(problem.env.env.name) for problem in chosen} == {"validation"}
    assert len({problem.name for problem in trained}) == len(trained)
    assert {problem.env.env.action_size for problem in trained} == {1, 2, 3, 6}
