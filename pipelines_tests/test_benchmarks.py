import json
import sys
import time

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from benchmarks import (
    asymmetry,
    attention_forms,
    caches,
    checkpointing,
    compiled_step,
    denoising_step,
    exact_savings,
    few_steps,
    long_file,
    long_stream,
    long_video_costs,
    memory,
    peers,
    products,
    quantized_models,
    rollout,
    run,
    sampling_speed,
    timing,
    train_adapter,
    train_monitoring,
    train_step,
)
from diffusers_mardini import load_preset
from diffusers_mardini.costs import PeakMemory
from diffusers_mardini.video_io import write_video
from pipelines_tests.tiny_pipeline import clip, tiny_pipeline
from pipelines_tests.training.test_train_mardini_lora import base_folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """The toy pipeline, saved."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def own_precision():
    """accelerate keeps processes and precision for the life of a process: a benchmark in bfloat16 must not leave them to other tests."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_every_pair_of_the_benchmark_is_timed_and_printed(capsys):
    ratios = run.main(["--size", "32", "--repeats", "1"])
    assert len(ratios) == 4 and all(ratio > 0 for ratio in ratios.values())
    assert capsys.readouterr().out.count(" s = ") == 4


@pytest.mark.slow  # 20 seconds: four forms of a step of the tiny preset
def test_every_form_of_a_training_step_is_timed_beside_its_products(capsys):
    seconds = train_step.main(["--batch-size", "1", "--repeats", "1", "--no-compile"])
    assert next(iter(seconds)).startswith("straightforward") and list(seconds)[-1].startswith("limit")
    assert len(seconds) >= 3 and all(value > 0 for value in seconds.values())
    assert capsys.readouterr().out.count("x") >= 2 * len(seconds)


def test_steps_of_adapters_are_timed_beside_one_of_all_weights(capsys):
    base = base_folder()
    seconds = train_adapter.main(["--pipeline", str(base), "--batch-size", "1", "--repeats", "1", "--no-compile"])
    assert next(iter(seconds)) == "all weights" and len(seconds) == 4 and all(value > 0 for value in seconds.values())
    *_, linear, attention, fewest = (line.split()[-1].rstrip("x") for line in capsys.readouterr().out.splitlines())
    assert float(linear) > float(attention) > float(fewest)  # operations, the more the more layers are adapted


def test_the_steps_around_a_checkpoint_are_timed_both_ways(capsys, tmp_path):
    output = tmp_path / "result.json"
    options = ["--preset", "mardini-nano", "--batch-size", "1", "--repeats", "1", "-o", str(output)]
    ratios = checkpointing.main(options)
    assert set(ratios) == {"taken", "after", "rest", "before"} and ratios["before"].median > 1
    assert "of a usual one" in capsys.readouterr().out and json.loads(output.read_text())["bytes"] > 2e7


def test_what_lies_between_steps_is_logging():
    lines = [{"windows_per_second": 5.0, "waiting_seconds": 0.02, "seconds": 2.1} for _ in range(3)]
    assert train_monitoring.shares(lines, 10) == {"step": 2.0, "data": 0.02, "logging": pytest.approx(0.1)}


def test_what_data_and_logging_take_of_a_step_is_told(capsys, own_precision):
    seconds = train_monitoring.main(["--batch-size", "1", "--steps", "4"])
    # A batch that the loader has ready is not waited for at all.
    assert seconds["step"] > seconds["data"] >= 0 and seconds["step"] > seconds["logging"] >= 0
    assert "of a step (allowed: 5%)" in capsys.readouterr().out


def test_sides_take_turns_and_ratios_are_taken_round_by_round():
    turns = []
    sides = {"one": lambda: turns.append("one"), "other": lambda: turns.append("other")}
    seconds = timing.alternate(sides, repeats=2)
    assert turns == ["one", "other"] * 3  # a round to warm up
    assert [len(times) for times in seconds.values()] == [2, 2]
    # The machine was twice as slow in the second round: the ratio does not see it.
    assert timing.ratio([2.0, 4.0], [1.0, 2.0]) == timing.Spread(2.0, 2.0, 2.0)
    assert f"{timing.Spread(2.0, 1.0, 4.0):.1f}" == "2.0 (1.0 to 4.0)"


def test_with_one_thread_a_wait_is_not_counted(monkeypatch):
    sides = {"waits": lambda: time.sleep(0.1)}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert timing.alternate(sides, repeats=1)["waits"][0] < 0.05
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert timing.alternate(sides, repeats=1)["waits"][0] > 0.09
    assert timing.describe_machine()["seconds"] == "of the clock"


