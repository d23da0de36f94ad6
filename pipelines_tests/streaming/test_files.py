"""From file to file: what is written, killed runs that go on, Ctrl-C, sound and cuts."""

import os
import re
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, features

from diffusers_mardini.streaming import (
    FileProgress,
    extend_file,
    extension,
    retime_file,
    retiming,
    slow_motion_file,
    source,
)
from diffusers_mardini.streaming.cuts import read_cut
from diffusers_mardini.streaming.parts import folder_of
from diffusers_mardini.video.reading import read_video
from diffusers_mardini.video.sound import tempos
from pipelines_tests.pipelines.test_conditions import told_pipeline
from pipelines_tests.tiny_pipeline import CallCounter, tiny_pipeline
from pipelines_tests.video.video_files import encode, timed


ROOT = Path(__file__).parents[2]
FAST = {"num_inference_steps": 1, "cuts": "ignore"}


@pytest.fixture
def pipe():
    return tiny_pipeline()


@pytest.fixture
def short_parts(monkeypatch):
    monkeypatch.setattr(retiming, "PART_GAPS", 3)
    monkeypatch.setattr(extension, "PART_FRAMES", 3)
    monkeypatch.setattr(extension, "PART_WINDOWS", 2)


def moving(count: int, seed: int = 0) -> np.ndarray:
    """A bright square that moves over a fixed picture."""
    frames = np.repeat(np.random.default_rng(seed).integers(0, 60, (1, 32, 32, 3), np.uint8), count, axis=0)
    for number, frame in enumerate(frames):
        frame[8:20, number % 20 : number % 20 + 12] = 200
    return frames


@pytest.fixture
def clip(tmp_path):
    return encode(tmp_path / "clip.mp4", moving(11))


def with_sound(
    path, video: Path, seconds: float, codec: str = "aac", rate: int = 16000, layout: str = "mono", tracks: int = 1
) -> Path:
    """Copy the pictures of a file and add a tone of 440 Hz."""
    with av.open(str(video)) as source, av.open(str(path), "w") as output:
        pictures = output.add_stream_from_template(source.streams.video[0])
        tones = [output.add_stream(codec, rate=rate) for _ in range(tracks)]
        for tone in tones:
            tone.layout = layout
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = pictures
                output.mux(packet)
        kind = "fltp" if codec in ("aac", "mp3") else "s16"
        channels = av.AudioLayout(layout).nb_channels
        for first in range(0, int(seconds * rate), 1024):
            wave = np.sin(2 * np.pi * 440 * np.arange(first, first + 1024) / rate)
            if kind == "fltp":
                values = np.repeat(wave[None], channels, axis=0).astype(np.float32)
            else:
                values = np.repeat(wave * 30000, channels)[None].astype(np.int16)
            for tone in tones:
                frame = av.AudioFrame.from_ndarray(values, format=kind, layout=layout)
                frame.rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
                output.mux(tone.encode(frame))
        for tone in tones:
            output.mux(tone.encode())
    return Path(path)


def sound_of(path) -> tuple[np.ndarray, int]:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray().mean(axis=0) for frame in container.decode(audio=0)]
        return np.concatenate(frames), container.streams.audio[0].rate


def pitch(sound: np.ndarray, rate: int) -> float:
    middle = sound[len(sound) // 4 : -len(sound) // 4]
    return float(np.abs(np.fft.rfft(middle * np.hanning(len(middle)))).argmax() * rate / len(middle))


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".gif", ""])
def test_a_file_gets_another_rate(pipe, clip, tmp_path, suffix, short_parts):
    seen: list[FileProgress] = []
    result = retime_file(pipe, clip, tmp_path / f"out{suffix}", 25, progress=seen.append, **FAST)
    assert result.is_whole and result.num_frames == 26 and result.sound == "none"
    assert seen[-1] == FileProgress(26, 26, 0.0) and [one.frames_done for one in seen] == list(range(1, 27))
    assert not (tmp_path / f"out{suffix}.parts").exists()
    if suffix:
        frames, fps = read_video(tmp_path / f"out{suffix}")
        assert frames.shape == (26, 32, 32, 3) and fps == pytest.approx(25)
    else:
        assert len(list((tmp_path / "out").iterdir())) == 26


