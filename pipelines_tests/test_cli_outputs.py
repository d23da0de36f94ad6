"""Nothing is sampled in vain: what cannot be written is known before a model runs, and what was made is not lost."""

import os
import shutil
import tempfile
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from diffusers_mardini import cli
from diffusers_mardini.video_io import read_images, read_video, write_video
from pipelines_tests.test_cli import run
from pipelines_tests.tiny_pipeline import tiny_pipeline


QUICK = ("--num-frames", 2, "--steps", 1, "--device", "cpu", "--dtype", "float32")
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def here(checkpoint, tmp_path, monkeypatch) -> Path:
    """An empty folder with a picture `p.png` to work in."""
    Image.fromarray(FRAMES[0]).save(tmp_path / "p.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MARDINI_CHECKPOINT", str(checkpoint))
    return tmp_path


def animate(output, *options) -> tuple[int, str]:
    return run("animate", "p.png", "-o", output, *QUICK, *options)


@pytest.mark.parametrize(
    "output, options, message",
    [
        ("-", [], "stands for standard output"),
        ("out.mp4.", [], "ends with a dot"),
        ("y" * 252 + ".mp4", [], "too long"),
        ("p.png/out.mp4", [], "is a file"),
        ("out.gif", ["--fps", 0.001], "at most 655 seconds"),
        ("out.gif", ["--fps", 60], "at most 50 frames per second"),
        ("out.mp4", ["--fps", 1e-9], "an mp4 has between"),
        ("out.mp4", ["--fps", 1e9], "an mp4 has between"),
        ("out.mp4", ["--fps", "nan"], "fps must be positive"),
        ("out.mp4", ["--size", "0"], "the size is '0'"),
        ("out.mp4", ["--size", "16400x16"], "at most 16384 pixels"),
        ("out.gif", ["--size", "9" * 400], "the size is '999"),
        ("out.mp4", ["--seed", 2**64], "--seed is 18446744073709551616; give a number from -922337203685477"),
        ("out.mp4", ["--seed", -(2**63) - 1], "--seed is -9223372036854775809"),
        ("out.mp4", ["--num-frames", 0], "--num-frames is 0; give 2 to"),
        ("out.mp4", ["--num-frames", 10**30], "--num-frames is 1000"),
        ("out.mp4", ["--checkpoint", "/no/such/folder"], "there is no folder '/no/such/folder'"),
        ("out.mp4", ["--checkpoint", "./none"], "there is no folder './none'"),
        ("out.mp4", ["--checkpoint", "runs/a/pipeline"], "there is no folder 'runs/a/pipeline'"),
        ("out.mp4", ["--checkpoint", "~/none"], "there is no folder"),
        ("out.mp4", ["--checkpoint", "."], "holds no model_index.json"),
        ("out.mp4", ["--checkpoint", "p.png"], "is a file; give the folder"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_read(here, monkeypatch, output, options, message):
    for reading in ("load", "read_images"):
        monkeypatch.setattr(cli, reading, lambda *_: pytest.fail("something was read"))
    code, text = animate(output, *options)
    assert code == 1 and message in text and text.startswith("error: ") and len(text.splitlines()) == 1
    assert [path.name for path in here.iterdir()] == ["p.png"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["interpolate", "p.png", "p.png", "--num-frames", 2], "--num-frames is 2; give 3"),
        (["expand", "clip.mp4", "--num-frames", 1], "--num-frames is 1; give 2"),
        (["slow-motion", "clip.mp4", "--factor", 1], "--factor is 1; give 2"),
        (["slow-motion", "clip.mp4", "--factor", 2**30], "so that the number of frames is 2147483649"),
        (["extend", "clip.mp4", "--num-new-frames", 0], "--num-new-frames is 0; give 1"),
        (["extend", "clip.mp4", "--num-new-frames", 2**31], "--num-new-frames is 2147483648"),
    ],
)
def test_numbers_of_frames_that_mean_nothing_are_refused_before_a_model_is_loaded(
    here, monkeypatch, arguments, message
):
    write_video("clip.mp4", FRAMES, 8)
    monkeypatch.setattr(cli, "load", lambda *_: pytest.fail("a model was loaded"))
    code, text = run(*arguments, "-o", "out.mp4")
    assert code == 1 and message in text


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
@pytest.mark.parametrize("output", ("12:30.mp4", "y" * 250 + ".gif", "%d"))
def test_every_legal_name_is_written(here, output):
    code, text = animate(output)
    assert code == 0 and len(read_images(here / output)[0]) == 2, text


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_an_output_that_is_a_link_is_asked_for_and_kept(here):
    Path("link.mp4").symlink_to("elsewhere.mp4")
    assert animate("link.mp4")[0] == 0
    assert Path("link.mp4").is_symlink() and len(read_video("elsewhere.mp4")[0]) == 2
    code, text = animate("link.mp4")
    assert code == 1 and "--force" in text


@pytest.mark.parametrize("force", (False, True))
@pytest.mark.parametrize("name", ("o.mp4", "o.gif", "o"))
def test_what_appears_while_frames_are_sampled_is_left_alone_and_they_are_kept(here, monkeypatch, name, force):
    def last_moment(*arguments, **options):
        taken = Path(name)
        if force or not taken.suffix:  # with --force a file would be replaced, as asked for
            taken.mkdir()
            taken = taken / "mine.txt"
        taken.write_text("precious")
        return write_video(*arguments, **options)

    monkeypatch.setattr(cli, "write_video", last_moment)
    code, text = animate(name, *(["--force"] if force else []))
    kept = f"o-1{Path(name).suffix}"
    assert code == 1 and f"the finished frames were kept in '{kept}'" in text.splitlines()[-1]
    assert [file.read_text() for file in (Path(name), Path(name, "mine.txt")) if file.is_file()] == ["precious"]
    assert len(read_images(Path(kept))[0]) == 2
    assert sorted(path.name for path in here.iterdir()) == sorted([name, kept, "p.png"])


def test_frames_are_kept_where_the_folder_is_gone(here, monkeypatch, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    (here / "sub").mkdir()

    def last_moment(*arguments, **options):
        shutil.rmtree("sub")
        Path("sub").write_text("precious")
        return write_video(*arguments, **options)

    monkeypatch.setattr(cli, "write_video", last_moment)
    code, text = animate("sub/o.mp4")
    assert code == 1 and f"kept in '{elsewhere / 'o-1.mp4'}'" in text
    assert len(read_video(elsewhere / "o-1.mp4")[0]) == 2 and Path("sub").read_text() == "precious"


def write_with_sound(path: Path) -> Path:
    with av.open(str(path), mode="w") as container:
        stream, sound = container.add_stream("libx264", rate=8), container.add_stream("aac", rate=16000)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for frame in FRAMES:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16000
        container.mux(sound.encode(silence))
        for each in (stream, sound):
            container.mux(each.encode())
    return path


def test_a_clip_with_sound_is_told_that_the_result_has_none(here):
    options = ("--num-new-frames", 1, "--window", 3, "--overlap", 2, "--size", 32, "--steps", 1, "--device", "cpu")
    for clip, told in ((write_with_sound(here / "loud.mp4"), 1), (write_video(here / "mute.mp4", FRAMES, 8), 0)):
        code, text = run("extend", clip.name, "-o", f"{clip.stem}-longer.mp4", *options)
        assert code == 0, text
        assert text.splitlines().count(f"{clip.name} has sound; the result will have none") == told


def test_slow_motion_says_how_many_frames_that_makes(here):
    write_video("clip.mp4", FRAMES, 8)
    code, text = run("slow-motion", "clip.mp4", "-o", "out", "--factor", 2, "--window", 3, "--steps", 1, "--size", 32)
    assert code == 0 and "Slowing the 3 frames of clip.mp4 down 2 times, to 5, with" in text, text


def test_names_that_the_terminal_lacks_are_written_and_told(here):
    result = CliRunner(charset="ascii").invoke(cli.app, ["animate", "p.png", "-o", "käse.mp4", *map(str, QUICK)])
    assert result.exit_code == 0 and "to k\\xe4se.mp4" in result.output
    assert len(read_video("käse.mp4")[0]) == 2
