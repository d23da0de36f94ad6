"""Entries in columns are the entries that were given, and what is counted of columns is what the entries say."""

import math
import random

import numpy as np
import pytest

from benchmarks import manifest as manifest_benchmark
from training.data import entries as module
from training.data.buckets import Bucket, WindowRequest, assign, clips_by_size, window_counts
from training.data.entries import Entries, Entry, read_entries_file, write_entries_file
from training.data.entry_columns import OnDisk
from training.data.order import Rate, StepRows, num_starts
from training.data.windows import ClipWindows
from training.randomness import step_generator


BUCKETS = (Bucket(64, 64, 9), Bucket(48, 80, 9), Bucket(80, 48, 5), Bucket(128, 128, 9))


def entry(index: int, rng: random.Random) -> Entry:
    """A clip of any kind: usable or not, of an even or a varying rate."""
    if rng.random() < 0.1:
        return Entry(key=f"{index}.mp4", status="left out", reason=rng.choice(["empty", "torn"]))
    frames, fps = rng.randint(1, 40), rng.choice([5.0, 10.0, 24.0, 30000 / 1001, 59.94])
    times = None
    if rng.random() < 0.1:
        times = tuple(np.cumsum([rng.choice([0.02, 0.04, 0.3]) for _ in range(frames)]).tolist())
    return Entry(
        key=f"{index // 7}.tar/{index}.mp4", status="ok", stamp=None if index % 5 else f"{index} é",
        sha256=f"{rng.getrandbits(256):064x}", size=rng.getrandbits(40), num_frames=frames, fps=fps,
        width=rng.choice([32, 64, 80, 200]), height=rng.choice([32, 48, 64, 90, 200]), start=rng.random(),
        duration=frames / fps, codec="h264", timestamps=times, first_frame=index % 3, clip_frames=index % 2 * 100,
    )  # fmt: skip


@pytest.fixture(params=["memory", "file"])
def clips(request, tmp_path, monkeypatch) -> tuple[list[Entry], Entries]:
    """Entries in several small groups, and the same ones as a list."""
    monkeypatch.setattr(module, "GROUP", 16)
    monkeypatch.setattr(module, "_PART", 48)
    monkeypatch.setattr(module, "_BLOCK", 8)
    rng = random.Random(0)
    listed = [entry(index, rng) for index in range(150)]
    columns = Entries.of(listed)
    if request.param == "memory":
        return listed, columns
    write_entries_file(tmp_path / "m.parquet", {"manifest": 1}, columns.batches())
    header, found = read_entries_file(tmp_path / "m.parquet")
    assert header == {"manifest": 1}
    return listed, found


def test_entries_are_a_sequence_of_what_was_given(clips):
    listed, columns = clips
    assert len(columns) == 150 and columns == listed and listed == list(columns) and columns == Entries.of(listed)
    assert [columns[i] for i in (0, 17, 149, -1)] == [listed[i] for i in (0, 17, 149, -1)]
    assert columns[30:90:7] == listed[30:90:7] and list(columns.after(97)) == listed[97:]
    assert columns != listed[:-1] and columns != [*listed[:-1], listed[0]]
    with pytest.raises(IndexError, match="there are 150 entries, number 150"):
        columns[150]


def test_selections_of_selections_are_those_of_lists(clips):
    listed, columns = clips
    usable = [each for each in listed if each.status == "ok"]
    assert columns.ok == usable and columns.left_out == [each for each in listed if each.status != "ok"]
    third = columns.ok.select(np.arange(len(usable)) % 3, 1)
    assert third == usable[1::3] and third[5] == usable[16] and third[-1] == usable[1::3][-1]
    assert [listed[third.place(i)] for i in range(len(third))] == usable[1::3]
    assert third.total("num_frames") == sum(each.num_frames for each in usable[1::3])
    assert columns.within(third.mask()) == third and len(columns.select(np.zeros(150, bool))) == 0


def test_values_are_counted_in_the_order_of_their_first_appearance(clips):
    listed, columns = clips
    expected = {}
    for each in columns.ok:
        expected[each.width, each.fps] = expected.get((each.width, each.fps), 0) + 1
    assert list(columns.ok.counts("width", "fps").items()) == list(expected.items())
    assert columns.ok.counts("codec") == {("h264",): len(columns.ok)} and not Entries.of([]).counts("codec")
    known = columns.keys_of([listed[3].sha256, listed[140].sha256, "ff" * 32])
    assert known == {listed[i].sha256: listed[i].key for i in (3, 140)}


