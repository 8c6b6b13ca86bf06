# SPDX-License-Identifier: Apache-2.0
"""Names, cheap imports, and one sentence for every wrong input."""

from __future__ import annotations

import subprocess
import sys

import pytest

import envs
from envs._errors import check_episode_length
from envs.api import Env

# Names that issue threads, papers and command lines rely on; removing one breaks users.
BRAX_TASKS = (
    "ant",
    "halfcheetah",
    "hopper",
    "humanoid",
    "humanoidstandup",
    "inverted_double_pendulum",
    "inverted_pendulum",
    "pusher",
    "reacher",
    "swimmer",
    "walker2d",
)


def test_list_envs_holds_every_brax_task():
    names = envs.list_envs()
    assert len(names) == len(set(names))
    assert {f"brax:{task}" for task in BRAX_TASKS} <= set(names)


OWN = [name for name in envs.list_envs() if name.startswith(("control:", "probe:"))]


@pytest.mark.parametrize("name", OWN)
def test_make_gives_what_describe_promises(name):
    env = envs.make(name, episode_length=17)
    info = envs.describe(name)
    assert isinstance(env, Env)
    assert (env.name, env.episode_length) == (name, 17)
    assert (env.observation_size, env.action_size) == (info.observation_size, info.action_size)
    assert info.installed
    assert not info.extra


def test_describe_brax_names_extra_and_backends():
    info = envs.describe("brax:hopper")
    assert (info.extra, info.backends[0]) == ("robotics", "spring")
    assert envs.describe("brax:swimmer").backends == ("generalized",)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("hopper", {}, "Unknown environment 'hopper'; the nearest valid one is 'brax:hopper'."),
        ("brax:hoper", {}, "'brax:hoper'; the nearest valid one is 'brax:hopper'."),
        ("brx:ant", {}, "'brx:ant'; the nearest valid one is 'brax:ant'."),
        ("control:pendulm", {}, "the nearest valid one is 'control:pendulum'."),
        ("probe:", {}, "the nearest valid one is 'probe:"),
        ("", {}, "the nearest valid one is "),
        ("brax:hopper", {"backend": "sprng"}, "'sprng' for 'brax:hopper'; .*'spring'."),
        ("brax:swimmer", {"backend": "spring"}, "'spring' for 'brax:swimmer'; .*'generalized'."),
        ("probe:value", {"backend": "spring"}, "'probe:value' has no backend to choose"),
        (
            "probe:value",
            {"randomize": "a:b"},
            "'probe:value' has no model that could be randomized",
        ),
        (
            "control:pendulum",
            {"randomize": "a:b"},
            r"\(only brax, mujoco, playground have one\); leave out randomize='a:b'.",
        ),
        ("control:pendulum", {"gravty": 3.0}, "'gravty' for 'control:pendulum'; .*'gravity'."),
        ("control:pendulum", {"episode_length": 0}, "is 0; it must be at least 1 step."),
    ],
)
def test_make_wrong_input_is_met_with_one_sentence(name, options, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        envs.make(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [2.5, True, "10"])
def test_episode_length_not_a_whole_number_is_refused(length):
    with pytest.raises(ValueError, match="must be a whole number of steps"):
        check_episode_length(length, "probe:value")


def test_make_none_counts_as_absent():
    assert envs.make("probe:value", backend=None, episode_length=None).episode_length == 10


def test_make_missing_simulator_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "brax", None)  # what the import system sees as not there
    assert not envs.describe("brax:hopper").installed
    with pytest.raises(
        ValueError, match=r"needs Brax, which is not installed: pip install .*\[rob"
    ):
        envs.make("brax:hopper")


def test_import_loads_no_simulator_and_no_adapter():
    code = (
        "import sys, envs; envs.list_envs(); envs.describe('brax:hopper'); "
        "heavy = {'brax', 'mujoco', 'flax', 'envs.brax_env', 'envs.control', 'envs.probes'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
