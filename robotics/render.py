# SPDX-License-Identifier: Apache-2.0
"""Moving pictures of a policy on a machine without a screen.

With a MuJoCo model behind the environment and a working OpenGL library (EGL unless ``MUJOCO_GL``
says otherwise) the video is MuJoCo's. Without OpenGL, bodies are drawn from their line segments as
a stick figure; an environment without a body shows its observations over time. Which of these an
environment can do is found by the optional methods it has: ``model`` with ``qpos(physics)``, and
``segments(physics)``.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from envs.api import EpisodeWrapper

WIDTH, HEIGHT = 480, 360  # pixels
MAX_FPS = 30.0
_BACKGROUND, _GROUND, _INK = (250, 250, 250), (120, 120, 120), (40, 80, 160)
_TIMEOUT_S = 300


def render(
    env: EpisodeWrapper,
    act: Callable[[Array, Array], Array],
    key: Key[Array, ""],
    stem: Path,
    seconds: float = 10.0,
) -> Path:
    """Plays a policy and writes what it does as ``<stem>.mp4`` or ``<stem>.gif``.

    Args:
      env: the environment; finished episodes start again.
      act: ``act(obs, key)`` gives an action in [-1, 1]; jittable.
      key: decides the episodes.
      stem: path of the video without its ending.
      seconds: simulated time to show, larger than 0.

    Returns:
      The file that was written.

    Raises:
      ValueError: if ``seconds`` is not positive.
      OSError: if the file cannot be written.
    """
    if not seconds > 0:
        raise ValueError(f"seconds is {seconds}; a video must be longer than 0 seconds")
    num_steps = max(round(seconds / env.env.dt), 10)
    skip, fps = frame_rate(env.env.dt)
    physics, observations = _play(env, act, key, num_steps, skip)
    return draw(env.env, physics, observations, fps, stem)


def frame_rate(dt: float) -> tuple[int, float]:
    """Steps of ``dt`` seconds between two frames, and frames per second, at most 30."""
    skip = max(round(1.0 / (MAX_FPS * dt)), 1)
    return skip, min(1.0 / (dt * skip), MAX_FPS)


def draw(
    body: Any,
    physics: PyTree,
    observations: Float[np.ndarray, "frames obs"],
    fps: float,
    stem: Path,
) -> Path:
    """Draws frames in the best way that body and machine allow.

    Args:
      body: has the optional methods of the module docstring.
      physics: its physics in every frame.
      observations: what it observed.
      fps: frames per second.
      stem: path of the video without its ending.

    Returns:
      The file that was written.

    Raises:
      OSError: if it cannot be written.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    if getattr(body, "model", None) is not None and hasattr(body, "qpos"):
        try:
            return _render_mujoco(body, physics, fps, stem)
        except _CannotRenderError as reason:
            # The reader of a stick figure has a right to know why it is one.
            warnings.warn(f"the video is drawn by hand: {reason}", stacklevel=2)
    return _write_gif(_draw(body, physics, observations), fps, stem.with_suffix(".gif"))


