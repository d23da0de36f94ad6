"""A look reads every clip once, keeps what it read, goes on after a kill, and leaves out nothing in silence."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines_tests.training.own_clips.footage import shot, write
from training.data.clip_lists import ClipRow, write_clip_list
from training.data.clips import find_clips
from training.look import main
from training.own_clips import look as look_module
from training.own_clips.hold_out import hold_out, write_split
from training.own_clips.look import look
from training.stopping import Stopped


def quiet(_: str) -> None:
    pass


def look_at(tmp_path, folder="clips", **options):
    return look(tmp_path / folder, tmp_path / "manifests", workers=1, say=quiet, **options)


def records(tmp_path) -> list[dict]:
    (path,) = (tmp_path / "manifests").glob("*.look.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_left_out_is_said_with_its_reason(tmp_path):
    clips = tmp_path / "clips"
    write(clips / "a.mp4", np.concatenate([shot(1, 40), shot(2, 5), shot(3, 30)]))
    (clips / "b.mp4").write_bytes((clips / "a.mp4").read_bytes())
    write(clips / "frozen.mp4", shot(4, 50, 0.0))
    write(clips / "short.mp4", shot(5, 6))
    write(clips / "one colour.mp4", np.full((20, 48, 64, 3), 90, dtype=np.uint8))
    (clips / "broken.mp4").write_bytes(b"\0" * 100)
    found = look_at(tmp_path)
    assert [clip.name for clip in found.clips] == ["a.mp4"]
    assert found.clips[0].scenes == ((0, 40), (45, 30))
    assert found.left_out["b.mp4"] == "a copy of 'a.mp4', to the byte"
    assert found.left_out["frozen.mp4"] == "it shows one picture throughout"
    assert "longest scene has 6 frames" in found.left_out["short.mp4"]
    assert "shorter than 9 frames" in found.left_out["a.mp4, frames 40 to 44"]
    assert {"one colour.mp4", "broken.mp4"} < set(found.left_out)


def test_a_second_look_decodes_nothing_and_a_changed_clip_is_read_again(tmp_path, monkeypatch):
    for index in range(3):
        write(tmp_path / "clips" / f"{index}.mp4", shot(index, 30))
    first, read = look_at(tmp_path), []
    real = look_module.look_at_clip
    monkeypatch.setattr(
        look_module, "look_at_clip", lambda opened, *rest: read.append(opened.name) or real(opened, *rest)
    )
    again = look_at(tmp_path)
    assert read == [] and [clip.entry for clip in again.clips] == [clip.entry for clip in first.clips]
    write(tmp_path / "clips" / "1.mp4", shot(9, 35))
    look_at(tmp_path)
    assert read == ["1.mp4"] and len(records(tmp_path)) == 3


def test_a_look_that_is_stopped_keeps_what_it_read(tmp_path):
    for index in range(4):
        write(tmp_path / "clips" / f"{index}.mp4", shot(index, 30))
    look_at(tmp_path)
    (kept,) = (tmp_path / "manifests").glob("*.look.jsonl")
    kept.unlink()
    asked = []
    with pytest.raises(Stopped, match="enough"):
        look_at(tmp_path, stop=lambda: "enough" if len(asked) > 3 else asked.append(1))
    assert 1 <= len(records(tmp_path)) < 4
    assert len(look_at(tmp_path).clips) == 4


@pytest.mark.slow  # three programs, each of which imports the trainer
def test_processes_find_what_one_process_finds_and_die_with_a_killed_parent(tmp_path, monkeypatch):
    for index in range(6):
        write(tmp_path / "clips" / f"{index}.mp4", shot(index, 60))
    program = (
        "import sys\nfrom pathlib import Path\nfrom training.own_clips import look\nlook._FEW_FRAMES = 0\n"
        "if __name__ == '__main__':\n"
        "    look.look(Path(sys.argv[1]), Path(sys.argv[2]), workers=2)\n"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    command = [sys.executable, str(script), str(tmp_path / "clips"), str(tmp_path / "manifests")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    killed = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    while not list((tmp_path / "manifests").glob("*.look.jsonl")) and killed.poll() is None:
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    begun = len(records(tmp_path))
    assert begun >= 1
    deadline = time.monotonic() + 60
    while os.name == "posix" and time.monotonic() < deadline:  # no process of its group outlives it
        try:
            os.killpg(killed.pid, 0)
        except (ProcessLookupError, PermissionError):
            break
        time.sleep(0.1)
    else:
        if os.name == "posix":
            os.killpg(killed.pid, signal.SIGKILL)
            pytest.fail("processes outlived their parent")
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    by_processes = {record["key"]: record for record in records(tmp_path)}
    assert len(by_processes) == 6
    alone = look(tmp_path / "clips", tmp_path / "alone", workers=1, say=quiet)
    assert all(
        by_processes[clip.name]["scenes"] == [list(scene) for scene in clip.look.scenes] for clip in alone.clips
    )


def test_progress_says_how_long_it_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(look_module, "_SECONDS_BETWEEN_LINES", 0.0)
    for index in range(4):
        write(tmp_path / "clips" / f"{index}.mp4", shot(index, 30))
    said: list[str] = []
    look(tmp_path / "clips", tmp_path / "manifests", workers=1, say=said.append)
    assert any("looked at 2 of 4 clips, about" in line for line in said)


def test_the_command_writes_both_sides_and_says_what_it_found(tmp_path, capsys):
    for index in range(12):
        write(tmp_path / "clips" / f"{'abcdefghijkl'[index]}.mp4", shot(index, 60))
    write(tmp_path / "clips" / "m.mp4", shot(3, 60), crf=36)
    arguments = [str(tmp_path / "clips"), str(tmp_path / "out"), "--manifests", str(tmp_path / "manifests")]
    assert main([*arguments, "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "13 clips" in said and "20 (13)" in said and "64x48 (13)" in said and "'d.mp4' and 'm.mp4'" in said
    numbers = json.loads((tmp_path / "out" / "look.json").read_text())
    assert numbers["copies"] == [["d.mp4", "m.mp4", 0.0]] and numbers["windows"]["train"]["15"] > 0
    sides = {
        name: {json.loads(line)["clip"] for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()}
        for name in ("train", "held_out")
    }
    assert len(sides["train"] | sides["held_out"]) == 13 and not sides["train"] & sides["held_out"]


@pytest.mark.parametrize(
    ("make", "arguments", "said"),
    [
        (lambda folder: None, [], "there is no source of clips"),
        (lambda folder: folder.mkdir(), [], "holds no clips"),
        (lambda folder: write(folder / "a.mp4", shot(1, 6)), [], "no clip of"),
        (lambda folder: write(folder / "a.mp4", shot(1, 40)), ["--workers", "0"], "--workers is 0"),
        (lambda folder: write(folder / "a.mp4", shot(1, 20)), [], "leaves nothing to hold out"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, make, arguments, said):
    make(tmp_path / "clips")
    paths = [str(tmp_path / "clips"), str(tmp_path / "out"), "--manifests", str(tmp_path / "manifests")]
    assert main([*paths, *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not Path(tmp_path / "out" / "train.jsonl").exists()


def test_spans_of_one_video_are_looked_at_by_themselves(tmp_path):
    """As episodes of LeRobot lie in one file, and scenes of a film in a clip list."""
    write(tmp_path / "clips/long.mp4", np.concatenate([shot(seed, 60) for seed in (1, 2, 3)]))
    rows = [
        ClipRow(str(tmp_path / "clips"), "long.mp4", first, 60, recording=f"day {first}") for first in (0, 60, 120)
    ]
    write_clip_list(tmp_path / "list.jsonl", rows)
    found = look_at(tmp_path, "list.jsonl")
    assert [clip.look.scenes for clip in found.clips] == [((0, 60),)] * 3 and not found.copies
    assert [clip.recording for clip in found.clips] == ["day 0", "day 60", "day 120"]
    shown = [clip.look.prints.record() for clip in found.clips]
    assert shown[0] != shown[1] != shown[2] != shown[0]
    # What is written names the video, not the list.
    write_split(hold_out(found), tmp_path / "split")
    sides = [(tmp_path / f"split/{side}.jsonl").read_text().splitlines() for side in ("train", "held_out")]
    spans = [json.loads(line) for side in sides for line in side]
    assert {span["source"] for span in spans} == {str(tmp_path / "clips")} and {span["clip"] for span in spans} == {
        "long.mp4"
    }
    held = {span["first_frame"]: span["first_frame"] + span["num_frames"] for span in spans}
    assert sorted(held) == [0, 60, 120] and all(60 >= end - first >= 45 for first, end in held.items())
    assert find_clips(tmp_path / "split/held_out.jsonl")


def test_pictures_in_an_archive_are_looked_at_beside_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(look_module, "_FEW_FRAMES", 0)
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        for clip in "ab":
            for index, frame in enumerate(shot(ord(clip), 20)):
                archive.writestr(f"{clip}/{index:03d}.png", encoded(frame))
    found = look(tmp_path / "clips.zip", tmp_path / "manifests", fps=10, workers=2, say=quiet)
    assert [clip.entry.num_frames for clip in found.clips] == [20, 20]


def test_pictures_at_another_rate_are_looked_at_anew(tmp_path):
    for index, frame in enumerate(shot(1, 40)):
        (tmp_path / "clips/a").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"clips/a/{index:03d}.png").write_bytes(encoded(frame))
    slow, fast = (look_at(tmp_path, fps=fps).clips[0].look for fps in (5.0, 20.0))
    assert slow.motion[0.2] < 0.5 * fast.motion[0.2]  # one frame on, and four


def encoded(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return file.getvalue()
