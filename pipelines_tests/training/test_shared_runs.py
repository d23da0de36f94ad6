"""Real processes that share a run, as copies (DDP), in shards (FSDP2), in copies of shards or sharing tokens: they learn
what one process does.

What differs is the order in which numbers are added: by 5e-7 of a loss and 5e-6 of a gradient norm in six steps of
float32 (measured). The tests allow 1e-4, far below what a forgotten row, part or process would make. AdamW makes a
whole step of any gradient, rounding included, where it is nearly zero in exact numbers (keys' biases): weights are
compared to a tenth of a step.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffusers_mardini import MarDiniPipeline
from pipelines_tests.training.test_train_mardini import clips_folder, data_fields, make_vae
from training.engine.checkpoint import KINDS, list_checkpoints, load_checkpoint
from training.export import export
from training.monitoring.panel import TIMES


ROOT = Path(__file__).resolve().parents[2]
LEARNING_RATE = 1e-3
FSDP = {"processes": 2, "fsdp": True}
DDP = {"processes": 2}
ONE = {"processes": 1}
THREE = {"processes": 3}  # of the four windows of a step one has two
HYBRID = {
    "processes": 4,
    "fsdp": True,
    "environment": {"PARALLELISM_CONFIG_DP_SHARD_SIZE": "2"},
}  # two copies of two shards
CONTEXT = {"processes": 4, "fsdp": True, "environment": {"PARALLELISM_CONFIG_CP_SIZE": "2"}}  # two pairs share tokens


def run(*entries: dict) -> None:
    entries = [{"clips": str(clips_folder()), **entry} for entry in entries]
    result = subprocess.run(
        [sys.executable, "-m", "pipelines_tests.training.shared_run", json.dumps(entries)], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}:{os.environ.get('PYTHONPATH', '')}"}, timeout=1200,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-6000:]


def told(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    last = list_checkpoints(folder / "checkpoints")[-1]
    assert last.name == "step-00000006"
    return dict(load_checkpoint(last).tensors()[name])


def assert_same_curve(folder: Path, reference: Path, rel: float = 1e-4) -> None:
    ours, theirs = told(folder), told(reference)
    assert len(ours) == len(theirs) == 9  # six steps, and held-out losses after each of three stages
    for a, b in zip(ours, theirs):
        assert (a.pop("stage"), a.keys()) == (b.pop("stage"), b.keys())
        heldout = [line.pop("heldout", {}) for line in (a, b)]
        assert a == pytest.approx(b, rel=rel)
        assert heldout[0] == pytest.approx(heldout[1], abs=2e-5)  # saved with five digits


def assert_same_tensors(folder: Path, reference: Path) -> None:
    for name in ("weights", "ema", "optimizer"):
        ours, theirs = tensors(folder, name), tensors(reference, name)
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            # Moments are as small as gradients are: against the largest of each, not against a step.
            atol = 1e-2 * tensor.abs().max().item() if name == "optimizer" else 0.1 * LEARNING_RATE
            torch.testing.assert_close(ours[key], tensor, atol=atol, rtol=1e-4, msg=f"{name} {key}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The same run by one process, by two in shards, by two as copies, two in shards and one in turn, and in turn by
    three as copies, two copies of two shards and two pairs that share tokens."""
    folder = tmp_path_factory.mktemp("shared")
    run(
        {"folder": str(folder / "one"), **ONE},
        {"folder": str(folder / "fsdp"), **FSDP},
        # Within the joint stage, where there are moments to hand on; each process sums its part up in two.
        {"folder": str(folder / "in-turn"), **DDP, "until": 4, "config": {"stage": {"gradient_accumulation": 2}}},
        {"folder": str(folder / "in-turn"), **FSDP, "until": 5},
        {"folder": str(folder / "in-turn"), **ONE},
        {"folder": str(folder / "layouts"), **THREE, "until": 1},
        {"folder": str(folder / "layouts"), **HYBRID, "until": 4},
        {"folder": str(folder / "layouts"), **CONTEXT},
    )
    return folder


def test_two_processes_with_shards_learn_what_one_does(runs):
    assert_same_curve(runs / "fsdp", runs / "one")
    assert_same_tensors(runs / "fsdp", runs / "one")


def test_each_process_writes_a_file_of_each_kind_and_no_value_is_written_twice(runs):
    numbers = {"one": [""], "fsdp": ["-00001-of-00002", "-00002-of-00002"], "in-turn": [""]}
    for name, endings in numbers.items():
        last = list_checkpoints(runs / name / "checkpoints")[-1]
        files = {f"{kind}{ending}.safetensors" for kind in KINDS for ending in endings}
        assert {path.name for path in last.iterdir()} == {*files, "state.json"}
    stops = {path.name: path for path in list_checkpoints(runs / "in-turn" / "checkpoints")}
    for folder in (list_checkpoints(runs / "fsdp" / "checkpoints")[-1], stops["step-00000004"]):  # shards, copies
        for kind, tensors in load_checkpoint(folder).tensors().items():
            written = [load_file(path) for path in sorted(folder.glob(f"{kind}-*"))]
            sizes = [sum(tensor.numel() for tensor in file.values()) for file in written]
            assert sum(sizes) == sum(tensor.numel() for tensor in tensors.values())
            assert len(sizes) == 2 and min(sizes) > 0.3 * sum(sizes)