def test_the_result_is_tagged_as_bt709(pipe, clip, tmp_path):
    retime_file(pipe, clip, tmp_path / "out.mp4", 20, **FAST)
    with av.open(str(tmp_path / "out.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)


def test_parts_make_no_difference_to_times(pipe, clip, tmp_path, short_parts):
    """Each part begins where the one before ended: no frame is made twice, and none is left out."""
    for fps in (25, 7, 10, 3):
        result = retime_file(pipe, clip, tmp_path / "out.mp4", fps, overwrite=True, **FAST)
        assert result.num_frames == int(1.0 * fps + 1e-6) + 1
        assert len(read_video(tmp_path / "out.mp4")[0]) == result.num_frames


def test_all_parts_read_from_one_decoder(pipe, clip, tmp_path, short_parts, monkeypatch):
    opened, read = [], source.frames_of_numbers
    monkeypatch.setattr(source, "frames_of_numbers", lambda *args: opened.append(args) or read(*args))
    retime_file(pipe, clip, tmp_path / "out.mp4", 25, **FAST)
    assert len(opened) == 1


def test_slow_motion_keeps_the_rate_and_stretches_the_sound(pipe, clip, tmp_path):
    source = with_sound(tmp_path / "sound.mp4", clip, 1.1)
    result = slow_motion_file(pipe, source, tmp_path / "slow.mp4", 3, **FAST)
    assert (result.num_frames, result.fps, result.sound) == (31, 10, "stretched")
    sound, rate = sound_of(tmp_path / "slow.mp4")
    assert len(sound) / rate == pytest.approx(3.1, abs=0.1)
    assert pitch(sound, rate) == pytest.approx(440, rel=0.02)


@pytest.mark.parametrize("codec, said", [("aac", "copied"), ("mp3", "copied"), ("pcm_s16le", "encoded")])
def test_a_new_rate_keeps_the_sound(pipe, clip, tmp_path, codec, said):
    source = with_sound(tmp_path / "sound.mkv", clip, 1.1, codec)
    result = retime_file(pipe, source, tmp_path / "out.mp4", 20, **FAST)
    assert result.sound == said
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.audio[0].codec_context.codec.canonical_name == codec.replace("pcm_s16le", "aac")
    sound, rate = sound_of(tmp_path / "out.mp4")
    assert len(sound) / rate == pytest.approx(result.num_frames / 20, abs=0.1)
    assert pitch(sound, rate) == pytest.approx(440, rel=0.02)
    dropped = retime_file(pipe, source, tmp_path / "mute.mp4", 20, sound="drop", **FAST)
    assert dropped.sound == "dropped"
    with av.open(str(tmp_path / "mute.mp4")) as container:
        assert not container.streams.audio


def test_one_filter_of_ffmpeg_changes_the_tempo_twice_at_most():
    for slower in (1 / 120, 1 / 3, 1, 1.5, 2, 3, 8, 32):
        factors = tempos(1 / slower)
        assert np.prod(factors) == pytest.approx(1 / slower) and 0.5 <= min(factors) <= max(factors) <= 2


def test_an_extension_adds_frames(pipe, clip, tmp_path, short_parts):
    options = {"window": 4, "overlap": 2, "num_inference_steps": 1}
    result = extend_file(pipe, clip, tmp_path / "long.mp4", 9, **options)
    assert result.num_frames == 20 and result.is_whole
    assert len(read_video(tmp_path / "long.mp4")[0]) == 20


def test_given_frames_of_files_come_out_with_their_own_pixels(pipe, tmp_path, short_parts):
    (tmp_path / "clip").mkdir()
    for number, frame in enumerate(moving(11)):
        Image.fromarray(frame).save(tmp_path / "clip" / f"{number}.png")
    extension_options = {"window": 4, "overlap": 2, "num_inference_steps": 1, "source_fps": 10}

    def pasted(name: str, make, *arguments, **options) -> np.ndarray:
        made = []
        for paste in (False, True):
            make(pipe, tmp_path / "clip", tmp_path / f"{name}{paste}", *arguments, paste_given=paste, **options)
            files = sorted((tmp_path / f"{name}{paste}").iterdir())
            made.append(np.stack([np.asarray(Image.open(file)) for file in files]))
        without, pixels = made
        given = (pixels != without).any(axis=(1, 2, 3))
        assert (pixels[given] == moving(11)[: given.sum()]).all()
        return np.flatnonzero(given)

    assert (pasted("slow", slow_motion_file, 3, source_fps=10, **FAST) == np.arange(0, 31, 3)).all()
    assert (pasted("rate", retime_file, 20, source_fps=10, **FAST) == np.arange(0, 21, 2)).all()
    assert (pasted("long", extend_file, 5, **extension_options) == np.arange(11)).all()


def test_a_picture_is_extended_like_a_clip_of_one_frame(pipe, tmp_path):
    Image.fromarray(moving(1)[0]).save(tmp_path / "a.png")
    options = {"num_inference_steps": 1, "window": 4, "overlap": 2}
    result = extend_file(pipe, tmp_path / "a.png", tmp_path / "out.mp4", 5, **options)
    assert (result.num_frames, result.fps) == (6, 8)
    assert extend_file(pipe, tmp_path / "a.png", tmp_path / "fast.mp4", 5, source_fps=12.4, **options).fps == 12.4
    with pytest.raises(ValueError, match="a.png' has one frame; give at least 2"):
        retime_file(pipe, tmp_path / "a.png", tmp_path / "out.mp4", 20, overwrite=True, **FAST)


def test_a_still_picture_that_ffmpeg_takes_for_a_video_states_no_rate(tmp_path):
    if not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    Image.fromarray(moving(1)[0]).save(tmp_path / "a.avif")
    assert source.look_through(tmp_path / "a.avif", 12.5, "ignore")[0].fps == 12.5


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ""])
def test_what_cannot_be_encoded_is_refused_before_a_frame_is_sampled(pipe, clip, tmp_path, suffix):
    counter = CallCounter(pipe)
    for options, message in (({"crf": 60}, "crf must be between"), ({"paste_given": "no"}, "`paste_given` is 'no'")):
        with pytest.raises(ValueError, match=message):
            retime_file(pipe, clip, tmp_path / f"out{suffix}", 20, **options, **FAST)
        with pytest.raises(ValueError, match=message):
            extend_file(pipe, clip, tmp_path / f"out{suffix}", 5, num_inference_steps=1, **options)
    assert counter.counts["transformer"] == 0


