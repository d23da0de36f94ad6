"""A run with conditions: from the tables beside the clips to the exported pipeline."""

import pytest
import torch

from diffusers_mardini import MarDiniPipeline
from pipelines_tests.training.clip_files import noise, write_clip
from pipelines_tests.training.test_train_mardini import data_fields, make_config, make_run, rows
from training.curriculum import draw_batch, drop_conditions
from training.data.buckets import window_request
from training.engine.models import make_models
from training.monitoring.heldout_windows import heldout_windows


CONDITIONS = {
    "action": {"columns": ["steer", "gas"], "range": [[-1, 1], [0, 1]], "drop": 0.5},
    "rate": {"derive": "rate", "range": [[0.01, 0.5]], "unit": "s"},
    "motion": {"derive": "motion", "range": [[0, 2]]},
}


def conditioned_config(folder, **overrides):
    clips = folder / "clips"
    if not clips.is_dir():
        for seed in range(3):
            write_clip(clips / f"{seed}.mp4", noise(12, 32, 32, seed), fps=20)
            table = "steer,gas\n" + "".join(f"{i / 10 - 0.5:.2f},{seed / 4}\n" for i in range(12))
            (clips / f"{seed}.csv").write_text(table)
    return make_config(**{"data": data_fields(clips, conditions=CONDITIONS), **overrides})


def test_a_step_draws_the_conditions_of_its_frames(tmp_path):
    config = conditioned_config(tmp_path)
    run = make_run(tmp_path / "run", config)
    stage = config.stages[2]
    batch = draw_batch(stage, window_request(config, stage), run.train_data, 1000, rows(3, count=16, total=16))
    conditions = batch.conditions
    assert {name: tuple(values.shape) for name, values in conditions.items()} == {
        "action": (16, 4, 2), "rate": (16, 4, 1), "motion": (16, 4, 1),
    }  # fmt: skip
    absent = conditions["action"].isnan().all(dim=(1, 2))
    assert 2 < int(absent.sum()) < 14  # half of the windows
    assert absent[~batch.planning_signals_mask].all()
    known = conditions["rate"][:, 1:][~conditions["rate"][:, 1:].isnan()]
    assert {round(value, 3) for value in known.tolist()} == {0.05, 0.1}  # strides 1 and 2 at 20 a second
    assert conditions["rate"][:, 0].isnan().all()
    moved = batch.to(torch.device("cpu"))
    assert moved.conditions.keys() == conditions.keys()


def test_a_share_of_the_windows_of_a_step_has_no_condition_at_all(tmp_path):
    """Each left out by itself, windows without any would hardly be seen, and are what sampling without conditions is."""
    config = conditioned_config(tmp_path)
    run = make_run(tmp_path / "run", config)
    batches = []
    for share in (0.0, 0.4, 1.0):
        stage = config.stages[2].model_copy(update={"conditions_dropout": share, "planning_dropout": 0.0})
        request = window_request(config, stage)
        batches.append(draw_batch(stage, request, run.train_data, 1000, rows(3, count=32, total=32)))
    none, some, all_ = (
        torch.stack([values.isnan().flatten(1).all(dim=1) for values in batch.conditions.values()]).all(dim=0)
        for batch in batches
    )
    assert none.sum() < 4 and all_.all() and 6 < int(some.sum()) < 22
    kept = ~some
    for name, values in batches[1].conditions.items():  # the others are as they were
        torch.testing.assert_close(values[kept], batches[0].conditions[name][kept], equal_nan=True)
    assert all(torch.equal(batches[0].noise, batch.noise) for batch in batches)


def test_dropped_conditions_are_a_function_of_the_row():
    values = {"a": torch.ones(6, 3, 2), "b": torch.ones(6, 3, 1)}
    kept = torch.tensor([True] * 5 + [False])
    whole = drop_conditions(values, {"a": 0.5, "b": 0.0}, kept, rows(7, count=6, total=6))
    parts = [
        drop_conditions(
            {name: v[i : i + 2] for name, v in values.items()}, {"a": 0.5, "b": 0.0}, kept[i : i + 2],
            rows(7, count=2, first=i, total=6),
        )
        for i in (0, 2, 4)
    ]  # fmt: skip
    for name in values:
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name], equal_nan=True)
    assert not whole["b"][:5].isnan().any() and whole["b"][5].isnan().all()


def test_a_run_with_conditions_learns_resumes_and_exports_a_pipeline_that_takes_them(tmp_path):
    run = make_run(tmp_path / "run", conditioned_config(tmp_path))
    before = run.transformer.condition_embedder["action"].linear_2.weight.detach().clone()
    pipe = MarDiniPipeline.from_pretrained(run.train())
    assert pipe.transformer.config.conditions == {"action": 2, "rate": 1, "motion": 1}
    assert pipe.conditions["action"].ranges == ((-1.0, 1.0), (0.0, 1.0))
    assert pipe.conditions["action"].names == ("steer", "gas")
    after = pipe.transformer.condition_embedder["action"].linear_2.weight
    assert not torch.equal(before, after.float())
    assert pipe.planner.condition_embedder["rate"].linear_2.weight.abs().max() > 0
    again = make_run(tmp_path / "run", conditioned_config(tmp_path))
    assert again.train().is_dir() and again.global_step == run.global_step


def test_heldout_windows_have_their_true_conditions(tmp_path):
    config = conditioned_config(tmp_path)
    run = make_run(tmp_path / "run", config)
    request = window_request(config, config.stages[2])
    windows = heldout_windows(run.validation_data, type(request)("x", request.buckets, ((1, 1.0),)), 3, 0)
    assert not windows.conditions["action"].isnan().any()


def test_a_clip_without_a_table_is_left_out_with_its_reason(tmp_path):
    config = conditioned_config(tmp_path)
    (tmp_path / "clips" / "1.csv").unlink()
    run = make_run(tmp_path / "run", config)
    census = run.train_data.census(window_request(config, config.stages[2]))
    assert "0 tables of conditions beside it" in census.left_out["1.mp4"]


def test_a_checkpoint_without_conditions_gains_them(tmp_path):
    plain = make_run(tmp_path / "plain", make_config())
    folder = plain.export(tmp_path / "pipeline")
    models = make_models(conditioned_config(tmp_path, init_from=str(folder)))
    latents = torch.randn(1, 4, 16, 4, 4)
    mask = torch.tensor([[True, False, False, False]])
    action = {"action": torch.rand(1, 4, 2)}
    model = MarDiniPipeline.from_pretrained(folder).transformer.float()
    expected = model(latents, torch.tensor(500), None, mask).sample
    torch.testing.assert_close(
        models["transformer"](latents, torch.tensor(500), None, mask, conditions=action).sample, expected
    )


def test_windows_with_tables_are_not_mirrored(tmp_path):
    with pytest.raises(ValueError, match="flip mirrors windows"):
        make_config(data=data_fields(tmp_path, conditions=CONDITIONS, flip=0.5))
