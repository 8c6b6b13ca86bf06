# SPDX-License-Identifier: Apache-2.0
"""The packages know each other in one direction only, and importing them changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import import_rules

ROOT = Path(__file__).resolve().parent.parent
STDLIB = frozenset(sys.stdlib_module_names)


def _modules() -> dict[str, Path]:
    """Dotted name and path of every shipped module."""
    found = {}
    for package in import_rules.FIRST_PARTY:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = _modules()

GOOD = {
    "core third party": ("mnemosyne.x", "import jax\nfrom optax import tree\nimport numpy as np"),
    "own package": ("mnemosyne.x", "from mnemosyne import memory\nimport mnemosyne.meta.task"),
    "environment contract": ("robotics.x", "from envs.api import State\nfrom envs import api"),
    "lazy heavy": ("envs.x", "def f():\n    import brax.envs\n    return brax"),
    "lazy heavy in a lambda": ("envs.x", "f = lambda: __import__('brax')"),
    "typing only": ("robotics.x", "if TYPE_CHECKING:\n    from orbax import checkpoint"),
    "joined by the executable": ("mnemosyne.cli.x", "def f():\n    from robotics import ppo"),
    "experiments join all": ("experiments.x", "import mnemosyne, robotics.ppo, envs.registry"),
    "flags of a verb": ("mnemosyne.cli.plot", "import tyro\nfrom robotics.ppo import PPOConfig"),
    "script guard": ("experiments.x", "if __name__ == '__main__':\n    import matplotlib"),
    "effect inside a function": ("robotics.x", "def f():\n    os.environ['MUJOCO_GL'] = 'egl'"),
    "safe load": ("mnemosyne.x", "def f(p):\n    return np.load(p, allow_pickle=False)"),
}

BAD = {
    "core knows robots": ("mnemosyne.x", "import robotics.ppo", "must not import robotics"),
    "core knows robots lazily": (
        "mnemosyne.meta.x",
        "def f():\n    from envs import registry",
        "must not import envs.registry",
    ),
    "core knows robots by name": (
        "mnemosyne.x",
        "def f():\n    importlib.import_module('robotics.ppo')",
        "must not import robotics.ppo",
    ),
    "core knows the executable": (
        "mnemosyne.x",
        "from mnemosyne.cli import main",
        "must not import mnemosyne.cli",
    ),
    "core needs an extra": ("mnemosyne.x", "def f():\n    import sklearn", "must not need sklearn"),
    "robots know the optimizer": (
        "robotics.x",
        "from mnemosyne import telemetry",
        "must not import mnemosyne.telemetry",
    ),
    "robots know an adapter": (
        "robotics.x",
        "def f():\n    from envs.brax_env import make",
        "must not import envs.brax_env",
    ),
    "robots know an adapter as a member": (
        "robotics.x",
        "from envs import registry",
        "must not import envs.registry",
    ),
    "environments know robots": ("envs.x", "import robotics", "must not import robotics"),
    "environments know experiments": (
        "envs.x",
        "import experiments.data",
        "must not import experiments.data",
    ),
    "dispatcher not lazy": ("mnemosyne.cli.main", "from robotics import run", "outside a function"),
    "verb needs a simulator": ("mnemosyne.cli.train", "import brax", "imports brax outside"),
    "dispatcher needs tyro": ("mnemosyne.cli.main", "import tyro", "outside a function"),
    "heavy at the top": ("envs.x", "import brax", "imports brax outside a function"),
    "heavy submodule": ("robotics.x", "import orbax.checkpoint as ocp", "imports orbax outside"),
    "heavy in try": (
        "robotics.x",
        "try:\n    import rich\nexcept ImportError:\n    pass",
        "imports rich outside",
    ),
    "heavy in a class body": ("envs.x", "class A:\n    import mujoco", "imports mujoco outside"),
    "heavy in a default": (
        "envs.x",
        "def f(m=__import__('mujoco')):\n    pass",
        "imports mujoco outside",
    ),
    "heavy beside typing": (
        "envs.x",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import brax",
        "imports brax outside",
    ),
    "relative": ("robotics.x", "from . import ppo", "relative import"),
    "pickle": ("experiments.x", "def f():\n    import pickle", "imports pickle"),
    "joblib": ("experiments.x", "from joblib import load", "imports joblib"),
    "pickled arrays": ("envs.x", "def f(p):\n    np.load(p, allow_pickle=True)", "allow_pickle"),
    "environment variable": ("envs.x", "os.environ['XLA_FLAGS'] = ''", "environment variable"),
    "environment default": (
        "envs.x",
        "os.environ.setdefault('MUJOCO_GL', 'egl')",
        "calls os.environ.setdefault at import",
    ),
    "environment deleted": ("envs.x", "del os.environ['HOME']", "environment variable"),
    "warning filter": (
        "robotics.x",
        "import warnings\nwarnings.filterwarnings('ignore')",
        "calls warnings.filterwarnings at import",
    ),
    "jax setting": (
        "mnemosyne.x",
        "import jax\njax.config.update('jax_enable_x64', True)",
        "calls jax.config.update at import",
    ),
    "effect in a branch": (
        "mnemosyne.x",
        "if True:\n    logging.basicConfig()",
        "calls logging.basicConfig at import",
    ),
}


@pytest.mark.parametrize("module", MODULES)
def test_module_keeps_the_rules(module: str) -> None:
    assert import_rules.problems(MODULES[module].read_text(), module, STDLIB) == []


@pytest.mark.parametrize("case", GOOD)
def test_rules_allowed_source_passes(case: str) -> None:
    module, source = GOOD[case]
    assert import_rules.problems(source, module, STDLIB) == []


@pytest.mark.parametrize("case", BAD)
def test_rules_forbidden_source_is_found(case: str) -> None:
    module, source, expected = BAD[case]
    found = import_rules.problems(source, module, STDLIB)
    assert len(found) == 1
    assert expected in found[0]


def test_walk_covers_all_four_packages() -> None:
    for package in import_rules.FIRST_PARTY:
        assert any(name.startswith(package) for name in MODULES), package


@pytest.mark.parametrize("module", MODULES)
def test_module_names_its_license(module: str) -> None:
    first = MODULES[module].read_text().split("\n", 1)[0]
    assert first == "# SPDX-License-Identifier: Apache-2.0"


IMPORT_ALL = """
import importlib, os, sys, warnings
import jax, optax  # their own import effects are not ours
before = dict(os.environ), list(warnings.filters), list(sys.path), jax.config.values.copy()
for name in sys.argv[1:]:
    importlib.import_module(name)
