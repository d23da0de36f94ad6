"""Latents of the drawn frames alone: the same batches and runs as with those of every frame, from fewer frames."""

import copy
from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from pipelines_tests.training.clip_files import noise, write_clip
from pipelines_tests.training.data.test_latents import tiny_kl, tiny_vae
from pipelines_tests.training.data.test_windows import MIXTURE, SQUARE, WIDE, make, rows_of, run
from pipelines_tests.training.test_train_mardini import (
    clips_folder,
    data_fields,
    explode,
    make_config,
    make_run,
    make_vae,
)
from training.data import drawn_windows
from training.data.buckets import WindowRequest, assign, window_request
from training.data.census import open_clips, read_clips
from training.data.clips import View
from training.data.drawn_windows import DrawnWindows, LatentForms
from training.data.latent_shards import ShardWriter
from training.data.latents import cache_folder, cache_settings
from training.data.manifest import make_manifest
from training.data.sources import VideoFolder
from training.data.windows import PixelWindows
from training.losses import MarDiniTrainingModel
from training.plan import LatentsOnDisk, make_plan
from training.plan_text import render
from training.stopping import Stopped


REQUEST = WindowRequest("stage", (SQUARE, WIDE), strides=((1, 0.5), (3, 0.5)), flip=0.5, off_centre=0.5)


@pytest.fixture
def folder(tmp_path):
    for index, length in enumerate((40, 30, 25, 36)):
        wide = index % 2
        write_clip(tmp_path / "clips" / f"{index}.mp4", noise(length, 32, 64 if wide else 32, seed=index), fps=10)
    return tmp_path / "clips"


def drawn(folder, vae=None, **options) -> DrawnWindows:
    source = VideoFolder(folder)
    entries = make_manifest(source, folder.parent / "manifest.parquet").entries
    sizes = (SQUARE.size, WIDE.size)
    cache, accelerator = folder.parent / "drawn", Accelerator(cpu=True)
    return DrawnWindows(source, entries, sizes, vae or tiny_vae(), 2, cache, accelerator, nullcontext, **options)


def ready(windows: DrawnWindows, request: WindowRequest, steps) -> DrawnWindows:
    windows.make_ready(lambda: (draw for step in steps for draw in windows.draw(request, *rows_of(step))))
    return windows


def held(windows: DrawnWindows) -> dict[tuple, list[int]]:
    return {
        (size, *key): places[0].tolist()
        for size, cache in windows.caches.items()
        for key, places in cache._held.items()
    }


@pytest.mark.parametrize("vae", [tiny_vae, tiny_kl])
def test_batches_are_those_of_every_frame_from_no_other_frames(folder, vae):
    whole, some = make(folder, vae=vae(), requests=(REQUEST,)), ready(drawn(folder, vae()), REQUEST, range(4))
    expected = set()
    for step in range(4):
        (draws, batch), (whole_draws, whole_batch) = run(some, REQUEST, step), run(whole, REQUEST, step)
        assert draws == whole_draws
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(batch, whole_batch, strict=True))
        expected |= {(draw.bucket.size, draw.number, draw.view, frame) for draw in draws for frame in draw.frames}
    assert sum(map(len, held(some).values())) == len(expected)
    assert all(frames == sorted(frames) for frames in held(some).values())


def test_more_steps_add_what_is_missing_and_the_same_ones_nothing(folder, monkeypatch):
    few = held(ready(drawn(folder), REQUEST, range(2)))
    encoded = []
    add = ShardWriter.add

    def counted(writer, first, tensors):
        encoded.append(len(next(iter(tensors.values()))))
        add(writer, first, tensors)

    monkeypatch.setattr(ShardWriter, "add", counted)
    assert held(ready(drawn(folder), REQUEST, range(2))) == few and not encoded
    more = held(ready(drawn(folder), REQUEST, range(4)))
    assert sum(encoded) == sum(map(len, more.values())) - sum(map(len, few.values())) > 0
    assert all(set(frames) <= set(more[key]) for key, frames in few.items())


def test_a_clip_that_cannot_be_read_is_replaced_as_from_pixels(folder):
    pixels, some = make(folder, PixelWindows, requests=(MIXTURE,)), drawn(folder)
    told = []
    some.on_failure = lambda clip, reason: told.append(clip)
    (folder / "2.mp4").write_bytes(b"no video any more")
    ready(some, MIXTURE, range(3))
    for step in range(3):
        (draws, batch), (pixel_draws, pixel_batch) = run(some, MIXTURE, step), run(pixels, MIXTURE, step)
        assert draws == pixel_draws
        torch.testing.assert_close(batch, pixel_batch, atol=2e-2, rtol=2e-2)
    assert told == ["2.mp4"] and some.failures.keys() == pixels.failures.keys() == {"2.mp4"}


