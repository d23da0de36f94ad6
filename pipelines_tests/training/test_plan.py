"""What `training.plan` counts, against numbers checked by hand, and what it refuses."""

import json
import re

import numpy as np
import pytest
import torch

from diffusers_mardini import AutoencoderPatchBasis
from diffusers_mardini.video_io import write_video
from pipelines_tests.allocations import most_allocated
from training.config.layers import load_config
from training.config.schema import RunConfig
from training.costs import (
    Shape,
    _by_layers,
    _count_bytes,
    _count_operations,
    count_activations,
    count_memory,
    count_operations,
    count_parameters,
    count_tokens,
    masked_frames,
)
from training.data.buckets import assign, window_request
from training.data.census import StageCensus, open_clips, read_clips
from training.engine.feasibility import find_notes, find_problems
from training.engine.layout import Layout
from training.plan import main, make_plan
from training.plan_text import render
from training.train_mardini import train


PLANNER = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "mlp_dim": 64}
TRANSFORMER = {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 8, "mlp_dim": 32, "planning_dim": 32}
STAGE = {
    "name": "s",
    "trains": "joint",
    "steps": 10,
    "num_frames": 4,
    "strides": {1: 1},
    "batch_size": 2,
    "warmup_steps": 1,
}


def make_config(stage=None, **overrides) -> RunConfig:
    values = {"name": "test", "data": {"train": "nowhere", "size": 64}, "vae": "vae", "planner": PLANNER,
              "transformer": TRANSFORMER, "mixed_precision": "no", "stages": [{**STAGE, **(stage or {})}]}  # fmt: skip
    return RunConfig(**{**values, **overrides})


def write_config(tmp_path, config: RunConfig) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(config.model_dump_json(exclude_none=True))  # JSON is YAML
    return str(path)


def make_clips(folder):
    folder.mkdir()
    moving = np.random.default_rng(0).integers(0, 255, (12, 16, 16, 3), dtype=np.uint8)
    write_video(folder / "long.mp4", moving, fps=10)
    write_video(folder / "short.mp4", moving[:3], fps=10)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


# SPEC 4: million clips seen, frames, pixels. SPEC 3: batches, from which steps = clips / batch.
FIGURE_4 = {
    "initial-planner": (200, 4, 256, 195_313),
    "initial-transformer-1": (20, 4, 256, 19_532),
    "initial-transformer-2": (80, 4, 256, 78_125),
    "initial-transformer-3": (40, 9, 256, 39_063),
    "joint-model": (75, 9, 256, 73_243),
    "joint-task-512-st": (40, 9, 512, 55_556),
    "joint-task-512-t": (40, 17, 512, 104_167),
    "joint-task-768-t": (20, 17, 768, 113_637),
    "joint-task-1024-t": (5, 17, 1024, 52_084),
}
# Million clips, and 1e12 tokens of the planner and of the transformer in all of them, by hand: a frame of P pixels has P/32 (P/32 + 1) tokens
# for the planner and P/16 (P/16 + 1) for the transformer, a stage sees clips x frames of them.
#   planner      200 x 288 + 75 x 648 + 40 x 2448 = 204,120 M; T adds 40 x 4624 + 20 x 10,200 + 5 x 17,952 = 478,720 M
#   transformer  (20 + 80) x 1088 + (40 + 75) x 2448 + 40 x 9504 = 770,480 M; T adds 40 x 17,952 + 20 x 39,984 + 5 x 70,720 = 1,871,360 M
TOTALS = {"st": (455, 0.204_12, 0.770_48), "t": (520, 0.682_84, 2.641_84)}


@pytest.mark.parametrize("name", ["mardini_s_st", "mardini_l_st", "mardini_s_t", "mardini_l_t"])
def test_clips_steps_and_tokens_are_those_of_figure_4(name):
    config = load_config(f"training/configs/{name}.yaml")
    kind = name.rpartition("_")[2]
    stages = config.for_processes(16).stages
    expected = list(FIGURE_4.items())[: 6 if kind == "st" else 9]
    assert [
        (given.name, given.clips, stage.num_frames, config.size_of(stage)[0], stage.steps)
        for given, stage in zip(config.stages, stages)
    ] == [(stage, 1_000_000 * million, *shape) for stage, (million, *shape) in expected]
    tokens = {"planner": 0, "transformer": 0}
    for stage in config.stages:
        for part, count in count_tokens(config, stage).items():
            tokens[part] += stage.clips * count
    clips, planner, transformer = TOTALS[kind]
    assert sum(stage.clips for stage in config.stages) == clips * 1_000_000
    assert tokens["planner"] == pytest.approx(planner * 1e12, rel=1e-12)
    assert tokens["transformer"] == pytest.approx(transformer * 1e12, rel=1e-12)
    assert not find_problems(config, with_data=False)


