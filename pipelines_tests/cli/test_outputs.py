"""Nothing is sampled in vain: what cannot be written is known before a model runs, and what was made is not lost."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from diffusers_mardini import cli
from diffusers_mardini.cli import files, messages
from diffusers_mardini.video_io import read_images, read_video, write_video
from pipelines_tests.cli.commands import run


QUICK = ("--frames", 2, "--steps", 1, "--device", "cpu", "--dtype", "float32")
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def here(checkpoint, tmp_path, monkeypatch) -> Path:
    """An empty folder with a picture `p.png` to work in."""
    Image.fromarray(FRAMES[0]).save(tmp_path / "p.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MARDINI_CHECKPOINT", str(checkpoint))
    return tmp_path


def animate(output, *options) -> tuple[int, str]:
    return run("animate", "p.png", "-o", output, *QUICK, *options)


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
    assert code == 1 and "--overwrite" in text


@pytest.mark.parametrize("force", (False, True))
@pytest.mark.parametrize("name", ("o.mp4", "o.gif", "o"))
def test_what_appears_while_frames_are_sampled_is_left_alone_and_they_are_kept(here, monkeypatch, name, force):
    def last_moment(*arguments, **options):
        taken = Path(name)
        if force or not taken.suffix:  # with --overwrite a file would be replaced, as asked for
            taken.mkdir()
            taken = taken / "mine.txt"
        taken.write_text("precious")
        return write_video(*arguments, **options)

    monkeypatch.setattr(files, "write_video", last_moment)
    code, text = animate(name, *(["--overwrite"] if force else []))
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

    monkeypatch.setattr(files, "write_video", last_moment)
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


@pytest.mark.skipif(os.name == "nt", reason="there is no such shell")
@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("animate p.png -o - --format gif | true", 1, "whoever reads standard output closed it"),
        ("animate - -o out.gif <&-", 2, "standard input is closed"),
        ("animate p.png -o - --format gif >&-", 2, "standard output is closed"),
    ],
)
def test_closed_standard_streams_are_one_sentence(here, words, code, told):
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    command, pipe, reader = words.partition("|")
    line = f"{sys.executable} -m diffusers_mardini.cli {command} {' '.join(map(str, QUICK))} {pipe}{reader}"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], env=environment, capture_output=True, text=True, check=False
    )
    errors = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert done.returncode == code and len(errors) == 1 and told in errors[0], done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_a_clip_with_sound_is_told_that_the_result_has_none(here):
    options = ("--new-frames", 1, "--window", 3, "--overlap", 2, "--size", 32, "--steps", 1, "--device", "cpu")
    for clip, told in ((write_with_sound(here / "loud.mp4"), 1), (write_video(here / "mute.mp4", FRAMES, 8), 0)):
        code, text = run("extend", clip.name, "-o", f"{clip.stem}-longer.gif", *options)
        assert code == 0, text
        assert text.splitlines().count(f"{clip.name} has sound; the result will have none") == told


def test_slow_motion_says_what_it_will_do_and_how_far_it_is(here, monkeypatch):
    monkeypatch.setattr(messages, "is_terminal", lambda: True)
    write_video("clip.mp4", FRAMES, 8)
    code, text = run("slow-motion", "clip.mp4", "-o", "out", "--factor", 2, "--window", 3, "--steps", 1, "--size", 32)
    assert code == 0 and "Slowing clip.mp4 down 2 times, with" in text, text


def test_names_that_the_terminal_lacks_are_written_and_told(here):
    result = CliRunner(charset="ascii").invoke(cli.app, ["animate", "p.png", "-o", "käse.mp4", *map(str, QUICK)])
    assert result.exit_code == 0 and "to k\\xe4se.mp4" in result.output
    assert len(read_video("käse.mp4")[0]) == 2
