"""Frames are shown for as long as the file says, within bounds, and none is lost without a word."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from diffusers_mardini.video.times import spread, usual_gap
from diffusers_mardini.video_io import probe_video, read_images, read_video, write_video
from pipelines_tests.video.video_files import encode, numbered, numbers, timed


def gif(path, durations: list[int]):
    first, *rest = [Image.fromarray(frame) for frame in numbered(len(durations))]
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0)
    return path


@pytest.mark.parametrize(
    "shown",
    [
        [0, 1, 2, 3, 3, 3, 3],
        [0, 0, 0, 1, 2, 2, 3],
        [0, 0, 0, 1],
        [0, 0, 1, 1, 2],
        [0] * 6 + [1, 2] + [3] * 6,
        [0, 1, 2, 3],
    ],
)
def test_what_is_written_as_a_gif_is_read_with_all_that_was_held(tmp_path, shown):
    read, fps = read_video(write_video(tmp_path / "hold.gif", numbered(4)[shown], 10))
    assert numbers(read) == shown and fps == pytest.approx(10)


@pytest.mark.parametrize("fps", [8, 10, 15, 24, 25, 30, 50])
def test_holds_of_any_rate_survive_the_hundredths_of_a_gif(tmp_path, fps):
    generator = np.random.default_rng(fps)
    for _ in range(5):
        holds = np.append(1, generator.integers(1, 6, 7))
        shown = np.repeat(np.arange(8), holds).tolist()
        read, rate = read_video(write_video(tmp_path / "hold.gif", numbered(8)[shown], fps))
        assert numbers(read) == shown and rate == pytest.approx(fps, rel=0.05)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_a_last_frame_that_stands_longer_is_held_and_is_no_damage(tmp_path, suffix, caplog):
    path = timed(tmp_path / f"clip{suffix}", numbered(8), list(range(0, 800, 100)), last=1500)
    read, fps = read_video(path)
    assert fps == pytest.approx(10) and numbers(read) == [0, 1, 2, 3, 4, 5, 6] + [7] * 15
    assert "8 became 22" in caplog.text
    facts = probe_video(path)
    assert facts.num_frames == 8 and facts.duration == pytest.approx(2.2) and facts.timestamps is None


def test_a_gif_whose_last_picture_stands_longer_is_whole(tmp_path):
    path = gif(tmp_path / "clip.gif", [100] * 7 + [5000])
    facts = probe_video(path)
    assert (facts.num_frames, facts.fps) == (8, 10) and facts.duration == pytest.approx(5.7)
    assert numbers(read_video(path)[0]) == [0, 1, 2, 3, 4, 5, 6] + [7] * 50


def test_the_length_that_encoders_give_the_last_frame_by_habit_is_no_hold(tmp_path):
    fast = timed(tmp_path / "fast.mkv", numbered(8), list(range(0, 160, 20)), last=60)
    assert numbers(read_video(fast)[0]) == list(range(8))


@pytest.mark.parametrize("name", ["clip.gif", "clip.mp4"])
def test_one_frame_of_a_gif_has_no_rate(tmp_path, name):
    if name.endswith("gif"):
        Image.fromarray(numbered(1)[0]).save(tmp_path / name)
    else:
        encode(tmp_path / name, numbered(1), rate=25)
    expected = (None, 8.0) if name.endswith("gif") else (25.0, 25.0)
    assert (read_images(tmp_path / name)[1], read_video(tmp_path / name)[1]) == expected
    assert probe_video(tmp_path / name).fps == expected[1]


def test_frames_that_stand_for_less_than_usual_are_kept(tmp_path, caplog):
    short = timed(tmp_path / "short.mkv", numbered(8), [0, 40, 60, 80, 120, 160, 200, 240])
    read, fps = read_video(short)
    assert numbers(read) == [0, 0, 1, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7] and fps == pytest.approx(50)
    varied = gif(tmp_path / "varied.gif", [100, 40, 300, 100, 100, 20, 100, 700])
    read, fps = read_video(varied)
    assert sorted(set(numbers(read))) == list(range(8)) and len(read) / fps == pytest.approx(1.46, abs=0.05)
    assert "left out" not in caplog.text


def test_a_few_frames_that_stand_for_too_short_are_left_out_and_named(tmp_path, caplog):
    times = [40 * index for index in range(60)]
    times.insert(31, 1201)
    read, fps = read_video(timed(tmp_path / "glitch.mkv", numbered(61), times))
    assert fps == pytest.approx(25, rel=1e-3) and len(read) == 60
    assert "1 that are shown too briefly were left out: 30" in caplog.text
    assert sorted({*numbers(read), 30}) == list(range(61))


@pytest.mark.parametrize("pause", [60, 3600, 10**6])
def test_a_long_pause_is_shortened_and_its_frames_are_no_copies(tmp_path, pause, caplog):
    times = [0, 17, 34, 50, 67, 84, 1000 * pause, 1000 * pause + 17]
    path = timed(tmp_path / "pause.mkv", numbered(8), times)
    read, fps = read_video(path)
    assert 8 < len(read) <= 300 and sorted(set(numbers(read))) == list(range(8))
    assert f"pauses of up to {pause - 0.1:.1f} seconds were shortened" in caplog.text
    images, rate = read_images(path)
    assert (len(images), rate) == (len(read), fps) and len({id(image) for image in images}) == 8
    assert probe_video(path).num_frames == 8


def test_a_time_lapse_with_a_gap_keeps_its_rate():
    hours = 3600.0 * np.array([0, 1, 2, 3, 6, 7, 8])
    showing = spread(hours, 0.0, None)
    assert showing.order.tolist() == [0, 1, 2, 3, 3, 3, 4, 5, 6] and showing.cut == 0
    assert showing.fps == pytest.approx(1 / 3600)


def test_no_times_fill_the_memory():
    generator = np.random.default_rng(0)
    for _ in range(200):
        gaps = generator.lognormal(-3, generator.uniform(0, 8), generator.integers(1, 60))
        showing = spread(np.append(0, np.cumsum(gaps + 1e-4)), generator.lognormal(0, 5), None)
        count = len(gaps) + 1
        assert len(showing.order) <= max(16 * count, 300)
        assert set(showing.order.tolist()) | set(showing.left_out) == set(range(count))
        assert (np.diff(showing.order) >= 0).all()


def test_the_rate_does_not_drift_with_a_coarse_clock():
    times = np.round(np.arange(3000) * 1000 / 60) / 1000  # 16 and 17 ms
    times[1500:] += 2
    assert usual_gap(np.diff(times)) == pytest.approx(1 / 60, rel=1e-3)
    showing = spread(times, 0.0, None)
    assert len(showing.order) == pytest.approx(3000 + 120, abs=3) and not showing.left_out


def test_times_that_go_back_are_said(tmp_path, caplog):
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p"
        frames = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in numbered(5)]
        for index, (packet, time) in enumerate(
            zip([p for f in frames for p in stream.encode(f)], [0, 40, 80, 20, 160])
        ):
            packet.pts, packet.dts, packet.time_base = time, index, Fraction(1, 1000)
            container.mux(packet)
    read, fps = read_video(tmp_path / "clip.mkv")
    assert numbers(read) == list(range(5)) and fps == 25
    assert "time stamps that do not increase (frame 3)" in caplog.text
    with pytest.raises(ValueError, match="no increasing time stamps .frame 3"):
        probe_video(tmp_path / "clip.mkv")
