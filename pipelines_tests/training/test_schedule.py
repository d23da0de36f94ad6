"""Steps that change while a run trains: flat stages, hours, and the learning rates that go with them."""

import json

import pytest

from pipelines_tests.training.test_train_mardini import make_config, make_run, records
from training.config.schema import RunConfig
from training.curriculum import learning_rate_factor
from training.engine.checkpoint import list_checkpoints, step_of
from training.schedule import Schedule
from training.stopping import Stopped, StopRequest


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make_schedule(hours=None, steps=1000, names=("first", "second"), **stage):
    base = make_config().stages[2].model_copy(update={"warmup_steps": 10, "steps": steps, **stage})
    stages = [base.model_copy(update={"name": name}) for name in names]
    config = make_config(stages=[each.model_dump() for each in stages], hours=hours, validate_every=100)
    return Schedule(config, clock := Clock()), clock, config.stages


def test_without_keys_steps_and_learning_rates_are_those_of_the_configuration():
    schedule, clock, (stage, _) = make_schedule()
    clock.now = 1e9
    assert schedule.steps(stage) == schedule.reach(stage) == 1000 and not schedule.is_due(900)
    assert [schedule.factor(stage, step) for step in range(1000)] == [
        learning_rate_factor(step, 1000, 10) for step in range(1000)
    ]
    for _ in range(20):
        assert schedule.heldout(stage, 500, 0.5) is None


def test_a_flat_stage_ends_after_a_tenth_more_in_which_its_learning_rate_decays_without_a_jump():
    schedule, _, (stage, other) = make_schedule(stop_when_flat=4)
    for number, loss in enumerate((1.0, 0.6, 0.5, 0.45), 1):
        assert schedule.heldout(stage, 100 * number, loss) is None
    before = schedule.factor(stage, 800)
    for number, loss in enumerate((0.451, 0.4495, 0.4502), 5):
        assert schedule.heldout(stage, 100 * number, loss) is None
    decision = schedule.heldout(stage, 800, 0.45)
    assert decision["steps"] == {"first": 880} and "flat over 4" in decision["why"]
    assert schedule.steps(stage) == 880 and schedule.steps(other) == 1000
    rates = [schedule.factor(stage, step) for step in range(800, 880)]
    assert rates[0] == pytest.approx(before) and rates == sorted(rates, reverse=True) and rates[-1] < 0.01
    assert schedule.heldout(stage, 850, 0.45) is None  # decided once

    resumed, _, _ = make_schedule(stop_when_flat=4)
    resumed.load_state(json.loads(json.dumps(schedule.state())), "first")
    assert [resumed.factor(stage, step) for step in range(800, 880)] == rates and resumed.losses == schedule.losses


def train_by_the_clock(schedule, clock, stages, seconds, heldout=0.0):
    """Go through the stages at so many seconds a step, which differ by stage."""
    rates = {}
    for stage in stages:
        schedule.begin_stage(stage, 0)
        step = 0
        while step < schedule.steps(stage):
            rates[stage.name] = schedule.factor(stage, step)
            clock.now += seconds[stage.name]
            step += 1
            last = step == schedule.steps(stage)
            if last or step % 100 == 0:
                with schedule.timed(stage, "heldout"):
                    clock.now += heldout
            if not last and schedule.is_due(step):
                schedule.plan(stage, step, dict.fromkeys(("first", "second"), 1.0))
    return rates


@pytest.mark.parametrize("heldout", [0.0, 20.0])
@pytest.mark.parametrize("seconds", [{"first": 0.5, "second": 2.5}, {"first": 4.0, "second": 1.0}])
def test_a_run_with_hours_ends_within_a_tenth_of_them_with_decayed_learning_rates(seconds, heldout):
    schedule, clock, stages = make_schedule(hours=1)
    rates = train_by_the_clock(schedule, clock, stages, seconds, heldout)
    assert 3240 < clock.now < 3960
    assert all(schedule.steps(stage) != 1000 for stage in stages) and max(rates.values()) < 0.01


