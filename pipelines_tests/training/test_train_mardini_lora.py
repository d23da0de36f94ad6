"""Adapters of a tiny pipeline: what is trained and what is not, exactness, and that the result is what `load_lora_weights` takes."""

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors import safe_open
from safetensors.torch import load_file

from diffusers_mardini import MarDiniPipeline
from pipelines_tests.training.test_interruptions import ROOT, run_with_kills
from pipelines_tests.training.test_shared_runs import run as run_shared
from pipelines_tests.training.test_train_mardini import clips_folder, data_fields, make_config, make_run, records
from training import train_mardini, train_mardini_lora
from training.config.schema import AdapterConfig, RunConfig
from training.costs import count_memory, count_operations, count_parameters
from training.engine.adapter import TARGETS, add_adapter, frozen_digests, matched_layers, refuse_shards, summary
from training.engine.checkpoint import list_checkpoints, load_checkpoint
from training.engine.feasibility import find_problems
from training.engine.layout import Layout
from training.engine.models import make_models
from training.engine.optimizers import learned
from training.engine.sharding import make_accelerator
from training.loop import Run, Stopped
from training.monitoring.panel import TIMES
from training.plan import main as plan_main


LORA = {"targets": "both-attention", "rank": 2}
CPU = torch.device("cpu")


