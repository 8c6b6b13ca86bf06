# SPDX-License-Identifier: Apache-2.0
"""Numbers are written once, in order, with env steps as the x axis; also after a resume."""

from __future__ import annotations

import errno
import io
import json
import re

import numpy as np
import pytest

from robotics.monitor import RETURN, Monitor, add_video, duration, read_metrics


def events_of(folder) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def write(monitor: Monitor, *steps: int) -> None:
    for step in steps:
        scalars = {RETURN: np.array([step, step + 2.0]), "training/kl_mean": [0.5, np.nan]}
        monitor.record(step, scalars, {"training/sps": 10.0 * step})


def test_scalars_reach_both_files_with_env_steps_as_axis(tmp_path):
    with Monitor(tmp_path, seeds=[3, 4], quiet=True) as monitor:
        write(monitor, 100, 200)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["env_steps"] for row in rows] == [100, 200]
    assert rows[1][RETURN] == [200.0, 202.0]
    assert rows[1]["training/kl_mean"] == [0.5, None]  # strict JSON has no NaN
    events = events_of(tmp_path)
    assert events[RETURN] == [(100, 101.0), (200, 201.0)]
    assert events[f"seeds/4/{RETURN}"] == [(100, 102.0), (200, 202.0)]
    assert events["training/sps"] == [(100, 1000.0), (200, 2000.0)]


def test_resume_cuts_what_lies_behind_the_checkpoint(tmp_path):
    with Monitor(tmp_path, seeds=[0, 1], quiet=True) as monitor:
        write(monitor, 100, 200, 300)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"env_steps": 400, "eval')  # a kill in the middle of a line
    with Monitor(tmp_path, seeds=[0, 1], resume_at=200, quiet=True) as monitor:
        write(monitor, 300, 400)
    assert [r["env_steps"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [
        100,
        200,
        300,
        400,
    ]
    assert [step for step, _ in events_of(tmp_path)[RETURN]] == [100, 200, 300, 400]


def accumulated(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # A size of 0 keeps every event.
    sizes = {"histograms": 0, "images": 0, "scalars": 0, "tensors": 0}
    accumulator = EventAccumulator(str(folder), sizes)
    accumulator.Reload()
    return accumulator


def test_histograms_settings_and_video_are_kept_over_a_resume(tmp_path):
    from PIL import Image

    settings = {"env": "brax:hopper", "rate": None, "ppo": {"num_envs": 8, "hidden": (4, 4)}}
    values = np.array([1.0, 2.0, np.nan, np.inf, 1e30])
    with Monitor(tmp_path, seeds=[0, 1], quiet=True, settings=settings) as monitor:
        for step in (100, 200, 300):
            write(monitor, step)
            monitor.histograms(step, {"histograms/x": values, "histograms/nan": values[2:3]})
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "v.gif", save_all=True, append_images=frames[1:])
    add_video(tmp_path, tmp_path / "v.gif", 300)
    image = accumulated(tmp_path).Images("video/best_policy")[0]
    assert (image.step, image.width, image.height) == (300, 8, 6)
    assert image.encoded_image_string == (tmp_path / "v.gif").read_bytes()
    with Monitor(tmp_path, [0, 1], resume_at=200, quiet=True, settings=settings) as monitor:
        write(monitor, 300)
    found = accumulated(tmp_path)
    assert found.Tags()["histograms"] == ["histograms/x"]
    points = found.Histograms("histograms/x")
    assert [point.step for point in points] == [100, 200]
    assert points[0].histogram_value.num == 3 and points[0].histogram_value.max == 1e30
    assert found.Tags()["images"] == []  # made anew when the run ends
    (config,) = found.Tensors("run/config/text_summary")
    assert b"| ppo.num_envs | 8 |" in config.tensor_proto.string_val[0]
    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"ppo.hidden" in content and b"(4, 4)" in content and b"rate" not in content


def test_events_that_a_kill_has_cut_off_are_left_out(tmp_path):
    with Monitor(tmp_path, seeds=[0, 1], quiet=True) as monitor:
        monitor.histograms(1, {"histograms/x": np.arange(3.0)})
        monitor.histograms(2, {"histograms/x": np.arange(3.0)})
    (file,) = tmp_path.glob("events.*")
    file.write_bytes(file.read_bytes()[:-5])
    with Monitor(tmp_path, [0, 1], resume_at=9, quiet=True):
        pass
    assert [h.step for h in accumulated(tmp_path).Histograms("histograms/x")] == [1]


def test_full_disk_raises_where_it_happens_instead_of_waiting_for_ever(tmp_path, monkeypatch):
    """The thread of tensorboardX's own writer dies, and the eleventh event waits for ever."""
    from tensorboardX.record_writer import RecordWriter

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monitor = Monitor(tmp_path, seeds=[0, 1], quiet=True)
    monkeypatch.setattr(RecordWriter, "write", full)
    for step in range(30):
        with pytest.raises(OSError, match="No space left"):
            write(monitor, step)
    monitor.close()


def test_damaged_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"env_steps": 1}\n{"env\n{"env_steps": 3}\n')
    with pytest.raises(ValueError, match="line 2 of"):
        read_metrics(path)


def test_lines_are_plain_where_there_is_no_terminal():
    stream = io.StringIO()
    with Monitor(None, seeds=[0], stream=stream) as monitor:
        monitor.live("run", 0.5, {"time left": "3 s"})
        monitor.say("100 env steps | return 3 ± 1")
    assert stream.getvalue() == "100 env steps | return 3 ± 1\n"


def test_quiet_says_nothing_but_writes(tmp_path, capsys):
    with Monitor(tmp_path, seeds=[0, 1], quiet=True) as monitor:
        monitor.say("hello")
        write(monitor, 1)
    assert capsys.readouterr().out == ""
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["env_steps"] == 1


def test_panel_appears_on_a_terminal_above_it_the_lines():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Monitor(None, seeds=[0], stream=stream) as monitor:
        monitor.live("runs/hopper", 0.25, {"time left": "3 min 00 s"})
        monitor.say("a line [not markup]")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "a line [not markup]" in shown
    assert "runs/hopper" in shown and "3 min 00 s" in shown


def test_durations_in_words():
    assert duration(float("nan")) == "?"
    assert duration(59.7) == "1 min 00 s"
    assert duration(3 * 3600 + 61.0) == "3 h 01 min"
