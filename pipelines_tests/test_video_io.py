"""Clips survive files: exact pictures, near-exact mp4, and errors that say what to do."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from diffusers_mardini.video import opening, reading, writing
from diffusers_mardini.video.reading import _nearest
from diffusers_mardini.video_io import (
    check_writable,
    iterate_frames,
    natural_key,
    probe_video,
    read_frames,
    read_images,
    read_video,
    write_video,
)


def moving_square(num_frames: int = 6, height: int = 32, width: int = 48) -> np.ndarray:
    frames = np.full((num_frames, height, width, 3), 40, dtype=np.uint8)
    for index, frame in enumerate(frames):
        frame[8:24, 2 + 4 * index : 14 + 4 * index] = (200, 120, 60)
    return frames


def test_mp4_keeps_every_frame_and_the_rate(tmp_path):
    frames = moving_square()
    path = write_video(tmp_path / "clip.mp4", frames, fps=12.5, crf=10)
    read, fps = read_video(path)
    assert fps == pytest.approx(12.5)
    assert read.shape == frames.shape and read.dtype == np.uint8
    assert np.abs(read.astype(int) - frames).mean() < 3
    assert [np.abs(read.astype(int) - frame).mean((1, 2, 3)).argmin() for frame in frames] == list(range(6))


def test_mp4_pads_odd_sides_with_their_edge(tmp_path):
    read, _ = read_video(write_video(tmp_path / "odd.mp4", moving_square(3, 31, 45), fps=8))
    assert read.shape == (3, 32, 46, 3)


def test_same_frames_give_the_same_bytes(tmp_path):
    first = write_video(tmp_path / "a.gif", moving_square(), fps=8)
    second = write_video(tmp_path / "b.gif", moving_square(), fps=8)
    assert first.read_bytes() == second.read_bytes()


def test_folder_of_png_is_exact_and_in_natural_order(tmp_path):
    frames = moving_square(12)
    folder = write_video(tmp_path / "frames", [Image.fromarray(frame) for frame in frames], fps=8)
    images, fps = read_images(folder)
    assert fps is None
    assert np.array_equal(np.stack(images), frames)
    assert sorted(["a10.png", "a2.png", "b1.png"], key=natural_key) == ["a2.png", "a10.png", "b1.png"]


def test_gif_has_all_frames_and_its_rate(tmp_path):
    path = write_video(tmp_path / "clip.gif", moving_square(), fps=10)
    images, fps = read_images(path)
    assert len(images) == 6 and fps == pytest.approx(10, rel=0.05)


def test_a_picture_reads_as_one_image(tmp_path):
    Image.new("L", (5, 4), 7).save(tmp_path / "one.png")
    (image,), fps = read_images(tmp_path / "one.png")
    assert image.mode == "RGB" and image.size == (5, 4) and fps is None


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: None, "no video file"),
        (lambda path: path.mkdir(), "it is a folder"),
        (lambda path: path.write_text("nothing to see here"), "cannot be decoded"),
        (lambda path: path.write_bytes(b""), "cannot be decoded"),
    ],
)
def test_unreadable_videos_are_value_errors(tmp_path, make, message):
    path = tmp_path / "clip.mp4"
    make(path)
    with pytest.raises(ValueError, match=message):
        read_video(path)


def test_a_truncated_video_and_a_picture_are_no_videos(tmp_path):
    whole = write_video(tmp_path / "clip.mp4", moving_square(), fps=8).read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(ValueError, match="half.mp4"):
        read_video(tmp_path / "half.mp4")
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match="one picture"):
        read_video(tmp_path / "one.png")


def test_missing_and_broken_pictures_are_value_errors(tmp_path):
    with pytest.raises(ValueError, match="holds no pictures"):
        read_images(tmp_path)
    with pytest.raises(ValueError, match="no picture at"):
        read_images(tmp_path / "none.png")
    (tmp_path / "bad.png").write_text("x")
    with pytest.raises(ValueError, match="bad.png"):
        read_images(tmp_path / "bad.png")


@pytest.mark.parametrize(
    "name, frames, fps, crf, message",
    [
        ("a.avi", moving_square(), 8, 18, "suffix '.avi'"),
        ("a.mp4", moving_square(), 0, 18, "fps must be positive"),
        ("a.mp4", moving_square(), float("nan"), 18, "fps must be positive"),
        ("a.mp4", moving_square(), float("inf"), 18, "fps must be positive"),
        ("a.mp4", moving_square(), 8, 52, "crf"),
        ("a.mp4", [], 8, 18, "no frames"),
        ("a.mp4", moving_square().astype(np.float32), 8, 18, "float32"),
        ("a.mp4", [Image.new("RGB", (4, 4)), Image.new("RGB", (8, 4))], 8, 18, "same size"),
    ],
)
def test_unwritable_videos_are_value_errors(tmp_path, name, frames, fps, crf, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / name, frames, fps, crf)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_others_wrote_to_meanwhile_is_left_alone(tmp_path, monkeypatch):
    folder = write_video(tmp_path / "frames", moving_square(2), fps=8)
    save = Image.Image.save

    def save_and_meddle(*arguments, **options):
        save(*arguments, **options)
        (folder / "mine.txt").write_text("precious")

    monkeypatch.setattr(Image.Image, "save", save_and_meddle)
    with pytest.raises(ValueError, match="holds other files"):
        write_video(folder, moving_square(3), fps=8)
    assert sorted(path.name for path in folder.iterdir()) == ["frame_00000.png", "frame_00001.png", "mine.txt"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", moving_square(), fps=8)
    before = path.read_bytes()

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(writing.os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        write_video(path, moving_square(3), fps=8)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_only_where_we_wrote_it(tmp_path):
    write_video(tmp_path / "out", moving_square(5), fps=8)
    write_video(tmp_path / "out", moving_square(3), fps=8)
    assert len(read_images(tmp_path / "out")[0]) == 3
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        write_video(tmp_path / "out", moving_square(2), fps=8)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_pictures_of_the_same_names_that_others_wrote_are_left_alone(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "frame_00000.png")  # as `ffmpeg -i clip.mp4 frame_%05d.png` does
    with pytest.raises(ValueError, match="holds other files"):
        write_video(tmp_path, moving_square(2), fps=8)
    (tmp_path / "frame_00000.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="holds other files"):
        write_video(tmp_path, moving_square(2), fps=8)
    assert [path.name for path in tmp_path.iterdir()] == ["frame_00000.png"]


def test_a_place_where_nothing_can_be_written_is_known_before(tmp_path, monkeypatch):
    (tmp_path / "taken").write_bytes(b"precious")
    with pytest.raises(ValueError, match="taken' is a file"):
        check_writable(tmp_path / "taken/new/clip.mp4", 8)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="is a link to"):
        check_writable(tmp_path / "link", 8)
    check_writable(tmp_path / "new/folder/clip.mp4", 8)
    monkeypatch.setattr(writing.os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="is write-protected"):
        check_writable(tmp_path / "new/folder/clip.mp4", 8)


@pytest.mark.parametrize("fps", (8, 12.5, 15, 24, 29.97, 50))
def test_a_gif_lasts_as_long_as_its_frames(tmp_path, fps):
    with Image.open(write_video(tmp_path / "clip.gif", moving_square(9), fps)) as image:
        durations = []
        for index in range(image.n_frames):
            image.seek(index)
            durations.append(image.info["duration"])
    assert sum(durations) == 10 * round(100 * 9 / fps) and min(durations) >= 20
    assert max(durations) - min(durations) <= 10
    assert read_video(tmp_path / "clip.gif")[1] == pytest.approx(fps, rel=0.03)


def test_a_gif_that_holds_a_frame_reads_as_it_was(tmp_path):
    frames = moving_square(6)[[0, 1, 2, 2, 2, 2, 3, 4, 5, 5]]
    path = write_video(tmp_path / "clip.gif", frames, fps=10)
    with Image.open(path) as image:
        assert image.n_frames == 6
    read, fps = read_video(path)
    assert np.abs(read.astype(int) - frames).max() < 8 and fps == pytest.approx(10)


def write_timed(
    path, frames: np.ndarray, times: list[int], rotation: int | None = None, mirror: bool = False, aspect: int = 1
):
    """An mp4 or mkv with a key frame every fourth frame, frame `i` at `times[i]` milliseconds."""
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "5"})
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = *frames.shape[1:3], "yuv420p", 4
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.thread_count = 1
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        if rotation is not None:
            stream.set_display_rotation(rotation, hflip=mirror)
        for frame, time in zip(frames, times):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def shades(num_frames: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frames that differ by their brightness, so that each is recognized."""
    levels = np.linspace(20, 230, num_frames).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (num_frames, height, width, 3)).copy()


