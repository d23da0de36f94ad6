"""`training.fit`: one command from a folder of clips to a verdict."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.video_io import write_video
from training.config.layers import load_config
from training.data.sources import open_source
from training.fit import (
    NO_ROOM,
    STEPS,
    Ended,
    Record,
    _compare_clips,
    _judging_command,
    _probing_command,
    _shortened,
    _stop_without_room,
    fit,
    main,
)
from training.own_clips.choose import Choices
from training.own_clips.configs import run_text
from training.own_clips.look import state_of
from training.stopping import STOPPED


ROOT = Path(__file__).parents[2]


def test_missing_clips_are_named_before_anything_is_made(tmp_path, capsys):
    assert main([str(tmp_path / "clips"), str(tmp_path / "out")]) == 1
    assert f"there is no source of clips at '{tmp_path / 'clips'}'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("hours", ["0", "-1", "nan"])
def test_hours_must_be_positive(tmp_path, capsys, hours):
    assert main([str(tmp_path), str(tmp_path / "out"), "--hours", hours]) == 1
    assert "--hours" in capsys.readouterr().err


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("words")
    with pytest.raises(ValueError, match=r"holds thesis.tex, which training.fit did not make"):
        Record(tmp_path, {"clips": "a", "hours": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_fit_goes_on_only_as_it_was_begun(tmp_path):
    Record(tmp_path, {"clips": "a", "hours": 1.0})
    Record(tmp_path, {"clips": "a", "hours": 1.0})
    with pytest.raises(ValueError, match="begun with clips a; repeat that"):
        Record(tmp_path, {"clips": "b", "hours": 1.0})


def test_seconds_and_finished_steps_are_kept(tmp_path, capsys):
    record = Record(tmp_path, {"clips": "a", "hours": 1.0})
    with pytest.raises(KeyError), record.step("look"):
        record.add("look", 5.0)
        raise KeyError
    with record.step("look"):
        record.add("look", 7.0)
    again = Record(tmp_path, {"clips": "a", "hours": 1.0})
    assert again.is_done("look")
    assert again.spent == pytest.approx(12.0, abs=1.0)
    assert not again.is_done("probe")


def test_the_rate_of_pictures_cannot_change_on_the_way(tmp_path):
    Record(tmp_path, {"clips": "a", "hours": 1.0, "picture_fps": None})
    with pytest.raises(ValueError, match="begun with no picture_fps; repeat that"):
        Record(tmp_path, {"clips": "a", "hours": 1.0, "picture_fps": 10.0})


def test_hours_may_change_until_something_depends_on_them(tmp_path):
    Record(tmp_path, {"clips": "a", "hours": 0.2})
    assert Record(tmp_path, {"clips": "a", "hours": 1.0}).content["asked"]["hours"] == 1.0
    (tmp_path / "choices.json").touch()
    with pytest.raises(ValueError, match="begun with hours 0.2; repeat that"):
        Record(tmp_path, {"clips": "a", "hours": 2.0})


def test_what_rests_on_a_training_is_done_again_after_another_one(tmp_path):
    record = Record(tmp_path, {"clips": "a", "hours": 1.0})
    for step in STEPS:
        with record.step(step):
            pass
    with record.step("train"):
        record.begin_anew("train")
    assert Record(tmp_path, {"clips": "a", "hours": 1.0}).content["done"] == [
        "look",
        "probe",
        "choose",
        "autoencoder",
        "train",
    ]


def test_clips_that_came_later_are_told(tmp_path, capsys):
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips/a.mp4", np.zeros((4, 16, 16, 3), np.uint8), 8)
    clips = str(tmp_path / "clips")
    (tmp_path / "out").mkdir()
    record = Record(tmp_path / "out", {"clips": clips, "hours": 1.0})
    _compare_clips(record, state_of(open_source(clips), clips))
    _compare_clips(record, state_of(open_source(clips), clips))
    assert "changed" not in capsys.readouterr().out
    write_video(tmp_path / "clips/b.mp4", np.zeros((4, 16, 16, 3), np.uint8), 8)
    _compare_clips(record, state_of(open_source(clips), clips))
    assert "these clips have changed since they were looked at" in capsys.readouterr().out


@pytest.mark.parametrize(("taken", "told"), [(400, False), (250, False), (100, True), (None, False)])
def test_a_run_that_had_time_for_few_steps_says_so(tmp_path, taken, told):
    (tmp_path / "config.yaml").write_text(
        run_text(Choices(10.0, 48, 96, 24, "mardini-nano", 16, 2, 400, defaultdict(str)), tmp_path, 1.0)
    )
    steps = sum(stage.steps for stage in load_config(tmp_path / "config.yaml").stages)
    (tmp_path / "run").mkdir()
    if taken is not None:
        (tmp_path / "run/status.json").write_text(json.dumps({"state": "finished", "global_step": taken}))
    sentences = _shortened(tmp_path)
    assert bool(sentences) == told and all(f"time for 100 of the {steps} steps" in each for each in sentences)


STOPS = (
    "import signal, sys, time; from pathlib import Path; signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\n"
    "Path(sys.argv[1]).touch(); time.sleep(60)"
)


def test_a_step_that_was_asked_to_stop_has_stopped_though_its_launcher_says_1(tmp_path):
    """As `torch.distributed.run` does, whatever ended its processes."""
    out = tmp_path / "out"
    out.mkdir()
    record = Record(out, {"clips": "a", "hours": 1.0})

    def ask():
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask).start()
    with pytest.raises(Ended) as ended:
        record.run("train", ["-c", STOPS, str(tmp_path / "begun")])
    assert ended.value.code == STOPPED
    # By a file in the run's folder no signal comes, but the run says so.
    said = "import json, sys; open(sys.argv[1], 'w').write(json.dumps({'state': sys.argv[2]})); sys.exit(1)"
    (out / "run").mkdir()
    for state, code in (("stopped", STOPPED), ("failed", 1)):
        with pytest.raises(Ended) as ended:
            record.run("train", ["-c", said, str(out / "run/status.json"), state])
        assert ended.value.code == code


def test_ctrl_c_between_programs_stops_without_a_traceback(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("training.fit.fit", interrupted)
    assert main([str(tmp_path), str(tmp_path / "out")]) == STOPPED
    assert "type the same command to go on" in capsys.readouterr().out


def test_windows_to_be_judged_are_spread_over_clips_and_rates_are_those_of_both_sides(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/look.json").write_text(json.dumps({"sizes": {"64x64": 3}}))
    for side, fps in (("train", 29.8), ("held_out", 60.0)):
        rows = [json.dumps({"source": "a", "clip": f"{index}.mp4", "fps": fps}) for index in range(6)]
        (tmp_path / f"clips/{side}.jsonl").write_text("\n".join(rows) + "\n")
    choices = Choices(10.0, 48, 96, 24, "mardini-nano", 16, 2, 400)
    judging = _judging_command(tmp_path, choices)
    assert "--max-windows" in judging and "--train-clips" in judging
    assert "--train-clips" not in _judging_command(tmp_path, replace(choices, searches_matches=False))
    probing = _probing_command(tmp_path, tmp_path / "probe.json")
    assert probing[probing.index("--fps") + 1] == "29.8"


@pytest.mark.parametrize(
    ("distances", "has_room", "anyway", "stops"),
    [
        ([5], True, False, False),
        ([5], False, False, True),
        ([5], False, True, False),
        ([], False, True, True),
        ([1], False, False, False),
    ],
)
def test_a_fit_stops_where_no_model_can_win_unless_it_goes_on_anyway(tmp_path, distances, has_room, anyway, stops):
    result = tmp_path / "probe.json"
    rows = [{"clips": clips} for clips in distances]  # fewer than five decide nothing
    result.write_text(json.dumps({"distances": rows, "has_room": has_room}))
    if stops:
        with pytest.raises(Ended) as ended:
            _stop_without_room(result, anyway)
        assert ended.value.code == NO_ROOM
    else:
        _stop_without_room(result, anyway)


def _still_clips(folder: Path) -> Path:
    """Write clips in which next to nothing moves."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        picture = rng.integers(0, 255, (4, 4, 3)).repeat(16, 0).repeat(16, 1)
        frames = np.repeat(picture[None], 30, 0).astype(np.uint8)
        frames[:, 20:24, 20:24] += np.arange(30, dtype=np.uint8)[:, None, None, None] // 3
        write_video(folder / f"clip_{number}.mp4", frames, 10)
    return folder


