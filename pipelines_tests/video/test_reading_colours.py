"""Numbers of a frame become the colours that players show."""

import av
import numpy as np
import pytest

from diffusers_mardini.video_io import iterate_frames, probe_video, read_frames, read_images, read_video
from pipelines_tests.video.video_files import encode, numbered, plain


def colours_of(path) -> np.ndarray:
    return read_video(path)[0][0].astype(int)


def hdr(path, signal: float, transfer: int, pix_fmt: str = "yuv420p10le", colour=(1, 1, 1)):
    """Lossless HEVC in BT.2020 of one signal from 0 to 1 in all, or as many, channels."""
    frames = plain([round(65535 * signal * part) for part in colour], dtype=np.uint16)
    tags = {"color_primaries": 9, "color_trc": transfer, "colorspace": 9, "color_range": 1}
    # One thread and no B-frames: with more, two frames now and then end in an error of the muxer.
    lossless = {"x265-params": "log-level=error:lossless=1:bframes=0:frame-threads=1:pools=none"}
    return encode(path, frames, "libx265", "rgb48le", pix_fmt, options=lossless, tags=tags, matrix=9)


@pytest.mark.parametrize("size, matrix", [((720, 1280), 1), ((1280, 720), 1), ((480, 640), 5)])
def test_a_video_without_colour_tags_is_read_with_the_matrix_of_its_size(tmp_path, size, matrix):
    frames = np.zeros((1, *size, 3), np.uint8)
    frames[..., 1] = 200
    colours = colours_of(encode(tmp_path / "clip.mp4", frames, matrix=matrix, options={"preset": "ultrafast"}))
    assert np.abs(colours[size[0] // 2, size[1] // 2] - (0, 200, 0)).max() <= 2


@pytest.mark.parametrize("tagged, matrix", [(1, 1), (6, 5), (9, 9), (7, 7)])
def test_a_tagged_matrix_is_the_one_that_is_used_whatever_the_size(tmp_path, tagged, matrix):
    frames = plain((30, 200, 60))
    path = encode(tmp_path / "clip.mkv", frames, pix_fmt="yuv444p", tags={"colorspace": tagged}, matrix=matrix)
    assert np.abs(colours_of(path) - frames[0]).max() <= 2


@pytest.mark.parametrize("pix_fmt", ["yuvj420p", "yuv420p"])
def test_full_range_is_not_stretched(tmp_path, pix_fmt):
    frames = plain((250, 250, 250))
    frames[:, :, 32:] = 6
    path = encode(tmp_path / "clip.mp4", frames, pix_fmt=pix_fmt, tags={"color_range": 2}, full_range=True)
    assert np.abs(colours_of(path)[20, [5, 60]] - [[250] * 3, [6] * 3]).max() <= 2


@pytest.mark.parametrize("matrix, name", [(8, "YCgCo"), (14, "ICtCp")])
def test_colours_that_cannot_be_read_are_said_with_the_name_of_the_file(tmp_path, matrix, name):
    path = encode(tmp_path / "clip.mkv", plain((9, 9, 9)), pix_fmt="yuv444p", tags={"colorspace": matrix})
    with pytest.raises(ValueError, match=f"clip.mkv' cannot be decoded .*{name}"):
        read_video(path)


@pytest.mark.parametrize("transfer, white", [(16, 0.5806), (18, 0.75)])
@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv444p12le"])
def test_reference_white_of_hdr_is_white_and_a_warning_says_so_once(tmp_path, caplog, transfer, white, pix_fmt):
    path = hdr(tmp_path / "clip.mp4", white, transfer, pix_fmt)
    assert colours_of(path).min() >= 252
    assert caplog.text.count("is HDR") == 1 and "clip.mp4' is HDR" in caplog.text
    assert colours_of(hdr(tmp_path / "black.mp4", 0, transfer)).max() == 0


def test_greys_and_colours_of_hdr_are_those_of_its_light(tmp_path):
    # PQ of 50 nits is 0.4403; light of 50/203 is 137 of 255 in sRGB.
    assert np.abs(colours_of(hdr(tmp_path / "grey.mp4", 0.4403, 16)) - 136).max() <= 2
    # Half the signal of HLG is a twelfth of its light, of which the screen shows (1/12)**1.2 of 1000 nits.
    light = 1000 / 203 * (1 / 12) ** 1.2
    expected = 255 * (1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(colours_of(hdr(tmp_path / "hlg.mp4", 0.5, 18)) - expected).max() <= 2
    # Green of BT.2020 lies outside of sRGB, whose purest green stands for it.
    red, green, blue = colours_of(hdr(tmp_path / "green.mp4", 0.5806, 16, colour=(0, 1, 0)))[20, 20]
    assert green == 255 and red < 10 and blue < 10


def test_wide_primaries_without_hdr_are_brought_to_those_of_srgb(tmp_path):
    tags = {"color_primaries": 9, "color_trc": 1, "colorspace": 9, "color_range": 1}
    # sRGB (200, 60, 40) by the primaries of BT.2020.
    path = encode(tmp_path / "bt2020.mp4", plain((165, 81, 50)), pix_fmt="yuv444p", tags=tags, matrix=9)
    assert np.abs(colours_of(path) - (200, 60, 40)).max() <= 3
    tags |= {"color_primaries": 12, "colorspace": 1}
    path = encode(tmp_path / "p3.mp4", plain((200, 60, 40)), pix_fmt="yuv444p", tags=tags, matrix=1)
    assert np.abs(colours_of(path) - (217, 42, 23)).max() <= 3
    grey = encode(tmp_path / "grey.mp4", plain((99, 99, 99)), pix_fmt="yuv444p", tags=tags, matrix=1)
    assert np.abs(colours_of(grey) - 99).max() <= 2


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv422p10le", "yuv420p12le", "gray10le", "gray16le", "rgb48le"])
def test_more_than_8_bits_end_at_white_and_at_the_nearest_grey(tmp_path, pix_fmt):
    codec = "libx264" if pix_fmt.endswith("p10le") else "ffv1"
    ramp = np.zeros((1, 16, 64, 3), np.uint16)
    ramp[:] = np.linspace(0, 65535, 64).astype(np.uint16)[:, None]
    colours = colours_of(encode(tmp_path / "clip.mkv", ramp, codec, "rgb48le", pix_fmt, options={}))
    assert colours[8, -1].tolist() == [255] * 3 and colours[8, 0].tolist() == [0] * 3
    assert codec == "libx264" or np.abs(colours[8, :, 1] - np.arange(64) * 255 / 63).max() <= 1.5


@pytest.mark.parametrize(
    "name, codec, pix_fmt",
    [
        ("vp9.webm", "libvpx-vp9", "yuva420p"),
        ("vp8.webm", "libvpx", "yuva420p"),
        ("prores.mov", "prores_ks", "yuva444p10le"),
        ("animation.mov", "qtrle", "argb"),
        ("raw.avi", "rawvideo", "bgra"),
        ("clip.apng", "apng", "rgba"),
    ],
)
def test_a_transparent_video_lies_on_white_also_within_soft_edges(tmp_path, name, codec, pix_fmt):
    frames = np.zeros((4, 48, 64, 4), np.uint8)
    frames[:, 8:24, :, :] = (255, 0, 0, 255)
    frames[:, 32:, :, :] = (255, 0, 0, 128)
    options = {"auto-alt-ref": "0"} if "libvpx" in codec else {}
    path = encode(tmp_path / name, frames, codec, "rgba", pix_fmt, options=options)
    colours = colours_of(path)
    assert np.abs(colours[[2, 16, 42], 30] - [[255, 255, 255], [255, 0, 0], [255, 127, 127]]).max() <= 4
    whole = read_video(path)[0]
    assert np.array_equal(np.stack([frame for _, frame in iterate_frames(path)]), whole)
    assert np.array_equal(read_frames(path, [probe_video(path).start]), whole[:1])


def test_padding_of_an_uncompressed_avi_is_no_transparency(tmp_path):
    path = encode(tmp_path / "clip.avi", plain((77, 77, 77, 0)), "rawvideo", "rgba", "bgra")
    assert np.unique(colours_of(path)) == [77]


def test_a_video_of_8_bits_is_decoded_as_ever(tmp_path):
    path = encode(tmp_path / "clip.mp4", numbered(3))
    with av.open(str(path)) as container:
        plainly = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.array_equal(read_video(path)[0], plainly)
    assert np.array_equal(read_images(path)[0], plainly)
