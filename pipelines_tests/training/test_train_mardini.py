"""The trainer on three clips of noise: stages, losses, resuming, the exported pipeline."""

import atexit
import copy
import functools
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from diffusers_mardini import AutoencoderPatchBasis, MarDiniPipeline
from diffusers_mardini.models.embeddings import patchify
from pipelines_tests.training.clip_files import noise, write_clip
from training.config.schema import RunConfig, shaping_fields
from training.curriculum import draw_batch, learning_rate_factor
from training.data.batches import Draw
from training.data.buckets import window_request
from training.data.preparation import prepare_data
from training.engine import resuming
from training.engine.checkpoint import list_checkpoints
from training.engine.gradient_steps import GradientSteps
from training.engine.sharding import layout_of
from training.loop import Run, Stopped
from training.losses import MarDiniTrainingModel, masked_mse
from training.monitoring.panel import TIMES
from training.stopping import StopRequest


@functools.cache
def clips_folder() -> Path:
    """Three clips for all tests of a process; manifests and latents lie beside them."""
    folder = Path(tempfile.mkdtemp(prefix="clips-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write_clips(folder / "clips")


def write_clips(folder: Path) -> Path:
    for seed in range(3):
        write_clip(folder / f"{seed}.mp4", noise(12, 32, 32, seed), fps=20)
    return folder


def data_fields(clips: Path, **fields) -> dict:
    """`data` of a configuration, with all that is kept beside the clips; batches are drawn in the loop."""
    return {"train": str(clips), "validation": str(clips), "size": 32, "cache": clips.parent / "latents",
            "manifests": clips.parent / "manifests", "workers": 0, **fields}  # fmt: skip


@functools.cache
def make_vae() -> AutoencoderPatchBasis:
    torch.manual_seed(0)
    return AutoencoderPatchBasis(block_out_channels=(8,) * 4, encoder_blocks=0, decoder_blocks=0).eval()


@functools.cache
def make_data():
    """Windows to train on."""
    folder = Path(tempfile.mkdtemp(prefix="run-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return prepare_data(make_config().for_processes(1), make_vae(), folder, Accelerator(cpu=True)).train


def make_config(**overrides):
    stage = {"num_frames": 4, "strides": {1: 0.5, 2: 0.5}, "batch_size": 2, "learning_rate": 1e-2, "warmup_steps": 1}
    stage["leading_frames"] = [1, 2]
    return RunConfig(
        **{
            "name": "test",
            "data": overrides.get("data") or data_fields(clips_folder()),
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
            "quality_windows": 0,  # `test_quality.py` and `test_samples.py` turn these on
            "sample_every": 0,
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
        }
    )


def make_run(folder: Path, config=None, **arguments) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    config, accelerator = config or make_config(), Accelerator(cpu=True)
    config = config.for_processes(layout_of(accelerator).data_ranks)
    data = prepare_data(
        config, make_vae(), folder, accelerator, resumes=bool(list_checkpoints(folder / "checkpoints"))
    )
    return Run(config, accelerator, make_vae(), data.train, data.validation, folder, **arguments)


def rows(step=0, count=2, first=0, total=None, seed=0, stage="test", attempt=0) -> Draw:
    return Draw(seed, stage, step, first, count, total or count, attempt)


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def explode(run, steps, attempts=(0,)):
    """Makes the loss of these steps infinite, as a batch that explodes would."""
    forward = MarDiniTrainingModel.forward

    def exploding(self, batch):
        losses = forward(self, batch)
        if run.global_step in steps and run.attempt in attempts:
            losses["loss"] = losses["loss"] * float("inf")
        return losses

    return exploding


def test_all_stages_run_and_end_in_a_pipeline_that_loads(tmp_path):
    pipeline_folder = make_run(tmp_path).train()
    log = [r for r in records(tmp_path) if "loss" in r]
    assert [(r["stage"], r["step"]) for r in log] == [
        ("planner", 1), ("planner", 2), ("planner", 3), ("transformer", 1), ("transformer", 2),
        ("joint", 1), ("joint", 2), ("joint", 3),
    ]  # fmt: skip
    assert [r["global_step"] for r in log] == list(range(1, 9)) and log[-1]["windows_seen"] == 16
    assert {"planner_loss", "diffusion_loss"} <= log[-1].keys() and "diffusion_loss" not in log[0]
    stages = make_config().stages
    expected = [
        s.learning_rate * learning_rate_factor(step, s.steps, s.warmup_steps, s.final_learning_rate / s.learning_rate)
        for s in stages
        for step in range(s.steps)
    ]
    assert [line["learning_rate"] for line in log] == pytest.approx(expected) and len(set(expected)) > 1
    assert all(line["loss"] == pytest.approx(line["diffusion_loss"] + 0.5 * line["planner_loss"]) for line in log[5:])
    heldout = [r["heldout"] for r in records(tmp_path) if "heldout" in r]
    assert {"planner", "diffusion/0.95", "diffusion_unplanned/0.95"} <= heldout[-1].keys()
    for part in ("planner", "diffusion"):
        assert {f"{part}/task/interpolation", f"{part}/task/image-to-video", f"{part}/masked/3"} <= heldout[-1].keys()
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
    timeless = [[{k: v for k, v in r.items() if k not in TIMES} for r in records(tmp_path / name)]
                for name in ("through", "resumed")]  # fmt: skip
    assert timeless[0] == timeless[1]


def test_a_stage_changes_what_it_trains_and_nothing_else(tmp_path):
    run = make_run(tmp_path)
    before = {name: parameter.clone() for name, parameter in run.models.named_parameters()}

    def changed(stage):
        with run._load(run.config.stages[stage], 0) as loader:
            run._train_stage(run.config.stages[stage], loader, StopRequest(tmp_path))
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


def test_what_shaped_a_checkpoint_cannot_change_behind_its_back(tmp_path):
    make_run(tmp_path).train(stop_after="transformer")
    config = make_config()

    def edited(stage: int, **fields):
        stages = [s.model_copy(update=fields) if i == stage else s for i, s in enumerate(config.stages)]
        return config.model_copy(update={"stages": stages, "checkpoint_every": 7})

    with pytest.raises(
        ValueError, match="(?s)another configuration.*stages.planner.learning_rate: 0.01 then, 0.5 now"
    ):
        make_run(tmp_path, edited(0, learning_rate=0.5)).train()
    accepted = []
    with pytest.raises(ValueError, match="stages.transformer.batch_size: 2 then, 3 now"):
        make_run(tmp_path, edited(1, batch_size=3)).train(on_accepted=lambda: accepted.append("what is refused"))
    make_run(tmp_path, config).train(stop_after="transformer", on_accepted=lambda: accepted.append("the same again"))
    assert accepted == ["the same again"]  # before that, nothing of the run is replaced
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")][-1] == "step-00000005"
    make_run(tmp_path / "accepted").train(stop_after="transformer")
    accepted = make_run(
        tmp_path / "accepted", edited(0, learning_rate=0.5), allow_change=["stages.planner.learning_rate"]
    )
    accepted.train(stop_after="transformer")
    make_run(tmp_path, edited(2, steps=1)).train()  # a stage that has not begun is still open
    assert records(tmp_path)[-1]["global_step"] == 6


def test_a_run_does_not_go_on_with_another_autoencoder(tmp_path, monkeypatch):
    make_run(tmp_path).train(stop_after="planner")
    other = copy.deepcopy(make_vae())
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    monkeypatch.setattr("pipelines_tests.training.test_train_mardini.make_vae", lambda: other)
    with pytest.raises(ValueError, match="(?s)another configuration.*vae: '[0-9a-f]+' then, '[0-9a-f]+' now"):
        make_run(tmp_path).train()
    make_run(tmp_path, allow_change=["vae"]).train(stop_after="transformer")
    assert records(tmp_path)[-1]["global_step"] == 5


def test_a_key_that_a_checkpoint_is_older_than_counts_as_its_default(tmp_path, monkeypatch):
    def before_crops(config, stages):
        return {key: value for key, value in shaping_fields(config, stages).items() if not key.endswith("off_centre")}

    monkeypatch.setattr(resuming, "shaping_fields", before_crops)
    make_run(tmp_path).train(stop_after="planner")
    monkeypatch.undo()
    config = make_config()
    changed = [config.stages[0].model_copy(update={"off_centre": 0.5}), *config.stages[1:]]
    with pytest.raises(ValueError, match="stages.planner.off_centre: 0.0 then, 0.5 now"):
        make_run(tmp_path, config.model_copy(update={"stages": changed})).train()
    make_run(tmp_path, config).train(stop_after="transformer")
    assert records(tmp_path)[-1]["global_step"] == 5


def test_every_finished_stage_is_a_pipeline_and_another_run_starts_from_it(tmp_path):
    finished = make_run(tmp_path / "first").train(stop_after="transformer")
    assert finished == tmp_path / "first" / "stages" / "transformer" and not (tmp_path / "first" / "pipeline").exists()
    assert MarDiniPipeline.from_pretrained(finished).transformer.config.temporal_attention == "spatiotemporal"
    assert (tmp_path / "first" / "stages" / "planner" / "model_index.json").is_file()
    make_run(tmp_path / "second", make_config(init_from=str(finished))).train(start_at="joint")
    log = [r for r in records(tmp_path / "second") if "loss" in r]
    assert [(r["stage"], r["global_step"]) for r in log] == [("joint", 6), ("joint", 7), ("joint", 8)]


def test_stages_that_cannot_be_started_at_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no stage 'task'; the stages are planner, transformer, joint"):
        make_run(tmp_path).train(stop_after="task")
    with pytest.raises(ValueError, match="'joint' cannot be the first without weights.*init_from"):
        make_run(tmp_path).train(start_at="joint")


def test_a_run_cannot_stop_after_a_stage_that_is_past(tmp_path):
    make_run(tmp_path).train(stop_after="transformer")
    lines = len(records(tmp_path))
    with pytest.raises(
        ValueError, match="is to stop after 'planner', but has reached 'transformer', which comes later"
    ):
        make_run(tmp_path).train(stop_after="planner", on_accepted=lambda: pytest.fail("it began"))
    assert len(records(tmp_path)) == lines


def test_a_step_goes_no_further_than_the_clipped_gradient(tmp_path):
    run = make_run(tmp_path)
    stage, config = run.config.stages[2], run.config.optimizer.model_copy(update={"max_grad_norm": 0.5})
    steps = GradientSteps(run._stage_model(stage), config, stage.learning_rate, run.accelerator)
    steps.optimizers = [torch.optim.SGD(steps.model.parameters(), lr=1.0)]
    for size, expected in ((100.0, 0.5), (1e-5, 1e-5)):
        before = [p.detach().clone() for p in steps.model.parameters()]
        number = sum(p.numel() for p in steps.model.parameters())
        for parameter in steps.model.parameters():
            parameter.grad = torch.full_like(parameter, size / number**0.5)
        norm = steps.grad_norm()
        assert norm.item() == pytest.approx(size, rel=1e-4)
        steps.step(norm)
        moved = torch.stack([(p - b).norm() for p, b in zip(steps.model.parameters(), before)]).norm().item()
        assert moved == pytest.approx(expected, rel=1e-2)


def test_a_request_to_stop_saves_at_the_next_step_and_the_run_goes_on_from_there(tmp_path):
    config = make_config(checkpoint_every=100)
    make_run(tmp_path / "through", config).train()
    run = make_run(tmp_path / "stopped", config)
    (tmp_path / "stopped" / "stop").touch()
    for stops in range(1, 8):
        with pytest.raises(Stopped, match="the file .*stop"):
            make_run(tmp_path / "stopped", config).train()
        assert list_checkpoints(tmp_path / "stopped" / "checkpoints")[-1].name == f"step-0000000{stops}"
    StopRequest(tmp_path / "stopped").done()
    run.train()
    weights = [
        load_file(list_checkpoints(tmp_path / n / "checkpoints")[-1] / "weights.safetensors")
        for n in ("through", "stopped")
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_step_in_parts_learns_what_the_whole_step_does(tmp_path):
    def weights(name, **fields):
        config = make_config()
        stages = [stage.model_copy(update=fields) for stage in config.stages]
        run = make_run(tmp_path / name, config.model_copy(update={"stages": stages}))
        run.train()
        return dict(run.models.named_parameters())

    whole, parts = weights("whole", batch_size=4), weights("parts", batch_size=1, gradient_accumulation=4)
    for name, parameter in whole.items():
        torch.testing.assert_close(
            parts[name], parameter, atol=2e-3, rtol=0
        )  # a step of AdamW is 1e-2 at any gradient
    logs = [[r for r in records(tmp_path / name) if "loss" in r] for name in ("whole", "parts")]
    assert [r["windows_seen"] for r in logs[0]] == [r["windows_seen"] for r in logs[1]]
    assert [r["loss"] for r in logs[0]] == pytest.approx([r["loss"] for r in logs[1]], rel=1e-4)


def randomize(model: torch.nn.Module) -> None:
    """New models end their branches in zeros, so that a planning signal, for one, would change nothing."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)


def test_losses_are_those_of_the_paper_on_masked_frames_alone(tmp_path):
    run = make_run(tmp_path)
    stage = run.config.stages[2]
    batch = draw_batch(stage, window_request(run.config, stage), run.train_data, 1000, rows())
    batch = replace(batch, planning_signals_mask=torch.tensor([True, False]))  # a window without its plan among them
    randomize(run.transformer)
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
    both = replace(batch, planning_signals_mask=torch.tensor([True, True]))
    planned = MarDiniTrainingModel(run.planner, run.head, run.transformer, run.scheduler, 0.5)(both)
    assert not torch.isclose(planned["diffusion_loss"], diffusion, rtol=1e-4)


def test_given_frames_of_some_windows_are_noised_for_both_models(tmp_path):
    run = make_run(tmp_path)
    stage = run.config.stages[2].model_copy(update={"reference_noise": 0.2})
    batch = draw_batch(stage, window_request(run.config, stage), run.train_data, 1000, rows())
    batch = replace(batch, reference_timesteps=torch.tensor([0, 150]))
    randomize(run.transformer)
    losses = MarDiniTrainingModel(run.planner, run.head, run.transformer, run.scheduler, 0.5)(batch)

    masked, scheduler = ~batch.reference_mask, run.scheduler
    latents, low = batch.latents.clone(), batch.planner_latents.clone()
    latents[1] = scheduler.add_noise(latents[1:], batch.noise[1:], torch.tensor([150]))[0]
    low[1] = scheduler.add_noise(low[1:], batch.planner_noise[1:], torch.tensor([150]))[0]
    signals = run.planner(low, batch.reference_mask).planning_signals
    noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    noisy[batch.reference_mask] = latents[batch.reference_mask]
    velocity = run.transformer(
        noisy, batch.timesteps, signals, batch.reference_mask, reference_timestep=torch.tensor([0, 150]),
        planning_signals_mask=batch.planning_signals_mask,
    ).sample  # fmt: skip
    target = scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
    torch.testing.assert_close(losses["diffusion_loss"], (velocity - target)[masked].square().mean())
    clean = patchify(batch.planner_latents, 1)  # what the planner is to reconstruct
    torch.testing.assert_close(losses["planner_loss"], (run.head(signals) - clean)[masked].square().mean())


def test_a_run_does_not_go_on_at_another_precision_in_silence(tmp_path):
    run = make_run(tmp_path, make_config(mixed_precision="auto"))
    run.train(stop_after="planner")
    other = make_run(tmp_path, make_config(mixed_precision="auto"))
    other.accelerator.state._mixed_precision = "bf16"
    try:
        with pytest.raises(ValueError, match="mixed_precision: 'no' then, 'bf16' now"):
            other.train()
    finally:
        other.accelerator.state._mixed_precision = "no"


def test_masked_mse_ignores_reference_frames():
    prediction, target = torch.zeros(1, 3, 2), torch.tensor([[[9.0, 9.0], [1.0, 1.0], [2.0, 0.0]]])
    assert masked_mse(prediction, target, torch.tensor([[False, True, True]])) == 1.5


def test_processes_that_find_different_clips_are_refused(tmp_path, monkeypatch):
    """As one that cannot read a table for a moment would."""
    monkeypatch.setattr("training.data.preparation.gather_object", lambda mine: [*mine, "another"])
    with pytest.raises(ValueError, match="found different clips.*start again"):
        prepare_data(make_config().for_processes(1), make_vae(), tmp_path, Accelerator(cpu=True))
