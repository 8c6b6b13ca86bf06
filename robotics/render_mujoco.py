# SPDX-License-Identifier: Apache-2.0
"""Draws positions of a MuJoCo model into a video; run as a program of its own, by its file name.

``python render_mujoco.py MODEL.mjb QPOS.npy FPS VIDEO``: a process of its own because MuJoCo
chooses its OpenGL library from ``MUJOCO_GL`` when it is imported, and because a broken graphics
driver may take its process down with it. It imports neither JAX nor this package, so it starts in a
moment.
"""

from __future__ import annotations

import sys
from typing import Any

WIDTH, HEIGHT = 480, 360  # pixels; even, as H.264 wants


def main(model_file: str, positions_file: str, fps: float, video: str) -> None:
    """Renders [frames, nq] positions; the camera follows the first moving body from the side.

    Args:
      model_file: a saved ``MjModel`` (``.mjb``).
      positions_file: ``.npy`` with the generalized positions.
      fps: frames per second.
      video: file to write; its ending chooses the format.
    """
    import importlib

    import numpy as np

    imageio: Any = importlib.import_module("imageio")
    mujoco: Any = importlib.import_module("mujoco")  # has no types
    model = mujoco.MjModel.from_binary_path(model_file)
    data = mujoco.MjData(model)
    camera = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, camera)
    camera.azimuth, camera.elevation = 90.0, -12.0
    camera.distance *= 0.6  # the default keeps the whole floor in view
    options = (
        {"fps": fps, "macro_block_size": 2}
        if video.endswith(".mp4")
        else {"duration": 1000 / fps, "loop": 0}
    )
    with (
        mujoco.Renderer(model, HEIGHT, WIDTH) as renderer,
        imageio.get_writer(video, **options) as writer,
    ):
        # Without a graphics card these two take nine tenths of the time.
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        for position in np.load(positions_file):
            data.qpos[:] = position
            mujoco.mj_forward(model, data)
            camera.lookat[:] = data.xpos[min(1, model.nbody - 1)]
            renderer.update_scene(data, camera)
            writer.append_data(renderer.render())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4])
