"""What `training.plan` and the trainer find by opening what a run starts from: autoencoder, base, clips, disk."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusers_mardini import AutoencoderPatchBasis
from diffusers_mardini.video_io import write_video
from pipelines_tests.training.test_plan import data_in, make_config, write_config
from pipelines_tests.training.test_train_mardini_lora import base_folder
from training import plan as module
from training.config.layers import load_config
from training.engine.feasibility import find_notes, find_problems
from training.evaluation.intervals import SURE
from training.overheads import KINDS, evaluations
from training.plan import main, make_plan
from training.plan_text import render
from training.probe import NO_ROOM
from training.probe import main as probe_main
from training.train_mardini import train


@pytest.fixture
def vae(tmp_path) -> str:
    torch.manual_seed(0)
    AutoencoderPatchBasis(block_out_channels=(8,) * 4, encoder_blocks=0).save_pretrained(tmp_path / "vae")
    return str(tmp_path / "vae")


def still_clips(folder: Path, count: int, seed: int = 0, frames: int = 12) -> Path:
    for number in range(count):
        picture = np.random.default_rng(seed + number).integers(0, 255, (1, 32, 32, 3), dtype=np.uint8)
        write_video(folder / f"{number}.mp4", picture.repeat(frames, 0), fps=10)
    return folder


def config_in(tmp_path, vae: str, stage=None, heldout: int = SURE, **fields):
    still_clips(tmp_path / "clips", 1, seed=100)
    data = data_in(tmp_path, size=32, cache=tmp_path / "latents")
    if heldout:
        data["validation"] = str(still_clips(tmp_path / "heldout", heldout))
    return make_config(stage, data=data, vae=vae, **fields)


def problems(**fields) -> dict[str, str]:
    return {problem.kind: problem.text for problem in find_problems(make_config(**fields))}


def test_an_autoencoder_that_cannot_be_used_is_a_sentence(tmp_path, vae):
    assert "no such folder" in problems(vae=str(tmp_path / "nowhere"))["autoencoder"]
    assert "autoencoder" not in problems(vae=vae)
    other = AutoencoderPatchBasis(latent_channels=4, block_out_channels=(8,) * 4)
    other.save_pretrained(tmp_path / "other")
    found = problems(vae=str(tmp_path / "other"))["autoencoder"]
    assert "has 4 latent channels" in found and "`transformer.in_channels` to 4" in found
    base = base_folder()
    assert "set `vae_subfolder: vae`" in problems(vae=str(base))["autoencoder"]
    assert "autoencoder" not in problems(vae=str(base), vae_subfolder="vae")
    shutil.copytree(base, tmp_path / "run/pipeline")
    found = problems(vae=str(tmp_path / "run"))["autoencoder"]
    assert "the folder of a run" in found and "run/pipeline`" in found
    assert "holds a MarDini" in problems(vae=str(base), vae_subfolder="planner")["autoencoder"]


def test_a_base_that_does_not_fit_is_a_sentence(tmp_path, vae):
    assert "no pipeline can be read" in problems(vae=vae, init_from=vae)["base"]
    found = problems(vae=vae, init_from=str(base_folder()))["base"]
    assert "has other sizes than this run's" in found and "use the same `preset`" in found


def test_finer_latents_are_counted_as_such(tmp_path):
    AutoencoderPatchBasis(block_out_channels=(8,) * 3).save_pretrained(tmp_path / "fine")
    coarse, fine = (make_plan(make_config(vae=at), with_data=False) for at in ("vae", str(tmp_path / "fine")))
    assert fine.stages[0].largest.tokens["planner"] == 4 * 8 * 9 > coarse.stages[0].largest.tokens["planner"]


def test_the_order_of_stages_is_looked_at():
    def notes(*trains, **fields):
        stages = [{**make_config().stages[0].model_dump(), "name": f"s{i}", "trains": t} for i, t in enumerate(trains)]
        return [note for note in find_notes(make_config(stages=stages, **fields)) if "train" in note]

    assert notes("planner", "transformer", "joint") == [] == notes("joint")
    assert "no stage trains the transformer" in notes("planner")[0]
    assert notes("planner", init_from="runs/a/pipeline") == []
    assert "never learns to use the planner's signals" in notes("planner", "transformer")[0]
    assert "last stage 's1' trains the planner alone, after" in notes("joint", "planner")[0]


def test_held_out_clips_that_are_trained_on_are_counted(tmp_path, vae):
    config = config_in(tmp_path, vae, heldout=2)
    shutil.copy(tmp_path / "heldout/0.mp4", tmp_path / "clips/renamed.mp4")
    (note,) = [note for note in make_plan(config).notes if "held-out" in note and "byte" in note]
    assert note.startswith("1 of the 2 held-out clips is among the training clips") and "0.mp4 is renamed.mp4" in note


def test_a_full_disk_is_known_before_the_run(tmp_path, vae, monkeypatch):
    config = config_in(tmp_path, vae, heldout=0)
    assert "disk" not in {problem.kind for problem in make_plan(config).problems}
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(10, 10, 0))
    found = [problem.text for problem in make_plan(config).problems if problem.kind == "disk"]
    assert len(found) in (1, 2) and "0.0 are free; make room, set `data.cache`" in found[0]


def test_an_autoencoder_below_simple_methods_stops_plan_and_training(tmp_path, vae, capsys):
    config = config_in(tmp_path, vae)
    plan = make_plan(config)
    (problem,) = plan.problems
    assert problem.kind == "room" and "no model with this autoencoder can win" in problem.text
    assert "| mid SSIM |" in render(plan, "title") and json.dumps(plan.room.as_json())
    with pytest.raises(ValueError, match="test is not trained: the autoencoder reaches.*Set `anyway: true`"):
        train(config, tmp_path / "runs")
    assert json.loads((tmp_path / "runs/test/probe.json").read_text())["is_below"]
    anyway = make_plan(config.model_copy(update={"anyway": True}))
    assert not anyway.problems and any("no model with this autoencoder" in note for note in anyway.notes)


def test_the_program_prints_writes_and_ends_with_3_where_there_is_no_room(tmp_path, capsys):
    clips = still_clips(tmp_path / "clips", SURE)
    numbers = tmp_path / "probe.json"
    arguments = [str(clips), "--size", "32x48", "--fps", "10", "5", "--num-frames", "5", "--json", str(numbers)]
    assert probe_main(arguments) == NO_ROOM == 3
    assert "verdict: these clips hardly move" in capsys.readouterr().out
    assert [len(json.loads(numbers.read_text())[key]) for key in ("distances", "size")] == [2, 2]
    with pytest.raises(SystemExit, match="no source of clips"):
        probe_main([str(tmp_path / "none")])
    with pytest.raises(SystemExit) as stopped:
        probe_main([str(clips), "--size", "32by48"])
    assert stopped.value.code == 2 and "height x width" in capsys.readouterr().err


def test_hours_hold_what_comes_beside_the_steps(tmp_path, vae):
    config = config_in(tmp_path, vae, anyway=True, validate_every=5)
    plan = make_plan(config, probe_steps=1)
    assert set(plan.overheads) == set(KINDS) and all(seconds > 0 for seconds in plan.overheads.values())
    assert plan.hours == pytest.approx(plan.stages[0].hours + sum(plan.overheads.values()) / 3600)
    assert "beside the steps, hours: start-up" in render(plan, "title") and plan.process > 0
    counted = make_plan(config, flops_per_second=1e9)
    assert counted.overheads["held-out losses"] > 0 and counted.overheads["encoding"] > 0
    assert make_plan(config).hours is None
    assert [evaluations(0, 10, 5), evaluations(0, 11, 5), evaluations(3, 4, 5), evaluations(0, 2, 5)] == [2, 3, 2, 1]


@pytest.mark.parametrize(
    "override, sentence",
    [
        ("name=", "name: has no value; give text"),
        ("name=''", "name: a name must not be empty"),
        ("optimizer=adam", "optimizer: give its keys, indented below it; they are name, beta1"),
        ("stages.s.batch_size=0", "stages.s.batch_size: must be at least 1 .given: 0."),
        ("stages.s.trains=all", "give 'planner', 'transformer' or 'joint'"),
        ("trackers=wandb", "trackers: give a list"),
    ],
)
def test_values_are_explained_in_plain_words(tmp_path, override, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        load_config(write_config(tmp_path, make_config()), [override])
    assert "Input should" not in str(error.value) and "Value error" not in str(error.value)


def test_the_plan_says_what_it_cannot_open(tmp_path, capsys):
    path = write_config(tmp_path, make_config(data=data_in(still_clips(tmp_path / "clips", 1).parent)))
    assert main([path, f"vae={tmp_path / 'none'}"]) == 1
    assert "problem: the autoencoder (`vae`) is" in capsys.readouterr().out
