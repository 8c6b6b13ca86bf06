# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from robotics import sharding

# A virtual device waits for the others in a thread of XLA's pool, which has no more threads than
# there are devices where cores are few. Exchanges that do not depend on each other may begin in
# different orders; each needs a thread of its own, or all wait for ever.
THREADS = {"NPROC": "64"}
FLAGS = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"


def _printed(root, task):
    """What the worker printed; eight devices exist only where XLA is told before it starts."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.robotics.sharded_worker", task],
        cwd=root,
        env=os.environ
        | {"XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
        | THREADS,
        capture_output=True,
        text=True,
        timeout=220,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def trained(root):
    return _printed(root, "train")


@pytest.fixture(scope="module")
def recovered(root):
    return _printed(root, "recover")


@pytest.mark.parametrize("algo", ["ppo", "es", "critic"])
def test_eight_devices_give_the_numbers_of_one(trained, algo):
    one, eight = (trained[algo][count]["numbers"] for count in ("1", "8"))
    assert one.keys() == eight.keys() and len(one) > 10
    assert ("['normalizer']['privileged'].mean" in one) == (algo == "critic")
    for name, value in one.items():
        np.testing.assert_allclose(eight[name], value, rtol=2e-3, atol=2e-5, err_msg=name)


def test_environments_are_divided_not_copied(trained):
    assert trained["ppo"]["1"]["parts"] == 1 and trained["ppo"]["8"]["parts"] == 8


@pytest.mark.slow
@pytest.mark.parametrize(("algo", "env"), [("ppo", 11), ("es", 13)])
def test_faults_of_any_device_are_located_and_taken_back_where_they_lie(recovered, algo, env):
    told = recovered[algo]
    assert told["faults"][0] == [1, "observation", env, 0, 2]
    terms = {(seed, term.split()[0]) for seed, term, *_ in told["faults"][1:]}
    assert terms == {(2, "parameters")}
    assert told["rollbacks"] == [0, 1, 6] and told["frozen"] == [False, False, True]
    assert told["step_scale"][:2] == [1.0, 1.0]  # the second chunk went well
    assert told["calm"] and told["finite"] and told["placed"]
    assert told["updates"][0] == told["updates"][1] > 0 == told["updates"][2]


def test_sizes_that_do_not_divide_are_refused_with_a_sentence(trained):
    envs, rows, pairs = trained["refusals"]
    assert envs == (
        "12 environments cannot be divided among 8 devices; the nearest number that fits is 16."
    )
    assert rows.startswith("4 env steps in a minibatch cannot be divided among 8 devices")
    assert pairs.startswith("12 pairs of perturbations cannot be divided among 8 devices")


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(ValueError, match="64 devices were asked for, but there are"):
        sharding.make_mesh(64)
    with pytest.raises(ValueError, match="at least 1"):
        sharding.make_mesh(0)
    assert sharding.make_mesh(1) is None