def test_overwriting_without_resuming_begins_anew(pipe, clip, tmp_path, short_parts, caplog):
    with pytest.raises(Killed):
        retime_file(pipe, clip, tmp_path / "out.mp4", 25, seed=1, progress=interrupted_after(17), **FAST)
    expected = retime_file(pipe, clip, tmp_path / "other.mp4", 20, **FAST)
    with pytest.raises(ValueError, match="`overwrite=True` begins anew"):
        retime_file(pipe, clip, tmp_path / "out.mp4", 20, **FAST)
    parts = {path.name: path.read_bytes() for path in folder_of(tmp_path / "out.mp4").iterdir()}
    with pytest.raises(ValueError, match="frame 99"):  # a call that cannot work removes nothing
        retime_file(pipe, clip, tmp_path / "out.mp4", 20, cuts=[99], overwrite=True, num_inference_steps=1)
    assert {path.name: path.read_bytes() for path in folder_of(tmp_path / "out.mp4").iterdir()} == parts
    result = retime_file(pipe, clip, tmp_path / "out.mp4", 20, overwrite=True, **FAST)
    assert (result.frames_resumed, result.num_frames) == (0, expected.num_frames)
    assert "finished parts of an earlier run were removed" in caplog.text
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "other.mp4").read_bytes()
    assert not folder_of(tmp_path / "out.mp4").exists()


def test_nothing_is_sampled_across_cuts_and_held_frames(pipe, tmp_path):
    pytest.importorskip("scenedetect")
    frames = np.concatenate([moving(12), 255 - moving(12, seed=5)])
    clip = encode(tmp_path / "cut.mp4", frames)
    result = retime_file(pipe, clip, tmp_path / "out.mp4", 20, num_inference_steps=1)
    assert result.num_cuts == 1
    made = read_video(tmp_path / "out.mp4")[0].astype(int)
    assert np.abs(made[23] - made[24]).mean() < 3 < np.abs(made[22] - made[23]).mean()  # halfway, at 1.15 s
    counter = CallCounter(pipe)
    still = encode(tmp_path / "still.mp4", np.repeat(moving(1), 20, axis=0), options={"crf": "30"})
    retime_file(pipe, still, tmp_path / "still-out.mp4", 20, **FAST)
    assert counter.counts["transformer"] == 0