@pytest.mark.parametrize("name, planner", [("mardini_s_st", 1.3e9), ("mardini_l_t", 3.1e9)])
def test_parameters_are_those_of_table_1(name, planner):
    parameters = count_parameters(load_config(f"training/configs/{name}.yaml"))
    assert parameters["planner"] == pytest.approx(planner, rel=0.05)
    assert parameters["transformer"] == pytest.approx(288e6, rel=0.05)


def test_tokens_are_rows_of_patches_each_closed_by_next():
    stages = load_config("training/configs/mardini_s_t.yaml").stages
    config = load_config("training/configs/mardini_s_t.yaml")
    tokens = [tuple(count_tokens(config, stage).values()) for stage in stages]
    assert tokens == [
        (4 * 8 * 9, 0),  # 256 / 8 / 4 = 8 rows of 8 patches and [NEXT]
        (0, 4 * 16 * 17),  # 256 / 8 / 2 = 16
        (0, 4 * 16 * 17),
        (0, 9 * 16 * 17),
        (9 * 8 * 9, 9 * 16 * 17),
        (9 * 16 * 17, 9 * 32 * 33),
        (17 * 16 * 17, 17 * 32 * 33),
        (17 * 24 * 25, 17 * 48 * 49),
        (17 * 32 * 33, 17 * 64 * 65),
    ]


def test_masked_frames_follow_the_ratios_and_the_tasks():
    stage = make_config({"num_frames": 9, "reference_ratio": [0.35, 1.0]}).stages[0]
    assert masked_frames(stage) == (9 - (3 + 8) / 2, 6)  # 3 to 8 kept: at least one is always masked
    tasks = {"random": 0, "interpolation": 3, "leading": 1}
    stage = make_config({"num_frames": 9, "tasks": tasks, "leading_frames": [1, 3]}).stages[0]
    assert masked_frames(stage) == (7, 8)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_many_blocks_cost_what_one_and_two_blocks_foretell(checkpointing):
    config = make_config(planner={**PLANNER, "num_layers": 4}, transformer={**TRANSFORMER, "num_layers": 3})
    stage = config.stages[0]
    shape = Shape.of(config, stage, 2, checkpointing)
    assert _by_layers(shape, lambda *layers: _count_operations(shape, *layers)) == _count_operations(shape, 4, 3)
    shape = Shape.of(config, stage, masked_frames(stage)[1], checkpointing)
    peak = _count_bytes(shape, 4, 3, backward=True)
    assert peak <= count_activations(config, stage, checkpointing) <= 1.3 * peak


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_of_a_step_are_what_a_cpu_allocates(checkpointing):
    """With fused attention, which a CPU trains by where it is asked to; gradients of weights are let go at once."""
    config = make_config({"size": 128, "num_frames": 5})
    shape = Shape.of(config, config.stages[0], masked_frames(config.stages[0])[1], checkpointing)
    torch.manual_seed(0)
    model, batch = shape.training_model(device="cpu"), shape.batch_of("cpu", torch.float32)
    for part in (model.planner, model.transformer):
        part.set_attention_backend("native")
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    allocated = most_allocated(lambda: model(batch)["loss"].backward())
    assert count_activations(config, config.stages[0], checkpointing) == pytest.approx(allocated, rel=0.15)


def test_operations_are_about_six_per_parameter_and_token():
    wide = {"num_layers": 2, "num_attention_heads": 8, "attention_head_dim": 64, "mlp_dim": 2048}
    config = make_config({"trains": "planner", "reference_ratio": [0, 0.25]}, planner=wide)  # 3 of 4 frames masked
    tokens = 2 * count_tokens(config, config.stages[0])["planner"]
    rule = 6 * count_parameters(config)["planner"] * tokens
    assert count_operations(config, config.stages[0]) == pytest.approx(rule, rel=0.15)


