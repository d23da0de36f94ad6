"""Runs over every kind of source, by time, in buckets, mirrored, from pixels, and with clips that break on the way."""

import json
import tarfile

import datasets
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from pipelines_tests.training.clip_files import noise, write_clip
from pipelines_tests.training.data.lerobot_files import TOP, write_v3
from pipelines_tests.training.data.old_files import as_lines, into_json
from pipelines_tests.training.test_train_mardini import (
    data_fields,
    make_config,
    make_run,
    make_vae,
    records,
    write_clips,
)
from training.config.schema import RunConfig
from training.curriculum import draw_batch
from training.data.batches import Draw
from training.data.buckets import heldout_window_request, window_request
from training.data.clip_lists import ClipRow, write_clip_list
from training.data.preparation import prepare_data
from training.engine.checkpoint import list_checkpoints
from training.loop import Stopped


BUCKETS = [[32, 32], [32, 64, 5]]


def one_stage(data: dict, steps: int = 2, **fields) -> RunConfig:
    """The tiny run with its joint stage alone."""
    config = make_config(data=data)
    stage = {**config.stages[2].model_dump(), "steps": steps, **fields}
    return RunConfig(**{**config.model_dump(), "stages": [stage]})


def mixed_clips(folder, count=3):
    """Square clips `0.mp4`, `1.mp4`, ... and wide ones `w0.mp4`, ..."""
    for index in range(count):
        write_clip(folder / f"{index}.mp4", noise(12, 32, 32, index), fps=20)
        write_clip(folder / f"w{index}.mp4", noise(12, 32, 64, 100 + index), fps=20)
    return folder


def prepare(config, tmp_path, **arguments):
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    return prepare_data(config.for_processes(1), make_vae(), folder, Accelerator(cpu=True), **arguments)


def draw(config, windows, step=0, first=0, count=4, total=4):
    (stage,) = config.stages
    return draw_batch(
        stage, window_request(config, stage), windows, 1000, Draw(0, stage.name, step, first, count, total)
    )


def clips_of(batch) -> list[str]:
    return [window.split(" from ")[0] for window in batch.windows]


def last_weights(folder) -> dict:
    last = list_checkpoints(folder / "checkpoints")[-1]
    return {
        f"{name} {key}": t for name in ("weights", "ema") for key, t in load_file(last / f"{name}.safetensors").items()
    }


def make_source(kind, tmp_path) -> str:
    videos = write_clips(tmp_path / "videos")
    if kind == "pictures":
        for number in range(3):
            (tmp_path / f"pictures/{number}").mkdir(parents=True)
            for index, frame in enumerate(noise(12, 32, 32, number)):
                Image.fromarray(frame).save(tmp_path / f"pictures/{number}/{index}.png")
        return str(tmp_path / "pictures")
    if kind == "shards":
        with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
            for path in sorted(videos.iterdir()):
                tar.add(path, path.name)
        return str(tmp_path / "train-{0..0}.tar")
    if kind == "clip-list":
        write_clip_list(
            tmp_path / "list.jsonl",
            [ClipRow(str(videos), path.name, recording=path.stem) for path in sorted(videos.iterdir())],
        )
        return str(tmp_path / "list.jsonl")
    if kind == "lerobot":
        return f"lerobot:{write_v3(tmp_path / 'robot', [12, 12, 12], fps=20)}#{TOP}"
    return str(videos) if kind == "videos" else f"{kind}:{videos}"