def test_products_are_recorded_with_those_of_attention():
    linear = nn.Linear(8, 6)
    heads = torch.randn(2, 3, 5, 4)

    def work():
        linear(torch.randn(7, 8))
        nn.functional.scaled_dot_product_attention(heads, heads[:, :, :2], heads[:, :, :2])

    with torch.no_grad():
        recorded = products.record_products(work)
    assert [(one.left, one.right) for one in recorded] == [
        ((7, 8), (8, 6)), ((2, 3, 5, 4), (2, 3, 4, 2)), ((2, 3, 5, 2), (2, 3, 2, 4))
    ]  # fmt: skip
    assert [one.operations for one in recorded] == [2 * 7 * 8 * 6, 2 * 6 * 5 * 4 * 2, 2 * 6 * 5 * 2 * 4]
    products.products_alone(recorded, "cpu")()


def test_a_denoising_step_stands_beside_its_products(tmp_path):
    output = tmp_path / "step.json"
    denoising_step.main(
        ["--frames", "3", "--size", "32", "--repeats", "1", "--no-compile", "--device", "cpu", "-o", str(output)]
    )
    result = json.loads(output.read_text())
    shares = {row["name"]: row["share"]["median"] for row in result["rows"]}
    assert shares["float32, its products alone"] == 1.0 and shares["float32"] > 0
    assert result["profile_ms"]["float32"]["matrix products"] > 0 and result["operations"]["float32"] > 1e6


def test_peers_are_of_one_size_and_all_denoise_nine_frames():
    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in peer.build().parameters()) for name, peer in peers.PEERS.items()}
    assert len(sizes) == 6 and all(23e6 < size < 27e6 for size in sizes.values()), sizes
    result = peers.main(["--sides", "8", "--repeats", "1", "--device", "cpu", "--peers", "Latte"])
    ours, latte = (row for row in result["rows"] if row["dtype"] == "float32")
    assert ours["evaluations"] == 50 and latte["evaluations"] == 100
    assert ours["operations"] > 0 and ours["seconds_once"] > 0 and latte["seconds_once"] == 0
    assert latte["seconds_per_video"] == pytest.approx(100 * latte["seconds"].median)


def test_every_task_climbs_the_ladder(checkpoint, capsys):
    result = sampling_speed.main(
        [
            "--checkpoint",
            checkpoint,
            "--size",
            "32",
            "--steps",
            "2",
            "--repeats",
            "1",
            "--no-compile",
            "--device",
            "cpu",
        ]
    )
    rows = {(row["task"], row["variant"]): row for row in result["rows"]}
    assert {task for task, _ in rows} == set(sampling_speed.TASKS)
    for task in sampling_speed.TASKS:
        assert rows[task, "+ planner once"]["difference"] == 0.0  # exactly the same plan
        assert rows[task, "plain: float32, planner at every step"]["speedup"].median == 1.0
    assert capsys.readouterr().out.count("times as fast") == len(rows)


def test_a_planner_at_every_step_runs_that_often(checkpoint):
    runs = {}
    for name in ("plain: float32, planner at every step", "+ planner once"):
        variant = sampling_speed.VARIANTS[name]
        pipe = sampling_speed.make_pipeline(checkpoint, variant, "cpu")
        sample = sampling_speed.sampler(pipe, variant, sampling_speed.TASKS["interpolation"], 32, 3)
        counted = []
        pipe.planner.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        sample()
        runs[name] = len(counted)
    assert list(runs.values()) == [4, 1]  # the one before the first step, and one after each


def test_asymmetry_is_counted_for_the_papers_sizes(capsys):
    result = asymmetry.main(["--presets", "mardini-l-t", "--sizes", "512", "--no-timing", "--device", "cpu"])
    counted = {row["variant"]: row["operations"] for row in result["counted"]}
    ours, st, every_step, full, symmetric, denoiser = (counted[name] for name in asymmetry.VARIANTS)
    assert ours < st < symmetric and ours < every_step < denoiser and ours < full < symmetric < denoiser
    assert denoiser > 20 * ours
    assert "6.05 s, 42.6 GB; symmetric: out of memory" in capsys.readouterr().out