def test_recomputing_costs_operations_and_saves_activations():
    plain, recomputing = (make_config(gradient_checkpointing=switch) for switch in (False, True))
    stage = plain.stages[0]
    assert 1.2 < count_operations(recomputing, stage) / count_operations(plain, stage) < 1.5
    assert count_activations(plain, stage, True) < 0.7 * count_activations(plain, stage, False)


def test_accumulated_parts_make_a_step_larger_and_not_its_memory():
    (one,), (three,) = (
        make_plan(make_config({"gradient_accumulation": parts}), Layout(copies=2), with_data=False).stages
        for parts in (1, 3)
    )
    assert (one.batch, one.clips) == (4, 40) and (three.batch, three.clips) == (12, 120)
    assert three.operations_per_step == pytest.approx(3 * one.operations_per_step)
    assert three.largest.memory == one.largest.memory


def test_memory_by_kind_by_hand():
    config = make_config({"trains": "transformer"}, mixed_precision="bf16")
    stage, parameters = config.stages[0], count_parameters(config)
    everything, learned = sum(parameters.values()), parameters["transformer"]
    single = count_memory(config, stage, Layout(), False)
    assert (single.weights, single.ema) == (4 * everything, 4 * everything)
    assert (single.gradients, single.optimizer, single.low_precision_weights) == (
        4 * learned,
        8 * learned,
        2 * learned,
    )
    assert single.total == 8 * everything + 14 * learned + single.activations
    assert count_memory(config, stage, Layout(copies=4), False).gradients == 8 * learned
    sharded = count_memory(config, stage, Layout(shards=4), False)
    assert (sharded.weights, sharded.optimizer) == (everything, 2 * learned)
    assert sharded.activations == single.activations
    in_parts = stage.model_copy(update={"gradient_accumulation": 2})
    assert (
        count_memory(config, in_parts, Layout(shards=4), False).gradients == 5 * learned
    )  # a shard and the whole sum
    by_muon = make_config({"trains": "transformer"}, optimizer={"name": "muon"})
    assert 4 * learned < count_memory(by_muon, stage, Layout(), False).optimizer < 6 * learned
    hybrid = count_memory(config, stage, Layout(copies=8, shards=4, context=2), False)
    assert hybrid.activations == sharded.activations // 2
    assert (hybrid.weights, hybrid.gradients, hybrid.optimizer) == (
        sharded.weights, sharded.gradients, sharded.optimizer
    )  # fmt: skip