def test_uneven_times_are_respected(pipe, tmp_path):
    times = [0, 40, 80, 240, 280, 320]
    clip = timed(tmp_path / "uneven.mkv", moving(6), times)
    result = retime_file(pipe, clip, tmp_path / "out.mp4", 25, **FAST)
    assert result.num_frames == 9  # frames at 0, 40, 80, 240, 280 and 320 ms, three sampled between 80 and 240


def test_an_extension_plays_uneven_frames_as_long_as_they_were_shown(pipe, tmp_path):
    times = [0, 40, 80, 240, 280, 320]
    clip = timed(tmp_path / "uneven.mkv", moving(6), times)
    result = extend_file(pipe, clip, tmp_path / "out.mkv", 3, num_inference_steps=1, window=5, overlap=2)
    assert (result.num_frames, result.fps) == (9 + 3, pytest.approx(25))
    made = read_video(tmp_path / "out.mkv")[0].astype(int)
    changes = np.abs(np.diff(made[:9], axis=0)).mean(axis=(1, 2, 3))
    assert (changes[2:5] < 0.5).all() and (changes[[0, 1, 5, 6, 7]] > 1).all()  # held from 80 to 240 ms


def test_conditions_of_files_belong_to_the_frames_of_the_result(clip, tmp_path, short_parts):
    pipe, made = told_pipeline(), {}
    for name, actions in (("a", np.zeros((26, 2))), ("b", np.full((26, 2), 0.5)), ("none", None)):
        told = None if actions is None else {"action": actions}
        retime_file(pipe, clip, tmp_path / f"{name}.mp4", 25, conditions=told, **FAST)
        made[name] = (tmp_path / f"{name}.mp4").read_bytes()
    assert len(set(made.values())) == 3
    with pytest.raises(Killed):
        told = {"action": np.zeros((26, 2))}
        retime_file(
            pipe, clip, tmp_path / "out.mp4", 25, conditions=told, progress=interrupted_after(12), **FAST
        )  # fmt: skip
    with pytest.raises(ValueError, match="condition action"):
        told = {"action": np.full((26, 2), 0.5)}
        retime_file(pipe, clip, tmp_path / "out.mp4", 25, conditions=told, resume=True, **FAST)
    told = {"action": np.zeros((26, 2))}
    retime_file(pipe, clip, tmp_path / "out.mp4", 25, conditions=told, resume=True, **FAST)
    assert (tmp_path / "out.mp4").read_bytes() == made["a"]


def test_an_extension_with_conditions_survives_a_kill(clip, tmp_path, short_parts):
    pipe = told_pipeline()
    arguments = {"window": 5, "overlap": 2, "num_inference_steps": 1}
    actions = np.random.default_rng(0).uniform(0, 1, (30, 2))
    all_frames = np.concatenate([np.full((11, 2), np.nan), actions])
    extend_file(pipe, clip, tmp_path / "whole.mp4", 30, conditions={"action": all_frames}, **arguments)
    with pytest.raises(Killed):
        extend_file(
            pipe, clip, tmp_path / "out.mp4", 30, conditions={"action": actions}, progress=interrupted_after(30),
            **arguments,
        )  # fmt: skip
    extend_file(pipe, clip, tmp_path / "out.mp4", 30, conditions={"action": actions}, resume=True, **arguments)
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    extend_file(pipe, clip, tmp_path / "other.mp4", 30, **arguments)
    assert (tmp_path / "other.mp4").read_bytes() != (tmp_path / "whole.mp4").read_bytes()
    with pytest.raises(ValueError, match=r"shape \(29, 2\); give \(41 or 30, 2\)"):
        extend_file(pipe, clip, tmp_path / "o.mp4", 30, conditions={"action": actions[:29]}, **arguments)
    with pytest.raises(ValueError, match="give `num_new_frames`"):
        extend_file(pipe, clip, tmp_path / "o.mp4", None, conditions={"action": actions}, **arguments)