@pytest.mark.parametrize("rates", [{"strides": ((1, 0.5), (3, 0.5))}, {"fps": ((8.0, 1.0), (24.0, 1.0))}])
def test_columns_assign_each_clip_as_its_own_facts_do(clips, rates):
    listed, columns = clips
    request = WindowRequest("stage", BUCKETS, **rates)
    census = assign(columns, request)

    def preference(each, bucket):
        distance = abs(math.log(each.width / each.height) - math.log(bucket.width / bucket.height))
        enlarges = bucket.height > each.height or bucket.width > each.width
        area = bucket.height * bucket.width
        return round(distance, 6), -bucket.frames, enlarges, area if enlarges else -area

    expected, deciding = {bucket: [] for bucket in BUCKETS}, request.rates if request.fps else request.rates[:1]
    for each in listed:
        fitting = [b for b in BUCKETS if any(num_starts(each, b.frames, rate) for rate in deciding)]
        if each.status == "ok" and fitting:
            expected[min(fitting, key=lambda bucket: preference(each, bucket))].append(each)
    assert [list(clips) for clips in census.clips] == list(expected.values()) and all(expected.values())
    assert len(census.left_out) == 150 - sum(map(len, expected.values())) == len(dict(census.left_out))
    assert all(census.left_out.values())
    for rate in request.rates:
        windows = [num_starts(each, bucket.frames, rate) for bucket, clips in expected.items() for each in clips]
        assert census.windows[str(rate)] == sum(windows)
        assert window_counts(columns, 9, rate).tolist() == [num_starts(each, 9, rate) for each in listed]
    smaller = [sum(each.height < b.height or each.width < b.width for each in clips) for b, clips in expected.items()]
    assert census.enlarged == tuple(smaller)


def test_the_clips_of_a_size_are_those_of_all_stages(clips):
    listed, columns = clips
    near = WindowRequest("near", BUCKETS[:1], strides=((1, 1.0),))
    far = WindowRequest("far", (Bucket(64, 64, 5), BUCKETS[1]), strides=((1, 1.0),))
    found = clips_by_size([assign(columns, near), assign(columns, far)])
    used = {each.key for request in (near, far) for each in assign(columns, request).clips[0]}
    assert [each.key for each in found[64, 64]] == [each.key for each in listed if each.key in used]
    assert window_counts(columns, 3, Rate(stride=1)).shape == (150,)


def test_shards_are_the_archives_of_consecutive_keys(clips):
    _, columns = clips
    used = columns.ok
    archives = [each.key.split("/")[0] for each in used]
    changes = [i for i in range(len(used)) if i == 0 or archives[i] != archives[i - 1]]
    assert used.shard_sizes().tolist() == np.diff([*changes, len(used)]).tolist()
    plain = Entries.of(Entry(key=f"{i}.mp4", status="ok") for i in range(2500))
    assert plain.shard_sizes().tolist() == [1000, 1000, 500]


def test_a_step_reads_one_row_group_for_each_of_its_rows_however_many_clips_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "GROUP", 16)
    read, real = [], OnDisk.read
    monkeypatch.setattr(OnDisk, "read", lambda self, *place: read.append(place) or real(self, *place))
    request = WindowRequest("stage", BUCKETS, strides=((1, 1.0),))
    for count in (100, 3000):
        rng = random.Random(1)
        entries = Entries.of(entry(index, rng) for index in range(count))
        write_entries_file(tmp_path / "m.parquet", {}, entries.batches())
        windows = ClipWindows(read_entries_file(tmp_path / "m.parquet")[1], [bucket.size for bucket in BUCKETS])
        windows.census(request)
        for step in range(3):
            read.clear()
            generators = [step_generator(0, "sample", step, row) for row in range(4)]
            windows.draw(request, StepRows(0, step, 64, tuple(range(4))), generators)
            assert len(read) <= 4 and all(end == first + 1 for first, end, _ in read)


def test_the_benchmark_invents_manifests_and_measures_them(tmp_path):
    write_entries_file(tmp_path / "m.parquet", {}, manifest_benchmark.invent(3000))
    _, entries = read_entries_file(tmp_path / "m.parquet")
    assert (
        len(entries) == 3000 and 2800 < len(entries.ok) < 3000 and entries[2999].key == "000000002.tar/000002999.mp4"
    )
    found = manifest_benchmark.measure(tmp_path / "m.parquet", 2, 3, shards_at_once=2)
    assert found["clips"] == 3000 and 0 < found["used"] <= len(entries.ok) and found["step"] > 0


def test_damage_is_found_where_it_is_read(tmp_path):
    path = tmp_path / "m.parquet"
    write_entries_file(path, {}, Entries.of([entry(i, random.Random(i)) for i in range(20)]).batches())
    whole = path.read_bytes()
    path.write_bytes(whole[:50] + bytes(byte ^ 255 for byte in whole[50:60]) + whole[60:])
    _, entries = read_entries_file(path)
    with pytest.raises(ValueError, match="m.parquet' is damaged.*delete it"):
        list(entries)