def test_counting_by_layers_is_counting_all_of_them():
    preset = load_preset("mardini-tiny")
    by_layers = asymmetry.count_planner(preset["planner"], 4, torch.float32)
    with torch.device("meta"):
        planner = asymmetry.MarDiniPlannerTransformer3DModel(**preset["planner"])
        latents, mask = torch.empty(1, 13, 16, 4, 4), torch.zeros(1, 13, dtype=torch.bool)
    whole = asymmetry._count(planner, torch.float32, lambda m: m(latents, mask, num_masked_frames=12))
    assert (by_layers.operations, by_layers.weights) == (whole.operations, whole.weights)
    assert by_layers.activations == pytest.approx(whole.activations, rel=0.05)


def test_variants_of_asymmetry_are_timed():
    options = ["--presets", "--repeats", "1", "--timed-size", "32", "--device", "cpu", "--dtype", "float32"]
    rows = {row["variant"]: row["seconds"].median for row in asymmetry.main(options)["timed"]}
    assert list(rows) == list(asymmetry.VARIANTS) and all(seconds > 0 for seconds in rows.values())


def test_a_window_of_asymmetry_is_put_together_from_its_calls():
    low, full = ("planner", True), ("planner", False)
    seconds = {low: [1.0, 2.0], full: [10.0, 20.0]}
    seconds |= {("step", (True, None)): [0.1, 0.2], ("step", (True, "spatiotemporal")): [1.0, 1.0]}
    seconds |= {("step", (False, None)): [0.5, 0.5], ("step", (False, "spatiotemporal")): [1.5, 1.5]}
    windows = list(asymmetry.windows_of(seconds).values())
    # 25 steps in each, and one run of the planner or 25; round by round.
    expected = [[3.5, 7], [26, 27], [27.5, 55], [22.5, 32.5], [47.5, 57.5], [262.5, 512.5]]
    assert windows == [pytest.approx(each) for each in expected]


def test_the_memory_of_an_asymmetric_window_is_below_that_of_a_symmetric_one():
    variants = list(asymmetry.VARIANTS.values())
    high = {}
    for name, variant in {"ours": variants[0], "symmetric": variants[4]}.items():
        models = asymmetry.Models("mardini-tiny", 128, torch.device("cpu"), torch.float32)
        with PeakMemory() as memory:
            models.planner_run(variant)()
        high[name] = memory.peak
    assert high["symmetric"] > 3 * high["ours"]


@pytest.mark.slow
def test_memory_of_asymmetry_is_measured_in_processes_of_their_own(capsys):
    rows = asymmetry.main(["--presets", "--no-timing", "--memory", "--timed-size", "128"])["memory"]
    assert [row["variant"] for row in rows] == list(asymmetry.VARIANTS)
    assert all(row["peak_bytes"] > row["imported_bytes"] > 100e6 for row in rows)
    assert capsys.readouterr().out.count("MB above") == len(rows)


def test_long_videos_tell_time_and_memory_of_a_frame(checkpoint):
    row = long_video_costs.measure("extend", 14, 1, 32, checkpoint)
    assert row["frames"] == 14 and row["seconds_per_new_frame"] > 0 and row["bytes_of_frames"] == 14 * 32 * 32 * 3
    row = long_video_costs.measure("slow_motion", 17, 1, 32, checkpoint)
    assert row["frames"] == 17 and row["bytes_above_base"] >= 0


@pytest.mark.slow
def test_long_videos_and_memory_are_measured_in_processes_of_their_own(checkpoint, tmp_path):
    result = long_video_costs.main(
        ["--checkpoint", checkpoint, "--frames", "9", "--size", "32", "-o", str(tmp_path / "a.json")]
    )
    assert [row["method"] for row in result["rows"]] == list(long_video_costs.METHODS)
    result = memory.main(
        ["--checkpoint", checkpoint, "--frames", "4", "--size", "32", "--ways", "float32", "--presets"]
    )
    # So small a model may fit into what the imports once held.
    assert [row["way"] for row in result["run"]] == ["float32"] and result["run"][0]["bytes_above_imports"] >= 0
    assert result["counted"] == []


def test_memory_of_the_modes_is_counted_in_order():
    counts = memory.count_modes("mardini-s-t", 256, 16)
    offload, group = counts["model offload"], counts["group offload, one block"]
    assert group < offload < counts["all on the device, VAE frame by frame"] < counts["all on the device"]
    assert counts["layerwise casting to float8"] < counts["all on the device, VAE frame by frame"]
    assert offload > 2 * 1.3e9  # the planner alone, in bf16