def _play(
    env: EpisodeWrapper,
    act: Callable[[Array, Array], Array],
    key: Key[Array, ""],
    num_steps: int,
    skip: int,
) -> tuple[PyTree, Float[np.ndarray, "frames obs"]]:
    """Physics and observations of every ``skip``-th step, on the host."""
    key_start, key_restart, key_act = jax.random.split(key, 3)

    def step(state: Any, key: Key[Array, ""]) -> tuple[Any, None]:
        return env.step(state, act(state.obs, key), restart), None

    def frame(state: Any, keys: Key[Array, " skip"]) -> tuple[Any, tuple[PyTree, Array]]:
        return jax.lax.scan(step, state, keys)[0], (state.physics, state.obs)

    # Two resets under one ``vmap``: the second is what a finished episode starts again from.
    states = jax.jit(jax.vmap(env.reset))(jnp.stack([key_start, key_restart]))
    start, restart = (jax.tree.map(lambda leaf, i=i: leaf[i], states) for i in range(2))
    frames = -(-num_steps // skip)
    keys = jax.random.split(key_act, (frames, skip))
    _, (physics, observations) = jax.jit(lambda state, keys: jax.lax.scan(frame, state, keys))(
        start, keys
    )
    return jax.device_get(physics), np.asarray(observations)


class _CannotRenderError(RuntimeError):
    """Why MuJoCo's own renderer cannot be used here."""


def _render_mujoco(env: Any, physics: PyTree, fps: float, stem: Path) -> Path:
    """A video by MuJoCo's own renderer; raises :class:`_CannotRenderError` where it cannot."""
    for package in ("mujoco", "imageio"):
        if importlib.util.find_spec(package) is None:
            raise _CannotRenderError(f"the package {package!r} is missing")
    mujoco: Any = importlib.import_module("mujoco")
    ending = ".mp4" if importlib.util.find_spec("imageio_ffmpeg") else ".gif"
    environment = {"MUJOCO_GL": "egl"} | dict(os.environ)  # a user's own choice wins
    # Absolute, because the program runs in a folder of its own.
    place = stem.parent.absolute()
    with tempfile.TemporaryDirectory(dir=place, prefix=".render-") as folder:
        model, positions, video = (
            os.path.join(folder, name) for name in ("m.mjb", "q.npy", f"v{ending}")
        )
        mujoco.mj_saveModel(env.model, model)
        np.save(positions, np.asarray(env.qpos(physics)))
        program = str(Path(__file__).with_name("render_mujoco.py"))
        command = [sys.executable, program, model, positions, str(fps), video]
        try:
            # In the temporary folder, because MuJoCo leaves a log file wherever it has something to
            # say.
            done = subprocess.run(
                command,
                env=environment,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise _CannotRenderError(f"MuJoCo took longer than {_TIMEOUT_S} s") from None
        if done.returncode != 0 or not os.path.exists(video) or not os.path.getsize(video):
            said = done.stderr.strip().splitlines() or ["it wrote no frames"]
            raise _CannotRenderError(f"MuJoCo cannot draw ({said[-1]})")
        os.replace(video, stem.with_suffix(ending))
    return stem.with_suffix(ending)


def _draw(env: Any, physics: PyTree, observations: Float[np.ndarray, "frames obs"]) -> list[Any]:
    """Frames drawn by hand."""
    if not hasattr(env, "segments"):
        return _draw_observations(observations)
    count = len(observations)
    shapes = [env.segments(jax.tree.map(lambda leaf, i=i: leaf[i], physics)) for i in range(count)]
    return [_draw_body(ends, radii, _scale(shapes)) for ends, radii in shapes]


def _scale(shapes: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Pixels per meter at which the largest pose fills about half of the picture."""
    size = max(np.ptp(ends.reshape(-1, 3), axis=0).max() for ends, _ in shapes)
    return 0.45 * HEIGHT / max(float(size), 0.1)


def _draw_body(ends: np.ndarray, radii: np.ndarray, scale: float) -> Any:
    """One frame from the side (x right, z up); marks on the ground, a meter apart, show motion."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH, HEIGHT), _BACKGROUND)
    draw = ImageDraw.Draw(image)
    middle = float(ends[..., 0].mean())
    ground = HEIGHT - 60

    def point(x: float, z: float) -> tuple[float, float]:
        return WIDTH / 2 + (x - middle) * scale, ground - z * scale

    draw.line([(0, ground), (WIDTH, ground)], fill=_GROUND, width=2)
    reach = WIDTH / 2 / scale
    for meter in range(int(np.floor(middle - reach)), int(np.ceil(middle + reach)) + 1):
        x, _ = point(float(meter), 0.0)
        draw.line([(x, ground), (x, ground + 8)], fill=_GROUND, width=2)
        draw.text((x + 3, ground + 10), f"{meter} m", fill=_GROUND)
    for (start, end), radius in zip(ends, radii, strict=True):
        half = max(float(radius) * scale, 1.5)
        line = [point(start[0], start[2]), point(end[0], end[2])]
        draw.line(line, fill=_INK, width=round(2 * half))
        for x, y in line:
            draw.ellipse([x - half, y - half, x + half, y + half], fill=_INK)
    return image


def _draw_observations(observations: Float[np.ndarray, "frames obs"]) -> list[Any]:
    """Frames with every observation entry as a curve that grows with time."""
    from PIL import Image, ImageDraw

    low, high = observations.min(axis=0), observations.max(axis=0)
    levels = (observations - low) / np.where(high > low, high - low, 1.0)
    count, entries = observations.shape
    strip = HEIGHT / entries
    xs = np.linspace(10, WIDTH - 10, count)
    ys = (np.arange(entries) + 0.9 - 0.8 * levels) * strip
    frames = []
    for i in range(count):
        image = Image.new("RGB", (WIDTH, HEIGHT), _BACKGROUND)
        draw = ImageDraw.Draw(image)
        for entry in range(entries):
            curve = list(zip(xs[: i + 1].tolist(), ys[: i + 1, entry].tolist(), strict=True))
            if len(curve) > 1:
                draw.line(curve, fill=_INK, width=2)
            x, y = curve[-1]
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=_INK)
        frames.append(image)
    return frames


def _write_gif(frames: Sequence[Any], fps: float, path: Path) -> Path:
    """Writes an endless gif beside its place and renames it."""
    partial = path.with_name(f".{path.name}.partial")
    # Gif counts in hundredths of a second, and viewers slow down what is below two of them.
    milliseconds = max(10 * round(100 / fps), 20)
    try:
        frames[0].save(
            partial,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            duration=milliseconds,
            loop=0,
        )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
