# SPDX-License-Identifier: Apache-2.0
"""Videos move: by MuJoCo where it can draw, by hand where it cannot, and without a body."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from envs.api import EpisodeWrapper, State
from robotics import render as render_module
from robotics.render import HEIGHT, WIDTH, render

SLIDER = """
<mujoco><worldbody><light pos="0 0 3"/><geom type="plane" size="5 5 .1"/>
<geom type="box" pos=".5 1 .2" size=".2 .2 .2" rgba="1 0 0 1"/>
<body pos="0 0 .5"><joint type="slide" axis="1 0 0"/><geom type="capsule" size=".1 .3"/></body>
</worldbody></mujoco>
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Slider:
    """A capsule that slides by 5 cm a step: what a renderer needs of a body."""

    name: str = "test:slider"
    observation_size: int = 1
    action_size: int = 1
    episode_length: int = 100
    dt: float = 0.05
    model: object = None

    def reset(self, key: jax.Array) -> State:
        zero = jnp.zeros(())
        return State(jnp.zeros(1), jnp.zeros(1), zero, zero, {}, {})

    def step(self, state: State, action: jax.Array) -> State:
        physics = state.physics + 0.05 * action
        return state.replace(physics=physics, obs=physics)

    def qpos(self, physics: np.ndarray) -> np.ndarray:
        return np.asarray(physics)

    def segments(self, physics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = float(physics[0])
        return np.array([[[x, 0.0, 0.2], [x, 0.0, 0.8]]]), np.array([0.1])


@pytest.fixture(scope="module")
def slider() -> EpisodeWrapper:
    mujoco = pytest.importorskip("mujoco")
    return EpisodeWrapper(Slider(model=mujoco.MjModel.from_xml_string(SLIDER)))


def push(obs: jax.Array, key: jax.Array) -> jax.Array:
    return jnp.ones(1)


def frames_of(path: Path) -> np.ndarray:
    """All frames, decoded; videos by ffmpeg itself, for imageio would fork this process."""
    if path.suffix == ".gif":
        from PIL import Image, ImageSequence

        with Image.open(path) as image:
            frames = [np.array(f.convert("RGB"), int) for f in ImageSequence.Iterator(image)]
        return np.stack(frames)
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo"]
    done = subprocess.run([*command, "-pix_fmt", "rgb24", "-"], capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, HEIGHT, WIDTH, 3).astype(int)


def distinct(frames: np.ndarray) -> int:
    """Frames that differ clearly from the one before them, noise of the video codec aside."""
    return 1 + int((np.abs(np.diff(frames, axis=0)).max(axis=(1, 2, 3)) > 40).sum())


def test_mujoco_draws_a_moving_body(slider, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    tmp_path = Path(tmp_path.name)  # as users give it: from where they stand
    positions = np.linspace(0, 1, 12)[:, None]
    try:
        video = render_module._render_mujoco(slider.env, positions, 20.0, tmp_path / "v")
    except render_module._CannotRenderError as reason:
        pytest.skip(str(reason))
    frames = frames_of(video)
    assert len(frames) == 12
    assert distinct(frames) > 6
    assert {path.name for path in tmp_path.iterdir()} == {video.name}


def test_without_opengl_the_body_is_drawn_by_hand(slider, tmp_path, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "off")  # a user's choice, which is respected
    with pytest.warns(UserWarning, match="drawn by hand: MuJoCo cannot draw"):
        path = render(slider, push, jax.random.key(0), tmp_path / "v", seconds=1.0)
    assert path == tmp_path / "v.gif"
    frames = frames_of(path)
    assert len(frames) == 20 and distinct(frames) > 10
    assert {path.name for path in tmp_path.iterdir()} == {"v.gif"}


def test_body_stays_in_the_middle_while_the_marks_pass(slider):
    left = np.array(render_module._draw_body(*slider.env.segments(np.array([0.0])), 300.0))
    right = np.array(render_module._draw_body(*slider.env.segments(np.array([0.3])), 300.0))
    ink = np.all(left == render_module._INK, axis=-1)
    assert ink.any() and np.array_equal(ink, np.all(right == render_module._INK, axis=-1))
    assert not np.array_equal(left, right)


def test_environment_without_a_body_shows_its_observations(tmp_path):
    env = EpisodeWrapper(envs.make("control:pendulum"))
    path = render(env, push, jax.random.key(0), tmp_path / "deep" / "v", seconds=1.0)
    assert path.suffix == ".gif" and distinct(frames_of(path)) > 5


def test_video_needs_a_length(slider, tmp_path):
    with pytest.raises(ValueError, match="seconds is 0"):
        render(slider, push, jax.random.key(0), tmp_path / "v", seconds=0.0)


def test_rendering_leaves_the_environment_variables_alone(slider, tmp_path, monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    render(slider, push, jax.random.key(0), tmp_path / "v", seconds=0.5)
    assert "MUJOCO_GL" not in os.environ