@pytest.mark.parametrize("layout", [Layout(), Layout(copies=4), Layout(shards=4), Layout(copies=2, shards=2)])
def test_a_process_copies_its_share_of_a_checkpoint(layout):
    config = make_config(optimizer={"name": "adamw"})
    plan = make_plan(config, layout, with_data=False)
    learned = sum(plan.parameters.values())
    assert plan.checkpoint_copies == pytest.approx(
        16 * learned / layout.processes, rel=0.01
    )  # weights, average, moments
    assert "copies of a checkpoint while it is written, GiB of the host's memory: 0.00" in render(plan, "title")


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"stage": {"size": 100}}, "'s': 100x100 pixels do not divide.*multiples of 16, the nearest are 96x96"),
        ({"stage": {"size": [64, 72]}}, "64x72 pixels.*nearest are 64x(64|80)"),
        ({"stage": {"reference_ratio": [0.9, 1.0]}}, "keeps all of 4 frames.*first number to 0.75 or less"),
        (
            {"stage": {"num_frames": 2, "leading_frames": [1, 1], "tasks": {"interpolation": 1}}},
            "interpolation keeps.*raise `num_frames` to 3",
        ),
        ({"transformer": {**TRANSFORMER, "planning_dim": 64}}, "planning_dim is 64, but.*hidden size is 32; set `transformer.planning_dim` to 32"),
        ({"planner": {"num_layer": 1}}, "cannot be built: .*num_layer"),
        ({"preset": "mardini-xl"}, "cannot be built: there is no preset 'mardini-xl'"),
        ({}, "no source of clips at nowhere; set `data.train`"),
        ({"data": {"train": "no-{0..1}.tar"}}, "no source of clips at no-{0..1}.tar"),
        ({"stage": {"buckets": [[64, 64], [64, 72]]}}, "64x72 pixels do not divide"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_told_with_the_fix(overrides, message):
    with pytest.raises(AssertionError, match=message):
        assert not find_problems(make_config(**overrides)), "\n".join(
            map(str, find_problems(make_config(**overrides)))
        )


def test_train_refuses_before_it_loads_anything(tmp_path):
    with pytest.raises(ValueError, match="(?s)test cannot be trained:.*100x100 pixels.*no source of clips"):
        train(make_config({"size": 100}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_notes_tell_of_what_works_and_may_not_be_meant():
    long, warm = find_notes(make_config({"num_frames": 17, "warmup_steps": 11}))
    assert "17 frames; preset mardini-tiny is meant for 9" in long and "never reaches the peak" in warm
    (pixels,) = find_notes(make_config(data={"train": "nowhere", "from_pixels": True}))
    assert "autoencoder costs in every step is not counted" in pixels


@pytest.mark.parametrize(
    "gpu_memory, overrides, fix",
    [
        (0.0001, {}, "shard the models"),
        (
            0.03,
            {"stage": {"batch_size": 256}},
            "set `batch_size` to [0-9]+ or less .* and `gradient_checkpointing: true`",
        ),
    ],
)
def test_what_does_not_fit_is_told_with_the_fix(gpu_memory, overrides, fix):
    plan = make_plan(make_config(**overrides), gpu_memory=gpu_memory, with_data=False)
    (problem,) = plan.problems
    with pytest.raises(AssertionError, match=f"on each device, which has {gpu_memory}; .*{fix}"):
        raise AssertionError(problem.text)


def test_checkpointing_is_the_first_fix_where_it_is_enough():
    plan = make_plan(make_config(), gpu_memory=1000, with_data=False)
    largest = plan.stages[0].largest
    between = (largest.memory.total + largest.memory_other.total) / 2 / 2**30
    (problem,) = make_plan(make_config(), gpu_memory=between, with_data=False).problems
    assert problem.text.endswith("set `gradient_checkpointing: true`")
    assert make_plan(make_config(gradient_checkpointing=True), gpu_memory=between, with_data=False).problems == []


def data_in(folder, **fields) -> dict:
    return {"train": str(folder / "clips"), "size": 64, "manifests": folder / "manifests", **fields}


def test_the_census_names_every_clip_that_a_stage_leaves_out(tmp_path):
    make_clips(tmp_path / "clips")

    def census(**stage):
        config = make_config(stage, data=data_in(tmp_path))
        sampling = window_request(config, config.stages[0])
        return StageCensus.of(
            assign(read_clips(config, open_clips(config, config.data.train)).entries, sampling), batch=2
        )

    by_stride = census()
    assert (by_stride.clips, by_stride.windows) == (1, {"stride 1": 9})  # 12 - 3 windows
    assert by_stride.left_out["short.mp4"] == "has 3 frames; 4 at stride 1 span 4"
    assert "cannot be decoded as a video" in by_stride.left_out["broken.mp4"]
    (bucket,) = by_stride.buckets
    assert (bucket.height, bucket.width, bucket.frames, bucket.enlarged, bucket.share) == (64, 64, 4, 1, 1.0)
    # Steps of 2.5 frames: 0, 2, 5 and 7 (halves round down), from starts 0 to 4 of 12.
    assert census(fps=4, strides=None).windows == {"4 frames per second": 5}
    assert "frames would be repeated" in census(fps=20, strides=None).left_out["long.mp4"]


def test_buckets_are_counted_one_by_one_and_mixed_by_their_clips(tmp_path):
    square, wide = ({"size": size, "num_frames": 4} for size in ([64, 64], [64, 128]))
    (small,), (large,) = (make_plan(make_config(stage), with_data=False).stages for stage in (square, wide))
    buckets = {"buckets": [[64, 64], [64, 128]]}
    plan = make_plan(make_config(buckets, data=data_in(tmp_path)), with_data=False)
    (mixed,) = plan.stages
    assert mixed.operations_per_step == pytest.approx((small.operations_per_step + large.operations_per_step) / 2)
    assert mixed.largest == mixed.buckets[1] and mixed.largest.memory == large.largest.memory
    assert [bucket.tokens for bucket in mixed.buckets] == [small.largest.tokens, large.largest.tokens]
    text = render(plan, "title")
    assert "2 buckets" in text and text.count("50.0% of it") == 2 and "64x128" in text
    frames = np.random.default_rng(0).integers(0, 255, (12, 32, 64, 3), dtype=np.uint8)
    for index in range(6):  # five wide clips and a square one, in batches of two
        write_video(tmp_path / f"clips/{index}.mp4", frames if index else frames[:, :, :32], fps=10)
    (mixed,) = make_plan(make_config(buckets, data=data_in(tmp_path))).stages
    assert [(bucket.clips, bucket.share) for bucket in mixed.census.buckets] == [(1, 0.25), (5, 0.75)]
    assert mixed.operations_per_step == pytest.approx(
        0.25 * small.operations_per_step + 0.75 * large.operations_per_step
    )


def test_exit_codes_and_what_is_printed(tmp_path, capsys):
    make_clips(tmp_path / "clips")
    AutoencoderPatchBasis(block_out_channels=(8,) * 4).save_pretrained(tmp_path / "vae")
    path = write_config(tmp_path, make_config(data=data_in(tmp_path), vae=str(tmp_path / "vae")))
    numbers = tmp_path / "plan.json"
    assert main([path, "--flops-per-second", "1e12", "--json", str(numbers)]) == 0
    text = capsys.readouterr().out
    assert "nothing stands against it" in text and "left out: 2" in text and "broken.mp4: " in text
    (stage,) = json.loads(numbers.read_text())["stages"]
    assert (
        stage["clips"] == 20
        and stage["memory_total"] > 0
        and stage["seconds_per_step"] == pytest.approx(stage["operations_per_step"] / 1e12)
    )
    assert main([path, "stages.s.num_frames=13", "stages.s.warmup_steps=0"]) == 1
    assert (
        "problem: stage 's': no clip has windows of its frames at stride 1; lower `num_frames`"
        in capsys.readouterr().out
    )
    assert main([path, "stages.t.steps=1"]) == 1
    assert "problem: override stages.t.steps=1: there is no stage 't'" in capsys.readouterr().out
    assert main([path, "data.train=nowhere"]) == 1 and "no source of clips at nowhere" in capsys.readouterr().out
    assert main([path, "data.train=nowhere", "--no-data"]) == 0
    assert main([path, "--processes", "3", "--no-data", "stages.s.global_batch=4"]) == 0
    text = capsys.readouterr().out
    assert "4 windows do not divide by 3" in text and "33% of the time; 2 processes would be as fast" in text


def test_a_probe_runs_real_steps(tmp_path):
    torch.manual_seed(0)
    (stage,) = make_plan(make_config({"trains": "transformer"}), probe_steps=1, with_data=False).stages
    assert stage.seconds_per_step > 0 and stage.hours == pytest.approx(stage.seconds_per_step * 10 / 3600)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"planner": {"num_layers": 0}}, "`planner.num_layers` is 0; give a whole number of at least 1"),
        ({"planner": {"patch_size": 0}}, "`planner.patch_size` is 0"),
        ({"transformer": {"num_attention_heads": -1}}, "`transformer.num_attention_heads` is -1"),
        ({"transformer": {"mlp_dim": 1.5}}, "`transformer.mlp_dim` is 1.5"),
        ({"scheduler": {"foo": 1}}, "the scheduler cannot be made: .*foo.*; check `scheduler`"),
        ({"scheduler": {"num_train_timesteps": 0}}, "the scheduler cannot be made"),
        ({"scheduler": {"prediction_type": "epsilon"}}, "the scheduler cannot be made: .*epsilon"),
    ],
)
def test_numbers_that_no_model_and_no_scheduler_can_have_are_problems(overrides, said):
    given = make_config().model_dump(exclude_unset=True)
    merged = {name: {**(given.get(name) or {}), **values} for name, values in overrides.items()}
    problems = find_problems(make_config(**merged), with_data=False)
    assert any(re.search(said, problem.text) for problem in problems), problems