def test_processes_share_a_sum_in_a_step_and_the_first_alone_looks_into_the_folder(tmp_path):
    run({"folder": str(tmp_path), **DDP, "watched": True, "config": {"log_every": 100}})
    first, second = (json.loads((tmp_path / f"watched-{process}.json").read_text()) for process in range(2))
    assert first["sums"] == second["sums"] == {"1": 1, "4": 1, "5": 1}  # the steps that end no stage
    assert {"stop", "sample"} <= set(first["touched"]) and second["touched"] == []


def test_a_run_goes_on_with_other_processes_and_other_shards(runs):
    stops = [path.name for path in list_checkpoints(runs / "in-turn" / "checkpoints")]
    assert {"step-00000004", "step-00000005"} <= set(stops)  # where processes of another kind went on
    assert_same_curve(runs / "in-turn", runs / "one")
    assert_same_tensors(runs / "in-turn", runs / "one")


def test_three_processes_copies_of_shards_and_shared_tokens_learn_what_one_process_does(runs):
    assert_same_curve(runs / "layouts", runs / "one")
    assert_same_tensors(runs / "layouts", runs / "one")


def test_all_save_one_ordinary_pipeline(runs):
    reference = runs / "one" / "pipeline"
    files = sorted(path.relative_to(reference) for path in reference.rglob("*"))
    for kind in ("fsdp", "in-turn", "layouts"):
        folder = runs / kind / "pipeline"
        assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == files
        for path in files:
            if path.suffix == ".json":
                assert (folder / path).read_bytes() == (reference / path).read_bytes()
        pipe = MarDiniPipeline.from_pretrained(folder)
        averages = tensors(runs / kind, "ema")
        for part in ("planner", "transformer"):
            for name, tensor in getattr(pipe, part).state_dict().items():
                assert torch.equal(tensor, averages[f"{part}.{name}"]), (kind, part, name)


def test_files_of_several_processes_are_merged_by_one_without_them(runs, tmp_path):
    from pipelines_tests.training.shared_run import make_shared_config  # by way of others, it imports this module

    make_vae().save_pretrained(tmp_path / "vae")
    config = make_shared_config(clips_folder(), vae=str(tmp_path / "vae"))
    (runs / "fsdp" / "config.json").write_text(config.model_dump_json())
    merged = export(runs / "fsdp", tmp_path / "merged")
    for part in ("planner", "transformer"):
        name = f"{part}/diffusion_pytorch_model.safetensors"
        assert (merged / name).read_bytes() == (runs / "fsdp" / "pipeline" / name).read_bytes()


@pytest.mark.slow
def test_processes_share_the_encoding_of_drawn_frames(tmp_path):
    data = data_fields(clips_folder(), latents="drawn", cache=tmp_path / "cache")
    data = {key: str(value) if isinstance(value, Path) else value for key, value in data.items()}
    run({"folder": str(tmp_path / "drawn"), **DDP, "config": {"data": data}}, {"folder": str(tmp_path / "all"), **ONE})
    assert_same_curve(tmp_path / "drawn", tmp_path / "all")
    assert_same_tensors(tmp_path / "drawn", tmp_path / "all")
    training = [path for path in (tmp_path / "cache").rglob("shard-*") if not (path.parent / "index.json").exists()]
    assert {path.name.split("-")[1] for path in training} == {"0", "1"}


@pytest.mark.slow
def test_one_process_goes_on_as_two_and_shards_as_copies(runs, tmp_path):
    run(
        {"folder": str(tmp_path / "a"), **ONE, "until": 1},
        {"folder": str(tmp_path / "a"), **FSDP, "until": 4},
        {"folder": str(tmp_path / "a"), **DDP, "until": 5},
        {"folder": str(tmp_path / "a"), **FSDP},
    )
    assert_same_curve(tmp_path / "a", runs / "one")
    assert_same_tensors(tmp_path / "a", runs / "one")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        DDP,
        {**DDP, "config": {"stage": {"gradient_accumulation": 2}}},
        {**FSDP, "config": {"stage": {"gradient_accumulation": 2}}},
        {**FSDP, "config": {"gradient_checkpointing": True}},
        {**FSDP, "environment": {"FSDP_RESHARD_AFTER_FORWARD": "false"}},
        THREE,
        {**THREE, "config": {"stage": {"gradient_accumulation": 2}}},  # a part of two of them has no window
        {**THREE, "fsdp": True, "config": {"stage": {"gradient_accumulation": 2}}},
        HYBRID,
        CONTEXT,
        {**CONTEXT, "config": {"gradient_checkpointing": True}},
    ],
    ids=[
        "ddp", "ddp-in-parts", "fsdp-in-parts", "fsdp-recomputing", "fsdp-keeping-parameters", "three", "three-in-parts",
        "three-shards-in-parts", "copies-of-shards", "shared-tokens", "shared-tokens-recomputing",
    ],
)  # fmt: skip
def test_copies_parts_recomputing_and_kept_parameters_change_nothing(runs, tmp_path, changes):
    run({"folder": str(tmp_path), **changes})
    assert_same_curve(tmp_path, runs / "one")
    assert_same_tensors(tmp_path, runs / "one")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [THREE, {**THREE, "fsdp": True}], ids=["copies", "shards"])
