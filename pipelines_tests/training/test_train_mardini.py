"""The trainer on latents made up for the test: stages, losses, resuming, the exported pipeline."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from diffusers_mardini import AutoencoderPatchBasis, MarDiniPipeline, MarDiniScheduler
from diffusers_mardini.models.embeddings import patchify
from training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from training.config import RunConfig, StageConfig
from training.curriculum import Batch, draw_batch, draw_reference_mask, draw_timesteps, learning_rate_factor
from training.data.latents import LatentClips
from training.loop import Run
from training.randomness import step_generator
from training.step import MarDiniTrainingModel, masked_mse


def make_data(clips=3, frames=12):
    torch.manual_seed(0)
    total = clips * frames
    return LatentClips(
        latents=torch.randn(total, 16, 4, 4),
        planner_latents=torch.randn(total, 16, 2, 2),
        offsets=torch.arange(0, total + 1, frames),
        names=[f"{i}.mp4" for i in range(clips)],
        fps=[20.0] * clips,
    )


def make_config(**overrides):
    stage = {"num_frames": 4, "strides": {1: 0.5, 2: 0.5}, "batch_size": 2, "learning_rate": 1e-2, "warmup_steps": 1}
    stage["leading_frames"] = [1, 2]
    return RunConfig(
        **{
            "name": "test",
            "data": {"train": "clips"},
            "vae": "vae",
            "planner": {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "mlp_dim": 16},
            "transformer": {
                "num_layers": 1,
                "num_attention_heads": 2,
                "attention_head_dim": 8,
                "mlp_dim": 16,
                "planning_dim": 16,
            },
            "log_every": 1,
            "checkpoint_every": 2,
            "validate_every": 3,
            "validation_windows": 2,
            "mixed_precision": "no",
            "save_dtype": "float32",
            "stages": [
                {**stage, "name": "planner", "trains": "planner", "steps": 3},
                {
                    **stage,
                    "name": "transformer",
                    "trains": "transformer",
                    "steps": 2,
                    "temporal_attention": "spatiotemporal",
                },
                {
                    **stage,
                    "name": "joint",
                    "trains": "joint",
                    "steps": 3,
                    "planner_loss_weight": 0.5,
                    "tasks": {"random": 0.4, "interpolation": 0.3, "leading": 0.3},
                },
            ],
            **overrides,
        }  # fmt: skip
    )


def make_run(folder: Path, config=None) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    return Run(
        config or make_config(), Accelerator(cpu=True), AutoencoderPatchBasis(), make_data(), make_data(), folder
    )


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_all_stages_run_and_end_in_a_pipeline_that_loads(tmp_path):
    pipeline_folder = make_run(tmp_path).train()
    log = [r for r in records(tmp_path) if "loss" in r]
    assert [(r["stage"], r["step"]) for r in log] == [
        ("planner", 1), ("planner", 2), ("planner", 3), ("transformer", 1), ("transformer", 2),
        ("joint", 1), ("joint", 2), ("joint", 3),
    ]  # fmt: skip
    assert [r["global_step"] for r in log] == list(range(1, 9)) and log[-1]["windows_seen"] == 16
    assert {"planner_loss", "diffusion_loss"} <= log[-1].keys() and "diffusion_loss" not in log[0]
    heldout = [r["heldout"] for r in records(tmp_path) if "heldout" in r]
    assert {"planner", "diffusion/0.95", "diffusion_unplanned/0.95"} <= heldout[-1].keys()
    pipe = MarDiniPipeline.from_pretrained(pipeline_folder)
    assert pipe.transformer.config.temporal_attention == "temporal"  # swapped after the second stage
    assert pipe.config.planner_downscale == 2
    averages = load_file(list_checkpoints(tmp_path / "checkpoints")[-1] / "ema.safetensors")
    torch.testing.assert_close(pipe.planner.norm_out.weight, averages["planner.norm_out.weight"])


@pytest.mark.parametrize("stop, optimizer", [("step-00000002", "adamw"), ("step-00000004", "muon")])
def test_a_resumed_run_ends_bit_for_bit_like_one_that_ran_through(tmp_path, stop, optimizer):
    config = make_config(keep_checkpoints=100, optimizer={"name": optimizer})
    make_run(tmp_path / "through", config).train()
    make_run(tmp_path / "resumed", config).train()
    for checkpoint in list_checkpoints(tmp_path / "resumed" / "checkpoints"):
        if checkpoint.name > stop:
            for file in checkpoint.iterdir():
                file.unlink()
            checkpoint.rmdir()
    make_run(tmp_path / "resumed", config).train()
    last = [list_checkpoints(tmp_path / name / "checkpoints")[-1] for name in ("through", "resumed")]
    assert last[0].name == last[1].name == "step-00000008"
    for name in ("weights.safetensors", "ema.safetensors"):
        through, resumed = (load_file(path / name) for path in last)
        assert all(torch.equal(through[key], resumed[key]) for key in through)
    timeless = [[{k: v for k, v in r.items() if k != "windows_per_second"} for r in records(tmp_path / name)]
                for name in ("through", "resumed")]  # fmt: skip
    assert timeless[0] == timeless[1]


def test_a_stage_changes_what_it_trains_and_nothing_else(tmp_path):
    run = make_run(tmp_path)
    before = {name: parameter.clone() for name, parameter in run.models.named_parameters()}

    def changed(stage):
        run._train_stage(run.config.stages[stage], 0, None)
        moved = {name.split(".")[0] for name, p in run.models.named_parameters() if not torch.equal(p, before[name])}
        before.update({name: parameter.clone() for name, parameter in run.models.named_parameters()})
        return moved

    assert changed(0) == {"planner", "head"}
    assert changed(1) == {"transformer"}
    assert changed(2) == {"planner", "head", "transformer"}


def test_a_run_can_start_from_a_trained_pipeline_of_the_same_sizes(tmp_path):
    pipeline = make_run(tmp_path / "first").train()
    trained = MarDiniPipeline.from_pretrained(pipeline)
    run = make_run(tmp_path / "second", make_config(init_from=str(pipeline)))
    for name in ("planner", "transformer"):
        expected = getattr(trained, name).state_dict()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in getattr(run, name).state_dict().items())
    scratch = make_run(tmp_path / "third")
    assert not torch.equal(scratch.planner.patch_embed.weight, run.planner.patch_embed.weight)
    wider = {**make_config().planner, "mlp_dim": 32}
    with pytest.raises(ValueError, match="planner of .* has other sizes.*use the same `preset`"):
        make_run(tmp_path / "fourth", make_config(init_from=str(pipeline), planner=wider))


def test_resuming_with_a_configuration_that_lacks_the_stage_is_refused(tmp_path):
    make_run(tmp_path).train()
    config = make_config()
    other = config.model_copy(update={"stages": config.stages[:1]})
    with pytest.raises(ValueError, match="stands in stage 'joint'.*another `name`"):
        make_run(tmp_path, other).train()


def test_a_gradient_that_is_not_finite_stops_the_run_and_leaves_the_checkpoint(tmp_path):
    config = make_config()
    run = make_run(tmp_path, config)
    run._train_stage(config.stages[0], 0, None)
    whole = list_checkpoints(tmp_path / "checkpoints")
    run.train_data.planner_latents.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="'planner', step 0 is not finite"):
        run._train_stage(config.stages[0], 0, None)
    assert list_checkpoints(tmp_path / "checkpoints") == whole


def test_checkpoints_are_whole_or_not_listed_and_old_ones_go(tmp_path):
    tensors = {"a": torch.ones(2)}
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, tensors, tensors, [{"step": step}], {"global_step": step}, keep=2)
    (tmp_path / ".step-00000004.partial").mkdir()
    (tmp_path / "step-00000005").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    weights, _, optimizers, state = load_checkpoint(tmp_path / "step-00000003")
    assert torch.equal(weights["a"], torch.ones(2)) and optimizers == [{"step": 3}] and state["global_step"] == 3
    (tmp_path / "step-00000003" / "ema.safetensors").unlink()
    with pytest.raises(ValueError, match="lacks.*ema.safetensors.*delete the folder"):
        load_checkpoint(tmp_path / "step-00000003")


def test_losses_are_those_of_the_paper_on_masked_frames_alone(tmp_path):
    run = make_run(tmp_path)
    stage = run.config.stages[2]
    batch = draw_batch(stage, run.train_data, 1000, step_generator(0, "test"))
    torch.nn.init.normal_(run.transformer.proj_out.weight, std=0.1)
    losses = MarDiniTrainingModel(run.planner, run.head, run.transformer, run.scheduler, 0.5)(batch)

    masked = ~batch.reference_mask
    signals = run.planner(batch.planner_latents, batch.reference_mask).planning_signals
    alphas = run.scheduler.alphas_cumprod[batch.timesteps].sqrt()[:, None, None, None, None]
    sigmas = (1 - run.scheduler.alphas_cumprod[batch.timesteps]).sqrt()[:, None, None, None, None]
    noisy = alphas * batch.latents + sigmas * batch.noise
    noisy[batch.reference_mask] = batch.latents[batch.reference_mask]
    velocity = run.transformer(
        noisy, batch.timesteps, signals, batch.reference_mask, planning_signals_mask=batch.planning_signals_mask
    ).sample
    target = alphas * batch.noise - sigmas * batch.latents  # v_t = alpha_t eps - sigma_t z
    diffusion = (velocity - target)[masked].square().mean()
    reconstruction = (run.head(signals) - patchify(batch.planner_latents, 1))[masked].square().mean()
    torch.testing.assert_close(losses["diffusion_loss"], diffusion)
    torch.testing.assert_close(losses["planner_loss"], reconstruction)
    torch.testing.assert_close(losses["loss"], diffusion + 0.5 * reconstruction)


def test_masked_mse_ignores_reference_frames():
    prediction, target = torch.zeros(1, 3, 2), torch.tensor([[[9.0, 9.0], [1.0, 1.0], [2.0, 0.0]]])
    assert masked_mse(prediction, target, torch.tensor([[False, True, True]])) == 1.5


def test_a_step_draws_the_same_whenever_it_is_asked_and_other_steps_draw_otherwise():
    stage, data = make_config().stages[2], make_data()

    def draw(*keys):
        return draw_batch(stage, data, 1000, step_generator(3, *keys))

    first, again, other, other_process = (
        draw("joint", 5, 0),
        draw("joint", 5, 0),
        draw("joint", 6, 0),
        draw("joint", 5, 1),
    )
    assert all(
        torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(vars(first).values(), vars(again).values())
    )
    assert not torch.equal(first.noise, other.noise) and not torch.equal(first.noise, other_process.noise)


def test_masks_follow_the_mixture_of_tasks():
    config = make_config().stages[2]

    def masks(**tasks):
        stage = StageConfig(**{**config.model_dump(), "tasks": tasks, "reference_ratio": (0.25, 0.5)})
        return [draw_reference_mask(stage, step_generator(0, i)) for i in range(20)]

    assert all(mask.tolist() == [[True, False, False, True]] * 2 for mask in masks(random=0, interpolation=1))
    assert {mask[0].tolist().index(False) for mask in masks(random=0, leading=1)} == {1, 2}
    drawn = masks(random=1)
    assert {int(mask[0].sum()) for mask in drawn} == {1, 2}
    assert all(mask[0].sum() == mask[1].sum() for mask in drawn)
    assert any(mask[0].tolist() != mask[1].tolist() for mask in drawn)


def test_timesteps_are_stratified_and_shifted_towards_noise():
    plain = torch.cat([draw_timesteps(10, 1000, 1.0, step_generator(0, i)) for i in range(20)])
    assert all(sorted((plain[i : i + 10] // 100).tolist()) == list(range(10)) for i in range(0, 200, 10))
    shifted = torch.cat([draw_timesteps(10, 1000, 1.5, step_generator(0, i)) for i in range(20)])
    assert shifted.float().mean() > plain.float().mean() + 50 and shifted.max() <= 999


def test_the_learning_rate_warms_up_and_falls_along_a_cosine():
    stage = StageConfig(
        name="s", trains="joint", steps=110, warmup_steps=10, learning_rate=2.0, final_learning_rate=1.0
    )
    factor = learning_rate_factor(stage)
    assert factor(0) == 0.1 and factor(9) == 1.0 and factor(10) == 1.0
    assert factor(60) == pytest.approx(0.75) and factor(110) == pytest.approx(0.5)


def test_the_scheduler_of_the_run_is_the_presets():
    config = make_config(scheduler={"beta_schedule": "linear"})
    assert config.scheduler == {"beta_schedule": "linear"}
    assert MarDiniScheduler(**config.scheduler).config.prediction_type == "v_prediction"


def test_a_batch_moves_all_of_its_tensors():
    batch = draw_batch(make_config().stages[2], make_data(), 1000, step_generator(0)).to(torch.device("meta"))
    assert isinstance(batch, Batch) and all(
        v.device.type == "meta" for v in vars(batch).values() if torch.is_tensor(v)
    )
