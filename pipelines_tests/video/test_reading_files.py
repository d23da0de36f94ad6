"""Any name, any suffix and any damage: a file is read, or refused by a sentence with its name."""

import gc
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from diffusers_mardini.video.errors import UnreadableFileError
from diffusers_mardini.video.picture_files import picture_files
from diffusers_mardini.video.reading import has_sound
from diffusers_mardini.video_io import (
    PICTURE_SUFFIXES,
    VIDEO_SUFFIXES,
    iterate_frames,
    natural_key,
    probe_video,
    read_frames,
    read_images,
    read_video,
)
from pipelines_tests.video.video_files import encode, numbered, numbers


ODD_NAMES = [
    "take:1.mp4", "12:30", "concat:a.mp4", "-i.mp4", "a%d.mp4", "a%03d.gif", "a*[b]?.mp4", "pipe:", "data:x.mkv",
    "subfile,,start,0,end,0,,:a.mp4", " space .mp4", "film", "film.unknown",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_of_a_file_is_a_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    encode("plain.mp4", numbered(4))
    shutil.copy("plain.mp4", name)
    assert numbers(read_video(name)[0]) == numbers(read_images(name)[0]) == [0, 1, 2, 3]
    assert probe_video(name).num_frames == len(list(iterate_frames(Path(name)))) == 4
    assert numbers(read_frames(name, [0.2])) == [2]


def test_a_list_of_other_files_is_no_video(tmp_path):
    encode(tmp_path / "secret.mp4", numbered(2))
    (tmp_path / "a.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    (tmp_path / "b.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n")
    for name in ("a.mp4", "b.m3u8"):
        with pytest.raises(ValueError, match=f"{name}' cannot be decoded"):
            read_video(tmp_path / name)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".mov"])
