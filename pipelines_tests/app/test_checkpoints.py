"""Visitors share the models of a checkpoint, and nothing that a call changes."""

import json
import shutil

import pytest

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.app.checkpoints import Checkpoints, find_checkpoints
from diffusers_mardini.measured_sampling import MeasuredSampling


def lender(worlds, **kwargs):
    return Checkpoints(worlds, device="cpu", dtype="float32", **kwargs)


def test_each_piece_of_work_has_a_scheduler_of_its_own_on_shared_models(worlds):
    checkpoints = lender(worlds)
    one, other = checkpoints.lend(), checkpoints.lend(worlds[0])
    assert one.transformer is other.transformer and one.vae is other.vae and one.planner is other.planner
    assert one is not other and one.scheduler is not other.scheduler
    assert one.trained_window == other.trained_window and one.trained_window.num_frames == 9
    assert one.config.planner_downscale == 2


def test_lent_pipelines_know_what_was_measured_for_their_checkpoint(worlds, tmp_path):
    shutil.copytree(worlds[0], tmp_path / "measured")
    config = MarDiniPipeline.load_config(worlds[0])
    measured = MeasuredSampling(10, "UniPCMultistepScheduler", anchors=2)
    (tmp_path / "measured" / "model_index.json").write_text(json.dumps({**config, **measured.config}))
    assert MeasuredSampling.from_config(lender([str(tmp_path / "measured")]).lend().config) == measured


def test_the_checkpoint_used_longest_ago_is_dropped(worlds):
    checkpoints = lender(worlds, most=1)
    still = checkpoints.lend(worlds[0]).transformer
    driven = checkpoints.lend(worlds[1]).transformer
    assert checkpoints.lend(worlds[1]).transformer is driven
    assert checkpoints.lend(worlds[0]).transformer is not still


def test_a_lora_of_the_server_is_on_all_and_visitors_of_a_closed_one_bring_no_other(worlds, tmp_path):
    pytest.importorskip("peft")
    from diffusers_mardini.app.driving import Drive
    from diffusers_mardini.app.limits import Limits
    from diffusers_mardini.app.server import check_drive
    from pipelines_tests.app.worlds import pictures
    from pipelines_tests.loaders.adapters import save_conditioned

    save_conditioned(tmp_path / "driving")
    with pytest.raises(ValueError, match="still cannot be driven"):
        check_drive(worlds[0], None)
    check_drive(worlds[0], None, lora=str(tmp_path / "driving"))
    checkpoints = lender(worlds[:1], open_to_others=False, lora=str(tmp_path / "driving"))
    pipe = checkpoints.lend()
    assert list(pipe.conditions) == ["action"] and len(Drive(pipe, pictures(4), Limits(), steps=1).step(["left"])) == 4
    with pytest.raises(ValueError, match="offers only the checkpoints of its list, without LoRA of others"):
        checkpoints.lend(None, str(tmp_path / "another"))


def test_a_lora_never_touches_the_models_without_it(worlds, tmp_path):
    pytest.importorskip("peft")
    from pipelines_tests.loaders.adapters import save_adapter

    save_adapter(tmp_path / "lora")
    checkpoints = lender(worlds)
    plain, adapted = checkpoints.lend(), checkpoints.lend(None, str(tmp_path / "lora"), 0.5)
    assert plain.transformer is not adapted.transformer
    assert not plain.get_active_adapters() and adapted.get_active_adapters() == ["page"]
    with pytest.raises(ValueError, match="'nowhere' cannot be read as LoRA weights"):
        checkpoints.lend(None, "nowhere")


def test_a_page_for_others_offers_its_list_only(worlds):
    checkpoints = lender(worlds[:1], open_to_others=False)
    checkpoints.lend(worlds[0])
    for wish in ({"checkpoint": worlds[1]}, {"checkpoint": "/etc"}, {"lora": "somebody/lora"}):
        with pytest.raises(ValueError, match="this server offers only the checkpoints of its list"):
            checkpoints.lend(**wish)


def test_what_is_no_checkpoint_is_a_sentence(worlds, tmp_path):
    with pytest.raises(ValueError, match=f"'{tmp_path}' cannot be read as a checkpoint"):
        lender(worlds).lend(str(tmp_path))
    with pytest.raises(ValueError, match="there is no checkpoint: give one"):
        Checkpoints([])


def test_the_first_that_can_be_driven_is_found_without_loading(worlds):
    assert lender(worlds).first_with("action") == worlds[1]
    assert lender(worlds[:1]).first_with("action") == worlds[0]


def test_checkpoints_are_found_by_name_and_in_the_folder_one_stands_in(worlds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MARDINI_CHECKPOINT", raising=False)
    for name in ("a-racing", "z-carracing"):
        shutil.copytree(worlds[0], tmp_path / "checkpoints" / name)
    assert find_checkpoints() == ["checkpoints/z-carracing", "checkpoints/a-racing"]
    monkeypatch.setenv("MARDINI_CHECKPOINT", worlds[1])
    assert find_checkpoints()[0] == worlds[1]