@pytest.mark.parametrize(
    "kind", ["videos", "pictures", "shards", "datasets", "datasets-stream", "clip-list", "lerobot"]
)
def test_a_run_takes_every_kind_of_source(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    source = make_source(kind, tmp_path)
    fields = data_fields(tmp_path / "videos", train=source, picture_fps=20)
    make_run(tmp_path / "run", one_stage(fields)).train()
    log = [record for record in records(tmp_path / "run") if "loss" in record]
    assert len(log) == 2 and all(isinstance(record["loss"], float) for record in log)
    reported = json.loads((tmp_path / "run" / "census.json").read_text())["train"]
    assert reported["source"] == source and reported["stages"]["joint"]["buckets"][0]["clips"] == 3
    assert reported["stages"]["joint"]["windows"] == {"stride 1": 27, "stride 2": 18}  # 12 - 3 and 12 - 6 in each clip


def test_a_stage_is_sampled_by_time(tmp_path):
    write_clip(tmp_path / "clips/fast.mp4", noise(12, 32, 32), fps=20)
    write_clip(tmp_path / "clips/slow.mp4", noise(12, 32, 32), fps=10)
    config = one_stage(data_fields(tmp_path / "clips"), fps=10.0, strides=None)
    batch = draw(config, prepare(config, tmp_path).train)
    spans = {}
    for window in batch.windows:
        clip, frames = window.split(" from frame ")
        first, last = map(int, frames.split(" to "))
        spans[clip] = last - first
    assert spans == {"fast.mp4": 6, "slow.mp4": 3}  # four frames, a tenth of a second apart
    make_run(tmp_path / "trained", config).train()
    heldout = [record["heldout"] for record in records(tmp_path / "trained") if "heldout" in record]
    assert heldout[-1]["diffusion/0.6"] > 0
    faster = one_stage(data_fields(tmp_path / "clips"), fps=15.0, strides=None)
    left_out = prepare(faster, tmp_path).train.census(window_request(faster, faster.stages[0])).left_out
    assert list(left_out) == ["slow.mp4"] and "frames would be repeated" in left_out["slow.mp4"]


def test_stages_have_sizes_of_their_own(tmp_path):
    config = make_config(data=data_fields(write_clips(tmp_path / "clips")))
    small, large = config.stages[0], config.stages[2].model_copy(update={"size": (32, 64), "steps": 1})
    config = config.model_copy(update={"stages": [small, large]})
    data = prepare(config, tmp_path).train
    shapes = [
        draw_batch(stage, window_request(config, stage), data, 1000, Draw(0, stage.name, 0, 0, 2, 2)).latents.shape
        for stage in config.stages
    ]
    assert shapes == [(2, 4, 16, 4, 4), (2, 4, 16, 4, 8)]
    make_run(tmp_path / "trained", config).train()
    assert [record["stage"] for record in records(tmp_path / "trained") if "loss" in record] == ["planner"] * 3 + [
        "joint"
    ]


def test_batches_of_two_aspect_ratios_keep_to_their_bucket(tmp_path):
    config = one_stage(data_fields(mixed_clips(tmp_path / "clips"), flip=0.5), buckets=BUCKETS, size=None)
    data = prepare(config, tmp_path).train
    shapes, flips = {}, 0
    for step in range(12):
        batch = draw(config, data, step)
        shape = tuple(batch.latents.shape[1:2] + batch.latents.shape[3:])
        shapes.setdefault(shape, set()).update(clips_of(batch))
        assert batch.reference_mask.shape == batch.latents.shape[:2] and batch.noise.shape == batch.latents.shape
        assert set((~batch.reference_mask).sum(1).tolist()) == {batch.num_masked_frames}
        assert 0 < batch.num_masked_frames < batch.latents.shape[1]
        flips += sum(window.endswith(", mirrored") for window in batch.windows)
    assert shapes == {(4, 4, 4): {"0.mp4", "1.mp4", "2.mp4"}, (5, 4, 8): {"w0.mp4", "w1.mp4", "w2.mp4"}}
    assert 8 < flips < 40
    buckets = json.loads((tmp_path / "run/census.json").read_text())["train"]["stages"]["joint"]["buckets"]
    assert [(b["height"], b["width"], b["frames"], b["clips"], b["share"]) for b in buckets] == [
        (32, 32, 4, 3, 0.5), (32, 64, 5, 3, 0.5)
    ]  # fmt: skip
    assert (
        heldout_window_request(config, config.stages[0]).buckets
        == window_request(config, config.stages[0]).buckets[:1]
    )


def test_processes_and_parts_share_a_batch_of_mirrored_windows_in_buckets(tmp_path):
    config = one_stage(data_fields(mixed_clips(tmp_path / "clips"), flip=0.5), buckets=BUCKETS, size=None)
    data = prepare(config, tmp_path).train
    for step in range(4):
        whole = draw(config, data, step)
        halves = [draw(config, data, step, first, 2) for first in (0, 2)]
        for name, value in vars(whole).items():
            if torch.is_tensor(value):
                assert torch.equal(torch.cat([getattr(half, name) for half in halves]), value), name
        assert halves[0].windows + halves[1].windows == whole.windows


def test_resuming_is_exact_with_flips_crops_and_buckets_and_any_number_of_workers(tmp_path):
    def config(workers):
        data = data_fields(mixed_clips(tmp_path / "clips"), flip=0.5, workers=workers)
        return one_stage(data, steps=6, buckets=BUCKETS, size=None, off_centre=0.5)

    make_run(tmp_path / "through", config(0)).train()
    (tmp_path / "stopped").mkdir()
    for workers in (2, 1, 3):
        (tmp_path / "stopped" / "stop").touch()
        with pytest.raises(Stopped):
            make_run(tmp_path / "stopped", config(workers)).train()
    (tmp_path / "stopped" / "stop").unlink()
    make_run(tmp_path / "stopped", config(2)).train()
    through, stopped = last_weights(tmp_path / "through"), last_weights(tmp_path / "stopped")
    assert all(torch.equal(through[key], stopped[key]) for key in through)


def test_pixels_give_the_windows_of_the_cache(tmp_path):
    clips = write_clips(tmp_path / "clips")
    cached, pixels = (
        one_stage(data_fields(clips, flip=0.5, from_pixels=switch), off_centre=0.5) for switch in (False, True)
    )
    from_cache, from_pixels = prepare(cached, tmp_path).train, prepare(pixels, tmp_path).train
    for step in range(3):
        ours, theirs = draw(cached, from_cache, step), draw(pixels, from_pixels, step)
        assert ours.windows == theirs.windows and torch.equal(ours.noise, theirs.noise)
        for name in ("latents", "planner_latents"):  # equal but for the cache's float16
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=2e-3, rtol=2e-3)
    make_run(tmp_path / "trained", pixels).train()
    assert len([record for record in records(tmp_path / "trained") if "loss" in record]) == 2
    assert not list((tmp_path / "trained").rglob("shard-*"))