def test_probing_counts_frames_and_keeps_the_clean_rate(tmp_path):
    facts = probe_video(write_video(tmp_path / "clip.mp4", moving_square(7), fps=12.5))
    assert (facts.num_frames, facts.fps, facts.height, facts.width, facts.codec) == (7, 12.5, 32, 48, "h264")
    assert facts.timestamps is None and facts.duration == pytest.approx(7 / 12.5)


def test_probing_tells_variable_rates(tmp_path):
    times = [0, 40, 200, 220, 240, 700, 740]
    for name in ("clip.mp4", "clip.mkv"):
        facts = probe_video(write_timed(tmp_path / name, shades(7), times))
        assert facts.timestamps == pytest.approx(np.array(times) / 1000, abs=0.002)
        assert facts.fps == pytest.approx(6 / 0.74, rel=0.01)


@pytest.mark.parametrize("rotation", [90, 180, -90])
@pytest.mark.parametrize("mirror", [False, True])
def test_rotated_videos_are_read_upright(tmp_path, rotation, mirror):
    frames = moving_square(3)
    path = write_timed(tmp_path / "clip.mp4", frames, [0, 40, 80], rotation, mirror)
    expected = np.rot90(frames, rotation // 90, axes=(1, 2))
    expected = expected[:, :, ::-1] if mirror else expected
    read, _ = read_video(path)
    assert read.shape == expected.shape and np.abs(read.astype(int) - expected).mean() < 3
    assert np.array_equal(read_frames(path, [0.04]), read[1:2])
    facts = probe_video(path)
    assert (facts.height, facts.width) == expected.shape[1:3]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("start", [0, 500])
def test_frames_by_time_equal_those_of_the_whole(tmp_path, suffix, start):
    frames = shades(24)
    path = write_timed(tmp_path / f"clip{suffix}", frames, [start + 40 * i for i in range(24)])
    whole, facts = read_video(path)[0], probe_video(path)
    for indices in ([0], [5, 6, 9], [11, 11, 23], [23], list(range(24))):
        times = [facts.start + index / facts.fps for index in indices]
        assert np.array_equal(read_frames(path, times), whole[indices])
        assert np.array_equal(read_frames(path.read_bytes(), times), whole[indices])
    with pytest.raises(ValueError, match="ends before"):
        read_frames(path, [facts.start + 2.0])
    with pytest.raises(ValueError, match="must not decrease"):
        read_frames(path, [0.2, 0.1])


def test_a_held_frame_is_repeated_where_times_are_uneven(tmp_path, caplog):
    path = write_timed(tmp_path / "clip.mkv", shades(7), [0, 40, 80, 120, 1120, 1160, 1200])
    read, fps = read_video(path)
    assert "at uneven times: 7 became 31, at 25 per second" in caplog.text
    each = np.stack([frame for _, frame in iterate_frames(path)])
    assert fps == pytest.approx(25) and np.array_equal(read, each[[0, 1, 2] + [3] * 25 + [4, 5, 6]])
    images, rate = read_images(path)
    assert len(images) == 31 and rate == fps
    even = write_timed(tmp_path / "even.mkv", shades(4), [0, 41, 79, 120])  # a quarter of a frame is no gap
    assert len(read_video(even)[0]) == 4


def test_only_what_is_made_of_a_frame_is_kept(tmp_path):
    path = write_video(tmp_path / "clip.mp4", moving_square(4), fps=8)
    assert np.array_equal(read_video(path, lambda frame: frame[::2, ::4])[0], read_video(path)[0][:, ::2, ::4])
    halved = read_images(path, lambda image: image.reduce(2))[0]
    assert [image.size for image in halved] == [(24, 16)] * 4
    whole = read_images(path)[0]
    assert np.array_equal(np.asarray(halved[1]), np.asarray(whole[1].reduce(2)))


@pytest.mark.parametrize("rotation", [None, 90])
def test_pixels_that_are_not_square_are_made_so(tmp_path, rotation):
    path = write_timed(tmp_path / "clip.mp4", moving_square(3), [0, 40, 80], rotation, aspect=2)
    height, width = (32, 96) if rotation is None else (96, 32)
    facts = probe_video(path)
    assert (facts.height, facts.width) == (height, width)
    assert read_video(path)[0].shape == (3, height, width, 3) == (3, *read_frames(path, [0.0])[0].shape)


def test_greys_of_16_bits_and_transparency_look_as_in_a_viewer(tmp_path):
    Image.fromarray(np.full((4, 4), 128 * 257, np.uint16)).save(tmp_path / "grey.png")
    clear = np.zeros((4, 4, 4), np.uint8)
    clear[:2, :, 3] = 255  # black above, nothing below
    Image.fromarray(clear).save(tmp_path / "clear.png")
    (grey,), (black_and_white,) = (read_images(tmp_path / name)[0] for name in ("grey.png", "clear.png"))
    assert np.unique(np.asarray(grey)) == [128] and grey.mode == "RGB"
    assert np.unique(np.asarray(black_and_white)[:2]) == [0] and np.unique(np.asarray(black_and_white)[2:]) == [255]
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="32-bit values"):
        read_images(tmp_path / "float.tif")


