"""Windows: the same from cache and pixels, from one process and several, and with clips that break on the way."""

from collections import Counter

import numpy as np
import pytest
import torch

from pipelines_tests.training.clip_files import noise, write_clip
from pipelines_tests.training.data.test_latents import tiny_kl, tiny_vae
from training.data.buckets import Bucket, WindowRequest
from training.data.entries import Entries, Entry
from training.data.manifest import make_manifest
from training.data.order import StepRows
from training.data.sources import VideoFolder
from training.data.windows import ClipWindows, LatentWindows, PixelWindows, _weighted
from training.randomness import step_generator


SQUARE, WIDE = Bucket(16, 16, 3), Bucket(16, 32, 3)
MIXTURE = WindowRequest("stage", (SQUARE,), strides=((1, 0.3), (2, 0.7)))


@pytest.fixture
def folder(tmp_path):
    for index, length in enumerate((9, 6, 5, 8)):
        wide = index % 2
        write_clip(tmp_path / "clips" / f"{index}.mp4", noise(length, 32, 64 if wide else 32, seed=index), fps=10)
    return tmp_path / "clips"


def make(folder, kind=LatentWindows, vae=None, requests=(MIXTURE,)):
    source = VideoFolder(folder)
    entries = make_manifest(source, folder.parent / "manifest.parquet").entries
    vae = vae or tiny_vae()
    if kind is LatentWindows:
        return LatentWindows.build(source, entries, requests, vae, 2, folder.parent / "cache")
    return PixelWindows(source, entries, {bucket.size for s in requests for bucket in s.buckets}, vae, 2)


def rows_of(step, rows=range(4), batch_size=4):
    rows = tuple(rows)
    generators = [step_generator(0, "sample", step * batch_size + row) for row in rows]
    return StepRows(0, step, batch_size, rows), generators


def run(windows, request, step, rows=range(4), batch_size=4):
    place, generators = rows_of(step, rows, batch_size)
    draws = windows.draw(request, place, generators)
    return draws, windows.batch(draws, generators)


def test_strides_come_as_often_as_their_weights_say():
    assert [_weighted(MIXTURE, share).stride for share in (0, 0.29, 0.31, 0.99)] == [1, 1, 2, 2]
    uneven = WindowRequest("stage", (SQUARE,), strides=((3, 1.0), (1, 0.0), (2, 4.0)))  # in any order, of any sum
    assert [_weighted(uneven, share).stride for share in (0, 0.79, 0.81, 0.99)] == [2, 2, 3, 3]


def test_cache_and_pixels_give_the_same_windows(folder):
    vae = tiny_kl()
    request = WindowRequest("stage", (SQUARE, WIDE), fps=((5.0, 1.0),), flip=0.5, off_centre=0.5)
    cached, pixels = (make(folder, kind, vae, (request,)) for kind in (LatentWindows, PixelWindows))
    views = []
    for step in range(3):
        (draws, batch), (pixel_draws, pixel_batch) = run(cached, request, step), run(pixels, request, step)
        assert draws == pixel_draws
        views += [draw.view for draw in draws]
        assert batch[0].shape[:3] == (4, 3, 4) and batch[0].shape[-1] == 2 * batch[1].shape[-1]
        for ours, theirs in zip(batch, pixel_batch):
            assert ours.dtype == theirs.dtype == torch.float32
            torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)
    assert 0 < sum(view.flip for view in views) < 12
    assert 0 < sum(view.crop != 0.5 for view in views) < 12


def test_draws_do_not_depend_on_the_number_of_processes(folder):
    windows = make(folder)
    for step in range(3):
        draws, (latents, planner_latents) = run(windows, MIXTURE, step)
        halves = [run(windows, MIXTURE, step, rows) for rows in ((0, 1), (2, 3))]
        assert draws == halves[0][0] + halves[1][0]
        assert torch.equal(latents, torch.cat([half[1][0] for half in halves]))
        assert torch.equal(planner_latents, torch.cat([half[1][1] for half in halves]))


def test_every_clip_comes_equally_often_and_windows_vary(folder):
    windows = make(folder)
    draws = [draw for step in range(8) for draw in run(windows, MIXTURE, step)[0]]
    assert set(Counter(draw.clip for draw in draws).values()) == {8}
    assert {draw.rate.stride for draw in draws} == {1, 2}
    assert len({draw.frames for draw in draws}) > 5
    assert all(len({d.frames[i + 1] - d.frames[i] for i in range(2)}) == 1 for d in draws)