def test_a_clip_that_breaks_in_mid_run_is_counted_reported_once_and_replaced(tmp_path, capsys):
    clips = write_clips(tmp_path / "clips")
    config = one_stage(data_fields(clips, validation=None, from_pixels=True, workers=1), steps=6)
    intact = prepare(config, tmp_path).train
    expected = [draw(config, intact, step, count=2, total=2) for step in range(6)]
    run = make_run(tmp_path / "trained", config)
    (clips / "1.mp4").write_bytes(b"garbage" * 100)
    capsys.readouterr()
    run.train()
    assert capsys.readouterr().out.count("clip '1.mp4'") == 1
    reported = [json.loads(line) for line in (tmp_path / "trained/failed_clips.jsonl").read_text().splitlines()]
    assert [(record["source"], record["clip"]) for record in reported] == [(str(clips), "1.mp4")] and reported[0][
        "reason"
    ]
    assert [record["global_step"] for record in records(tmp_path / "trained") if "loss" in record] == list(range(1, 7))

    # Started again, the run goes on with the clips as they were: the same windows but those of the broken clip, reported no more.
    again = make_run(tmp_path / "trained", config)
    capsys.readouterr()
    for step, before in enumerate(expected):
        after = draw(config, again.train_data, step, count=2, total=2)
        for row, (old, new) in enumerate(zip(before.windows, after.windows)):
            assert new == old if not old.startswith("1.mp4") else not new.startswith("1.mp4")
            if new == old:
                assert torch.equal(before.latents[row], after.latents[row])
    assert list(again.train_data.failures) == ["1.mp4"] and "1.mp4" not in capsys.readouterr().out
    assert len((tmp_path / "trained/failed_clips.jsonl").read_text().splitlines()) == 1


