"""A run that diverges fails, and its last good checkpoint stays and is gone on from."""

import json
import math
from pathlib import Path

import pytest

from pipelines_tests.training.test_train_mardini import clips_folder, data_fields, make_config, make_run
from training.engine.checkpoint import list_checkpoints
from training.engine.divergence import FAR_ABOVE, DivergenceGuard
from training.engine.guards import RunFailed


def test_a_loss_far_above_the_start_of_its_stage_is_refused():
    guard = DivergenceGuard()
    assert guard.accepts(0.2, zeros=2.0, global_step=10) and guard.accepts(0.2 * FAR_ABOVE, 2.0, 20)
    assert not guard.accepts(0.21 * FAR_ABOVE, 2.0, 30) and not guard.accepts(math.nan, 2.0, 40)
    assert guard.good_until == 20
    guard.begin_stage()
    assert guard.accepts(1.5, 2.0, 50) and guard.good_until == 50


def test_a_stage_that_has_blown_up_before_its_first_measurement_is_refused_by_what_zeros_lose():
    assert not DivergenceGuard().accepts(5e17, zeros=2.0, global_step=300)
    assert not DivergenceGuard().accepts(math.inf, zeros=2.0, global_step=300)


def test_one_large_training_loss_is_nothing_and_many_are_something():
    guard = DivergenceGuard()
    assert all(guard.accepts_training(1.0, 2.0, step) for step in range(10, 20))
    assert guard.accepts_training(1e6, 2.0, 20) and guard.good_until == 16
    resumed = DivergenceGuard()
    resumed.load_state(json.loads(json.dumps(guard.state())))
    assert resumed.accepts_training(1e6, 2.0, 21) and resumed.accepts_training(1e6, 2.0, 22)
    assert not resumed.accepts_training(1e6, 2.0, 23) and resumed.good_until == 18  # the last loss that was good: 19


def one_stage(**fields):
    names = ("steps", "learning_rate")
    stage = make_config().stages[0].model_dump() | {key: fields.pop(key) for key in names if key in fields}
    return make_config(stages=[stage], **fields)


@pytest.mark.parametrize("held_out", [True, False])
def test_a_diverged_run_fails_and_goes_on_from_the_checkpoint_before(tmp_path, held_out):
    data = data_fields(clips_folder(), **({} if held_out else {"validation": None}))
    sane = one_stage(
        steps=24, data=data, checkpoint_every=1, validate_every=4, keep_checkpoints=2, save_dtype="bfloat16"
    )
    stage = sane.stages[0]
    run = make_run(tmp_path, sane)

    def explode(global_step: int) -> float:
        """Return a rate at which the weights of a sane run leave every good place in a few steps."""
        return 1.0 if global_step < 17 else 3e3

    factor = run.schedule.factor
    run.schedule.factor = lambda stage, step: factor(stage, step) * explode(run.global_step)
    with pytest.raises(RunFailed, match="has blown up after .*the last good checkpoint is .*step-000000") as failed:
        run.train()
    good = list_checkpoints(tmp_path / "checkpoints")
    assert str(good[-1]) in str(failed.value) and int(good[-1].name[-2:]) <= 17
    aside = sorted(path.name for path in (tmp_path / "checkpoints").glob("diverged-*"))
    assert aside and all(name in str(failed.value) for name in aside)
    assert not (tmp_path / "pipeline").exists()
    make_run(tmp_path, sane.model_copy(update={"stages": [stage]})).train()  # the same command goes on from there
    assert (tmp_path / "pipeline").is_dir()


def test_the_last_good_checkpoint_is_kept_however_many_come_after(tmp_path):
    run = make_run(tmp_path, one_stage(steps=9, checkpoint_every=1, validate_every=100, keep_checkpoints=2))
    folder = tmp_path / "checkpoints"

    def names() -> list[int]:
        return [int(Path(path).name[-2:]) for path in list_checkpoints(folder)]

    run.divergence.good_until = 3
    seen = []
    save = run.checkpoints.save
    run.checkpoints.save = lambda *arguments: (save(*arguments), seen.append(names()))
    run.train()
    assert [3, 7, 8] in seen and names() == [8, 9]  # the held-out losses of the end are good