def test_latents_that_are_gone_end_the_run_and_the_next_start_encodes_them(folder):
    some = ready(drawn(folder), MIXTURE, range(2))
    for shard in (folder.parent / "drawn").rglob("*.safetensors"):
        shard.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="are gone .*type the same command again"):
        run(some, MIXTURE, 0)
    assert held(ready(drawn(folder), MIXTURE, range(2))) == held(some)


def test_what_is_encoded_when_it_stops_is_kept(folder):
    asked = iter([None, "signal SIGTERM"])
    with pytest.raises(Stopped, match="SIGTERM"):
        ready(drawn(folder, stop=lambda: next(asked)), REQUEST, range(4))
    before = sum(map(len, held(ready(drawn(folder), REQUEST, range(0))).values()))
    assert 0 < before < sum(map(len, held(ready(drawn(folder), REQUEST, range(4))).values()))


def test_runs_are_the_same_bit_for_bit_stopped_gone_back_and_longer(tmp_path, monkeypatch):
    results = []
    for form in ("all", "drawn"):
        data = data_fields(clips_folder(), latents=form, cache=tmp_path / form)
        config, folder = make_config(data=data, max_skipped_steps=2), tmp_path / f"run-{form}"
        make_run(folder, config).train(stop_after="planner")
        goes_back = make_run(folder, config)
        with monkeypatch.context() as patched:
            patched.setattr(MarDiniTrainingModel, "forward", explode(goes_back, {6, 7}))
            goes_back.train()
        assert goes_back.attempt == 1
        longer = make_run(folder, config.longer([5]))
        assert isinstance(longer.train_data, DrawnWindows) == (form == "drawn")
        results.append(load_file(longer.train() / "transformer" / "diffusion_pytorch_model.safetensors"))
    ours, theirs = results
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def forms(config) -> LatentForms:
    entries = read_clips(config, open_clips(config, config.data.train)).entries
    return LatentForms.of(config, [assign(entries, window_request(config, stage)) for stage in config.stages])


def test_auto_takes_the_drawn_frames_where_they_are_few_of_many(tmp_path, monkeypatch):
    config, vae = make_config().for_processes(1), make_vae()
    found = forms(config)  # three clips of 12 frames; 3 + 2 + 3 steps of 2 windows of 4 frames
    assert found == LatentForms({(32, 32): 36}, {(32, 32): 36})
    few = make_config(stages=[{**config.stages[0].model_dump(), "steps": 2}]).for_processes(1)
    found = forms(few)
    assert found.drawn == {(32, 32): 16} and found.chosen(few, tmp_path, vae) == "all"
    vae.save_pretrained(tmp_path / "vae")
    fields = data_fields(clips_folder(), latents="drawn")
    plan = make_plan(few.model_copy(update={"vae": str(tmp_path / "vae"), "data": make_config(data=fields).data}))
    assert plan.latents == LatentsOnDisk("drawn", 36 * plan.latents.drawn // 16, plan.disk["latents"])
    assert "the run caches drawn (`data.latents`)" in render(plan, "")
    monkeypatch.setattr(drawn_windows, "FEW_PIXELS", 20 * 32 * 32)
    assert found.chosen(few, tmp_path, vae) == "drawn" and forms(config).chosen(config, tmp_path, vae) == "all"
    for other in ({"hours": 1.0}, {"data": data_fields(clips_folder(), device_gb=1)}):
        changed = make_config(**other)
        assert (
            found.chosen(few.model_copy(update={"hours": changed.hours, "data": changed.data}), tmp_path, vae) == "all"
        )
    # Those of every frame, made before: with another autoencoder, then with this one.
    another = copy.deepcopy(vae)
    another.load_state_dict({name: tensor + 1 for name, tensor in vae.state_dict().items()})
    for each, form in ((another, "drawn"), (vae, "all")):
        settings = cache_settings(each, (32, 32), few.data.planner_downscale, (View(),))
        (cache_folder(tmp_path, settings) / "index.json").touch()
        assert found.chosen(few, tmp_path, vae) == form


def test_what_drawn_latents_do_not_go_with_is_refused():
    with pytest.raises(ValueError, match="steps are planned anew; leave `hours` out, or set data.latents"):
        make_config(hours=1, data=data_fields(clips_folder(), latents="drawn"))
    with pytest.raises(ValueError, match="set latents to all or auto"):
        make_config(data=data_fields(clips_folder(), latents="drawn", device_gb=1))
    with pytest.raises(ValueError, match="from_pixels keeps no latents, and latents is 'all'"):
        make_config(data=data_fields(clips_folder(), latents="all", from_pixels=True))