@pytest.mark.parametrize("name", ("moving.webp", "moving.png", "pages.tif"))
def test_a_picture_of_several_is_not_cut_to_its_first(tmp_path, name):
    first, *rest = [Image.fromarray(frame) for frame in moving_square(3)]
    first.save(tmp_path / name, save_all=True, append_images=rest)
    with pytest.raises(ValueError, match="holds 3 pictures; give it as .gif"):
        read_images(tmp_path / name)


def test_frames_by_time_are_the_nearest_of_a_variable_rate(tmp_path):
    path = write_timed(tmp_path / "clip.mkv", shades(7), [0, 40, 200, 220, 240, 700, 740])
    whole = np.stack([frame for _, frame in iterate_frames(path)])
    assert np.array_equal(read_frames(path, [0.0, 0.1, 0.13, 0.5, 0.74]), whole[[0, 1, 2, 5, 6]])


def test_gifs_cannot_be_sought_but_are_read(tmp_path):
    path = write_video(tmp_path / "odd.gif", shades(9, 31, 45), fps=10)
    facts, whole = probe_video(path), read_video(path)[0]
    assert (facts.num_frames, facts.height, facts.width) == (9, 31, 45)
    assert np.array_equal(read_frames(path, [facts.start + 0.7]), whole[7:8])


