"""Edges of the tasks from file to file: what killed and interrupted runs leave, odd sources, and odd sound."""

import os
import shutil
import signal
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from PIL import Image

from diffusers_mardini.pipelines.stream_inputs import kept_frames
from diffusers_mardini.pipelines.stream_plans import RetimePlan
from diffusers_mardini.streaming import extend_file, running, slow_motion_file
from diffusers_mardini.streaming.parts import SUFFIX, folder_of
from diffusers_mardini.streaming.settings import model_digest
from diffusers_mardini.streaming.source import look_through
from diffusers_mardini.video.reading import read_video
from pipelines_tests.pipelines.test_conditions import told_pipeline
from pipelines_tests.streaming.test_files import (
    FAST,
    Killed,
    clip,
    interrupted_after,
    moving,
    pipe,
    pitch,
    retime_file,
    short_parts,
    sound_of,
    with_sound,
)
from pipelines_tests.tiny_pipeline import CallCounter, tiny_pipeline
from pipelines_tests.video.video_files import encode, timed


__all__ = ["clip", "pipe", "short_parts"]  # fixtures


@pytest.mark.parametrize("letter", ["a", "\u044f"])
def test_the_folder_of_a_long_name_is_cut_between_letters(tmp_path, letter):
    output = tmp_path / (letter * (251 // len(letter.encode())) + ".mp4")
    name = folder_of(output).name
    assert name.endswith(SUFFIX) and len(os.fsencode(name)) <= 255
    assert set(name.removesuffix(SUFFIX)) == {letter}
    assert folder_of(tmp_path / "a.mp4").name == "a.mp4" + SUFFIX


def pressed_at(frames: int):
    def press(progress) -> None:
        if progress.frames_done == frames:
            os.kill(os.getpid(), signal.SIGINT)

    return press


# What runs leave behind.


def test_what_a_killed_run_knew_of_another_source_is_forgotten(pipe, clip, tmp_path):
    """SIGKILL in the first part leaves what was found in the source, and no part."""
    output, kept = tmp_path / "out.mp4", tmp_path / "kept"
    kill = interrupted_after(3)

    def killed(progress) -> None:
        if progress.frames_done == 3:
            shutil.copytree(tmp_path / "out.mp4.parts", kept)
        kill(progress)

    with pytest.raises(Killed):
        retime_file(pipe, clip, output, 25, progress=killed, **FAST)
    for resume in (False, True):
        shutil.rmtree(tmp_path / "out.mp4.parts", ignore_errors=True)
        shutil.copytree(kept, tmp_path / "out.mp4.parts")
        longer = encode(tmp_path / "longer.mp4", moving(21))
        if resume:
            with pytest.raises(ValueError, match="were made with other settings"):
                retime_file(pipe, longer, output, 25, resume=True, **FAST)
        else:
            assert retime_file(pipe, longer, output, 25, **FAST).num_frames == 51
            output.unlink()


def test_ctrl_c_in_the_first_part_can_be_resumed(pipe, clip, tmp_path):
    output = tmp_path / "out.mp4"
    result = slow_motion_file(pipe, clip, output, 2, progress=pressed_at(5), **FAST, decode_chunk_size=1)
    assert not result.is_whole and output.stat().st_nlink == 1
    with pytest.raises(ValueError, match="exists; give another name"):
        slow_motion_file(pipe, clip, output, 2, **FAST)
    assert slow_motion_file(pipe, clip, output, 2, resume=True, **FAST, decode_chunk_size=1).num_frames == 21
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == ["out.mp4"]


def test_a_resumed_run_replaces_its_own_result_and_nobody_elses(pipe, clip, tmp_path):
    output = tmp_path / "out.mp4"
    slow_motion_file(pipe, clip, output, 2, progress=pressed_at(5), **FAST, decode_chunk_size=1)
    output.write_text("somebody's")
    with pytest.raises(ValueError, match="exists; give another name"):
        slow_motion_file(pipe, clip, output, 2, resume=True, **FAST, decode_chunk_size=1)
    assert output.read_text() == "somebody's"
    result = slow_motion_file(pipe, clip, output, 2, resume=True, overwrite=True, **FAST, decode_chunk_size=1)
    assert result.num_frames == len(read_video(output)[0]) == 21


def test_a_result_stays_whole_while_the_next_one_is_joined(pipe, clip, tmp_path, short_parts, monkeypatch):
    output = tmp_path / "out.mp4"
    slow_motion_file(pipe, clip, output, 2, progress=pressed_at(9), **FAST, decode_chunk_size=1)
    before = output.read_bytes()

    def full(files, path, *others):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(running, "join", full)
        slow_motion_file(pipe, clip, output, 2, resume=True, **FAST, decode_chunk_size=1)
    assert output.read_bytes() == before
    assert slow_motion_file(pipe, clip, output, 2, resume=True, **FAST, decode_chunk_size=1).is_whole


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_a_link_to_another_file_system_is_followed(pipe, clip, tmp_path):
    other = Path("/dev/shm") / f"{tmp_path.parent.name}-{tmp_path.name}"
    if Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    other.mkdir()
    try:
        (tmp_path / "out.mp4").symlink_to(other / "real.mp4")
        retime_file(pipe, clip, tmp_path / "out.mp4", 25, **FAST)
        assert (tmp_path / "out.mp4").is_symlink() and len(read_video(other / "real.mp4")[0]) == 26
        assert [path.name for path in other.iterdir()] == ["real.mp4"]
    finally:
        shutil.rmtree(other)


def test_parts_of_another_quality_are_refused(pipe, clip, tmp_path, short_parts):
    with pytest.raises(Killed):
        retime_file(pipe, clip, tmp_path / "out.mp4", 25, progress=interrupted_after(19), **FAST)
    with pytest.raises(ValueError, match="crf 18, now 10"):
        retime_file(pipe, clip, tmp_path / "out.mp4", 25, resume=True, crf=10, **FAST)


def test_no_window_begins_after_ctrl_c(pipe, clip, tmp_path):
    """Pressed while the last frame of a window is encoded: the next window would begin anew."""
    counter = CallCounter(pipe)
    arguments = {"window": 4, "overlap": 2, "num_inference_steps": 1}
    extend_file(pipe, clip, tmp_path / "one.mp4", 2, **arguments)
    calls_of_a_window = counter.counts["transformer"]
    result = extend_file(pipe, clip, tmp_path / "out.mp4", 12, progress=pressed_at(13), **arguments)
    assert not result.is_whole and result.num_frames == 13
    assert counter.counts["transformer"] == 2 * calls_of_a_window


# Sources.


def test_a_cut_after_a_short_hold_comes_halfway_after_the_last_held_frame():
    """24 frames a second, the second frame held once more, then a cut: at 48 the old scene is shown at 2/48."""
    frames = [(0.0, "a", False, False), (1 / 24, "a", True, False), (2 / 24, "b", False, True)]
    kept = list(kept_frames(frames))
    assert kept == [(0.0, "a", False, False), (1 / 24, "a", True, False), (2 / 24, "b", False, True)]
    plan, shown, names = RetimePlan(48, 9), [], []
    for time, name, is_still, is_cut in kept:
        names.append(name)
        shown += plan.push(time, is_cut, is_still).shown
    assert [names[place] for place in shown] == ["a", "a", "a", "b", "b"]


def test_a_cut_to_black_is_a_cut(tmp_path):
    pytest.importorskip("scenedetect")
    frames = np.concatenate([moving(12), np.zeros((5, 32, 32, 3), np.uint8), 255 - moving(12, seed=5)])
    video, _ = look_through(encode(tmp_path / "black.mp4", frames), None, "keep")
    assert [one.number for one in video.kept if one.is_cut] == [12, 17]


def test_pictures_of_two_shapes_are_looked_through(tmp_path):
    pytest.importorskip("scenedetect")
    for number in range(6):
        Image.fromarray(moving(1, number)[0][: 32 - 8 * (number % 2)]).save(tmp_path / f"{number}.png")
    video, _ = look_through(tmp_path, 8, "keep")
    assert len(video.kept) == 6


def test_frames_stay_within_half_a_millisecond_of_their_times(tmp_path):
    """Even but for the file's milliseconds: even. One frame 1.5 ms late: all as they are."""
    thirds = [round(1000 * number / 30) for number in range(12)]
    video, _ = look_through(timed(tmp_path / "even.mkv", moving(12), thirds), None, "ignore")
    gaps = np.diff([one.time for one in video.kept])
    assert np.ptp(gaps) < 1e-9 and gaps[0] == pytest.approx(1 / 30, abs=1e-4)
    late = [40 * number + (2 if number == 5 else 0) for number in range(12)]
    video, _ = look_through(timed(tmp_path / "late.mkv", moving(12), late), None, "ignore")
    assert video.kept[5].time == pytest.approx(0.202, abs=1e-4) and video.kept[6].time == pytest.approx(0.24, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "clock", "rate"), [("phone.mov", 600, 30000 / 1001), ("drawn.gif", 100, 15), ("quick.gif", 100, 30)]
)
def test_times_that_a_coarse_clock_has_rounded_are_even(tmp_path, name, clock, rate):
    frames, times = moving(60), [round(clock * number / rate) for number in range(60)]
    path = tmp_path / name
    if path.suffix == ".gif":
        held = np.diff([*times, times[-1] + 1]) * 10
        first, *rest = (Image.fromarray(frame) for frame in frames)
        first.save(path, save_all=True, append_images=rest, duration=held.tolist())
    else:
        timed(path, frames, times, clock=clock)
    assert len({*np.diff(times)}) > 1
    video, _ = look_through(path, None, "ignore")
    assert video.fps == pytest.approx(rate, rel=1e-5) and len(video.kept) == 60
    assert [one.time * rate for one in video.kept] == pytest.approx(range(60), abs=1e-6)


@pytest.mark.parametrize(("rate", "count"), [(29.97, 5), (59.94, 9), (24, 2), (12.5, 6)])
def test_a_usual_rate_that_is_stated_stays_however_short_the_clip(tmp_path, rate, count):
    clip = encode(tmp_path / "short.mkv", moving(count), rate=Fraction(rate).limit_denominator(1001))
    assert look_through(clip, None, "ignore")[0].fps == pytest.approx(rate, rel=1e-4)


def test_a_clock_of_whole_frames_hides_no_missing_one(tmp_path):
    times = [number for number in range(12) if number != 5]
    video, _ = look_through(timed(tmp_path / "missing.mov", moving(11), times, clock=25), None, "ignore")
    assert [one.time for one in video.kept] == pytest.approx([number / 25 for number in times])


def test_a_long_pause_of_an_extension_is_as_long_as_it_was(tmp_path):
    clip = timed(tmp_path / "paused.mkv", moving(6), [0, 40, 80, 30_080, 30_120, 30_160])
    video, _ = look_through(clip, None, "ignore", is_even=True)
    assert video.fps == pytest.approx(25) and video.kept[-1].time == pytest.approx(30.16, abs=0.02)


def test_what_a_source_has_lost_is_said(tmp_path, caplog):
    whole = encode(tmp_path / "whole.mkv", moving(30))
    look_through(whole, None, "ignore")
    assert not caplog.text
    (tmp_path / "cut.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    video, _ = look_through(tmp_path / "cut.mkv", None, "ignore")
    assert f"{video.num_frames} of 30 frames can be read" in caplog.text


def test_frames_at_one_time_have_a_rate(tmp_path):
    clip = timed(tmp_path / "same.mkv", moving(7), [0, 0, 0, 0, 0, 40, 80])
    video, _ = look_through(clip, None, "ignore")
    assert video.fps > 0 and [one.time for one in video.kept] == pytest.approx([0, 0.04, 0.08])


def test_parts_of_an_offloaded_model_are_those_of_the_model(clip):
    pipe = tiny_pipeline()
    before = model_digest(pipe)
    for part in (pipe.planner, pipe.transformer, pipe.vae):
        cpu_offload(part, execution_device=torch.device("cpu"))
    assert any(value.is_meta for value in pipe.transformer.state_dict().values())
    assert model_digest(pipe) == before


def test_too_few_conditions_and_too_high_a_rate_are_refused_before_a_frame_is_sampled(clip, tmp_path):
    pipe = told_pipeline()
    counter = CallCounter(pipe)
    with pytest.raises(ValueError, match="`conditions` has 20 rows, but the result has 26 frames"):
        retime_file(pipe, clip, tmp_path / "out.mp4", 25, conditions={"action": np.zeros((20, 2))}, **FAST)
    fast = encode(tmp_path / "fast.mp4", moving(11), rate=60)
    with pytest.raises(ValueError, match="60"):
        slow_motion_file(pipe, fast, tmp_path / "out.gif", 2, **FAST)
    assert counter.counts["transformer"] == 0 and not list(tmp_path.glob("out*"))


# Sound.


def late_sound(path: Path, video: Path, late: float, gap: tuple[float, float] = (9.0, 9.0)) -> Path:
    """Copy the pictures of a file and add a tone that begins late and has a gap, both in seconds."""
    with av.open(str(video)) as source, av.open(str(path), "w") as output:
        pictures = output.add_stream_from_template(source.streams.video[0])
        tone = output.add_stream("pcm_s16le", rate=16000)
        tone.layout = "mono"
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = pictures
                output.mux(packet)
        for first in range(round(late * 16000), 17600, 800):
            if not gap[0] <= first / 16000 < gap[1]:
                wave = 20000 * np.sin(2 * np.pi * 440 * np.arange(first, first + 800) / 16000)
                frame = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], format="s16", layout="mono")
                frame.rate, frame.pts, frame.time_base = 16000, first, Fraction(1, 16000)
                output.mux(tone.encode(frame))
        output.mux(tone.encode())
    return path


