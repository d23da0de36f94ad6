"""Latents that stay on the device: bit for bit the batches of the cache, and the cache's where they cannot be."""

import pytest
import torch
from accelerate import Accelerator

from pipelines_tests.training.clip_files import noise, write_clip
from pipelines_tests.training.data.test_latents import tiny_kl, tiny_vae
from pipelines_tests.training.data.test_windows import MIXTURE, SQUARE, WIDE, make, run
from pipelines_tests.training.test_train_mardini import clips_folder, data_fields, make_config, make_vae
from training.costs import count_latents_on_device
from training.data.batches import Batch
from training.data.buckets import WindowRequest
from training.data.moments import ClipError
from training.data.preparation import prepare_data
from training.plan import make_plan


CPU = torch.device("cpu")
REQUEST = WindowRequest("stage", (SQUARE, WIDE), fps=((5.0, 1.0),), flip=0.5, off_centre=0.5)


@pytest.fixture
def folder(tmp_path):
    for index, (length, width) in enumerate(((9, 32), (6, 64), (5, 32), (8, 64))):
        write_clip(tmp_path / "clips" / f"{index}.mp4", noise(length, 32, width, seed=index), fps=10)
    return tmp_path / "clips"


@pytest.mark.parametrize("vae", [tiny_vae, tiny_kl])
def test_batches_are_those_of_the_cache(folder, vae, monkeypatch):
    cached, resident = (make(folder, vae=vae(), requests=(REQUEST,)) for _ in range(2))
    needed = resident.keep_on_device(CPU, 1e9)
    assert needed == sum(each.num_bytes for each in resident._resident.values()) > 0
    monkeypatch.setattr(type(resident), "_read", lambda *_: pytest.fail("read from the cache"))
    batches = [run(resident, REQUEST, step) for step in range(6)]
    monkeypatch.undo()
    for step, (draws, batch) in enumerate(batches):
        expected_draws, expected = run(cached, REQUEST, step)
        assert draws == expected_draws
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(batch, expected, strict=True))
    assert len({draw.view for draws, _ in batches for draw in draws}) > 3


def test_latents_beyond_the_limit_are_read_from_the_cache(folder):
    windows = make(folder, requests=(REQUEST,))
    needed = windows.keep_on_device(CPU, 1)
    assert needed > 1 and not windows._resident
    assert windows.keep_on_device(CPU, needed) == needed and windows._resident


def test_windows_of_a_clip_that_cannot_be_kept_are_the_caches(folder, monkeypatch):
    cached, resident = (make(folder) for _ in range(2))
    (cache,), (whole,) = resident.caches.values(), cached.caches.values()
    read = cache.read

    def refuse(entry, frames, *view):
        if entry.key == "1.mp4":
            raise ClipError("damaged")
        return read(entry, frames, *view)

    for each in (cache, whole):
        monkeypatch.setattr(each, "read", refuse)
    resident.keep_on_device(CPU, 1e9)
    for step in range(4):
        (draws, batch), (expected_draws, expected) = (run(w, MIXTURE, step) for w in (resident, cached))
        assert draws == expected_draws and "1.mp4" not in {draw.clip for draw in draws}
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(batch, expected, strict=True))
    assert resident.failures == cached.failures == {"1.mp4": "damaged"}


def test_a_clip_with_a_variance_in_some_frames_only_is_left_to_the_cache(folder, monkeypatch):
    windows = make(folder, vae=tiny_kl())
    (cache,) = windows.caches.values()
    read = cache.read

    def partly(entry, frames, *view):
        moments = read(entry, frames, *view)
        if entry.key == "2.mp4":
            moments.logvar[0] = -30.0
        return moments

    monkeypatch.setattr(cache, "read", partly)
    windows.keep_on_device(CPU, 1e9)
    (resident,) = windows._resident.values()
    kept = {entry.key for entry in windows.entries if any(sha == entry.sha256 for sha, _ in resident.begins)}
    assert kept == {"0.mp4", "1.mp4", "3.mp4"}


def test_what_is_on_the_device_already_is_not_pinned():
    tensor = torch.zeros(1, 2, 4, 2, 2, device="meta")
    batch = Batch(tensor, tensor, tensor, 1, tensor, tensor, tensor)
    assert batch.pinned().latents is tensor


def test_a_run_says_whether_its_latents_stay_on_the_device(tmp_path, capsys):
    for most, said in ((1, "GB, stay on cpu"), (1e-9, "are read from files (data.device_gb is 1e-09)")):
        config = make_config(data=data_fields(clips_folder(), device_gb=most)).for_processes(1)
        windows = prepare_data(config, make_vae(), tmp_path / str(most), Accelerator(cpu=True)).train
        assert said in capsys.readouterr().out and bool(windows._resident) == (most == 1)
    with pytest.raises(ValueError, match="leave device_gb at 0"):
        make_config(data=data_fields(clips_folder(), device_gb=1, from_pixels=True))


def test_the_plan_counts_what_stays_on_the_device(tmp_path):
    make_vae().save_pretrained(tmp_path / "vae")

    def planned(**fields) -> int:
        config = make_config(vae=str(tmp_path / "vae"), data=data_fields(clips_folder(), **fields))
        return make_plan(config.model_copy(update={"stages": config.stages[:1]})).stages[0].largest.memory.latents

    config = make_config(data=data_fields(clips_folder(), device_gb=1)).for_processes(1)
    windows = prepare_data(config, make_vae(), tmp_path, Accelerator(cpu=True)).train
    (resident,) = windows._resident.values()
    assert planned(device_gb=1) == resident.num_bytes
    assert planned() == planned(device_gb=1e-6) == 0
    unknown = config.model_copy(update={"vae": "nowhere"})  # has a variance, as most have
    assert count_latents_on_device(unknown, {(32, 32): 36}) == 3 * resident.num_bytes
    assert count_latents_on_device(config, None) == 1e9  # without clips