@pytest.mark.parametrize(
    "hours, before, slow, fast", [(0.055, 10, 20, 0.02), (2, 300, 10, 0.25), (2, 200, 5, 0.3), (8, 900, 60, 1.0)]
)
def test_a_slow_beginning_is_not_taken_for_the_speed(hours, before, slow, fast):
    """Preparations take more than a plan may wait, and the first two steps of each stage compile."""
    schedule, clock, stages = make_schedule(hours=hours, steps=10000)
    clock.now, rates = float(before), {}
    for stage in stages:
        schedule.begin_stage(stage, 0)
        step = 0
        while step < schedule.steps(stage):
            rates.setdefault(stage.name, []).append(schedule.factor(stage, step))
            clock.now += slow if step < 2 else fast
            step += 1
            if step < schedule.steps(stage) and schedule.is_due(step):
                schedule.plan(stage, step, dict.fromkeys(("first", "second"), 1.0))
    assert clock.now == pytest.approx(3600 * hours, rel=0.1)
    assert all(0.4 < sum(each) / len(each) < 0.6 and each[-1] < 0.01 for each in rates.values())


def test_a_run_that_is_mostly_measured_keeps_to_its_hours():
    schedule, clock, stages = make_schedule(hours=1)
    train_by_the_clock(schedule, clock, stages, {"first": 0.01, "second": 0.01}, heldout=200.0)
    assert clock.now < 1.15 * 3600


def test_a_later_stages_warm_up_is_its_own_again_when_there_is_time_for_it():
    schedule, clock, (first, _) = make_schedule(hours=1, warmup_steps=500)
    schedule.begin_stage(first, 0)
    clock.now, schedule.step_seconds["first"] = 1700.0, 5.0
    schedule.plan(first, 300, dict.fromkeys(("first", "second"), 1.0))
    assert schedule.turns["second"].warmup < 50
    clock.now += 1.0
    schedule.step_seconds["first"] = 0.2
    schedule.plan(first, 301, dict.fromkeys(("first", "second"), 1.0))
    second = schedule.turns["second"]
    assert second.steps > 1500 and second.warmup == second.steps // 10


def test_only_known_events_are_timed():
    schedule, _, (stage, _) = make_schedule(hours=1)
    with (
        pytest.raises(ValueError, match="no event 'export_all'; events are heldout"),
        schedule.timed(stage, "export_all"),
    ):
        pass


def test_hours_count_over_all_starts_and_going_back_gives_none_back():
    schedule, clock, _ = make_schedule(hours=1)
    clock.now = 1800.0
    state = schedule.state()
    schedule, clock, _ = make_schedule(hours=1)
    clock.now = 60.0
    schedule.load_state(state, "first")
    assert schedule.used() == 1860
    clock.now = 120.0
    schedule.load_state({**state, "seconds": 1900.0}, "first")
    assert schedule.used() == 1920


def test_a_warm_up_that_no_longer_fits_is_shortened():
    schedule, clock, (stage, _) = make_schedule(hours=0.1, warmup_steps=500)
    schedule.begin_stage(stage, 0)
    clock.now = 20.0
    assert schedule.is_due(10)
    decision = schedule.plan(stage, 10, {"first": 1.0, "second": 1.0})
    assert decision["steps"]["first"] == pytest.approx(90, abs=2) and "of 0.1 hours are used" in decision["why"]
    rates = [schedule.factor(stage, step) for step in range(10, schedule.steps(stage))]
    assert max(rates) > 0.9 and rates[-1] < 0.01 and rates.index(max(rates)) < 12


def test_without_hours_stages_that_have_not_begun_have_their_own_steps_again():
    schedule, clock, (first, second) = make_schedule(hours=0.1)
    schedule.begin_stage(first, 0)
    clock.now = 20.0
    schedule.plan(first, 10, {"first": 1.0, "second": 1.0})
    assert schedule.steps(second) < 1000
    free, _, _ = make_schedule()
    free.load_state(schedule.state(), "first")
    assert free.steps(first) == schedule.steps(first) and free.steps(second) == 1000


def flat_config(**fields) -> RunConfig:
    """The tiny run in one stage of many steps in which nothing is learned, so that it is flat at once."""
    stage = make_config().stages[0].model_copy(update={"steps": 200, "learning_rate": 1e-9, "stop_when_flat": 4})
    return make_config(stages=[stage.model_dump()], validate_every=2, checkpoint_every=5, log_every=4, **fields)


