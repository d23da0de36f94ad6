import pytest
import torch
from accelerate.state import AcceleratorState

from benchmarks import caches, quantization, run, train_monitoring, train_step
from pipelines_tests.tiny_pipeline import clip, tiny_pipeline


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


def test_every_form_of_a_training_step_is_timed_beside_its_products(capsys):
    seconds = train_step.main(["--batch-size", "1", "--repeats", "1", "--no-compile"])
    assert list(seconds)[0].startswith("straightforward") and list(seconds)[-1].startswith("limit")
    assert len(seconds) >= 3 and all(value > 0 for value in seconds.values())
    assert capsys.readouterr().out.count("x") >= 2 * len(seconds)


def test_what_lies_between_steps_is_logging():
    lines = [{"windows_per_second": 5.0, "waiting_seconds": 0.02, "seconds": 2.1} for _ in range(3)]
    assert train_monitoring.shares(lines, 10) == {"step": 2.0, "data": 0.02, "logging": pytest.approx(0.1)}


def test_what_data_and_logging_take_of_a_step_is_told(capsys, own_precision):
    seconds = train_monitoring.main(["--batch-size", "1", "--steps", "4"])
    # A batch that the loader has ready is not waited for at all.
    assert seconds["step"] > seconds["data"] >= 0 and seconds["step"] > seconds["logging"] >= 0
    assert "of a step (allowed: 5%)" in capsys.readouterr().out


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
    rows = {row["layers"]: row for row in quantization.harm(pipe, clip(4, 1), [0, 3], bits=4)}
    assert {"patch_embed", "proj_out", "blocks.attn", "blocks.ff"} <= rows.keys()
    assert sum(row["of_weights"] for row in rows.values()) == pytest.approx(1)
    assert sum(row["of_error"] for row in rows.values()) == pytest.approx(1)
    assert all(row["of_error"] > 0 for row in rows.values())
    for name, tensor in pipe.transformer.state_dict().items():
        assert torch.equal(tensor, before[name])