def test_solvers_are_scored_beside_many_steps_of_ddim(checkpoint, tmp_path):
    generator = torch.Generator().manual_seed(0)
    clip = (torch.rand(24, 32, 32, 3, generator=generator) * 255).to(torch.uint8).numpy()
    write_video(tmp_path / "clips" / "noise.mp4", clip, 25)
    result = few_steps.main(
        [
            checkpoint,
            str(tmp_path / "clips"),
            "--size",
            "32",
            "--steps",
            "2",
            "4",
            "--reference-steps",
            "6",
            "--device",
            "cpu",
        ]
    )
    rows = {(row["solver"], row["steps"]): row for row in result["rows"]}
    assert len(rows) == 1 + 2 * (len(few_steps.SOLVERS) - 1)  # Heun's cannot start at pure noise
    assert rows["reference", 6]["to_reference"] is None
    assert rows["DDIM (ours)", 4]["to_reference"] > rows["DDIM (ours)", 2]["to_reference"]
    assert rows["UniPC 2", 4]["evaluations"] == 4 and ("Heun", 4) not in rows
    assert result["fewest_steps"]["DDIM (ours)"] == 4


def test_solvers_are_scored_in_extensions_of_several_windows(checkpoint, tmp_path):
    generator = torch.Generator().manual_seed(0)
    clip = (torch.rand(24, 32, 32, 3, generator=generator) * 255).to(torch.uint8).numpy()
    write_video(tmp_path / "clips" / "noise.mp4", clip, 25)
    command = [checkpoint, str(tmp_path / "clips"), "--size", "32", "--steps", "2", "4", "--reference-steps", "6"]
    command += ["--task", "extension", "--num-given", "2", "--num-frames", "12", "--device", "cpu", "--solvers"]
    rows = few_steps.main([*command, "DDIM (ours)", "UniPC 2"])["rows"]
    near = {(row["solver"], row["steps"]): row["to_reference"] for row in rows}
    assert len(near) == 5 and near["DDIM (ours)", 2] < near["DDIM (ours)", 4] < 100


def test_fewest_steps_stay_near_from_there_on():
    rows = [
        {"solver": "a", "steps": steps, "to_reference": near}
        for steps, near in ((2, 40.0), (4, 20.0), (8, 30.0), (16, float("nan")), (32, 35.0), (10, 31.0))
    ]
    assert few_steps.fewest_steps(rows, "a", 30.0) == 32
    assert few_steps.fewest_steps([row for row in rows if row["steps"] != 16], "a", 30.0) == 8
    assert few_steps.fewest_steps(rows, "a", 50.0) is None


def test_solvers_take_the_checkpoints_process():
    config = tiny_pipeline().scheduler.config
    for name, solver in {**few_steps.SOLVERS, **few_steps.SETTINGS}.items():
        scheduler = solver.build(config)
        assert scheduler.config.prediction_type == "v_prediction", name
        assert scheduler.config.beta_schedule == config.beta_schedule, name
        for key, value in solver.settings.items():
            assert scheduler.config[key] == value, name
    assert few_steps.SOLVERS["DPM-Solver++ 2, midpoint"].build(config).config.rescale_betas_zero_snr


def test_every_cache_is_timed_and_scored_beside_none(capsys):
    pipe = tiny_pipeline()
    given, steps = [0, 3], 10
    mag_ratios = caches.calibrate(pipe, clip(4, 1, seed=1), given, steps)
    assert len(mag_ratios) == steps and mag_ratios[0] == 1.0 and capsys.readouterr().out == ""
    rows = caches.measure(pipe, clip(4, 1), given, steps, mag_ratios, repeats=1)
    assert [row["cache"] for row in rows] == list(caches.configurations(pipe, steps, mag_ratios))
    assert rows[0]["speed"] == 1.0 and rows[0]["psnr_to_plain"] is None
    changed = {row["cache"]: row["psnr_to_plain"] for row in rows if row["psnr_to_plain"] is not None}
    assert min(changed.values()) > 0 and {"FasterCache", "TaylorSeer, interval 2"} <= changed.keys()
    assert all(row["seconds"] > 0 for row in rows)
    assert pipe.transformer._cache_config is None
    assert capsys.readouterr().out.count("|\n") == len(rows) + 2