after = dict(os.environ), list(warnings.filters), list(sys.path), jax.config.values.copy()
changed = [i for i, (a, b) in enumerate(zip(before, after)) if a != b]
heavy = sorted(HEAVY & {name.split('.')[0] for name in sys.modules})
print(changed, heavy)
"""


def _import_in_a_process(names: list[str], path: Path) -> subprocess.CompletedProcess[str]:
    """Imports modules where no JAX device can be started, so that computing at import fails."""
    code = IMPORT_ALL.replace("HEAVY", repr(set(import_rules.HEAVY)))
    env = {**os.environ, "PYTHONPATH": str(path), "JAX_PLATFORMS": "none_such"}
    command = [sys.executable, "-c", code, *names]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def test_import_of_everything_has_no_effect_and_stays_light() -> None:
    names = [name for name in MODULES if not import_rules.is_verb(name)]
    done = _import_in_a_process(names, ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[] []"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import jax.numpy as jnp\nONE = jnp.ones(())", "none_such"),
        ("import os\nsetattr(os.environ, 'x', 1)\nos.environ.__setitem__('X', '1')", "[0] []"),
        ("exec('import scipy')", "['scipy']"),
    ],
    ids=["computes", "hidden effect", "hidden import"],
)
def test_import_check_finds_what_the_sources_hide(
    source: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "culprit.py").write_text(source)
    done = _import_in_a_process(["culprit"], tmp_path)
    assert expected in done.stdout + done.stderr
