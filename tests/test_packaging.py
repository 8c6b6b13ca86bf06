# SPDX-License-Identifier: Apache-2.0
"""What a user installs: the content of the wheel, its metadata, and the cost of importing it."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = {"mnemosyne", "robotics", "envs", "experiments"}
CORE = {"jax", "optax", "numpy", "jaxtyping", "safetensors"}
CLI = {"tyro", "rich", "orbax-checkpoint", "tensorboardx", "matplotlib", "scikit-learn"}
ROBOTICS = CLI | {
    "brax", "mujoco", "mujoco-mjx", "gymnasium", "imageio", "tensorboard",
}  # fmt: skip
EXTRAS = {
    "cli": CLI,
    "robotics": ROBOTICS,
    "supervised": CLI | {"flax"},
    "export": CLI | {"onnx", "onnxruntime"},
    "playground": ROBOTICS | {"playground"},
    "evo": ROBOTICS | {"evosax"},
    "cuda12": {"jax"},
    "cuda13": {"jax"},
    "all": ROBOTICS | {"flax", "onnx", "onnxruntime", "playground", "evosax"},
}
# Files that a checkout may hold beside the sources and that no user should get.
UNSHIPPED = (
    "experiments/records/README.md",
    "experiments/records/run.py",
    "robotics/tests/test_ppo.py",
    "envs/__pycache__/api.cpython-311.pyc",
    "runs/hopper/result.json",
    "tests/test_other.py",
)
# What only a robot user, or only a verb that was asked for, should wait for.
SLOW_TO_IMPORT = {
    "brax", "flax", "gymnasium", "imageio", "matplotlib", "mujoco", "orbax", "PIL", "scipy",
    "sklearn", "tensorboardX",
}  # fmt: skip
ALSO_NOT_IN_THE_CORE = {"tyro", "rich", "robotics", "envs", "experiments"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of this checkout with unwanted files in it, built without a network."""
    tree, folder = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tree / package, ignore=lambda *_: {"__pycache__"})
    for file in ("pyproject.toml", "LICENSE", "README.md", ".gitignore"):
        if (ROOT / file).exists():
            shutil.copy(ROOT / file, tree)
    for name in UNSHIPPED:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel, as an installer would leave it."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def metadata(site: Path) -> Message:
    (path,) = site.glob("*.dist-info/METADATA")
    return email.message_from_string(path.read_text())


def _python(code: str, path: Path, cwd: Path) -> str:
    """Standard output of a snippet that sees the packages of ``path`` first."""
    env = {**os.environ, "PYTHONPATH": str(path), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _cpu_seconds(code: str, path: Path) -> float:
    """Processor time of a snippet, the better of two: what else runs here counts little in it."""
    timed = f"import time\n{code}\nprint(time.process_time())"
    return min(float(_python(timed, path, ROOT)) for _ in range(2))


def test_wheel_ships_every_source_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if "records" not in path.parts
    }
    assert top == PACKAGES
    assert sources <= names
    assert names.isdisjoint(UNSHIPPED)


def test_wheel_ships_type_markers_license_and_weights(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = [
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.safetensors", "*.md")
        for path in (ROOT / "mnemosyne" / "artifacts").glob(pattern)
    ]
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert shipped
    assert set(shipped) <= names


def test_wheel_metadata_names_core_and_extras(metadata: Message) -> None:
    needs = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    core = {canonicalize_name(need.name) for need in needs if need.marker is None}
    assert metadata["Requires-Python"] == ">=3.11"
    assert core == CORE
    assert set(metadata.get_all("Provides-Extra", [])) == {*EXTRAS, "test", "lint"}
    for extra, expected in EXTRAS.items():
        found = {
            canonicalize_name(need.name)
            for need in needs
            if need.marker is not None
            and need.marker.evaluate({"extra": extra})
            and not need.marker.evaluate({"extra": ""})
        }
        assert found == expected, extra


def test_wheel_metadata_has_no_addresses(metadata: Message) -> None:
    assert not [text for text in metadata.get_all("Requires-Dist", []) if "@" in text]


def test_wheel_entry_point_is_callable(site: Path, tmp_path: Path) -> None:
    (path,) = site.glob("*.dist-info/entry_points.txt")
    assert "mnemosyne = mnemosyne.cli.main:main" in path.read_text()
    code = "from mnemosyne.cli.main import main; raise SystemExit(main(['--help']))"
    assert "train" in _python(code, site, tmp_path)


def test_wheel_shipped_weights_load_without_the_checkout(site: Path, tmp_path: Path) -> None:
    code = (
        "import mnemosyne\n"
        f"assert mnemosyne.__file__.startswith({str(site)!r}), mnemosyne.__file__\n"
        "names = mnemosyne.list_weights()\n"
        "print(len(names), sum(mnemosyne.load(name).config is not None for name in names))"
    )
    listed, loaded = _python(code, site, tmp_path).split()
    assert int(listed) >= 1
    assert loaded == listed


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import mnemosyne", SLOW_TO_IMPORT | ALSO_NOT_IN_THE_CORE),
        ("from mnemosyne.cli.main import main; main(['--help'])", SLOW_TO_IMPORT),
        ("import robotics, envs, experiments", SLOW_TO_IMPORT),
    ],
    ids=["core", "help", "other packages"],
)
def test_import_does_not_pull_in_heavy_packages(code: str, unwanted: set[str]) -> None:
    report = "\nimport sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = set(_python(code + report, ROOT, ROOT).splitlines()[-1].split())
    assert loaded & unwanted == set()


def test_import_costs_little_more_than_optax() -> None:
    ours = _cpu_seconds("import mnemosyne", ROOT)
    optax = _cpu_seconds("import optax", ROOT)
    assert ours < 1.4 * optax + 0.1


@pytest.mark.parametrize(
    "path", sorted((ROOT / "constraints").glob("py*.txt")), ids=lambda p: p.stem
)
def test_constraints_pin_names_and_satisfy_the_project(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*", line)] == []
    pins = dict(line.split("==") for line in lines)
    direct = [*PROJECT["dependencies"]]
    for extra, needs in PROJECT["optional-dependencies"].items():
        direct += [] if extra.startswith("cuda") else needs
    for need in map(Requirement, direct):
        name = canonicalize_name(need.name)
        if name != canonicalize_name(PROJECT["name"]):
            assert need.specifier.contains(pins[name]), need


def test_version_is_the_same_everywhere() -> None:
    version = PROJECT["version"]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