def test_the_harm_of_rounding_is_shared_out_and_undone():
    pipe = tiny_pipeline()
    before = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}
    rows = {row["layers"]: row for row in quantized_models.harm(pipe, clip(4, 1), [0, 3], bits=4)}
    assert {"patch_embed", "proj_out", "blocks.attn", "blocks.ff"} <= rows.keys()
    assert sum(row["of_weights"] for row in rows.values()) == pytest.approx(1)
    assert sum(row["of_error"] for row in rows.values()) == pytest.approx(1)
    assert all(row["of_error"] > 0 for row in rows.values())
    for name, tensor in pipe.transformer.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_forms_of_attention_are_timed_in_steps(tmp_path):
    output = tmp_path / "forms.json"
    attention_forms.main(["--sizes", "64", "--repeats", "1", "-o", str(output)])
    rows = json.loads(output.read_text())["rows"]
    assert [(row["dtype"], row["keys"]) for row in rows] == [("float32", 72), ("bfloat16", 72)]
    assert all(row["seconds"][form]["median"] > 0 for row in rows for form in ("kernel", "products", "chosen"))


def test_every_step_of_a_rollout_is_timed_with_the_share_of_its_parts(checkpoint):
    result = rollout.main(
        ["--checkpoint", checkpoint, "--size", "32", "--steps", "1", "2", "--repeats", "1", "--device", "cpu"]
    )
    methods = [(row["steps"], row["method"]) for row in result["rows"]]
    assert {(steps, method) for steps in (1, 2) for method in ("rollout", "extend")} == set(methods)
    for row in result["rows"]:
        assert sum(row["shares"].values()) == pytest.approx(1) and row["frames_a_second"].median > 0


@pytest.mark.parametrize("method, frames", [("slow_motion", 9), ("retime", 9), ("extend", 9)])
def test_a_stream_is_measured_to_its_end(checkpoint, method, frames):
    row = long_stream.measure(method, frames, steps=1, size=32, checkpoint=checkpoint)
    assert abs(row["frames"] - frames) <= 1 and row["seconds"] > 0


def test_a_watched_run_is_killed_when_asked_and_its_memory_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(long_file, "INTERVAL", 0.05)
    output = tmp_path / "result.mp4"
    script = (
        "import pathlib, sys, time\nfolder = pathlib.Path(sys.argv[1] + '.parts')\nfolder.mkdir(exist_ok=True)\n"
        "held = []\nfor i in range(int(sys.argv[2])):\n    held.append(bytearray(3_000_000))\n    time.sleep(0.1)\n"
        "    (folder / f'{i:05}.json').touch()\n"
    )
    command = [sys.executable, "-c", script, str(output)]
    killed = long_file.watch([*command, "1000"], output, lambda parts: parts >= 3)
    through = long_file.watch([*command, "5"], output, lambda parts: False)
    assert killed.code == -9 and 3 <= killed.readings[-1].parts < 1000 and through.code == 0
    assert killed.peak_bytes > 8_000_000 and long_file.slope(killed) > 0
    long_file.draw_memory(tmp_path / "memory.png", [killed, through], 0)
    assert (tmp_path / "memory.png").stat().st_size > 1000


def test_the_long_file_repeats_clips(tmp_path):
    frames = (torch.rand(5, 40, 48, 3) * 255).to(torch.uint8).numpy()
    write_video(tmp_path / "clips" / "a.mp4", frames, 10)
    long_file.write_repeated(tmp_path / "clips", tmp_path / "long.mp4", 13, 5, 32)
    assert long_file.count_frames(tmp_path / "long.mp4") == 13
    with pytest.raises(ValueError, match=r"holds no \.mp4 to repeat"):
        long_file.write_repeated(tmp_path / "nowhere", tmp_path / "none.mp4", 13, 5, 32)


@pytest.mark.slow  # 20 seconds: training steps of the tiny preset in both forms
def test_exact_savings_are_timed_beside_the_forms_before(capsys):
    rows = exact_savings.main(["--batch-size", "1", "--repeats", "1", "--clips", "2"])
    assert [row["name"].partition(",")[0] for row in rows][-1] == "drawing a batch: latents in memory"
    assert all(row["times as fast"].median > 0 for row in rows)
    assert capsys.readouterr().out.count("times as fast") == len(rows) >= 6


def test_a_step_is_timed_in_every_form_of_compile(tmp_path):
    arguments = ["--preset", "mardini-nano", "--batch-size", "1", "--repeats", "1", "-o", str(tmp_path / "rows.json")]
    with torch.compiler.set_stance("force_eager"):  # what is compiled runs as it is
        rows = compiled_step.main(arguments)
    assert [row["form"] for row in rows] == ["eager", "blocks compiled", "the whole step compiled"]
    assert rows[0]["times as fast as eager"].median == 1 and all(row["seconds"].median > 0 for row in rows)
    assert len(json.loads((tmp_path / "rows.json").read_text())["rows"]) == 3
