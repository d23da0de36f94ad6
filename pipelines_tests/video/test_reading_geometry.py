"""The picture that a player shows: which stream, which part of it, at which size, and whole."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from diffusers_mardini.video.container_facts import ends_whole, video_crops
from diffusers_mardini.video_io import iterate_frames, probe_video, read_frames, read_images, read_video
from pipelines_tests.video.heif_files import heif_grid
from pipelines_tests.video.video_files import encode, numbered, plain


def interlaced(path, **tags):
    """Two fields in each frame, of one moment each; top field first."""
    fields = np.full((24, 48, 64, 3), 60, np.uint8)
    for index, field in enumerate(fields):
        field[:, index * 2 : index * 2 + 8] = 230
    frames = fields[0::2].copy()
    frames[:, 1::2] = fields[1::2, 1::2]
    # FFmpeg's flags for coding by fields, and for headers that Matroska needs.
    tags = {"flags": (1 << 18) | (1 << 29) | (1 << 22), "gop_size": 4, **tags}
    return encode(path, frames, options={"crf": "5", "x264-params": "tff=1"}, tags=tags)


def combs(frames: np.ndarray) -> float:
    """How much each line differs from the mean of those above and below."""
    frames = frames.astype(float)
    return float(np.abs(frames[:, 1:-1] - (frames[:, :-2] + frames[:, 2:]) / 2).mean())


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_interlaced_video_is_deinterlaced_with_a_warning(tmp_path, caplog, suffix):
    path = interlaced(tmp_path / f"clip{suffix}")
    with av.open(str(path)) as container:
        stored = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    read, fps = read_video(path)
    assert read.shape == stored.shape and fps == pytest.approx(10)
    assert combs(read) < 0.3 * combs(stored)
    assert caplog.text.count("is interlaced") == 1
    assert np.array_equal(np.stack([frame for _, frame in iterate_frames(path)]), read)
    for index in range(12):
        assert np.array_equal(read_frames(path, [index / 10]), read[index : index + 1])
    assert probe_video(path).num_frames == 12


def test_deinterlacing_keeps_colours_and_turns(tmp_path):
    path = interlaced(tmp_path / "clip.mkv", colorspace=9, color_primaries=1, color_trc=1)
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(read_video(path)[0][0, 30, 40].astype(int) - stored[30, 40]).max() <= 1


@pytest.mark.parametrize("default", [0, 1, None])
def test_of_several_streams_the_default_one_is_read_or_else_the_largest(tmp_path, default):
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for index, frames in enumerate((plain((9, 9, 9), 4, 16, 16), numbered(6))):
            stream = container.add_stream("libx264", rate=10)
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
            stream.disposition = int(index == default)
            streams.append((stream, frames))
        for stream, frames in streams:
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
            container.mux(stream.encode())
    expected = (4, 16, 16) if default == 0 else (6, 48, 64)
    facts = probe_video(path)
    assert read_video(path)[0].shape[:3] == (facts.num_frames, facts.height, facts.width) == expected
    assert read_frames(path, [0.1]).shape[1:3] == next(iterate_frames(path))[1].shape[:2] == expected[1:]


def crop_matroska(path, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0) -> None:
    """Asks for a crop, in the place of the padding that FFmpeg leaves behind what it says of the picture."""
    data = path.read_bytes()
    start = data.index(b"\xe0\x8a\xb0")
    padding = data.index(b"\xec\x01", start)
    crops = [(0x54CC, left), (0x54BB, top), (0x54DD, right), (0x54AA, bottom)]
    wanted = b"".join(struct.pack(">HBB", name, 0x81, value) for name, value in crops if value)
    room = 9 + int.from_bytes(data[padding + 2 : padding + 9], "big")
    new = b"\xe0" + bytes([0x8A + len(wanted)]) + data[start + 2 : start + 12] + wanted + data[start + 12 : padding]
    left_over = room - len(wanted)
    assert left_over >= 2
    path.write_bytes(
        data[:start] + new + b"\xec" + bytes([0x80 + left_over - 2]) + bytes(left_over - 2) + data[padding + room :]
    )


def clean_aperture(path, width: int, height: int, right: Fraction, down: Fraction) -> None:
    """Puts a box `clap` at the end of the sample entry of an MP4 whose index comes last."""
    data = bytearray(path.read_bytes())
    numbers = (width, 1, height, 1, right.numerator, right.denominator, down.numerator, down.denominator)
    box = struct.pack(">I4s8i", 40, b"clap", *numbers)
    entry = data.index(b"avc1", data.index(b"stsd")) - 4
    end = entry + struct.unpack(">I", data[entry : entry + 4])[0]
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        place = data.index(name, data.index(b"moov")) - 4
        data[place : place + 4] = struct.pack(">I", struct.unpack(">I", data[place : place + 4])[0] + 40)
    path.write_bytes(data[:end] + box + data[end:])


@pytest.mark.parametrize("kind", ["mkv", "mp4", "mov"])
def test_the_crop_that_a_container_asks_for_is_made(tmp_path, kind):
    path = encode(tmp_path / f"clip.{kind}", numbered(6))
    whole = read_video(path)[0]
    if kind == "mkv":
        crop_matroska(path, left=16, top=8)
    else:
        clean_aperture(path, 48, 40, Fraction(8), Fraction(4))
    assert np.array_equal(read_video(path)[0], whole[:, 8:, 16:])
    facts = probe_video(path)
    assert (facts.height, facts.width) == (40, 48)
    assert np.array_equal(read_frames(path.read_bytes(), [0.2]), whole[2:3, 8:, 16:])


def test_a_crop_of_which_nothing_is_left_is_ignored(tmp_path, caplog):
    path = encode(tmp_path / "clip.mp4", numbered(2))
    clean_aperture(path, 64, 0, Fraction(0), Fraction(0))
    assert read_video(path)[0].shape[1:3] == (48, 64) and "clip.mp4' asks for a crop" in caplog.text


@pytest.mark.parametrize("seed", range(4))
def test_damaged_containers_have_no_crop_and_raise_nothing(tmp_path, seed):
    generator = np.random.default_rng(seed)
    for name in ("clip.mkv", "clip.mp4", "clip.mov"):
        data = encode(tmp_path / name, numbered(2)).read_bytes()
        for _ in range(40):
            broken = bytearray(data[: generator.integers(0, len(data))])
            for place in generator.integers(0, max(1, len(broken)), 8):
                broken[place : place + 1] = bytes([generator.integers(256)])
            for crop in video_crops(io.BytesIO(broken)):
                assert len(crop) == 4
            ends_whole(io.BytesIO(broken))


@pytest.mark.parametrize("aspect", [(1, 1000), (2000, 1), (1, 17)])
def test_pixels_of_an_absurd_shape_are_taken_for_square(tmp_path, caplog, aspect):
    path = encode(tmp_path / "clip.mp4", numbered(3), tags={"sample_aspect_ratio": Fraction(16, 11)})
    assert read_video(path)[0].shape[1:3] == (48, 93)
    data = bytearray(path.read_bytes())
    place = data.index(b"pasp") + 4
    data[place : place + 8] = struct.pack(">II", *aspect)
    path.write_bytes(data)
    facts = probe_video(path)
    assert read_video(path)[0].shape[1:3] == (facts.height, facts.width) == (48, 64)
    assert f"clip.mp4' states pixels of {aspect[0]}:{aspect[1]}" in caplog.text


def test_a_video_that_changes_its_size_is_refused_however_it_is_read(tmp_path):
    small, large, path = (tmp_path / name for name in ("small.ts", "large.ts", "clip.ts"))
    path.write_bytes(encode(small, numbered(8)).read_bytes() + encode(large, numbered(8, 96, 128)).read_bytes())
    with pytest.raises(ValueError, match=r"clip.ts' changes its size from \(48, 64\) to \(96, 128\)") as first:
        probe_video(path)
    for read in (
        read_video,
        lambda p: read_video(p, lambda frame: frame[:8, :8]),
        read_images,
        lambda p: list(iterate_frames(p)),
    ):
        with pytest.raises(ValueError) as other:
            read(path)
        assert str(other.value) == str(first.value)


def test_pictures_of_tiles_are_read_whole_or_refused(tmp_path):
    picture = np.zeros((256, 512, 3), np.uint8)
    picture[:, :256], picture[:, 256:] = (200, 30, 30), (30, 30, 200)
    tiles = [picture[y : y + 128, x : x + 256] for y in (0, 128) for x in (0, 256)]
    for name in ("grid.avif", "grid.heif"):
        (tmp_path / name).write_bytes(heif_grid(tiles, 2, 2, "avif"))
        (read,), fps = read_images(tmp_path / name)
        assert fps is None and np.abs(np.asarray(read).astype(int) - picture).mean() < 3
    (tmp_path / "photo.heic").write_bytes(heif_grid(tiles, 2, 2, "heic"))
    with pytest.raises(ValueError, match="photo.heic' cannot be read as a picture .*save it as JPEG or PNG"):
        read_images(tmp_path / "photo.heic")
    with pytest.raises(ValueError, match="photo.heic' is one picture, made of 4 tiles"):
        probe_video(tmp_path / "photo.heic")
    Image.fromarray(picture).save(tmp_path / "single.heif", format="avif")
    assert read_images(tmp_path / "single.heif")[1] is None