@pytest.mark.parametrize("slower", [1, 2])
def test_sound_that_begins_late_and_has_a_gap_stays_beside_its_pictures(pipe, clip, tmp_path, slower):
    source = late_sound(tmp_path / "late.mkv", clip, 0.5, gap=(0.7, 0.9))
    if slower == 1:
        retime_file(pipe, source, tmp_path / "out.mp4", 20, **FAST)
    else:
        slow_motion_file(pipe, source, tmp_path / "out.mp4", slower, **FAST)
    sound, rate = sound_of(tmp_path / "out.mp4")
    loud = [
        float(np.abs(sound[int(slower * t * rate) :][: int(0.04 * rate)]).mean()) > 0.1
        for t in (0.1, 0.4, 0.6, 0.8, 1.0)
    ]
    assert loud == [False, False, True, False, True]


def test_damaged_sound_is_left_out_where_it_is_damaged(pipe, clip, tmp_path):
    source = with_sound(tmp_path / "sound.mkv", clip, 1.1, "flac")
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packets = [bytes(packet) for packet in container.demux(audio=0) if packet.size]
    for packet in packets[5:8]:
        place = data.index(packet)
        data[place : place + len(packet)] = bytes(len(packet))
    source.write_bytes(bytes(data))
    result = slow_motion_file(pipe, source, tmp_path / "out.mp4", 2, **FAST)
    assert result.sound == "stretched" and len(sound_of(tmp_path / "out.mp4")[0]) > 16000


