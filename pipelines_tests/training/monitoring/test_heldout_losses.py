"""Held-out losses: by task, masked frames and noise, on the same windows each time, and by any number of processes."""

from dataclasses import replace

import pytest
import torch

from pipelines_tests.training.test_train_mardini import make_config, make_run, randomize
from training.data.batches import Batch
from training.losses import MarDiniTrainingModel, diffusion_loss
from training.monitoring.heldout_losses import NOISE_LEVELS, _parts, heldout_losses, patterns
from training.monitoring.heldout_windows import HeldoutWindows
from training.randomness import step_generator


def test_heldout_losses_are_those_of_the_training_module(tmp_path):
    run = make_run(tmp_path)
    stage, config = run.config.stages[2], run.config
    windows = run._heldout(stage, config.validation_windows)
    randomize(run.transformer)
    arguments = (run.planner, run.head, run.transformer, run.scheduler)
    losses = heldout_losses(*arguments, windows, stage, config.seed, run.accelerator)
    module = MarDiniTrainingModel(run.planner, run.head, run.transformer, run.scheduler)
    masks = patterns(4, 2, step_generator(config.seed, "heldout", "masks"))
    noises = [step_generator(config.seed, "heldout", "noise", number) for number in range(2)]
    noise = torch.stack([torch.randn(windows.latents.shape[1:], generator=generator) for generator in noises])
    for pattern, mask in masks.items():
        batches = [
            Batch(windows.latents, windows.planner_latents, mask, int((~mask[0]).sum()), noise, torch.full((2,), t),
                  torch.ones(2, dtype=torch.bool))
            for t in (400, 800)
        ]  # fmt: skip
        with torch.no_grad():
            each = [module(batch) for batch in batches]
        assert losses[f"planner/{pattern}"] == round(each[0]["planner_loss"].item(), 5)
        assert losses[f"diffusion/{pattern}"] == round(sum(e["diffusion_loss"].item() for e in each) / 2, 5)
    assert losses["planner"] == losses["planner/task/interpolation"]
    mask = masks["task/interpolation"]
    ends = replace(batches[0], reference_mask=mask, num_masked_frames=int((~mask[0]).sum()))
    for share in NOISE_LEVELS:
        noisy = replace(ends, timesteps=torch.full((2,), round(1000 * share)))
        with torch.no_grad():
            planned = module(noisy)["diffusion_loss"].item()
            unplanned = diffusion_loss(run.transformer, run.scheduler, noisy, None).item()
        assert losses[f"diffusion/{share}"] == round(planned, 5) and abs(planned - unplanned) > 1e-4
    assert losses["diffusion_unplanned/0.95"] == round(unplanned, 5)  # the last of the levels


def test_heldout_losses_are_the_same_in_batches_of_any_size(tmp_path):
    run = make_run(tmp_path)
    windows, sizes = run._heldout(run.config.stages[2], 3), []
    run.planner.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    losses = []
    for batch_size in (8, 2, 1):
        stage = run.config.stages[2].model_copy(update={"batch_size": batch_size})
        models = (run.planner, run.head, run.transformer, run.scheduler)
        losses.append(heldout_losses(*models, windows, stage, run.config.seed, run.accelerator))
        assert max(sizes) == min(batch_size, 3)
        sizes.clear()
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], abs=2e-5)


def test_every_process_scores_as_many_parts_of_the_windows():
    def parts(process: int, total: int, processes: int, batch_size: int) -> list[tuple[list[int], int]]:
        numbers = tuple(range(process, total, processes))
        rows = torch.zeros(max(1, len(numbers)), 1)
        windows = HeldoutWindows(rows, rows, (), 8.0, numbers or (0,), total, len(numbers))
        return [(part.tolist(), counted) for part, counted in _parts(windows, batch_size, processes)]

    assert parts(0, 5, 2, 2) == [([0, 1], 2), ([2], 1)] and parts(1, 5, 2, 2) == [([0], 1), ([1], 1)]
    for total, processes, batch_size in ((3, 2, 1), (1, 4, 2), (16, 3, 4), (7, 7, 1), (9, 1, 4)):
        each = [parts(process, total, processes, batch_size) for process in range(processes)]
        assert len({len(found) for found in each}) == 1
        assert all(0 < len(rows) <= batch_size for found in each for rows, _ in found)
        assert sum(counted for found in each for _, counted in found) == total


def test_two_frames_have_nothing_between_them(tmp_path):
    assert list(patterns(2, 3, step_generator(0, "heldout"))) == ["task/image-to-video", "masked/1"]
    run = make_run(tmp_path)
    stage = run.config.stages[2].model_copy(update={"num_frames": 2})
    losses = heldout_losses(
        run.planner, run.head, run.transformer, run.scheduler, run._heldout(stage, 2), stage, 0, run.accelerator
    )
    assert losses["planner"] == losses["planner/task/image-to-video"] and losses["diffusion/0.95"] > 0


def test_heldout_windows_are_read_once_for_all_evaluations_of_a_stage(tmp_path, monkeypatch):
    run = make_run(
        tmp_path, make_config(validate_every=1, quality_windows=3, sample_every=1, sample_windows=1, sample_steps=1)
    )
    read, batch = [], run.validation_data.batch
    monkeypatch.setattr(
        run.validation_data, "batch", lambda draws, generators: (read.append(len(draws)), batch(draws, generators))[1]
    )
    run.train(stop_after="planner")
    assert sorted(read) == [1, 2, 3]  # pictures, scores, losses


def test_heldout_losses_are_told_by_task_and_by_the_number_of_masked_frames():
    masks = patterns(9, 6, step_generator(0, "heldout"))
    kept = {name: mask[0].nonzero().flatten().tolist() for name, mask in masks.items() if name.startswith("task/")}
    assert kept == {"task/interpolation": [0, 8], "task/image-to-video": [0], "task/expansion": [0, 1, 2, 3, 4]}
    counts = {name: set((~mask).sum(1).tolist()) for name, mask in masks.items() if name.startswith("masked/")}
    assert counts == {"masked/1": {1}, "masked/4": {4}, "masked/8": {8}}
    assert len({tuple(row) for row in masks["masked/4"].tolist()}) > 1
    again = patterns(9, 6, step_generator(0, "heldout"))
    assert all(torch.equal(masks[name], again[name]) for name in masks)