@functools.cache
def base_folder() -> Path:
    """A pipeline to adapt, for all tests of a process. Zero weights of a new model would hide what an adapter does."""
    folder = Path(tempfile.mkdtemp(prefix="base-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    run = make_run(folder / "run")
    torch.manual_seed(1)
    with torch.no_grad():
        for _name, average in run.ema.tensors.items():
            if not average.any():
                average.normal_(std=0.1)
    return run.export(folder / "base")


def make_adapter_config(base: Path | None = None, lora: dict | None = None, stage: dict | None = None, **overrides):
    """The tiny run without its first stage, on the pipeline of `base_folder`."""
    plain = make_config(**overrides).model_dump()
    changes = {"temporal_attention": "temporal", "planner_loss_weight": 0.0, **(stage or {})}
    fields = {
        "init_from": str(base or base_folder()),
        "lora": {**LORA, **(lora or {})},
        "planner": {},
        "transformer": {},
    }
    stages = [{**each, **changes} for each in plain["stages"] if each["trains"] != "planner"]
    return RunConfig.model_validate({**plain, "stages": stages, **fields})


def base_pipeline() -> MarDiniPipeline:
    pipe = MarDiniPipeline.from_pretrained(base_folder())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def weights(pipe: MarDiniPipeline) -> dict[str, torch.Tensor]:
    parts = (pipe.vae, pipe.planner, pipe.transformer)
    return {
        f"{i}.{name}": tensor.clone() for i, part in enumerate(parts) for name, tensor in part.state_dict().items()
    }


def sample(pipe: MarDiniPipeline) -> torch.Tensor:
    video = torch.rand(1, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return pipe(
        video=video, frame_indices=[0, 3], num_frames=4, num_inference_steps=2, output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).frames  # fmt: skip


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def last_state(folder: Path) -> dict[str, torch.Tensor]:
    last = list_checkpoints(folder / "checkpoints")[-1]
    kinds = load_checkpoint(last).tensors()
    return {f"{kind}.{key}": tensor for kind, tensors in kinds.items() for key, tensor in tensors.items()}


def timeless(folder: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in records(folder)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("adapter")
    run = make_run(folder, make_adapter_config(sample_every=3, quality_windows=1, sample_steps=1, sample_windows=1))
    run.train()
    return run


# What a run leaves behind


def test_an_adapter_changes_what_is_sampled_and_leaves_nothing_when_it_is_unloaded(trained):
    pipe = base_pipeline()
    before, sampled = weights(pipe), sample(pipe)
    pipe.load_lora_weights(trained.folder / "adapter")
    assert not torch.allclose(sample(pipe), sampled, atol=1e-3)
    pipe.unload_lora_weights()
    assert same(weights(pipe), before) and torch.equal(sample(pipe), sampled)


def test_the_loaded_adapter_is_the_average_of_the_run(trained):
    pipe = base_pipeline()
    pipe.load_lora_weights(trained.folder / "adapter")
    loaded = {
        f"{part}.{name.replace('.default_0.', '.default.')}": p
        for part in ("planner", "transformer")
        for name, p in getattr(pipe, part).named_parameters()
        if "lora_" in name
    }
    assert same(loaded, trained.ema.tensors)
    assert (trained.folder / "stages" / "transformer" / "pytorch_lora_weights.safetensors").is_file()
    assert not (trained.folder / "pipeline").exists()


def test_the_file_says_what_it_is(trained):
    description = MarDiniPipeline.lora_description(trained.folder / "adapter")
    assert description.base_model == str(base_folder())
    assert description.adapters["planner"]["r"] == description.adapters["transformer"]["lora_alpha"] == 2
    assert description.training_config["lora.targets"] == "both-attention"
    assert description.training_config["stages.joint.steps"] == 3
    assert str(clips_folder()) not in json.dumps(description.training_config)  # paths are nobody's business


def test_the_weights_of_the_base_are_what_they_were_bit_for_bit(trained):
    pipe = base_pipeline()
    for part in ("planner", "transformer"):
        ours = {
            name.replace(".base_layer", ""): p
            for name, p in trained.models[part].named_parameters()
            if not p.requires_grad
        }
        assert same(ours, dict(getattr(pipe, part).named_parameters()))


def test_only_the_adapter_is_in_checkpoints_averages_and_optimizers(trained):
    names = set(learned(trained.models))
    assert names and all("lora_" in name for name in names)
    last = list_checkpoints(trained.folder / "checkpoints")[-1]
    assert set(load_file(last / "weights.safetensors")) == set(load_file(last / "ema.safetensors")) == names
    moments = load_file(last / "optimizer.safetensors")
    sizes = sum(p.numel() for p in learned(trained.models).values())
    assert sum(t.numel() for key, t in moments.items() if key.endswith("exp_avg")) == sizes


def test_held_out_losses_scores_and_pictures_are_told_without_a_reconstruction(trained):
    heldout = [line["heldout"] for line in records(trained.folder) if "heldout" in line]
    assert {"diffusion/0.95", "diffusion_unplanned/0.95", "quality/mid_ssim", "quality/motion"} <= heldout[-1].keys()
    assert not any(name.startswith("planner") for name in heldout[-1])
    assert (trained.folder / "samples" / "00000005-joint" / "interpolation.png").is_file()


def test_before_its_first_step_an_adapter_changes_nothing():
    models = make_models(make_adapter_config(lora={"dropout": 0.5})).eval()
    pipe = base_pipeline()
    sampled = sample(pipe)
    adapted = MarDiniPipeline(pipe.vae, models["planner"], models["transformer"], pipe.scheduler, planner_downscale=2)
    adapted.set_progress_bar_config(disable=True)
    torch.testing.assert_close(sample(adapted), sampled)


# Exact


@pytest.mark.parametrize(
    "lora", [{"dropout": 0.3}, {"dropout": 0.3, "dora": True, "rslora": True}], ids=["lora", "dora"]
)
def test_an_adapter_with_dropout_that_was_interrupted_ends_like_one_that_ran_through(tmp_path, lora):
    config = make_adapter_config(lora=lora, checkpoint_every=100)
    make_run(tmp_path / "through", config).train()
    (tmp_path / "stopped").mkdir()
    for _ in range(3):
        (tmp_path / "stopped" / "stop").touch()
        torch.rand(7)  # draws of others must not matter
        with pytest.raises(Stopped):
            make_run(tmp_path / "stopped", config).train()
    (tmp_path / "stopped" / "stop").unlink()
    make_run(tmp_path / "stopped", config).train()
    assert same(last_state(tmp_path / "through"), last_state(tmp_path / "stopped"))
    assert timeless(tmp_path / "through") == timeless(tmp_path / "stopped")


def test_dropout_is_drawn_anew_for_every_step_and_process_and_not_in_evaluations(tmp_path):
    run = make_run(tmp_path, make_adapter_config(lora={"dropout": 0.5}))
    stage = run.config.stages[-1]
    with torch.no_grad():
        for parameter in learned(run.models).values():
            parameter.normal_(std=0.3)
    with run._load(stage, 0) as loader:
        draws, batches = zip(*next(iter(loader))[1])
    model = run._stage_model(stage)

    def loss(draw) -> float:
        with run._dropout(draw), torch.no_grad():
            return model(batches[0])["loss"].item()

    (draw,) = draws
    again, later, other_rows = (
        loss(draw),
        draw.__class__(**{**vars(draw), "step": 1}),
        draw.__class__(**{**vars(draw), "first": 2}),
    )
    assert loss(draw) == again and len({again, loss(later), loss(other_rows)}) == 3
    with run._averages(), torch.no_grad():
        assert model(batches[0])["loss"] == model(batches[0])["loss"]
    assert model(batches[0])["loss"] != model(batches[0])["loss"]  # after it, training goes on with dropout


def test_an_adapter_does_not_go_on_upon_another_base(tmp_path):
    make_run(tmp_path / "run", make_adapter_config()).train(stop_after="transformer")
    other = shutil.copytree(base_folder(), tmp_path / "base")
    pipe = MarDiniPipeline.from_pretrained(other)
    with torch.no_grad():
        pipe.transformer.proj_out.bias[0] += 1
    pipe.save_pretrained(other)
    with pytest.raises(ValueError, match="(?s)another configuration.*init_from.transformer"):
        make_run(tmp_path / "run", make_adapter_config(base=other)).train()
    moved = shutil.copytree(base_folder(), tmp_path / "moved")
    make_run(tmp_path / "run", make_adapter_config(base=moved)).train()


def test_an_adapter_run_that_was_killed_ends_like_one_that_ran_through(tmp_path):
    base = shutil.copytree(base_folder(), tmp_path / "base")
    run_with_kills(tmp_path / "through", 1, 0, base=base)
    told = run_with_kills(tmp_path / "killed", 1, 2, base=base)
    assert all(kill["running"] for kill in told)
    assert same(last_state(tmp_path / "through"), last_state(tmp_path / "killed"))
    assert timeless(tmp_path / "through") == timeless(tmp_path / "killed")
    through, killed = (
        safe_open(tmp_path / name / "adapter" / "pytorch_lora_weights.safetensors", "pt")
        for name in ("through", "killed")
    )
    assert through.metadata() == killed.metadata()  # in any order: the header of a file has none
    assert set(through.keys()) == set(killed.keys())
    assert all(torch.equal(through.get_tensor(key), killed.get_tensor(key)) for key in through.keys())


@pytest.mark.slow
def test_two_processes_that_were_killed_end_like_two_that_ran_through(tmp_path):
    base = shutil.copytree(base_folder(), tmp_path / "base")
    run_with_kills(tmp_path / "through", 2, 0, base=base)
    told = run_with_kills(tmp_path / "killed", 2, 4, seed=2, base=base)
    assert sum(kill["running"] for kill in told) >= 3
    assert same(last_state(tmp_path / "through"), last_state(tmp_path / "killed"))
    assert timeless(tmp_path / "through") == timeless(tmp_path / "killed")


def test_two_processes_learn_what_one_does(tmp_path):
    common = {"base": str(base_folder())}
    run_shared(
        {"folder": str(tmp_path / "one"), "processes": 1, **common},
        {"folder": str(tmp_path / "two"), "processes": 2, "until": 2, **common},  # and a start in between
        {"folder": str(tmp_path / "two"), "processes": 2, **common},
    )
    one, two = timeless(tmp_path / "one"), timeless(tmp_path / "two")
    assert len(one) == len(two) == 6  # four steps, and held-out losses after each of two stages
    for a, b in zip(one, two):
        assert a.pop("stage") == b.pop("stage")
        heldout = [line.pop("heldout", {}) for line in (a, b)]
        assert a == pytest.approx(b, rel=1e-4) and heldout[0] == pytest.approx(heldout[1], abs=2e-5)
    files = [load_file(tmp_path / name / "adapter" / "pytorch_lora_weights.safetensors") for name in ("one", "two")]
    assert files[0].keys() == files[1].keys()
    for key, tensor in files[0].items():
        torch.testing.assert_close(files[1][key], tensor, atol=1e-4, rtol=1e-4)


# Other ways to hold and adapt


@pytest.fixture
def bf16_autocast(monkeypatch):
    """accelerate keeps the precision of a process's first accelerator for all others."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.parametrize("base_dtype", ["bf16", "int8"])
def test_a_base_of_fewer_bits_is_adapted_in_float32(tmp_path, bf16_autocast, base_dtype):
    if base_dtype == "int8":
        pytest.importorskip("torchao")
    config = make_adapter_config(
        lora={"base_dtype": base_dtype, "dropout": 0.2}, mixed_precision="bf16", quality_windows=1, sample_every=2,
        sample_steps=1,
    )  # fmt: skip
    run = make_run(tmp_path / "run", config)
    frozen = run.planner.transformer_blocks[0].attn.to_q.base_layer.weight
    before, bits = frozen.dequantize().clone(), frozen_digests(run.models)
    assert {p.dtype for p in learned(run.models).values()} == {torch.float32} and frozen.dtype == torch.bfloat16
    assert (type(frozen.data) is torch.Tensor) == (base_dtype == "bf16")
    rounded, decode = [], run.vae.decode
    run.vae.decode = lambda *args, **kwargs: (
        rounded.append(torch.is_autocast_enabled("cpu")), decode(*args, **kwargs)
    )[1]  # fmt: skip
    run.train()
    assert rounded and not any(rounded)  # pictures and scores are made in the autoencoder's own precision
    assert torch.equal(frozen.dequantize(), before) and frozen_digests(run.models) == bits
    told = [line["loss"] for line in records(tmp_path / "run") if "loss" in line]
    plain = make_run(tmp_path / "plain", make_adapter_config(lora={"dropout": 0.2}, mixed_precision="bf16"))
    plain.train()
    expected = [line["loss"] for line in records(tmp_path / "plain") if "loss" in line]
    assert told == pytest.approx(expected, rel=0.05)  # what rounding of the frozen weights makes of it
    pipe = base_pipeline()
    pipe.load_lora_weights(tmp_path / "run" / "adapter")
    assert torch.isfinite(sample(pipe)).all()


def test_an_int8_base_without_torchao_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ValueError, match="needs torchao.*pip install torchao"):
        make_models(make_adapter_config(lora={"base_dtype": "int8"}, mixed_precision="bf16"))


def test_recomputed_blocks_drop_the_same(tmp_path):
    curves = []
    for recompute in (False, True):
        folder = tmp_path / str(recompute)
        make_run(folder, make_adapter_config(lora={"dropout": 0.4}, gradient_checkpointing=recompute)).train()
        curves.append([line["loss"] for line in records(folder) if "loss" in line])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


# Targets


@pytest.mark.parametrize("name", TARGETS)
def test_named_targets_are_layers_of_the_named_part(name):
    part, kind = name.split("-")
    matched = matched_layers(make_models(make_config()), name)
    assert set(matched) == ({"planner", "transformer"} if part == "both" else {part})
    layers = [layer for names in matched.values() for layer in names]
    attention = [layer for layer in layers if "attn." in layer]
    assert attention and (len(attention) == len(layers)) == (kind == "attention")
    assert all(layer.startswith("transformer_blocks.0.") for layer in layers)
    assert len(attention) == {"planner": 8, "transformer": 12, "both": 20}[part]


def test_a_regular_expression_chooses_whole_names_of_linear_layers():
    models = make_models(make_config())
    assert matched_layers(models, r".*\.cross_attn\.to_[kv]") == {
        "transformer": ["transformer_blocks.0.cross_attn.to_k", "transformer_blocks.0.cross_attn.to_v"]
    }
    assert matched_layers(models, r"transformer\.(proj_out|norm_out)") == {"transformer": ["proj_out"]}


@pytest.mark.parametrize(
    "targets, near",
    [("planner-atention", "planner-attention"), (r"planner\..*\.to_qq", "attn.to_q"), ("to_q", "both-")],
)
def test_targets_that_match_nothing_name_the_nearest(targets, near):
    with pytest.raises(ValueError, match=f"no linear layer's whole name; the nearest are .*{near}"):
        matched_layers(make_models(make_config()), targets)


def test_what_is_adapted_is_what_the_plan_counts(capsys, tmp_path):
    config = make_adapter_config(lora={"targets": "transformer-attention", "rank": 3}, stage={"trains": "joint"})
    models = make_models(config)
    assert set(learned(models["planner"])) == set()
    counts = {name: sum(p.numel() for p in learned(model).values()) for name, model in models.items()}
    assert count_parameters(config) == counts == {"planner": 0, "transformer": 12 * 3 * (16 + 16)}
    path = tmp_path / "run.yaml"
    path.write_text(config.model_dump_json(exclude_none=True))
    assert plan_main([str(path), "--no-data", "--json", str(tmp_path / "plan.json")]) == 0
    told = capsys.readouterr().out
    assert "planner: 0 layers adapted, 0 parameters" in told and "transformer: 12 layers adapted, 1.152 k" in told
    assert "transformer_blocks.0.cross_attn.to_q" in told
    assert len(json.loads((tmp_path / "plan.json").read_text())["adapted"]["transformer"]) == 12
    assert plan_main([str(path), "--no-data", "lora.targets=transformer-atention"]) == 1
    assert "the nearest are transformer-attention" in capsys.readouterr().out


def test_an_adapter_costs_less_memory_and_fewer_operations_than_all_weights():
    config = make_adapter_config(stage={"trains": "joint"})
    plain = make_config()
    stage, whole = config.stages[-1], plain.stages[-1].model_copy(update={"planner_loss_weight": 0.0})
    ours, theirs = (count_memory(c, s, Layout(), False) for c, s in ((config, stage), (plain, whole)))
    assert ours.optimizer == 8 * sum(count_parameters(config).values()) < theirs.optimizer
    assert ours.gradients < theirs.gradients and ours.weights > theirs.weights - 4 * count_parameters(plain)["head"]
    half = make_adapter_config(stage={"trains": "joint"}, lora={"base_dtype": "bf16"}, mixed_precision="bf16")
    assert count_memory(half, half.stages[-1], Layout(), False).weights < ours.weights
    narrow = make_adapter_config(stage={"trains": "joint"}, lora={"targets": r"transformer\.proj_out", "rank": 1})
    assert count_operations(narrow, stage) < count_operations(plain, whole)


def test_layers_of_several_blocks_are_told_as_one():
    names = [f"transformer_blocks.{i}.attn.to_q" for i in range(3)] + ["proj_out", "transformer_blocks.0.ff.net.2"]
    assert summary(names) == ["transformer_blocks.0-2.attn.to_q", "proj_out", "transformer_blocks.0.ff.net.2"]
    assert summary(["blocks.0.a", "blocks.2.a"]) == ["blocks.0,2.a"]


# Refused


@pytest.mark.parametrize(
    "change, message",
    [
        ({"init_from": None}, "give its folder or Hub id as `init_from`"),
        ({"planner": {"num_layers": 2}}, "takes all sizes from `init_from`.*leave planner out"),
        ({"preset": "mardini-s-t"}, "leave preset out"),
        ({"lora": {"targets": "("}}, "no regular expression"),
        ({"lora": {"rank": 0}}, "greater than or equal to 1"),
        (
            {"lora": {"dora": True, "base_dtype": "int8"}, "mixed_precision": "bf16"},
            "dora needs the base's own weights",
        ),
        ({"lora": {"base_dtype": "bf16"}}, "works only under bf16 autocast; set mixed_precision"),
    ],
)
def test_what_an_adapter_cannot_have_is_refused(change, message):
    values = make_adapter_config().model_dump()
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate(
            {**values, **change, **({"lora": {**LORA, **change["lora"]}} if "lora" in change else {})}
        )


@pytest.mark.parametrize("change", [{"trains": "planner"}, {"planner_loss_weight": 0.5}])
def test_an_adapter_has_no_head_to_train_by_reconstruction(change):
    with pytest.raises(ValueError, match="has no reconstruction head to adapt"):
        make_adapter_config(stage=change)


def test_an_adapter_has_to_fit_its_base(tmp_path):
    assert find_problems(make_adapter_config(), with_data=False) == []

    def only(problem_of: RunConfig) -> str:
        (problem,) = find_problems(problem_of, with_data=False)
        return problem.text

    other = find_problems(make_adapter_config(stage={"temporal_attention": "spatiotemporal"}), with_data=False)
    assert len(other) == 2 and all("set `temporal_attention: temporal`" in problem.text for problem in other)
    assert "changes only the planner; set `trains: joint`" in only(
        make_adapter_config(lora={"targets": "planner-linear"})
    )
    data = data_fields(clips_folder(), planner_downscale=4)
    assert any(
        "`data.planner_downscale` is 4, but" in problem.text
        for problem in find_problems(make_adapter_config(data=data))
    )
    assert "no pipeline can be read" in only(make_adapter_config(base=tmp_path / "nothing"))


def test_the_autoencoder_is_the_bases_unless_another_is_given():
    values = {k: v for k, v in make_adapter_config().model_dump().items() if k not in ("vae", "vae_subfolder")}
    config = RunConfig.model_validate(values)
    assert (config.vae, config.vae_subfolder) == (str(base_folder()), "vae")
    assert make_adapter_config().vae == "vae"


def test_shards_are_refused(monkeypatch):
    accelerator = make_accelerator(False)
    refuse_shards(accelerator)
    monkeypatch.setattr("training.engine.adapter.sharding_plugin", lambda _: object())
    with pytest.raises(ValueError, match="all weights on every process; use .*ddp.yaml"):
        refuse_shards(accelerator)


def test_each_program_names_the_other_for_the_other_kind_of_file(tmp_path):
    adapter, plain = tmp_path / "adapter.yaml", tmp_path / "plain.yaml"
    adapter.write_text(make_adapter_config().model_dump_json(exclude_none=True))
    plain.write_text(make_config().model_dump_json(exclude_none=True))
    with pytest.raises(SystemExit, match="has a `lora` block; python -m training.train_mardini_lora trains it"):
        train_mardini.main([str(adapter)])
    with pytest.raises(SystemExit, match="has no `lora` block; python -m training.train_mardini trains it"):
        train_mardini_lora.main([str(plain)])


def test_the_command_trains_an_adapter(tmp_path):
    config = make_adapter_config(vae=str(base_folder()), vae_subfolder="vae", trackers=[])
    (tmp_path / "run.yaml").write_text(config.model_dump_json(exclude_none=True))
    result = subprocess.run(
        [sys.executable, "-m", "training.train_mardini_lora", str(tmp_path / "run.yaml")], cwd=tmp_path, capture_output=True,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert "the finished adapter lies in runs/test/adapter" in result.stdout
    assert "rank: 2" in (tmp_path / "runs" / "test" / "report.md").read_text()


def test_nothing_is_changed_where_no_layer_matches():
    models = make_models(make_config())
    with pytest.raises(ValueError, match="nearest"):
        add_adapter(models, AdapterConfig(targets="nothing"), seed=0)
    assert all(parameter.requires_grad for parameter in models.parameters())
