"""The panel of a run, with a clock of the test's own."""

import io

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console

from pipelines_tests.training.test_train_mardini import make_config, make_run, records
from training.costs import count_operations
from training.monitoring.device_speed import measure_peak
from training.monitoring.panel import COUNT_AFTER_SECONDS, TIMES, RunPanel, shows_panel


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make_monitor(terminal: bool, config=None, shares=None):
    clock, file = Clock(), io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120, color_system=None, _environ={"TERM": "xterm"})
    return RunPanel(config or make_config(), Accelerator(cpu=True), shares, console, clock), clock, file


def take_steps(monitor, clock, steps, waiting=0.5, working=1.5, between=0.0):
    """Steps that wait, work, and are followed by something else."""

    def batches():
        for step in range(steps):
            clock.now += waiting
            yield step

    for _ in monitor.waiting(batches()):
        clock.now += working
        monitor.step()
        clock.now += between


def record(**values) -> dict:
    return {"global_step": 2, "windows_seen": 4, "stage": "planner", "step": 2, **values}


def test_times_are_those_of_the_steps_and_not_of_what_comes_between():
    monitor, clock, _ = make_monitor(terminal=False)
    monitor.begin_stage(monitor.config.stages[0], 0, windows_per_step=8)
    take_steps(monitor, clock, 2, between=10)
    assert monitor.times() == {"windows_per_second": 16 / 4, "waiting_seconds": 1.0}
    assert monitor.seconds_since_line() == 24.0
    take_steps(monitor, clock, 1)
    assert (
        monitor.times() == {"windows_per_second": 8 / 2, "waiting_seconds": 0.5}
        and monitor.seconds_since_line() == 2.0
    )


def test_readings_have_speed_waiting_and_the_time_left():
    monitor, clock, _ = make_monitor(terminal=False)
    stages = monitor.config.stages
    monitor.begin_stage(stages[0], 0, windows_per_step=8)
    take_steps(monitor, clock, 2, between=10)
    monitor.times()
    monitor.operations = {"planner": 2e9, "transformer": 4e9, "joint": 6e9}
    monitor.peak = 4e9
    reading = monitor.readings()
    assert reading["stage"] == "1 of 3: planner" and reading["step"] == "2 of 3"
    assert reading["clips/s"] == "4.00" and reading["waiting for data"] == "25.0%"
    tokens = 4 * 2 * (2 + 1)  # frames, rows, patches of a row and [NEXT]
    assert reading["planner tokens/s"] == str(4 * tokens) and "transformer tokens/s" not in reading
    assert reading["of measured peak"] == "25.0%"  # 2e9 in 2 seconds of 4e9
    assert reading["left of the stage"] == "0 min 12 s"
    assert reading["left of the run"] == f"{(12 + 12 * (2 * 2 + 3 * 3)) // 60} min {(12 + 12 * 13) % 60:02d} s"


def test_tokens_and_operations_of_a_stage_in_buckets_are_means_by_their_shares():
    config = make_config()
    stage = config.stages[2].model_copy(update={"buckets": [(32, 32), (32, 64, 6)]})
    config = config.model_copy(update={"stages": [stage]})
    monitor, _, _ = make_monitor(terminal=False, config=config, shares={"joint": [0.75, 0.25]})
    monitor.begin_stage(stage, 0, windows_per_step=8)
    small, large = 4 * 2 * (2 + 1), 6 * 2 * (4 + 1)  # frames, rows, patches of a row and [NEXT]
    assert monitor.tokens["planner"] == 0.75 * small + 0.25 * large
    monitor._count()
    each = [count_operations(config, shape) for shape in config.by_bucket(stage)]
    assert monitor.operations["joint"] == pytest.approx(0.75 * each[0] + 0.25 * each[1]) and each[0] < each[1]


def test_a_resumed_stage_goes_by_the_pace_of_its_own_steps():
    monitor, clock, _ = make_monitor(terminal=False)
    stage = monitor.config.stages[0].model_copy(update={"steps": 100})
    monitor.begin_stage(stage, 90, windows_per_step=8)
    assert monitor.readings()["left of the stage"] == "–"
    take_steps(monitor, clock, 2)
    assert monitor.readings()["step"] == "92 of 100" and monitor.readings()["left of the stage"] == "0 min 16 s"


