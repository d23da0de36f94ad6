import pytest
from accelerate.state import AcceleratorState

from benchmarks import run, train_adapter, train_monitoring, train_step
from pipelines_tests.training.test_train_mardini_lora import base_folder


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


def test_steps_of_adapters_are_timed_beside_one_of_all_weights(capsys):
    base = base_folder()
    seconds = train_adapter.main(["--pipeline", str(base), "--batch-size", "1", "--repeats", "1", "--no-compile"])
    assert list(seconds)[0] == "all weights" and len(seconds) == 4 and all(value > 0 for value in seconds.values())
    *_, linear, attention, fewest = (line.split()[-1].rstrip("x") for line in capsys.readouterr().out.splitlines())
    assert float(linear) > float(attention) > float(fewest)  # operations, the more the more layers are adapted


def test_what_lies_between_steps_is_logging():
    lines = [{"windows_per_second": 5.0, "waiting_seconds": 0.02, "seconds": 2.1} for _ in range(3)]
    assert train_monitoring.shares(lines, 10) == {"step": 2.0, "data": 0.02, "logging": pytest.approx(0.1)}


def test_what_data_and_logging_take_of_a_step_is_told(capsys, own_precision):
    seconds = train_monitoring.main(["--batch-size", "1", "--steps", "4"])
    # A batch that the loader has ready is not waited for at all.
    assert seconds["step"] > seconds["data"] >= 0 and seconds["step"] > seconds["logging"] >= 0
    assert "of a step (allowed: 5%)" in capsys.readouterr().out
