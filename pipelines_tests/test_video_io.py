"""Clips survive files: exact pictures, near-exact mp4, and errors that say what to do."""

import numpy as np
import pytest
from PIL import Image

from diffusers_mardini import video_io
from diffusers_mardini.video_io import natural_key, read_images, read_video, write_video


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
        ("a.webm", moving_square(), 8, 18, "suffix '.webm'"),
        ("a.mp4", moving_square(), 0, 18, "fps must be positive"),
        ("a.mp4", moving_square(), float("nan"), 18, "fps must be positive"),
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


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", moving_square(), fps=8)
    before = path.read_bytes()

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(video_io.os, "replace", fails)
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