def test_a_folder_of_pictures_is_a_video_at_a_given_rate(tmp_path):
    frames = shades(12, 31, 45)
    folder = write_video(tmp_path / "frames", frames, fps=8)
    facts = probe_video(folder, fps=8)
    assert (facts.num_frames, facts.fps, facts.height, facts.width, facts.codec) == (12, 8, 31, 45, "png")
    assert np.array_equal(read_frames(folder, [2 / 8, 11 / 8], fps=8), frames[[2, 11]])
    assert np.array_equal(np.stack([frame for _, frame in iterate_frames(folder, fps=8)]), frames)
    with pytest.raises(ValueError, match="needs a positive number of frames per second"):
        probe_video(folder)
    Image.new("RGB", (5, 5)).save(folder / "frame_99999.png")
    with pytest.raises(ValueError, match="frame_99999.png"):
        probe_video(folder, fps=8)


def test_a_matroska_file_that_ends_early_is_truncated(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 32, 48, 3), dtype=np.uint8)
    whole = write_timed(tmp_path / "clip.mkv", noise, list(range(0, 1600, 40))).read_bytes()
    with pytest.raises(ValueError, match="truncated: it states 1.60 seconds"):
        probe_video(whole[: len(whole) // 2])


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), mode="w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="has no video stream"):
        probe_video(tmp_path / "sound.mp4")


def test_long_videos_are_read_from_the_key_frame_before_the_first_frame_wanted(tmp_path, monkeypatch):
    path = write_timed(tmp_path / "clip.mp4", shades(60), list(range(0, 2400, 40)))
    decoded = []
    monkeypatch.setattr(reading, "_nearest", lambda frames, *a, **k: real(counted(frames), *a, **k))
    real = _nearest

    def counted(frames):
        for frame in frames:
            decoded.append(frame)
            yield frame

    read_frames(path, [2.0, 2.04])
    assert len(decoded) <= 8  # two groups of four of the sixty


def test_only_the_frames_wanted_are_kept_of_a_long_video(tmp_path, monkeypatch):
    path = write_timed(tmp_path / "clip.mp4", shades(60), list(range(0, 2400, 40)))
    converted, real = [], opening.Film.show
    monkeypatch.setattr(opening.Film, "show", lambda film, frame: (converted.append(frame.time), real(film, frame))[1])
    assert read_frames(path, [0.0, 1.2, 2.36]).shape[0] == 3
    assert converted == [0.0, 1.2, 2.36]


def test_a_stream_without_time_stamps_is_a_value_error(tmp_path):
    with av.open(str(tmp_path / "bare.h264"), mode="w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for frame in moving_square():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="without time stamps; encode it again"):
        read_frames(tmp_path / "bare.h264", [0.0])