@pytest.mark.parametrize(("rate", "encoded"), [(192_000, 96_000), (6000, 7350)])
def test_sound_at_a_rate_that_aac_lacks_gets_the_nearest(pipe, clip, tmp_path, rate, encoded):
    source = with_sound(tmp_path / "sound.mkv", clip, 1.1, "pcm_s16le", rate=rate)
    result = slow_motion_file(pipe, source, tmp_path / "out.mp4", 2, **FAST)
    sound, found = sound_of(tmp_path / "out.mp4")
    assert (result.sound, found) == ("stretched", encoded)
    assert len(sound) / found == pytest.approx(2.1, abs=0.15) and pitch(sound, found) == pytest.approx(440, rel=0.03)


def test_sound_keeps_its_channels_and_further_tracks_are_told(pipe, clip, tmp_path, caplog):
    source = with_sound(tmp_path / "sound.mkv", clip, 1.1, "pcm_s16le", layout="5.1", tracks=2)
    assert slow_motion_file(pipe, source, tmp_path / "out.mp4", 2, **FAST).sound == "stretched"
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [stream.layout.nb_channels for stream in container.streams.audio] == [6]
    assert "has more tracks, which are left out: 1 of sound" in caplog.text


@pytest.mark.parametrize("layout", ["3.1.2", "7.1.4"])
def test_sound_in_channels_that_aac_lacks_is_mixed_to_stereo(pipe, clip, tmp_path, caplog, layout):
    source = with_sound(tmp_path / "sound.mov", clip, 1.1, "pcm_s16le", layout=layout)
    assert slow_motion_file(pipe, source, tmp_path / "out.mp4", 2, **FAST).sound == "stretched"
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.audio[0].layout.nb_channels == 2
    assert "which AAC lacks; it is mixed to stereo" in caplog.text