def test_a_process_without_a_window_changes_nothing(tmp_path, kind):
    config = {"stage": {"global_batch": 2}}
    run(
        {"folder": str(tmp_path / "one"), **ONE, "config": config},
        {"folder": str(tmp_path / "three"), **kind, "config": config},
    )
    assert_same_curve(tmp_path / "three", tmp_path / "one")
    assert_same_tensors(tmp_path / "three", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [DDP, FSDP], ids=["copies", "shards"])
def test_a_step_that_explodes_on_one_process_is_left_out_on_all(tmp_path, kind):
    run(
        {"folder": str(tmp_path / "one"), **ONE, "explodes": [4, 0]},
        {"folder": str(tmp_path / "two"), **kind, "explodes": [4, 1]},
    )
    for folder in (tmp_path / "one", tmp_path / "two"):
        (report,) = (folder / "nonfinite").iterdir()
        assert report.name == "step-00000005-attempt-0.json"
    assert_same_tensors(tmp_path / "two", tmp_path / "one")
    last = [told(tmp_path / name)[-2] for name in ("two", "one")]
    assert last[0]["loss"] == pytest.approx(last[1]["loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [FSDP, CONTEXT], ids=["shards", "shared-tokens"])
def test_compiled_blocks_in_shards_learn_what_one_process_does(runs, tmp_path, kind):
    run({"folder": str(tmp_path), **kind, "config": {"stage": {"compile": True}}})
    assert_same_curve(tmp_path, runs / "one")
    assert_same_tensors(tmp_path, runs / "one")


@pytest.mark.slow
def test_muon_orthogonalizes_whole_matrices_of_shards(tmp_path):
    config = {"optimizer": {"name": "muon"}}
    run(
        {"folder": str(tmp_path / "one"), **ONE, "config": config},
        {"folder": str(tmp_path / "fsdp"), **FSDP, "config": config, "until": 5},
        {"folder": str(tmp_path / "fsdp"), **HYBRID, "config": config},
    )
    assert_same_curve(tmp_path / "fsdp", tmp_path / "one")
    assert_same_tensors(tmp_path / "fsdp", tmp_path / "one")


@pytest.mark.slow
def test_shards_in_bfloat16_learn_what_copies_under_autocast_do(tmp_path):
    config = {"mixed_precision": "bf16"}
    environment = {"ACCELERATE_MIXED_PRECISION": "bf16"}
    run(
        {"folder": str(tmp_path / "ddp"), **DDP, "config": config, "environment": environment},
        {"folder": str(tmp_path / "shards"), **FSDP, "config": config, "environment": environment},
    )
    ours, theirs = ([line for line in told(tmp_path / name) if "loss" in line] for name in ("shards", "ddp"))
    for a, b in zip(ours, theirs, strict=True):
        # bf16 has 8 bits: 0.4% at each rounding. AdamW's first steps are of one size whatever the gradient's, so that
        # its rounding grows from step to step.
        norm = pytest.approx(b["grad_norm"], rel=0.01 if a["step"] == 1 else 0.2)
        assert a["loss"] == pytest.approx(b["loss"], rel=0.01) and a["grad_norm"] == norm
    assert tensors(tmp_path / "shards", "weights")["head.proj.weight"].dtype == torch.float32


@pytest.mark.slow
def test_processes_that_share_tokens_sample_and_score_what_one_does(tmp_path):
    config = {"quality_windows": 3}
    run(
        {"folder": str(tmp_path / "one"), **ONE, "config": config},
        {"folder": str(tmp_path / "shared"), **CONTEXT, "config": config},
    )
    assert_same_curve(tmp_path / "shared", tmp_path / "one")
    scores = [line["heldout"] for line in told(tmp_path / "shared") if "heldout" in line]
    assert any("quality/mid_psnr" in heldout for heldout in scores)


@pytest.mark.slow
def test_a_process_without_a_held_out_window_of_its_own_still_takes_part(tmp_path):
    config = {"validation_windows": 1}
    run(
        {"folder": str(tmp_path / "one"), **ONE, "config": config},
        {"folder": str(tmp_path / "fsdp"), **FSDP, "config": config},
    )
    assert_same_curve(tmp_path / "fsdp", tmp_path / "one")