def test_a_resumed_run_draws_from_the_clips_that_it_began_with(tmp_path, capsys):
    clips = write_clips(tmp_path / "clips")
    config = one_stage(data_fields(clips))
    before = draw(config, prepare(config, tmp_path).train).windows
    write_clip(clips / "another.mp4", noise(12, 32, 32, 9), fps=20)
    assert draw(config, prepare(config, tmp_path, resumes=True).train).windows == before
    assert len(prepare(config, tmp_path).train.entries) == 4
    (tmp_path / "latents").rename(tmp_path / "gone")
    (clips / "0.mp4").unlink()
    capsys.readouterr()
    prepare(config, tmp_path, resumes=True)  # what can't be made again is reported
    assert "note: stage 'joint' finds other clips in data.train than before" in capsys.readouterr().out
    kept = tmp_path / "run" / "clips-train.parquet"
    kept.write_bytes(kept.read_bytes()[:-20])
    with pytest.raises(ValueError, match="clips-train.parquet' is damaged.*delete it"):
        prepare(config, tmp_path, resumes=True)


def test_a_run_of_the_time_of_json_lines_resumes_bit_for_bit(tmp_path, capsys):
    config = one_stage(data_fields(mixed_clips(tmp_path / "clips"), flip=0.5), steps=6, buckets=BUCKETS, size=None)
    make_run(tmp_path / "through", config).train()
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "stop").touch()
    with pytest.raises(Stopped):
        make_run(tmp_path / "stopped", config).train()
    (tmp_path / "stopped" / "stop").unlink()
    kept = [tmp_path / "stopped" / f"clips-{name}.parquet" for name in ("train", "validation")]
    for path in (*kept, *(tmp_path / "manifests").glob("*.parquet")):
        as_lines(path)
    for path in (tmp_path / "latents").rglob("index.arrow"):
        into_json(path)
    capsys.readouterr()
    make_run(tmp_path / "stopped", config).train()
    printed = capsys.readouterr().out
    assert "clips-train.jsonl' is now 'clips-train.parquet'" in printed and "encoding" not in printed
    assert all(path.is_file() and not path.with_suffix(".jsonl").exists() for path in kept)
    through, stopped = last_weights(tmp_path / "through"), last_weights(tmp_path / "stopped")
    assert all(torch.equal(through[key], stopped[key]) for key in through)


def test_a_stage_without_clips_is_refused_before_anything_is_encoded(tmp_path):
    clips = write_clips(tmp_path / "clips")
    (clips / "broken.mp4").write_bytes(b"no video")
    longer = one_stage(data_fields(clips), num_frames=13, strides={1: 1.0})
    with pytest.raises(
        ValueError,
        match="(?s)stage 'joint': none of the 4 clips of `data.train` can be used; lower its `num_frames`.*0.mp4: has 12 frames; 13 at "
        "stride 1 span 13.*broken.mp4: .*stage 'joint, held out'.*`data.validation`",
    ):
        prepare(longer, tmp_path)
    assert not (tmp_path / "latents").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no clips"):
        prepare(one_stage(data_fields(clips, train=str(tmp_path / "empty"))), tmp_path)


def test_the_census_is_printed_and_kept_with_every_clip_left_out(tmp_path, capsys):
    clips = write_clips(tmp_path / "clips")
    for index in range(12):
        (clips / f"broken{index}.mp4").write_bytes(b"")
    prepare(one_stage(data_fields(clips)), tmp_path)
    printed = capsys.readouterr().out
    assert (
        "joint: 3 clips, 27 windows at stride 1, 18 windows at stride 2, each seen 0.148 times; left out: 12"
        in printed
    )
    assert "32x32, 4 frames: 3 clips, 100% of the batches" in printed
    assert "broken0.mp4: the file is empty (0 bytes)" in printed and "and 2 more" in printed
    kept = json.loads((tmp_path / "run" / "census.json").read_text())
    assert set(kept["train"]["stages"]["joint"]["left_out"]) == {f"broken{index}.mp4" for index in range(12)}