def test_sound_that_a_format_does_not_take_at_its_rate_is_encoded(pipe, clip, tmp_path):
    source = with_sound(tmp_path / "sound.mkv", clip, 1.1, "mp3", rate=8000)
    assert retime_file(pipe, source, tmp_path / "out.mkv", 20, **FAST).sound == "copied"
    assert retime_file(pipe, source, tmp_path / "out.mp4", 20, **FAST).sound == "encoded"
    sound, rate = sound_of(tmp_path / "out.mp4")
    assert rate == 8000 and pitch(sound, rate) == pytest.approx(440, rel=0.03)


def test_a_source_is_warned_of_once_in_a_task_and_again_in_the_next(pipe, clip, tmp_path, caplog):
    source = with_sound(tmp_path / "sound.mkv", clip, 1.1, "pcm_s16le", tracks=2)
    for number in (1, 2):
        retime_file(pipe, source, tmp_path / "out.webm", 20, overwrite=True, **FAST)
        assert caplog.text.count("has more tracks, which are left out: 1 of sound") == number


def test_sound_far_slower_than_its_pictures_is_made_as_fast(pipe, tmp_path):
    clip = encode(tmp_path / "slides.mp4", moving(3), rate=1)
    source = with_sound(tmp_path / "sound.mkv", clip, 3, "pcm_s16le")
    result = slow_motion_file(pipe, source, tmp_path / "out.mp4", 2, fps=240, **FAST)
    assert (result.sound, result.num_frames) == ("stretched", 5)
    assert len(sound_of(tmp_path / "out.mp4")[0]) < 16000 * 0.1


def test_sound_without_a_decoder_is_refused_before_a_frame_is_sampled(pipe, clip, tmp_path):
    source = with_sound(tmp_path / "sound.mkv", clip, 1.1, "flac")
    counter = CallCounter(pipe)
    source.write_bytes(source.read_bytes().replace(b"A_FLAC", b"A_NONE"))  # a codec that nobody decodes
    with pytest.raises(ValueError, match="no decoder for; `sound='drop'` leaves it out"):
        slow_motion_file(pipe, source, tmp_path / "out.mp4", 2, **FAST)
    assert counter.counts["transformer"] == 0
    assert slow_motion_file(pipe, source, tmp_path / "out.mp4", 2, sound="drop", **FAST).sound == "dropped"
