"""Check uploads before they are decoded, and refuse them in a sentence without the server's paths."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diffusers_mardini.app.jobs import Ended, Job
from diffusers_mardini.app.limits import Limits
from diffusers_mardini.app.uploads import LARGEST_SIDE, read_picture_upload, read_upload
from diffusers_mardini.video_io import write_video
from pipelines_tests.app.worlds import pictures


def png_that_claims(path, width, height):
    """Write a tiny PNG whose header claims a huge picture."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("side", [8000, 60000])  # the second is one that Pillow itself takes for a bomb
def test_a_picture_of_too_many_pixels_is_refused_by_its_header(tmp_path, side):
    with pytest.raises(ValueError, match="'bomb.png' has .*pixels; give at most 40 million"):
        read_upload(png_that_claims(tmp_path / "bomb.png", side, side), Limits())


@pytest.mark.parametrize("name", ["notes.png", "notes.mp4", "notes", "page.svg"])
def test_what_is_no_picture_and_no_video_is_refused_by_its_name_alone(tmp_path, name):
    (tmp_path / name).write_text("<svg>hello</svg>" * 50)
    with pytest.raises(ValueError, match=f"'{name}'") as error:
        read_upload(tmp_path / name, Limits())
    assert str(tmp_path) not in str(error.value)


def test_formats_that_start_programs_are_refused(tmp_path):
    (tmp_path / "drawing.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(ValueError, match="'drawing.png' is no picture"):
        read_upload(tmp_path / "drawing.png", Limits())


def test_a_file_of_too_many_bytes_is_not_opened(tmp_path):
    (tmp_path / "large.mp4").write_bytes(b"\0" * 2000)
    with pytest.raises(ValueError, match=r"'large.mp4' has .* MiB; give a file of at most 0.000954 MiB"):
        read_upload(tmp_path / "large.mp4", Limits(upload_bytes=1000))


def test_a_clip_of_too_many_frames_is_refused_by_what_it_states(tmp_path, monkeypatch):
    clip = write_video(tmp_path / "long.mp4", pictures(12), 10)
    monkeypatch.setattr("diffusers_mardini.app.uploads.read_images", pytest.fail)
    with pytest.raises(ValueError, match="'long.mp4' has 12 frames or more; give a clip of at most 10"):
        read_upload(clip, Limits(clip_frames=10))


def test_a_clip_that_states_nothing_is_refused_while_it_is_decoded(tmp_path, monkeypatch):
    clip = write_video(tmp_path / "long.gif", pictures(12), 10)
    monkeypatch.setattr("diffusers_mardini.app.uploads._check_video", lambda path, limits: True)
    with pytest.raises(ValueError, match="'long.gif' has 11 frames or more"):
        read_upload(clip, Limits(clip_frames=10))


def test_a_clip_of_too_large_frames_is_refused(tmp_path):
    clip = write_video(tmp_path / "wide.mp4", pictures(2, 64), 10)
    with pytest.raises(ValueError, match="'wide.mp4' has 64x64 pixels"):
        read_upload(clip, Limits(pixels=4000))


def test_decoding_ends_when_its_time_is_up(tmp_path):
    clip = write_video(tmp_path / "slow.mp4", pictures(5), 10)
    with pytest.raises(ValueError, match="'slow.mp4' takes too long to decode"):
        read_upload(clip, Limits(reading_seconds=-1))


def test_decoding_ends_when_the_visitor_leaves(tmp_path):
    frames, job = [], Job(10)
    write_video(tmp_path / "clip.mp4", np.zeros((12, 16, 16, 3), np.uint8), 10)

    def check():
        frames.append(len(frames))
        if len(frames) == 5:
            job.cancel()
        job.check()

    with pytest.raises(Ended, match="Cancelled"):
        read_upload(tmp_path / "clip.mp4", Limits(), check)
    assert len(frames) == 5


def test_clips_and_pictures_are_read_with_their_rate(tmp_path):
    clip = write_video(tmp_path / "clip.mp4", pictures(5), 10)
    frames, rate = read_upload(clip, Limits())
    assert len(frames) == 5 and rate == 10
    Image.new("RGB", (3 * LARGEST_SIDE, 30), "red").save(tmp_path / "wide.jpg")
    frames, rate = read_upload(tmp_path / "wide.jpg", Limits())
    assert rate is None and frames[0].size == (LARGEST_SIDE, 10)
    (tmp_path / "wide.jpg").rename(tmp_path / "without_suffix")
    assert read_picture_upload(tmp_path / "without_suffix", Limits()).size == (LARGEST_SIDE, 10)


def test_a_place_takes_no_clip(tmp_path):
    clip = write_video(tmp_path / "clip.gif", np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), np.uint8), 10)
    with pytest.raises(ValueError, match="'clip.gif' is a clip of 3 frames; a place takes one picture"):
        read_picture_upload(clip, Limits())
