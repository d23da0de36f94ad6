"""Result files: colours, rates, frames of any accepted kind, and what is refused beforehand."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_mardini.video.writing import keep_frames
from diffusers_mardini.video_io import check_writable, read_images, read_video, write_video


GREEN, RED = (0, 200, 0), (200, 30, 60)


def noise(num_frames: int = 3, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("height, width", [(64, 64), (720, 1280), (31, 45)])
def test_the_tags_of_an_mp4_agree_with_its_colours_at_every_size(tmp_path, height, width):
    frames = np.zeros((2, height, width, 3), np.uint8)
    frames[:, :, : width // 2], frames[:, :, width // 2 :] = GREEN, RED
    path = write_video(tmp_path / "clip.mp4", frames, fps=8)
    read = read_video(path)[0].astype(int)
    for column, colour in ((4, GREEN), (-6, RED)):
        assert np.abs(read[:, 8, column] - colour).max() <= 3
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        context = container.streams.video[0].codec_context
        assert (frame.colorspace, context.color_primaries, context.color_trc, frame.color_range) == (1, 1, 1, 1)
        luma = frame.to_ndarray()[8, 4]
    # BT.709 in the limited range, whatever the reader makes of it; BT.601 would have 117.
    assert luma == pytest.approx(16 + 219 * 0.7152 * 200 / 255, abs=1)


@pytest.mark.parametrize("fps", (1e-6, 1 / 86400, 1 / 3600, 1 / 700, 0.3, 23.976, 700, 2000, 99999, 1_000_000))
def test_an_mp4_has_every_frame_at_its_time_however_slow_or_fast(tmp_path, fps):
    path = tmp_path / "clip.mp4"
    check_writable(path, fps)
    frames, read = read_video(write_video(path, noise(), fps))
    assert len(frames) == 3 and read == pytest.approx(fps, rel=1e-5)


@pytest.mark.parametrize("suffix", (".mov", ".mkv", ".webm", ".apng", ".gif"))
@pytest.mark.parametrize("fps", (1, 8, 12.5, 29.97, 50))
def test_every_film_and_moving_picture_has_its_frames_at_their_times(tmp_path, suffix, fps):
    colours = np.array([GREEN, RED, (20, 40, 90), (250, 240, 230)], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (4, 32, 48, 3))
    path = tmp_path / f"clip{suffix}"
    check_writable(path, fps, (48, 32))
    read, rate = read_video(write_video(path, frames, fps))
    # A gif counts hundredths, Matroska and moving PNG thousandths of a second.
    assert read.shape == frames.shape and rate == pytest.approx(fps, rel=0.04)
    assert np.abs(read.astype(int) - frames).max() <= 8


def test_a_webp_holds_equal_frames_and_loops(tmp_path):
    colours = np.array([GREEN, RED, RED, (20, 40, 90)], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (4, 32, 48, 3))
    path = write_video(tmp_path / "clip.webp", frames, 8)
    with Image.open(path) as image:
        shown, total = [], 0
        for index in range(image.n_frames):
            image.seek(index)
            image.load()
            shown.append(np.asarray(image.convert("RGB")).astype(int))
            total += image.info["duration"]
        assert image.info["loop"] == 0 and total == 500 and 3 <= len(shown) <= 4
        assert np.abs(shown[0] - frames[0]).max() <= 8 and np.abs(shown[-1] - frames[-1]).max() <= 8


@pytest.mark.parametrize(
    "name, fps, message",
    [
        ("a.gif", 1 / 3600, "a gif holds a picture for at most 655 seconds"),
        ("a.gif", 50.1, "a gif shows at most 50"),
        ("a.mp4", 1e-9, "an mp4 has between"),
        ("a.mp4", 2e6, "an mp4 has between"),
        ("a.webm", 501, "a webm has between 0.000001 and 500"),
        ("a.mkv", 501, "an mkv has between"),
        ("a.webp", 501, "a webp shows at most 500"),
        ("a.apng", 0.01, "an apng holds a picture for at most 65 seconds"),
        ("a.mp4", 1e300, "an mp4 has between"),
        ("a.mp4", 10**400, "fps must be positive, got inf"),
        ("a", float("nan"), "fps must be positive"),
        ("a.mp4", None, "fps must be a number of frames per second, got None"),
        ("a.gif", "8", "fps must be a number of frames per second, got '8'"),
        ("a", True, "fps must be a number of frames per second, got True"),
    ],
)
def test_rates_that_a_format_does_not_have_are_refused_before_frames_are_made(tmp_path, name, fps, message):
    with pytest.raises(ValueError, match=message):
        check_writable(tmp_path / name, fps)
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / name, noise(), fps)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fps", (np.float32(8), np.int64(8), Fraction(8)))
def test_rates_may_be_numbers_of_any_library(tmp_path, fps):
    assert read_video(write_video(tmp_path / "clip.mp4", noise(), fps))[1] == 8


def test_a_slow_gif_of_equal_frames_is_an_error_without_leftovers(tmp_path):
    check_writable(tmp_path / "clip.gif", 1 / 600)
    with pytest.raises(ValueError, match="equal frames are held for longer; write .mp4"):
        write_video(tmp_path / "clip.gif", np.zeros((3, 8, 8, 3), np.uint8), 1 / 600)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "size, name", [((16386, 16), "a.mp4"), ((16, 20000), "a.mp4"), ((65536, 1), "a.gif"), ((10**6, 10**6), "a")]
)
def test_sizes_that_a_format_does_not_have_are_refused_before_frames_are_made(tmp_path, size, name):
    with pytest.raises(ValueError, match="sides have at most"):
        check_writable(tmp_path / name, 8, size)


def test_frames_may_be_anything_that_gives_pictures(tmp_path):
    frames = noise()
    pictures = [Image.fromarray(frame) for frame in frames]
    kinds = {
        "array": frames,
        "list": list(frames),
        "generator": (frame for frame in frames),
        "tensor": torch.from_numpy(frames),
        "tensors": [torch.from_numpy(frame) for frame in frames],
        "pictures": iter(pictures),
        "tuple": tuple(pictures),
    }
    for name, kind in kinds.items():
        assert np.array_equal(np.stack(read_images(write_video(tmp_path / name, kind, 8))[0]), frames), name


def test_what_is_transparent_lies_on_white_in_results_too(tmp_path):
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    (frame,) = read_images(write_video(tmp_path / "out", [clear], 8))[0]
    assert frame.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    "frames, message",
    [
        (None, "got NoneType"),
        ("clip.mp4", "got str"),
        (Image.new("RGB", (8, 8)), "got Image"),
        (iter([]), "no frames"),
        (np.zeros((0, 8, 8, 3), np.uint8), "no frames"),
        ([Image.new("RGB", (8, 8)), noise()[0]], "of one kind.*Image, ndarray"),
        ([[Image.new("RGB", (8, 8))]], "of one kind.*list"),
        ([noise()[0], None], "of one kind.*NoneType"),
        ([noise()[0], noise(1, 8, 8)[0]], "same size"),
        (np.zeros((2, 0, 8, 3), np.uint8), "8x0 have no pixels"),
        ([Image.new("RGB", (0, 5))], "0x5 have no pixels"),
        (np.zeros((2, 8, 8), np.uint8), "got uint8 shaped \\(2, 8, 8\\)"),
        (np.zeros((2, 8, 8, 4), np.uint8), "got uint8 shaped \\(2, 8, 8, 4\\)"),
        (np.zeros((1, 2, 8, 8, 3), np.uint8), "frames must be"),
        (np.zeros((2, 8, 8, 3)), "got float64"),
        (np.zeros((2, 8, 8, 3), bool), "got bool"),
        (np.uint8(3), "frames must be"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.bfloat16), "got torch.bfloat16"),
        ([torch.zeros(8, 8, 3)], "got torch.float32"),
    ],
)
def test_what_is_no_frames_is_refused_with_what_is_accepted(tmp_path, frames, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "out.mp4", frames, 8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("crf", (None, "18", float("nan"), -1, 51.5))
def test_a_quality_that_is_none_is_refused(tmp_path, crf):
    with pytest.raises(ValueError, match="crf must be between"):
        write_video(tmp_path / "out.mp4", noise(), 8, crf)


@pytest.mark.parametrize("name", ("out.mp4", "out.gif", "out"))
def test_a_disk_that_is_full_is_named_and_leaves_what_was_there(tmp_path, name):
    resource = pytest.importorskip("resource")
    path = write_video(tmp_path / name, noise(2), fps=8)
    before = [file.read_bytes() for file in sorted(path.rglob("*") if path.is_dir() else [path])]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, limits[1]))
    try:
        with pytest.raises(OSError, match=f"cannot write '.*{name}': File too large"):
            write_video(path, noise(20, 64, 64), fps=8)
        with pytest.raises(ValueError, match="cannot write"):
            check_writable(tmp_path / "other.mp4", fps=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [path]
    assert [file.read_bytes() for file in sorted(path.rglob("*") if path.is_dir() else [path])] == before


def test_frames_without_a_place_are_kept_beside_it_under_a_free_name(tmp_path):
    frames = noise()
    for name in ("clip.mp4", "clip-1.mp4", "y" * 250 + ".gif"):
        (tmp_path / name).write_bytes(b"precious")
    assert keep_frames(tmp_path / "clip.mp4", frames, 8) == tmp_path / "clip-2.mp4"
    assert len(read_video(tmp_path / "clip-2.mp4")[0]) == 3
    kept = keep_frames(tmp_path / ("y" * 250 + ".gif"), frames, 8)
    assert kept.name == "y" * 200 + "-1.gif" and len(read_video(kept)[0]) == 3
    equal = np.zeros((3, 8, 8, 3), np.uint8)  # what no gif can hold for so long is kept as pictures
    assert len(list(keep_frames(tmp_path / "slow.gif", equal, 1 / 600).iterdir())) == 3
    assert (tmp_path / "clip.mp4").read_bytes() == b"precious"
