# SPDX-License-Identifier: Apache-2.0
"""TensorBoard event files, written in the caller's thread.

``tensorboardX.SummaryWriter`` hands events to a thread through a queue of ten: on a full disk the
thread dies, and the eleventh event waits for ever. Its record writer and its protocol buffers are
used here without that thread, so that a failed write is an ``OSError`` where it happens. Two more
traps are avoided: ``add_hparams`` opens a second run, and ``add_video`` writes nothing without
``moviepy``.
"""

from __future__ import annotations

import importlib
import io
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

_BINS = 30
_GIF_FPS, _GIF_WIDTH, _GIF_SECONDS = 10, 320, 10  # of a video inside an event file
_TIMEOUT_S = 120


class EventFile:
    """One new event file in a folder.

    Args:
      folder: exists.

    Raises:
      OSError: if it cannot be written; so do all methods.
    """

    def __init__(self, folder: Path):
        from tensorboardX.event_file_writer import EventsWriter

        # File names are precise to a second only, and two files must not share one.
        self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns() % 10**9:09d}")

    def scalar(self, tag: str, value: float, step: int, when: float | None = None) -> None:
        """One point of a curve; ``when`` is a time in seconds, ``None`` means now."""
        from tensorboardX import summary

        self._add(summary.scalar(tag, value), step, when)

    def histogram(self, tag: str, values: Float[np.ndarray, "..."], step: int) -> None:
        """A distribution; values that are not finite are left out, and so is an empty rest."""
        from tensorboardX import summary

        finite = np.asarray(values, np.float64).ravel()
        finite = finite[np.isfinite(finite)]
        if finite.size:
            # A number of bins: with ``auto`` one outlier asks for more of them than fit in memory.
            self._add(summary.histogram(tag, finite, _BINS), step)

    def text(self, tag: str, markdown: str) -> None:
        """A Markdown text."""
        from tensorboardX import summary

        self._add(summary.text(tag, markdown), 0)

    def hparams(self, settings: Mapping[str, Any], metric: str) -> None:
        """What the HPARAMS tab shows of this run.

        Args:
          settings: flat; whatever is neither number, truth value nor text is shown as text.
          metric: tag of the scalar that judges the run.
        """
        from tensorboardX import summary

        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in settings.items()
        }
        for part in summary.hparams(plain, {metric: 0.0}):
            self._add(part, 0)

    def video(self, tag: str, file: Path, step: int) -> None:
        """A video file as a small moving picture among the images.

        Raises:
          RuntimeError: if it cannot be converted.
        """
        from PIL import Image

        summary = _proto("summary_pb2").Summary
        data = file.read_bytes() if file.suffix == ".gif" else _as_gif(file)
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
        shown = summary.Image(width=width, height=height, colorspace=3, encoded_image_string=data)
        self._add(summary(value=[summary.Value(tag=tag, image=shown)]), step)

    def copy(self, event: Any) -> None:
        """An event of another file."""
        self._writer.write_event(event)

    def flush(self) -> None:
        """Puts everything onto the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes."""
        self._writer.close()

    def _add(self, summary: Any, step: int, when: float | None = None) -> None:
        event_class = _proto("event_pb2").Event
        when = time.time() if when is None else when
        self._writer.write_event(event_class(wall_time=when, step=int(step), summary=summary))


def read_events(path: Path) -> Iterator[Any]:
    """The complete events of a file; what a kill has cut off at its end is left out."""
    from google.protobuf.message import DecodeError

    event_class = _proto("event_pb2").Event
    data, start = path.read_bytes(), 0
    while start + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, start)
        body = data[start + 12 : start + 12 + length]
        start += 16 + length
        if start > len(data):
            return
        try:
            yield event_class.FromString(body)
        except DecodeError:
            return


def is_scalar(event: Any) -> bool:
    """Whether an event holds points of curves, which ``metrics.jsonl`` holds as well."""
    return any(value.HasField("simple_value") for value in event.summary.value)


def is_image(event: Any) -> bool:
    """Whether an event holds a picture or a video."""
    return any(value.HasField("image") for value in event.summary.value)


def _proto(name: str) -> Any:
    """A module of tensorboardX's protocol buffers, untyped: it makes its classes when imported."""
    return importlib.import_module(f"tensorboardX.proto.{name}")


def _as_gif(video: Path) -> bytes:
    """The beginning of a video as a small gif, by the ffmpeg that has written it."""
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-t", str(_GIF_SECONDS)]
    command += ["-i", str(video), "-vf", f"fps={_GIF_FPS},scale={_GIF_WIDTH}:-1"]
    done = subprocess.run(
        [*command, "-f", "gif", "-"], capture_output=True, timeout=_TIMEOUT_S, check=False
    )
    if done.returncode != 0 or not done.stdout:
        reason = done.stderr.decode(errors="replace").strip() or "it gave no frames"
        raise RuntimeError(f"cannot convert {video} for TensorBoard: {reason}")
    return done.stdout