@pytest.mark.slow
def test_clips_on_which_no_model_can_win_are_not_trained_on(tmp_path, capfd):
    clips = _still_clips(tmp_path / "clips")
    assert main([str(clips), str(tmp_path / "out"), "--hours", "0.2"]) == NO_ROOM
    printed = capfd.readouterr().out
    assert "these clips hardly move" in printed
    assert "add --anyway" in printed
    assert not (tmp_path / "out" / "config.yaml").exists()
    assert main([str(clips), str(tmp_path / "out"), "--hours", "0.2", "--anyway", "--dry-run"]) == 0
    assert (tmp_path / "out" / "config.yaml").is_file()
    assert not (tmp_path / "out" / "autoencoder").exists()


@pytest.mark.slow
def test_a_fit_that_is_killed_twice_ends_with_a_model_and_a_verdict(tmp_path):
    clips, out = tmp_path / "clips", tmp_path / "out"
    subprocess.run(
        [sys.executable, "-m", "training.data.recipes.moving_shapes", clips, "--clips", "40", "--frames", "24",
         "--size", "32"],
        cwd=ROOT, check=True,
    )  # fmt: skip
    command = [sys.executable, "-m", "training.fit", str(clips), str(out), "--hours", "0.08"]
    for reached in ("clips", "run/metrics.jsonl"):
        process = subprocess.Popen(command, cwd=ROOT)
        while not (out / reached).exists():
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "The verdict:" in finished.stdout
    assert json.loads((out / "fit.json").read_text())["done"][-1] == "publish"
    pipe = MarDiniPipeline.from_pretrained(out / "model")
    assert pipe.trained_window.num_frames == 9
    assert {"README.md", "how-to-use.md", "between.mp4", "sheet_0.png"} <= {p.name for p in (out / "model").iterdir()}
    assert str(tmp_path) not in (out / "model" / "README.md").read_text(encoding="utf-8")
    assert fit(str(clips), out, 0.08) == out / "model"  # again: nothing is done twice