def test_a_batch_comes_from_one_bucket_and_buckets_by_their_clips(folder):
    request = WindowRequest("stage", (SQUARE, WIDE), strides=((1, 1.0),))
    windows = make(folder, requests=(request,))
    census = windows.census(request)
    assert [[entry.key for entry in clips] for clips in census.clips] == [["0.mp4", "2.mp4"], ["1.mp4", "3.mp4"]]
    shapes = Counter()
    for step in range(8):
        draws, (latents, _) = run(windows, request, step, range(2), 2)
        assert len({draw.bucket for draw in draws}) == 1
        assert latents.shape[-2:] == tuple(side // 8 for side in draws[0].bucket.size)
        shapes[draws[0].bucket] += 1
    assert shapes == {SQUARE: 4, WIDE: 4}


def test_heldout_windows_are_spread_over_all_that_there_are(folder):
    windows, by_two = make(folder), WindowRequest("held out", (SQUARE,), strides=((2, 1.0),))
    starts = {"0.mp4": 5, "1.mp4": 2, "2.mp4": 1, "3.mp4": 4}  # of 9, 6, 5 and 8 frames, three of which span five
    draws = windows.heldout(by_two, 1000)
    expected = [(clip, (start, start + 2, start + 4)) for clip in starts for start in range(starts[clip])]
    assert [(draw.clip, draw.frames) for draw in draws] == expected
    latents, planner_latents = windows.batch(draws, [torch.Generator()] * len(draws))
    cache = windows.caches[SQUARE.size]
    for draw, ours, planners in zip(draws, latents, planner_latents):
        moments = cache.read(windows.entries[draw.number], draw.frames)
        assert torch.equal(ours, moments.mean.float()) and torch.equal(planners, moments.planner_mean.float())
    few = windows.heldout(by_two, 5)
    assert few == [draws[i] for i in torch.linspace(0, len(draws) - 1, 5).long().tolist()]


@pytest.mark.parametrize("kind", [LatentWindows, PixelWindows])
def test_windows_read_under_autocast_are_those_read_without(folder, kind):
    windows, by_two = make(folder, kind), WindowRequest("held out", (SQUARE,), strides=((2, 1.0),))
    draws = windows.heldout(by_two, 2)
    plain = windows.batch(list(draws), [torch.Generator()] * 2)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = windows.batch(list(draws), [torch.Generator()] * 2)
    assert all(ours.dtype == torch.float32 and torch.equal(ours, theirs) for ours, theirs in zip(mixed, plain))


def test_heldout_windows_of_more_clips_than_float32_can_count():
    entries = [Entry(key=key, status="ok", num_frames=50_000_001, fps=10, width=16, height=16) for key in ("a", "b")]
    draws = ClipWindows(entries, [SQUARE.size]).heldout(WindowRequest("held out", (SQUARE,), strides=((1, 1.0),)), 2)
    assert [draw.clip for draw in draws] == ["a", "b"] and draws[-1].frames[-1] == 50_000_000


def test_heldout_windows_by_time(folder):
    windows = make(folder)
    draws = windows.heldout(WindowRequest("held out", (SQUARE,), fps=((5.0, 1.0),)), 4)
    assert [draw.frames[1] - draw.frames[0] for draw in draws] == [2] * 4
    with pytest.raises(ValueError, match="stage 'held out' has no clips"):
        windows.heldout(WindowRequest("held out", (SQUARE,), fps=((1.0, 1.0),)), 4)


def test_a_short_clip_takes_the_widest_stride_that_fits(folder):
    request = WindowRequest("stage", (SQUARE,), strides=((1, 0.01), (3, 0.99)))
    windows = make(folder, requests=(request,))
    draws = [draw for step in range(4) for draw in run(windows, request, step)[0]]
    assert {draw.frames[1] - draw.frames[0] for draw in draws if draw.clip == "2.mp4"} == {1}
    assert 3 in {draw.frames[1] - draw.frames[0] for draw in draws if draw.clip == "0.mp4"}


@pytest.mark.parametrize("damage", ["deleted", "truncated"])
def test_a_clip_that_breaks_in_mid_run_is_reported_once_and_replaced(folder, capsys, damage):
    windows = make(folder, PixelWindows)
    intact = [run(windows, MIXTURE, step) for step in range(4)]
    if damage == "deleted":
        (folder / "1.mp4").unlink()
    else:
        (folder / "1.mp4").write_bytes((folder / "1.mp4").read_bytes()[:500])
    capsys.readouterr()
    broken = [run(windows, MIXTURE, step) for step in range(4)]
    assert list(windows.failures) == ["1.mp4"]
    assert capsys.readouterr().out.count("clip '1.mp4' can't be read") == 1
    replaced = 0
    for (before, latents), (after, others) in zip(intact, broken):
        for row in range(4):
            if before[row].clip == "1.mp4":
                replaced += 1
                assert after[row].clip != "1.mp4"
            else:
                assert after[row] == before[row] and torch.equal(latents[0][row], others[0][row])
    assert replaced == 4
    fresh = PixelWindows(windows.source, windows.entries, windows.sizes, windows.vae, 2)  # as after a restart
    again = run(fresh, MIXTURE, 2)
    assert again[0] == broken[2][0] and torch.equal(again[1][0], broken[2][1][0])


def test_a_run_without_any_readable_clip_ends(folder):
    windows = make(folder, PixelWindows)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="none of the 4 clips of bucket"):
        run(windows, MIXTURE, 0)
    assert len(windows.failures) == 4


