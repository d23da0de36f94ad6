"""What accelerate's configurations say, and what the trainer makes of it; the runs themselves are in `test_shared_runs.py`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

from diffusers_mardini import AutoencoderPatchBasis, MarDiniPipeline
from diffusers_mardini.video_io import write_video
from pipelines_tests.training.test_train_mardini import make_config
from training.config.schema import OptimizerConfig
from training.engine.ema import AveragedWeights
from training.engine.layout import Layout
from training.engine.optimizers import make_optimizers
from training.engine.sharding import _unsupported, layout_of, make_accelerator, sharding_plugin


ROOT = Path(__file__).resolve().parents[3]
CONFIGS = sorted((ROOT / "training/configs/accelerate").glob("*.yaml"))
KINDS = {
    "single": (DistributedType.NO, 1),
    "cpu2": (DistributedType.MULTI_GPU, 2),
    "ddp": (DistributedType.MULTI_GPU, 8),
    "fsdp2": (DistributedType.FSDP, 8),
    "fsdp2_keep_parameters": (DistributedType.FSDP, 8),
    "fsdp2_hybrid": (DistributedType.FSDP, 16),
    "fsdp2_context": (DistributedType.FSDP, 8),
}


def launcher_arguments(config: Path, *more: str):
    arguments = launch_command_parser().parse_args(
        ["--config_file", str(config), *more, "-m", "training.train_mardini", "c.yaml"]
    )
    return _validate_launch_command(arguments)[0]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_accelerate_configuration_loads_and_says_what_the_launcher_knows(path):
    config = load_config_from_file(str(path))
    assert (config.distributed_type, config.num_processes) == KINDS[path.stem]
    assert path.read_text().startswith("# ") and config.mixed_precision is None  # precision is the run's
    known = vars(launch_command_parser().parse_args(["script.py"]))
    file = yaml.safe_load(path.read_text())
    assert file.get("fsdp_config", {}).keys() <= known.keys()
    assert file.get("parallelism_config", {}).keys() <= known.keys()
    arguments = launcher_arguments(path)
    assert arguments.num_processes == KINDS[path.stem][1] and arguments.use_fsdp == path.stem.startswith("fsdp2")
    assert arguments.multi_gpu == (
        path.stem in ("cpu2", "ddp")
    )  # the launcher starts several processes for this or FSDP only


def test_all_configurations_are_named_in_the_docs():
    text = (ROOT / "docs/training.md").read_text()
    assert KINDS.keys() == {path.stem for path in CONFIGS}
    assert all(f"{path.name}" in text for path in CONFIGS)


@pytest.mark.parametrize("name, reshards", [("fsdp2", True), ("fsdp2_keep_parameters", False)])
def test_what_the_launcher_hands_on_is_what_the_trainer_honours(name, reshards, monkeypatch):
    for key, value in prepare_multi_gpu_env(
        launcher_arguments(ROOT / f"training/configs/accelerate/{name}.yaml")
    ).items():
        if key.startswith(("FSDP", "ACCELERATE_USE")):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is reshards and _unsupported(plugin) == []


@pytest.mark.parametrize(
    "name, more, layout",
    [
        ("fsdp2", "", Layout(1, 8)),
        ("fsdp2_hybrid", "", Layout(2, 8)),
        ("fsdp2_hybrid", "--num_processes 64", Layout(8, 8)),
        ("fsdp2_context", "", Layout(1, 8, 2)),
        (  # of docs/scale.md
            "fsdp2_context",
            "--num_processes 512 --parallelism_config_cp_size 4 --parallelism_config_dp_shard_size 2",
            Layout(64, 8, 4),
        ),
    ],
)
def test_the_layout_is_what_the_launcher_hands_on(name, more, layout, monkeypatch):
    arguments = launcher_arguments(ROOT / f"training/configs/accelerate/{name}.yaml", *more.split())
    for key, value in prepare_multi_gpu_env(arguments).items():
        if key.startswith(("FSDP", "ACCELERATE_USE_FSDP", "PARALLELISM")):
            monkeypatch.setenv(key, value)
    processes = SimpleNamespace(num_processes=arguments.num_processes, state=SimpleNamespace())
    assert layout_of(processes) == layout


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"TP_SIZE": "2"}, "tp_size 2, which must be 1"),
        ({"CP_SIZE": "2"}, "parallelism_config needs `distributed_type: FSDP`"),
        ({"DP_SHARD_SIZE": "8", "FSDP": "true"}, "there are 4 processes"),
    ],
)
def test_a_layout_that_cannot_be_honoured_is_refused(sizes, message, monkeypatch):
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", sizes.pop("FSDP", "false"))
    for name, size in sizes.items():
        monkeypatch.setenv(f"PARALLELISM_CONFIG_{name}", size)
    with pytest.raises(ValueError, match=message):
        layout_of(SimpleNamespace(num_processes=4, state=SimpleNamespace()))


@pytest.mark.parametrize(
    "variable, value, message",
    [
        ("FSDP_VERSION", "1", "fsdp_version: 1; set it to 2"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "activation_checkpointing.*gradient_checkpointing: true"),
        ("FSDP_OFFLOAD_PARAMS", "true", "offload_params"),
        ("FSDP_IGNORED_MODULES", "head", "ignored_modules"),
    ],
)
def test_settings_of_fsdp_that_the_trainer_does_not_honour_are_named(variable, value, message, monkeypatch):
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv(variable, value)
    (problem,) = _unsupported(FullyShardedDataParallelPlugin())
    assert re.search(message, problem)


def test_deepspeed_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="DeepSpeed is not supported; use training/configs/accelerate/fsdp2.yaml"):
        make_accelerator(False)


def test_processes_that_would_each_train_alone_are_refused(monkeypatch):
    Accelerator(cpu=True)  # this process is one, whatever the environment says afterwards
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="started 2 processes, but this one sees 1.*ACCELERATE_USE_CPU=true"):
        make_accelerator(False)


def test_one_process_has_nothing_to_shard(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert sharding_plugin(Accelerator(cpu=True)) is None


def test_the_fused_kernel_of_adamw_steps_as_the_plain_one():
    torch.manual_seed(0)
    models = [torch.nn.Linear(7, 5) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    (fused,) = make_optimizers(models[0], OptimizerConfig(), 1e-2)
    groups = [{**g, "params": list(p)} for g, p in zip(fused.param_groups, ([models[1].weight], [models[1].bias]))]
    plain = torch.optim.AdamW([{**group, "fused": False} for group in groups])
    assert all(group["fused"] for group in fused.param_groups) and not any(g["fused"] for g in plain.param_groups)
    for _ in range(5):
        batch = torch.randn(3, 7)
        for model, optimizer in zip(models, (fused, plain)):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
    for ours, theirs in zip(models[0].parameters(), models[1].parameters()):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_averages_follow_the_weights_as_in_diffusers_and_can_stand_in_for_them():
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    ours, theirs = AveragedWeights(model, 0.9), EMAModel(model.parameters(), decay=0.9, foreach=True)
    for _ in range(15):  # beyond the warm-up's (1 + n) / (10 + n), which reaches 0.6 here
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        ours.update()
        theirs.step(model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(ours.tensors.values(), theirs.shadow_params))
    weights = [parameter.clone() for parameter in model.parameters()]
    with ours.swapped():
        assert all(torch.equal(p, average) for p, average in zip(model.parameters(), theirs.shadow_params))
    assert all(torch.equal(p, weight) for p, weight in zip(model.parameters(), weights))
    assert all(torch.equal(a, b) for a, b in zip(ours.tensors.values(), theirs.shadow_params))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, processes, shared",
    [
        ("cpu2", 2, {"copies": 2, "shards": 1, "context": 1}),
        ("fsdp2", 2, {"copies": 1, "shards": 2, "context": 1}),
        ("fsdp2_context", 4, {"copies": 1, "shards": 4, "context": 2}),
    ],
)
def test_accelerate_launch_starts_processes_on_the_cpu_that_train_together(name, processes, shared, tmp_path):
    """The documented command, with clips and an autoencoder of its own."""
    torch.manual_seed(0)
    for index in range(2):
        frames = torch.randint(0, 255, (12, 32, 32, 3), dtype=torch.uint8).numpy()
        write_video(tmp_path / "clips" / f"{index}.mp4", frames, 10)
    AutoencoderPatchBasis().save_pretrained(tmp_path / "vae")
    config = make_config(
        data={"train": str(tmp_path / "clips"), "size": 32, "cache": str(tmp_path / "cache")},
        vae=str(tmp_path / "vae"),
    )
    (tmp_path / "run.yaml").write_text(config.model_dump_json())  # JSON is YAML
    result = subprocess.run(
        [
            sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / f"training/configs/accelerate/{name}.yaml"),
            "--num_processes", str(processes), "-m", "training.train_mardini", str(tmp_path / "run.yaml"),
        ],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    layout = Layout(**shared)
    assert str(layout) in result.stdout
    folder = tmp_path / "runs" / "test"
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["windows_seen"] == 8 * 2 * layout.data_ranks  # steps, windows
    (start,) = [json.loads(line) for line in (folder / "starts.jsonl").read_text().splitlines()]
    assert (start["processes"], start["layout"]) == (processes, shared)
    assert MarDiniPipeline.from_pretrained(folder / "pipeline").config.planner_downscale == 2