@pytest.mark.parametrize("settings", [{"anchors": 2}, {"keyframe_interval": 2}])
def test_remedies_against_drift_survive_a_kill(pipe, clip, tmp_path, short_parts, settings):
    arguments = {"window": 7, "overlap": 3, "num_inference_steps": 1, "generated_noise": 0.1, **settings}
    extend_file(pipe, clip, tmp_path / "whole.mp4", 60, **arguments)
    with pytest.raises(Killed):
        extend_file(pipe, clip, tmp_path / "out.mp4", 60, progress=interrupted_after(50), **arguments)
    result = extend_file(pipe, clip, tmp_path / "out.mp4", 60, resume=True, **arguments)
    assert result.frames_resumed > 20
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


@pytest.mark.parametrize(
    "text, cut", [("12", 12), ("12.48s", 12.48), ("0:12.48", 12.48), ("00:00:12.48", 12.48), ("1:02:03", 3723.0)]
)
def test_a_cut_is_a_frame_or_a_time(text, cut):
    assert read_cut(text) == cut and type(read_cut(text)) is type(cut)


@pytest.mark.parametrize("text", ["12.48", "-1s", "1:60", "1:60:00", "s", "12s3", "1e3s", "\u0663", "9" * 11])
def test_what_is_no_cut_is_refused(text):
    with pytest.raises(ValueError, match="is no cut; give the frames that begin a scene, by number"):
        read_cut(text)


def test_cuts_may_be_given_by_their_times(pipe, clip, tmp_path):
    """The clip has 10 frames a second: 0.5 s is frame 5, and 0.51 s the first frame after it."""
    made = []
    for cuts in ([5, 6], ["0.5s", "00:00:00.51"], [5, 0.55]):
        result = retime_file(pipe, clip, tmp_path / "out.mp4", 25, num_inference_steps=1, cuts=cuts, overwrite=True)
        assert result.num_cuts == 2
        made.append((tmp_path / "out.mp4").read_bytes())
    assert made[0] == made[1] == made[2]
    for cuts, what in (([11], "frame 11"), (["1.2s"], "1.2 seconds")):
        with pytest.raises(ValueError, match=f"`cuts` has {what}, but the video has 11 frames, the last at 1.000"):
            retime_file(pipe, clip, tmp_path / "o.mp4", 25, num_inference_steps=1, cuts=cuts)


class Killed(Exception):
    pass


def interrupted_after(frames: int, error=Killed):
    def stop(progress: FileProgress) -> None:
        if progress.frames_done == frames:
            raise error

    return stop


def run_all(pipe, clip, path, name, **options):
    if name == "retime":
        return retime_file(pipe, clip, path, 25, seed=3, **FAST, **options)
    if name == "slow motion":
        return slow_motion_file(pipe, clip, path, 2, seed=3, **FAST, **options)
    return extend_file(pipe, clip, path, 12, seed=3, window=4, overlap=2, num_inference_steps=1, **options)


@pytest.mark.parametrize("name, at", [("retime", 19), ("slow motion", 10), ("extension", 17), ("extension", 21)])
def test_a_run_that_died_goes_on_and_gives_the_same_bytes(pipe, clip, tmp_path, short_parts, name, at):
    run_all(pipe, clip, tmp_path / "through.mp4", name)
    with pytest.raises(Killed):
        run_all(pipe, clip, tmp_path / "died.mp4", name, progress=interrupted_after(at))
    assert not (tmp_path / "died.mp4").exists()
    with pytest.raises(ValueError, match="holds parts of an earlier run"):
        run_all(pipe, clip, tmp_path / "died.mp4", name)
    result = run_all(tiny_pipeline(), clip, tmp_path / "died.mp4", name, resume=True)
    assert 0 < result.frames_resumed < at
    assert (tmp_path / "died.mp4").read_bytes() == (tmp_path / "through.mp4").read_bytes()
    assert not (tmp_path / "died.mp4.parts").exists()