def test_damaged_shards_are_failures_of_their_clips(folder):
    windows = make(folder)
    for shard in (folder.parent / "cache").rglob("shard-*"):
        shard.unlink()
    with pytest.raises(ValueError, match="delete it, and it is made anew"):
        run(windows, MIXTURE, 0)


def test_prefetched_windows_are_those_that_are_read(folder):
    windows, plain = make(folder, PixelWindows), make(folder, PixelWindows)
    place, generators = rows_of(0)
    windows.prefetch(windows.draw(MIXTURE, place, generators))
    for ours, theirs in zip(run(windows, MIXTURE, 0)[1], run(plain, MIXTURE, 0)[1]):
        assert torch.equal(ours, theirs)
    assert windows._pending == {}


def test_what_was_decoded_of_a_clip_that_broke_is_not_kept(folder):
    windows = make(folder, PixelWindows)
    place, generators = rows_of(0, range(12), 12)  # each clip three times
    draws = windows.draw(MIXTURE, place, generators)
    windows.prefetch(draws)
    assert all(future.result() is not None for future in windows._pending.values())
    windows.failures["1.mp4"] = "broken meanwhile"
    windows.batch(draws, generators)
    assert windows._pending == {} and "1.mp4" not in {draw.clip for draw in draws}


def test_clips_that_the_cache_could_not_encode_are_in_the_census(folder):
    source = VideoFolder(folder)
    entries = make_manifest(source, folder.parent / "manifest.parquet").entries
    (folder / "1.mp4").unlink()
    windows = LatentWindows.build(source, entries, (MIXTURE,), tiny_vae(), 2, folder.parent / "cache")
    assert "changed since the manifest" in windows.census(MIXTURE).left_out["1.mp4"]
    assert [entry.key for entry in windows.census(MIXTURE).clips[0]] == ["0.mp4", "2.mp4", "3.mp4"]


def test_after_a_rollback_clips_come_in_another_order(folder):
    windows = make(folder)

    def clips(attempt):
        generators = [step_generator(0, "sample", row) for row in range(12)]
        return [draw.clip for draw in windows.draw(MIXTURE, StepRows(0, 0, 12, tuple(range(12)), attempt), generators)]

    assert clips(0) == clips(0) != clips(1) and set(clips(0)) == set(clips(1))


def test_windows_of_a_selection_are_those_of_its_clips():
    entries = [Entry(key=f"{i}", status="ok", num_frames=3 + i, fps=10, width=16, height=16) for i in range(20)]
    odd = Entries.of(entries).select(np.arange(20) % 2)
    request = WindowRequest("stage", (SQUARE,), strides=((1, 1.0),))
    selected, listed = (ClipWindows(clips, [SQUARE.size]).draw(request, *rows_of(0)) for clips in (odd, entries[1::2]))
    assert [(draw.clip, draw.frames) for draw in selected] == [(draw.clip, draw.frames) for draw in listed]


def test_shards_are_read_a_few_at_a_time(tmp_path):
    keys = [f"{shard}.tar/{clip}.mp4" for shard in range(6) for clip in range(4)]
    entries = [Entry(key=key, status="ok", num_frames=3, fps=10, width=16, height=16) for key in keys]
    windows = ClipWindows(entries, [SQUARE.size])
    request = WindowRequest("stage", (SQUARE,), strides=((1, 1.0),), shards_at_once=2)
    draws = [draw.clip for step in range(12) for draw in windows.draw(request, *rows_of(step))]
    for epoch in (draws[:24], draws[24:]):
        assert sorted(epoch) == sorted(keys)
        assert [len({key.split("/")[0] for key in epoch[first : first + 8]}) for first in (0, 8, 16)] == [2, 2, 2]
    assert draws[:24] != draws[24:]


def test_buckets_without_clips_are_no_error(folder):
    request = WindowRequest("stage", (SQUARE, Bucket(32, 16, 3)), strides=((1, 1.0),))
    windows = make(folder, requests=(request,))
    assert [len(clips) for clips in windows.census(request).clips] == [4, 0]
    assert run(windows, request, 0)[1][0].shape[-2:] == (2, 2)


def test_unknown_sizes_are_refused(folder):
    windows = make(folder)
    with pytest.raises(ValueError, match="none of the sizes"):
        windows.census(WindowRequest("stage", (WIDE,), fps=((5.0, 1.0),)))
