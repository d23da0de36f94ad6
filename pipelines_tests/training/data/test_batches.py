"""The rows of a global batch, dealt out to any number of processes."""

from fractions import Fraction

import pytest
import torch

from training.config.layers import load_config
from training.curriculum import draw_reference_mask, draw_timesteps
from training.data.batches import Draw, deal


def dealt(stage, ranks: int, step: int = 3) -> list[list[Draw]]:
    """Draws of all ranks, as the loop makes them."""
    stage = stage.for_processes(ranks)
    total, parts = stage.windows_per_step, stage.gradient_accumulation
    return [
        [Draw.of_rows(0, stage.name, step, rows, total) for rows in deal(total, rank, ranks, parts)]
        for rank in range(ranks)
    ]


@pytest.mark.parametrize(
    "total, ranks, parts", [(1, 1, 1), (7, 3, 2), (5, 8, 1), (96, 64, 3), (720, 512, 2), (1024, 3, 9)]
)
def test_each_row_is_dealt_once_and_no_rank_has_two_more_than_another(total, ranks, parts):
    rows = [deal(total, rank, ranks, parts) for rank in range(ranks)]
    assert [row for mine in rows for part in mine for row in part] == list(range(total))
    counts = [sum(map(len, mine)) for mine in rows]
    assert max(counts) - min(counts) <= 1 and max(counts) == -(-total // ranks)
    assert all(max(map(len, mine)) - min(map(len, mine)) <= 1 for mine in rows)


def test_ranks_that_are_not_there_have_no_rows():
    with pytest.raises(ValueError, match="rank 3 is none of 0 to 2"):
        deal(4, 3, 3, 1)


@pytest.mark.parametrize("ranks", [1, 3, 8, 64, 512])
def test_the_papers_batches_have_the_same_rows_at_any_number_of_ranks(ranks):
    stages = load_config("training/configs/mardini_l_t.yaml").stages  # those of figure4_st.yaml and figure4_t.yaml
    by_batch = {stage.global_batch: stage for stage in stages}
    assert set(by_batch) == {1024, 720, 384, 176, 96}
    for stage in by_batch.values():
        (alone,) = dealt(stage.model_copy(update={"batch_size": None}), 1)
        (whole,) = alone
        draws = dealt(stage, ranks)
        assert len({len(mine) for mine in draws}) == 1  # all take part equally often
        counted = [draw for mine in draws for draw in mine if draw.counts]
        assert [row for draw in counted for row in draw.places().rows] == list(range(stage.global_batch))
        assert {draw.places().batch_size for draw in counted} == {stage.global_batch}
        assert sum(draw.share for mine in draws for draw in mine) == 1
        assert max(draw.count for draw in counted) <= stage.batch_size
        for draw in counted:
            assert draw.share == Fraction(draw.count, stage.global_batch)
        # What is random of each row, put together, is what one process draws.
        masks = torch.cat([draw_reference_mask(stage, stage.num_frames, draw) for draw in counted])
        timesteps = torch.cat([draw_timesteps(1000, stage.timestep_shift, draw) for draw in counted])
        assert torch.equal(masks, draw_reference_mask(stage, stage.num_frames, whole))
        assert torch.equal(timesteps, draw_timesteps(1000, stage.timestep_shift, whole))
        noise = [torch.rand(2, generator=row) for draw in counted for row in draw.rows("noise")]
        alone = [torch.rand(2, generator=row) for row in whole.rows("noise")]
        assert torch.equal(torch.stack(noise), torch.stack(alone))


@pytest.mark.parametrize("ranks", [5, 64])
def test_a_rank_without_a_row_repeats_one_that_does_not_count(ranks):
    stage = load_config("training/configs/mardini_l_t.yaml").stages[-1].model_copy(update={"global_batch": 4})
    draws = [draw for mine in dealt(stage, ranks) for draw in mine]
    idle = [draw for draw in draws if not draw.counts]
    assert len(draws) == ranks and len(idle) == ranks - 4
    assert all(draw.count == 1 and draw.share == 0 and 0 <= draw.first < 4 for draw in idle)