def test_a_run_ends_a_flat_stage_early_and_a_resumed_one_the_same(tmp_path):
    make_run(tmp_path / "through", flat_config()).train()
    lines = records(tmp_path / "through")
    (planned,) = [record for record in lines if "planned" in record]
    end = planned["planned"]["steps"]["planner"]
    assert end == planned["step"] + 1 < 20 and lines[-1]["step"] == end
    assert (tmp_path / "through" / "pipeline" / "model_index.json").is_file()

    class After(StopRequest):
        @property
        def reason(self):
            return "a test" if run.global_step == 6 else None

    run = make_run(tmp_path / "resumed", flat_config())
    with pytest.raises(Stopped):
        run.train(After(run.folder))
    make_run(tmp_path / "resumed", flat_config()).train()
    assert [r["step"] for r in records(tmp_path / "resumed")] == [r["step"] for r in lines]
    make_run(tmp_path / "resumed", flat_config()).train()  # finished: nothing more is trained
    assert records(tmp_path / "resumed")[-1]["step"] == end


def test_a_flat_stage_needs_held_out_clips():
    with pytest.raises(ValueError, match="'planner' has `stop_when_flat`, which needs held-out losses"):
        flat_config(data={**flat_config().data.model_dump(), "validation": None})


def start_with_hours(folder, stop_at: int | None = None):
    """Start or resume a run of 72 seconds in which a step takes a second and nothing else takes any."""
    stages = [stage.model_dump() | {"steps": 10**6} for stage in make_config().stages[::2]]
    config = make_config(stages=stages, hours=0.02, checkpoint_every=10**6, validate_every=10**6)
    run = make_run(folder, config)
    newest = list_checkpoints(folder / "checkpoints")
    before = step_of(newest[-1]) if newest else 0
    run.schedule.clock = lambda: float(run.global_step - before)
    run.monitor.operations, run.monitor.peak = {"planner": 1e9, "joint": 1e9}, 1e12

    class After(StopRequest):
        def __init__(self):
            super().__init__(folder)
            self.started = 0.0

        @property
        def reason(self):
            return "a test" if run.global_step + 1 == stop_at else None

    return run, After()


def test_a_run_with_hours_records_its_plan_and_goes_on_with_it(tmp_path):
    run, stop = start_with_hours(tmp_path / "through")
    run.train(stop)
    lines = records(tmp_path / "through")
    planned = [record for record in lines if "planned" in record]
    assert {"planner", "joint"} <= planned[0]["planned"]["steps"].keys() and planned[0]["step"] < 5
    ends = [run.schedule.steps(stage) for stage in run.config.stages]
    assert all(30 < end < 40 for end in ends) and 65 <= sum(ends) <= 79
    last = [record for record in lines if "loss" in record][-1]
    assert (last["stage"], last["step"]) == ("joint", ends[1]) and last["learning_rate"] < 1e-3
    assert lines[-1]["step"] == ends[1] and "heldout" in lines[-1]  # the end is measured as ever

    run, stop = start_with_hours(tmp_path / "resumed", 50)
    with pytest.raises(Stopped):
        run.train(stop)
    run, stop = start_with_hours(tmp_path / "resumed")
    run.train(stop)
    assert [run.schedule.steps(stage) for stage in run.config.stages] == ends
    rates = [[r["learning_rate"] for r in records(tmp_path / name) if "loss" in r] for name in ("through", "resumed")]
    assert rates[1][:50] == rates[0][:50]
    assert rates[1] == pytest.approx(rates[0], abs=1e-3)  # the plan after a resume is made two steps later
    run, stop = start_with_hours(tmp_path / "resumed")  # finished, though hours may be left
    run.train(stop)
    assert run.global_step == sum(ends)


def test_a_finished_run_is_trained_longer_with_a_learning_rate_that_rises_and_decays_again(tmp_path):
    make_run(tmp_path).train()
    before = records(tmp_path)
    longer = make_config().longer([20])
    assert longer.stages[-1].name == "joint-longer" and longer.stages[:-1] == make_config().stages
    make_run(tmp_path, longer).train()
    lines = records(tmp_path)
    assert lines[: len(before)] == before
    rates = [r["learning_rate"] for r in lines[len(before) :] if "loss" in r]
    assert len(rates) == 20 and rates[0] > 0.4 * max(rates) and max(rates) == pytest.approx(1e-2, rel=0.1)
    assert rates[-1] < 0.1 * max(rates) and lines[-1]["global_step"] == 28
    config = make_config().longer([20, 30])  # once more
    assert [(stage.name, stage.steps) for stage in config.stages[-2:]] == [
        ("joint-longer", 20),
        ("joint-longer-2", 30),
    ]
    with pytest.raises(ValueError, match="--longer got 0 steps"):
        make_config().longer([0])
    with pytest.raises(ValueError, match="and --longer, if it was trained longer"):
        make_run(tmp_path).train()