def test_a_title_in_another_encoding_is_no_damage(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Caf__"
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for frame in numbered(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    data = path.read_bytes()
    assert b"Caf__" in data
    path.write_bytes(data.replace(b"Caf__", b"Caf\xe9\xff"))
    assert probe_video(path).num_frames == len(read_video(path)[0]) == 3


@pytest.mark.parametrize(
    "name, kind",
    [
        ("a.jfif", "jpeg"), ("a.jpe", "jpeg"), ("picture", "jpeg"), ("a.JPG_large", "jpeg"), ("a.ppm", "ppm"),
        ("a.tga", "tga"), ("a.jp2", "jpeg2000"), ("a.avif", "avif"), ("a.mp4", "png"), ("a.gif", "png"),
        ("a.mkv", "webp"), ("a.heic", "jpeg"),
    ],
)  # fmt: skip
def test_a_picture_is_one_whatever_its_suffix(tmp_path, name, kind):
    Image.fromarray(numbered(1)[0]).save(tmp_path / name, format=kind)
    (image,), fps = read_images(tmp_path / name)
    assert image.mode == "RGB" and image.size == (64, 48) and fps is None
    with pytest.raises(ValueError, match=f"{name}' (is one picture|cannot be decoded)|1 frame") as refused:
        if len(read_video(tmp_path / name)[0]) == 1:  # FFmpeg takes AVIF for a video
            raise ValueError("1 frame")
    assert refused


def test_a_video_is_one_whatever_its_suffix(tmp_path):
    for suffix in (".ts", ".mpg", ".flv", ".wmv", ".3gp", ".ogv", ".m2ts", ".webm"):
        codec = {".mpg": "mpeg2video", ".flv": "flv", ".wmv": "wmv2", ".ogv": "libtheora", ".webm": "libvpx"}
        try:
            av.Codec(codec.get(suffix, "libx264"), "w")
        except ValueError:
            continue
        path = encode(tmp_path / f"a{suffix}", numbered(6), codec.get(suffix, "libx264"), rate=25, options={})
        assert suffix in VIDEO_SUFFIXES and numbers(read_images(path)[0]) == list(range(6)), suffix
    assert not set(VIDEO_SUFFIXES) & set(PICTURE_SUFFIXES)


@pytest.mark.parametrize("name", ["e.png", "e.webp", "e.jpg", "e.tif"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0no TIFF header", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_damaged_exif_turns_nothing(tmp_path, name, exif):
    Image.fromarray(numbered(1)[0]).save(tmp_path / name)
    if name != "e.tif":
        Image.fromarray(numbered(1)[0]).save(tmp_path / name, exif=exif)
    assert read_images(tmp_path / name)[0][0].size == (64, 48)


@pytest.mark.filterwarnings("ignore")  # of Pillow
def test_every_damaged_picture_is_refused_by_a_sentence_with_its_name(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    picture = Image.fromarray(generator.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    for suffix in (".png", ".jpg", ".webp", ".tif", ".bmp", ".jp2", ".avif", ".ppm", ".tga"):
        path = tmp_path / f"a{suffix}"
        picture.save(path)
        whole = path.read_bytes()
        for trial in range(12):
            data = bytearray(whole[: len(whole) // 2] if trial == 0 else whole)
            for place in generator.integers(0, min(len(data), 200 if trial % 2 else 10**9), 6):
                data[place] = generator.integers(256)
            path.write_bytes(data)
            try:
                read_images(path)
            except UnreadableFileError as error:
                assert str(error).startswith(f"'{path}' cannot be")  # noqa: PT017
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    picture.save(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match="bomb.png' cannot be read as a picture .*exceeds limit"):
        read_images(tmp_path / "bomb.png")


def test_the_callers_own_errors_are_not_laid_upon_the_file(tmp_path):
    path = encode(tmp_path / "clip.mp4", numbered(2))

    def wrong(_):
        raise TypeError("mine")

    for read in (read_video, read_images):
        with pytest.raises(TypeError, match="^mine$"):
            read(path, wrong)


def test_natural_order_is_an_order_of_all_names():
    names = [
        "1²3.mp4",
        "2.mp4",
        "a10",
        "A2",
        "a2",
        "a02",
        "a2b",
        "a",
        "x٣",
        "x3",
        "x",
        "9" * 5000,
        "1" + "0" * 4999,
        "É1",
        "e1",
    ]
    keys = [natural_key(name) for name in names]
    assert len(set(map(repr, keys))) == len(names)
    ordered = sorted(names, key=natural_key)
    assert ordered == sorted(names, key=natural_key)
    places = [ordered.index(name) for name in ("a", "a2", "a2b", "a10")]
    assert places == sorted(places) and ordered.index("1²3.mp4") < ordered.index("2.mp4")


def test_hidden_files_of_a_folder_of_pictures_are_passed_over(tmp_path):
    for index, frame in enumerate(numbered(3)):
        Image.fromarray(frame).save(tmp_path / f"{index}.png")
    (tmp_path / "._0.png").write_bytes(bytes(99))
    (tmp_path / ".hidden.jpg").write_bytes(b"x")
    assert numbers(read_images(tmp_path)[0]) == [0, 1, 2]
    assert probe_video(tmp_path, fps=8).num_frames == len(picture_files(tmp_path)) == 3


def cut(path: Path, share: float = 0.6) -> Path:
    data = path.read_bytes()
    end = int(len(data) * share)
    path.write_bytes(data[: end - end % 188 + 99])  # not at the end of a packet of a transport stream
    return path


@pytest.mark.parametrize("suffix, codec", [(".mkv", "libx264"), (".webm", "libvpx"), (".flv", "flv")])
def test_a_cut_off_video_is_read_with_a_warning_that_says_what_is_missing(tmp_path, caplog, suffix, codec):
    path = cut(encode(tmp_path / f"clip{suffix}", numbered(30), codec))
    read, _ = read_video(path)
    assert 5 < len(read) < 30
    assert f"{len(read)} of 30 frames can be read" in caplog.text and "states 3.00 seconds" in caplog.text
    with pytest.raises(ValueError, match="is truncated: it states 3.00 seconds"):
        probe_video(path)


def test_a_cut_off_file_that_states_no_length_is_said_to_end_in_its_midst(tmp_path, caplog):
    stream, gif = encode(tmp_path / "clip.ts", numbered(30)), tmp_path / "clip.gif"
    first, *rest = [Image.fromarray(frame) for frame in numbered(9)]
    first.save(gif, save_all=True, append_images=rest, duration=100)
    assert (len(read_video(stream)[0]), len(read_video(gif)[0])) == (30, 9) and not caplog.text
    gif.write_bytes(gif.read_bytes()[: gif.read_bytes().rindex(b"!\xf9")])  # before its last picture
    assert len(read_video(cut(stream))[0]) < 30 and len(read_video(gif)[0]) == 8
    for path in (stream, gif):
        assert f"{path.name}' ends in the midst of its data" in caplog.text


def test_sound_is_known_of(tmp_path):
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        film, sound = container.add_stream("libx264", rate=10), container.add_stream("aac", rate=16000)
        film.height, film.width, film.pix_fmt = 48, 64, "yuv420p"
        for index, frame in enumerate(numbered(3)):
            container.mux(film.encode(av.VideoFrame.from_ndarray(frame)))
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.pts = 16000, 1024 * index
            container.mux(sound.encode(samples))
        container.mux([*film.encode(), *sound.encode()])
    assert has_sound(tmp_path / "clip.mp4")
    silent = encode(tmp_path / "silent.mp4", numbered(2))
    Image.fromarray(numbered(1)[0]).save(tmp_path / "a.png")
    for path in (silent, tmp_path / "a.png", tmp_path, tmp_path / "none.mp4"):
        assert not has_sound(path)


def test_a_video_that_was_read_leaves_nothing_for_the_garbage_collector(tmp_path):
    """Threads of a decoder would wait there, for which a forked process would wait for ever."""
    path = encode(tmp_path / "clip.mp4", numbered(5))
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        assert len(list(iterate_frames(path))) == len(read_video(path)[0]) == 5
        gc.collect()
        left = {type(each).__name__ for each in gc.garbage}
        assert not left & {"Film", "Screen", "InputContainer", "VideoCodecContext", "VideoStream"}
        assert sum(isinstance(each, av.VideoFrame) for each in gc.garbage) <= 2  # the first of each reading
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
