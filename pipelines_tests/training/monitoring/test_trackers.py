"""TensorBoard, read back by its own reader."""

import importlib.util

import pytest
from accelerate import Accelerator
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipelines_tests.training.test_train_mardini import make_config, make_run, records
from training.monitoring.trackers import (
    PROJECT,
    finish_trackers,
    start_trackers,
    track,
    track_sheets,
    tracker_arguments,
)


def start(folder, global_step=0) -> Accelerator:
    accelerator = Accelerator(cpu=True, **tracker_arguments(["tensorboard"], folder))
    start_trackers(accelerator, make_config(), folder, global_step)
    return accelerator


def read(folder) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard" / PROJECT))
    events.Reload()
    return events


def line(step, **values) -> dict:
    return {"global_step": step, "windows_seen": 2 * step, "stage": "joint", "step": step, **values}


def test_losses_and_heldout_losses_become_scalars(tmp_path):
    accelerator = start(tmp_path)
    track(accelerator, line(1, loss=0.5, grad_norm="inf", learning_rate=1e-3))
    track(accelerator, line(2, heldout={"planner": 0.25, "quality/motion": "nan"}))
    track(accelerator, line(2, samples={}))
    finish_trackers(accelerator)
    events = read(tmp_path)
    assert sorted(events.Tags()["scalars"]) == [
        "heldout/planner", "train/learning_rate", "train/loss", "train/step", "train/windows_seen",
    ]  # fmt: skip
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 0.5)]
    assert [(e.step, e.value) for e in events.Scalars("heldout/planner")] == [(2, 0.25)]


def test_contact_sheets_become_images(tmp_path):
    accelerator = start(tmp_path)
    Image.new("RGB", (40, 30), (255, 0, 0)).save(tmp_path / "sheet.png")
    track_sheets(accelerator, {"interpolation": tmp_path / "sheet.png"}, 7)
    finish_trackers(accelerator)
    (image,) = read(tmp_path).Images("samples/interpolation")
    assert (image.step, image.width, image.height) == (7, 40, 30)


def test_steps_that_were_lost_and_run_again_are_there_once(tmp_path):
    first = start(tmp_path)
    for step in range(1, 6):
        track(first, line(step, loss=float(step)))
    finish_trackers(first)
    resumed = start(tmp_path, global_step=3)
    start_trackers(resumed, make_config(), tmp_path, 3)  # after a roll-back; they have begun already
    assert len(resumed.trackers) == 1
    for step in range(4, 7):
        track(resumed, line(step, loss=10.0 * step))
    finish_trackers(resumed)
    reported = [(e.step, e.value) for e in read(tmp_path).Scalars("train/loss")]
    assert reported == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0), (6, 60.0)]


def test_a_run_tracks_what_it_writes(tmp_path):
    run = make_run(tmp_path, make_config(sample_every=100, sample_steps=1, sample_windows=1))
    run.accelerator = run.monitor.accelerator = Accelerator(cpu=True, **tracker_arguments(["tensorboard"], tmp_path))
    run.train(stop_after="planner")
    finish_trackers(run.accelerator)
    events = read(tmp_path)
    losses = [record["loss"] for record in records(tmp_path) if "loss" in record]
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(losses)
    assert [e.step for e in events.Images("samples/image-to-video")] == [0, 3]
    assert "heldout/planner" in events.Tags()["scalars"]


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_that_is_not_installed_is_named_with_its_remedy(tmp_path, name):
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed here")
    with pytest.raises(ValueError, match=rf"{name}, not installed.*pip install {name}.*trackers=\[tensorboard\]"):
        tracker_arguments(["tensorboard", name], tmp_path)


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_other_trackers_take_losses_and_sheets_through_the_same_calls(tmp_path, monkeypatch, name):
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    accelerator = Accelerator(cpu=True, **tracker_arguments([name], tmp_path))
    start_trackers(accelerator, make_config(), tmp_path, 0)
    track(accelerator, line(1, loss=0.5, grad_norm="inf"))
    track(accelerator, line(2, heldout={"planner": 0.25}))
    Image.new("RGB", (40, 30), (255, 0, 0)).save(tmp_path / "sheet.png")
    track_sheets(accelerator, {"interpolation": tmp_path / "sheet.png"}, 2)
    (tracker,) = accelerator.trackers
    assert tracker.name == name
    finish_trackers(accelerator)
    assert accelerator.trackers == [] and any((tmp_path / name).rglob("*"))  # on this machine, in the run's folder


def test_a_resumed_run_is_the_same_run_of_wandb(tmp_path, monkeypatch):
    def reported(global_step: int) -> dict:
        accelerator, given = Accelerator(cpu=True), []
        monkeypatch.setattr(accelerator, "init_trackers", lambda _, init_kwargs: given.append(init_kwargs["wandb"]))
        start_trackers(accelerator, make_config(trackers=["wandb"]), tmp_path, global_step)
        return given[0]

    first, resumed, anew = reported(0), reported(7), reported(0)
    assert first["id"] == resumed["id"] != anew["id"] and resumed["resume"] == "allow"
    start(tmp_path / "without")
    assert not (tmp_path / "without/wandb_id").exists()


def test_trackers_are_chosen_by_the_configuration():
    assert make_config().trackers == ["tensorboard"] and make_config(trackers=[]).trackers == []
    with pytest.raises(ValueError, match="tensorboard.*trackio.*wandb"):
        make_config(trackers=["mlflow"])
