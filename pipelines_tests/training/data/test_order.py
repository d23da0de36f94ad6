"""The order of clips is a pure function: every clip equally often, whatever the number of processes."""

import itertools
from collections import Counter

import numpy as np
import pytest

from training.data.entries import Entry
from training.data.order import (
    Rate,
    Shards,
    StepRows,
    bucket_at,
    clip_at,
    frame_indices,
    frames_at_stride,
    num_starts,
    permuted,
    why_not,
)


def entry(num_frames=64, fps=25.0, timestamps=None) -> Entry:
    duration = num_frames / fps if timestamps is None else timestamps[-1] - timestamps[0] + 1 / fps
    return Entry(
        key="a",
        status="ok",
        num_frames=num_frames,
        fps=fps,
        width=64,
        height=64,
        duration=duration,
        timestamps=timestamps,
    )


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_permutations_are_whole_and_differ_by_key(size):
    orders = [[permuted(i, size, seed, "stage", 0) for i in range(size)] for seed in range(3)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    if size > 7:
        assert orders[0] != orders[1] != orders[2] and orders[0] != list(range(size))


def test_permutations_spread_evenly():
    places = np.array([[permuted(i, 8, seed) for i in range(8)] for seed in range(2000)])
    for i in range(8):
        counts = np.bincount(places[:, i], minlength=8)
        assert np.abs(counts - 250).max() < 6 * np.sqrt(250 * 7 / 8)


def test_a_place_of_a_large_permutation_needs_no_list():
    size = 10**12 + 39
    assert len({permuted(i, size, "x") for i in range(100)}) == 100
    with pytest.raises(ValueError, match="outside of 0 to 6"):
        permuted(7, 7, 0)


def test_each_epoch_has_every_clip_once_in_an_order_of_its_own():
    epochs = [[clip_at(epoch * 10 + i, 10, 0, "s") for i in range(10)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_buckets_come_as_often_as_they_have_batches():
    batches = (5, 2, 1)
    drawn = [bucket_at(3, "stage", step, batches) for step in range(24)]
    for epoch in range(3):
        assert Counter(bucket for bucket, _ in drawn[8 * epoch : 8 * epoch + 8]) == {0: 5, 1: 2, 2: 1}
    for bucket, count in enumerate(batches):
        assert [earlier for b, earlier in drawn if b == bucket] == list(range(3 * count))
    assert [b for b, _ in drawn[:8]] != [b for b, _ in drawn[8:16]]


def test_rows_outside_of_the_batch_are_refused():
    with pytest.raises(ValueError, match="rows must lie in 0 to 3"):
        StepRows(seed=0, step=0, batch_size=4, rows=(4,))


def test_windows_by_stride_are_every_nth_frame():
    clip = entry(num_frames=10)
    assert num_starts(clip, 4, Rate(stride=2)) == 4
    assert frame_indices(clip, 0.0, 4, Rate(stride=2)) == (0, 2, 4, 6)
    assert frame_indices(clip, 0.999, 4, Rate(stride=2)) == (3, 5, 7, 9)
    assert num_starts(clip, 4, Rate(stride=3)) == 1 and num_starts(clip, 4, Rate(stride=4)) == 0


@pytest.mark.parametrize("fps", [25.0, 24.0, 30000 / 1001, 10.0, 8.0, 59.94])
def test_windows_by_time_are_the_nearest_frames_and_stay_within_the_clip(fps):
    clip, rate = entry(num_frames=70, fps=fps), Rate(fps=8)
    starts = num_starts(clip, 9, rate)
    assert starts >= 1
    for start in range(starts):
        frames = frame_indices(clip, (start + 0.5) / starts, 9, rate)
        assert frames[0] == start and frames[-1] < 70 and (np.diff(frames) > 0).all()
        errors = clip.times(frames) - clip.times([start]) - np.arange(9) / 8
        assert np.abs(errors).max() <= 0.5 / fps + 1e-6
    assert frames[-1] == 69  # the last window reaches the last frame


def test_windows_by_time_never_repeat_frames():
    assert num_starts(entry(fps=5.0), 4, Rate(fps=8)) == 0
    for name in (24, 30, 60):  # NTSC's
        assert frame_indices(entry(fps=name * 1000 / 1001), 0.0, 17, Rate(fps=name)) == tuple(range(17))
    assert num_starts(entry(fps=29.9), 17, Rate(fps=30)) == 0
    assert "5 frames per second" in why_not(entry(fps=5.0), 4, Rate(fps=8))
    assert "take 1.00 s" in why_not(entry(num_frames=8), 9, Rate(fps=8))
    with pytest.raises(ValueError, match="clip 'a'"):
        frame_indices(entry(fps=5.0), 0.0, 4, Rate(fps=8))


def test_windows_of_a_variable_rate_go_by_its_time_stamps():
    times = (0.0, 0.1, 0.2, 0.25, 0.3, 0.4, 1.4, 1.5, 1.6)
    clip = entry(num_frames=9, fps=5.0, timestamps=times)
    rate = Rate(fps=5.0)
    assert num_starts(clip, 3, rate) == 2  # the others run into the pause and would repeat frame 5
    assert frame_indices(clip, 0.0, 3, rate) == (0, 2, 5)
    assert frame_indices(clip, 0.9, 3, rate) == (1, 4, 5)
    assert num_starts(clip, 9, rate) == 0 and "its rate varies" in why_not(clip, 9, rate)


def test_a_rate_is_a_stride_or_a_number_per_second():
    for arguments in ({}, {"stride": 2, "fps": 8.0}, {"stride": 0}, {"fps": -1.0}):
        with pytest.raises(ValueError):
            Rate(**arguments)


def test_frames_at_a_stride_are_the_nearest_and_the_earlier_of_two_as_near():
    assert frames_at_stride(3, 4, 2) == (3, 5, 7, 9)
    assert frames_at_stride(0, 5, 2.5) == (0, 2, 5, 7, 10)
    assert frames_at_stride(1, 3, 1.2) == (1, 2, 3)
    assert frames_at_stride(0, 2, 12.5 + 1e-9) == (0, 12)  # a rounding error does not decide


@pytest.mark.parametrize(
    ("sizes", "at_once"), [([3, 1, 4, 1, 5, 9, 2, 6], 3), ([7], 2), ([2, 2, 2], 8), ([1] * 12, 1)]
)
def test_shards_come_a_few_at_a_time_and_every_clip_once_in_an_epoch(sizes, at_once):
    shards, total = Shards(np.array(sizes), at_once), sum(sizes)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    epochs = [[clip_at(epoch * total + i, total, 0, "s", shards=shards) for i in range(total)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(total))
        left, together = list(epoch), []
        while left:  # a buffer's shards are exhausted before the next buffer begins
            opened = set()
            while left and (shard_of[left[0]] in opened or len(opened) < at_once):
                opened.add(shard_of[left.pop(0)])
            together.append(opened)
        assert sum(map(len, together)) == len(sizes)
    assert total < 8 or epochs[0] != epochs[1] != epochs[2]
    assert [clip_at(i, total, 0, "s", shards=Shards(np.array(sizes), at_once)) for i in range(total)] == epochs[0]


def test_the_clips_of_a_buffer_are_mixed():
    shards = Shards(np.full(10, 100), 4)
    order = [clip_at(i, 1000, 0, "s", shards=shards) // 100 for i in range(400)]
    assert Counter(order).most_common() == [(shard, 100) for shard in dict.fromkeys(order)] and len(set(order)) == 4
    changes = sum(a != b for a, b in itertools.pairwise(order))
    assert 250 < changes < 350  # three quarters of 400, as for independent draws