def test_without_a_terminal_there_are_plain_lines_and_not_too_many():
    monitor, clock, file = make_monitor(terminal=False)
    monitor.operations = {"planner": 1e9, "transformer": 1e9, "joint": 1e9}  # counted already
    with monitor:
        stage = monitor.config.stages[0].model_copy(update={"steps": 30})
        monitor.begin_stage(stage, 0, windows_per_step=8)
        for step in range(1, 31):
            take_steps(monitor, clock, 1)
            monitor.show(record(step=step, loss=0.5 + step, grad_norm="nan", learning_rate=1e-3, **monitor.times()))
    lines = [line for line in file.getvalue().splitlines() if "loss" in line]
    assert len(lines) == 7  # one in ten seconds, and the last: 60 seconds
    assert lines[0].startswith(
        "stage 1 of 3: planner, step 1 of 30: loss 1.5000, lr 1.00e-03, grad norm nan, clips/s 4.00"
    )
    assert (
        "step 30 of 30: loss 30.5000" in lines[-1] and "waiting 25.0%" in lines[-1] and "\x1b" not in file.getvalue()
    )


def test_heldout_scores_have_a_line_of_their_own():
    monitor, _, file = make_monitor(terminal=False)
    monitor.begin_stage(monitor.config.stages[0], 0, windows_per_step=8)
    monitor.show(record(heldout={"planner": 0.25}))
    monitor.show(record(heldout={"planner": 0.25, "quality/mid_ssim": 0.75, "quality/motion": "nan"}))
    assert file.getvalue().splitlines() == [
        "stage 1 of 3: planner, step 0 of 3: held out planner 0.250",
        "stage 1 of 3: planner, step 0 of 3: held out mid_ssim 0.750, motion nan",
    ]


def test_on_a_terminal_there_is_a_panel_that_is_put_away_at_the_end(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monitor, clock, file = make_monitor(terminal=True)
    with monitor:
        monitor.begin_stage(monitor.config.stages[0], 0, windows_per_step=8)
        take_steps(monitor, clock, 2)
        monitor.show(record(loss=0.123456, grad_norm=1.0, learning_rate=1e-3, **monitor.times()))
        shown = file.getvalue()
        assert monitor.live is not None and "\x1b[?25l" in shown  # the cursor is hidden
    for text in ("1 of 3: planner", "2 of 3", "0.1235", "1.00e-03", "clips/s", "25.0%", "GiB", "left of the run"):
        assert text in shown
    assert monitor.live is None and "\x1b[?25h" in file.getvalue()[len(shown) :]


def test_the_panel_is_drawn_once_a_second_at_most(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monitor, clock, file = make_monitor(terminal=True)
    with monitor:
        monitor.begin_stage(monitor.config.stages[0].model_copy(update={"steps": 1000}), 0, windows_per_step=8)
        take_steps(monitor, clock, 1000, waiting=0.001, working=0.009)  # ten seconds
    assert file.getvalue().count("left of the run") in range(10, 14)


@pytest.mark.parametrize("ci, panel", [("", True), ("false", True), ("true", False), ("1", False)])
def test_continuous_integration_gets_lines(monkeypatch, ci, panel):
    monkeypatch.setenv("CI", ci)
    assert shows_panel(Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "xterm"})) is panel
    assert not shows_panel(Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"}))
    assert not shows_panel(Console(file=io.StringIO()))


def test_operations_are_counted_and_the_peak_measured_once_a_stage_has_run_for_a_while():
    monitor, clock, file = make_monitor(terminal=False)
    monitor.begin_stage(monitor.config.stages[0], 0, windows_per_step=2)
    take_steps(monitor, clock, 1)
    monitor.show(record(loss=1.0))
    assert monitor.peak is None and monitor.operations == {}
    clock.now += COUNT_AFTER_SECONDS
    monitor.show(record(loss=1.0))
    assert monitor.operations["joint"] == count_operations(monitor.config, monitor.config.stages[2]) > 0
    assert "peak measured here: " in file.getvalue() and "float32 matrices on cpu" in file.getvalue()


def test_the_measured_peak_is_a_rate_and_draws_from_no_global_generator():
    state = torch.get_rng_state()
    peak, how = measure_peak(torch.device("cpu"), torch.float32, seconds=0.01)
    assert 1e7 < peak < 1e14 and f"{peak:.2e}" in how and "1024x1024 float32" in how
    assert torch.equal(torch.get_rng_state(), state)


def test_every_line_of_a_run_has_its_times(tmp_path, capsys):
    make_run(tmp_path).train(stop_after="planner")
    lines = records(tmp_path)
    assert all(line["seconds"] >= 0 for line in lines)
    losses = [line for line in lines if "loss" in line]
    assert len(losses) == 3 and all(line.keys() >= set(TIMES) for line in losses)
    assert all(0 <= line["waiting_seconds"] <= line["seconds"] + 1e-3 for line in losses)
    assert "stage 1 of 3: planner, step 3 of 3: loss" in capsys.readouterr().out