def test_parts_of_other_settings_are_refused(pipe, clip, tmp_path, short_parts):
    with pytest.raises(Killed):
        retime_file(pipe, clip, tmp_path / "out.mp4", 25, progress=interrupted_after(19), **FAST)
    for changed, text in (({"seed": 1}, "seed 0, now 1"), ({"window": 5}, "sampling")):
        with pytest.raises(ValueError, match=text):
            retime_file(pipe, clip, tmp_path / "out.mp4", 25, resume=True, **changed, **FAST)
    assert retime_file(pipe, clip, tmp_path / "out.mp4", 25, resume=True, **FAST).frames_resumed == 16


def test_ctrl_c_writes_the_whole_windows_and_the_rest_can_follow(pipe, clip, tmp_path, short_parts):
    def press(progress: FileProgress) -> None:
        if progress.frames_done == 9:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    result = slow_motion_file(pipe, clip, tmp_path / "out.mp4", 2, progress=press, **FAST, decode_chunk_size=1)
    assert not result.is_whole and 9 <= result.num_frames < 21
    assert len(read_video(tmp_path / "out.mp4")[0]) == result.num_frames
    assert signal.getsignal(signal.SIGINT) is before
    whole = slow_motion_file(pipe, clip, tmp_path / "out.mp4", 2, resume=True, **FAST, decode_chunk_size=1)
    assert whole.is_whole and whole.num_frames == 21


def test_a_killed_process_leaves_no_file_and_its_parts_serve(clip, tmp_path):
    """SIGKILL, while a part is written."""
    script = """
import sys, os, signal
from diffusers_mardini.streaming import retime_file, retiming
from pipelines_tests.tiny_pipeline import tiny_pipeline
retiming.PART_GAPS = 3
def die(progress):
    if progress.frames_done == 19:
        os.kill(os.getpid(), signal.SIGKILL)
retime_file(tiny_pipeline(), sys.argv[1], sys.argv[2], 25, progress=die, num_inference_steps=1, cuts="ignore")
"""
    done = subprocess.run([sys.executable, "-c", script, clip, tmp_path / "out.mp4"], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL and not (tmp_path / "out.mp4").exists()
    assert (tmp_path / "out.mp4.parts" / "00001.json").exists()


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda pipe, clip, out: retime_file(pipe, clip, out / "o.mp4", 0), "`fps` is 0"),
        (lambda pipe, clip, out: retime_file(pipe, clip, out / "o.xyz", 25), "the suffix '.xyz' is unknown"),
        (lambda pipe, clip, out: retime_file(pipe, clip, clip, 25), "exists; give another name"),
        (lambda pipe, clip, out: retime_file(pipe, out / "no.mp4", out / "o.mp4", 25), "no video file at"),
        (lambda pipe, clip, out: retime_file(pipe, clip, out / "o.mp4", 25, sound="stretch"), "`sound` is 'stretch'"),
        (lambda pipe, clip, out: slow_motion_file(pipe, clip, out / "o.mp4", 2, sound="keep"), "`sound` is 'keep'"),
        (lambda pipe, clip, out: slow_motion_file(pipe, clip, out / "o.mp4", 1), "`factor` is 1"),
        (lambda pipe, clip, out: retime_file(pipe, clip, out / "o.mp4", 25, cuts="maybe"), "`cuts` is 'maybe'"),
        (lambda pipe, clip, out: retime_file(pipe, clip, out / "o.mp4", 25, height=30), "is not divisible"),
        (lambda pipe, clip, out: extend_file(pipe, clip, out / "o.mp4", 0), "`num_new_frames` is 0"),
    ],
)
def test_bad_arguments_are_refused_and_leave_nothing_behind(pipe, clip, tmp_path, call, text):
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=re.escape(text)):
        call(pipe, clip, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", ["out.mp4", "out.gif"])
def test_an_output_that_appears_meanwhile_is_left_alone(pipe, clip, tmp_path, short_parts, name):
    output = tmp_path / name

    def appear(progress: FileProgress) -> None:
        output.write_text("somebody's")

    with pytest.raises(ValueError, match="appeared meanwhile and was left alone; the parts of the result are kept in"):
        retime_file(pipe, clip, output, fps=20, progress=appear, **FAST)
    assert output.read_text() == "somebody's"
    output.unlink()
    result = retime_file(pipe, clip, output, fps=20, resume=True, **FAST)
    assert result.frames_resumed == result.num_frames and len(read_video(output)[0]) == result.num_frames
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == [name]
