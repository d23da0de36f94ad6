"""The latent cache holds the pipeline's latents, encoded once and never used when stale."""

import json
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file

from diffusers_mardini.latents import downscale_video, encode_video
from diffusers_mardini.models.autoencoder_patch_basis import AutoencoderPatchBasis
from diffusers_mardini.video_io import read_video, write_video
from pipelines_tests.training.clip_files import noise
from pipelines_tests.training.data.old_files import into_json
from training.data import latent_shards
from training.data import latents as module
from training.data.clips import View, find_clips, fit, load_clip
from training.data.latents import build_latent_cache
from training.data.manifest import make_manifest
from training.data.moments import Moments, encode_frames
from training.data.sources import VideoFolder


LENGTHS = (7, 3, 5)


@pytest.fixture
def folder(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for index, length in enumerate(LENGTHS):
        frames = rng.integers(0, 255, (length, 32, 32, 3), dtype=np.uint8)
        write_video(tmp_path / "clips" / f"{index}.mp4", frames, fps=10)
    return tmp_path / "clips"


def tiny_vae(seed: int = 0) -> AutoencoderPatchBasis:
    torch.manual_seed(seed)
    vae = AutoencoderPatchBasis(
        latent_channels=4, block_out_channels=(8,) * 4, encoder_blocks=0, decoder_blocks=0, scaling_factor=2.0
    )
    return vae.eval()


def cached(folder, vae, size, downscale, cache_dir, **options) -> dict[str, Moments]:
    """The moments of all frames of square clips, by clip."""
    source = VideoFolder(folder)
    manifest = make_manifest(source, cache_dir / "manifest.parquet")
    cache = build_latent_cache(source, manifest.ok, vae, (size, size), downscale, cache_dir, **options)
    return {entry.key: cache.read(entry, range(entry.num_frames)) for entry in manifest.ok}


def same(ours: dict[str, Moments], theirs: dict[str, Moments]) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[key].mean, theirs[key].mean) and torch.equal(ours[key].planner_mean, theirs[key].planner_mean)
        for key in ours
    )


def test_latents_are_those_of_the_pipeline(folder, tmp_path):
    vae = tiny_vae()
    clips = cached(folder, vae, 16, 2, tmp_path / "cache", batch_size=2, dtype=torch.float32)
    assert {key: len(moments.mean) for key, moments in clips.items()} == {"0.mp4": 7, "1.mp4": 3, "2.mp4": 5}
    frames, _ = load_clip(find_clips(folder)[1], 16)
    video = frames[None].float() / 127.5 - 1
    with torch.no_grad():
        torch.testing.assert_close(clips["1.mp4"].mean, encode_video(vae, video)[0])
        torch.testing.assert_close(clips["1.mp4"].planner_mean, encode_video(vae, downscale_video(video, 2))[0])


def test_cache_is_reused_while_nothing_changed(folder, tmp_path, monkeypatch):
    first = cached(folder, tiny_vae(), 16, 2, tmp_path / "cache")
    assert first["0.mp4"].mean.dtype == torch.float16
    monkeypatch.setattr(module, "encode_frames", lambda *_: pytest.fail("encoded again"))
    assert same(first, cached(folder, tiny_vae(), 16, 2, tmp_path / "cache", batch_size=1))


@pytest.mark.parametrize("change", ["weights", "config", "downscale", "size", "clip", "decoder"])
def test_stale_latents_are_never_used(folder, tmp_path, monkeypatch, change):
    cached(folder, tiny_vae(), 32, 2, tmp_path / "cache")
    vae, downscale, size, encoded = tiny_vae(), 2, 32, 15
    if change == "weights":
        vae = tiny_vae(seed=1)
    elif change == "config":
        vae.register_to_config(scaling_factor=3.0)
    elif change == "downscale":
        downscale = 4
    elif change == "size":
        size = 16
    elif change == "decoder":
        monkeypatch.setattr(module, "decoder_version", lambda: "another")
    else:
        write_video(folder / "2.mp4", noise(4, seed=9), fps=10)
        encoded = 4
    counted = count_encoded(monkeypatch)
    fresh = cached(folder, vae, size, downscale, tmp_path / "cache")
    assert sum(counted) == encoded
    for name, moments in fresh.items():
        expected = encode_frames(
            vae, load_clip(next(one for one in find_clips(folder) if one.name == name), size)[0], downscale
        )
        assert torch.equal(moments.mean, expected.mean.half())
        assert torch.equal(moments.planner_mean, expected.planner_mean.half())


def test_a_cache_of_before_the_index_had_a_file_of_its_own_is_read(folder, tmp_path, monkeypatch):
    first = cached(folder, tiny_vae(), 16, 2, tmp_path / "cache")
    (path,) = (tmp_path / "cache").rglob("index.arrow")
    into_json(path)
    monkeypatch.setattr(module, "encode_frames", lambda *_: pytest.fail("encoded again"))
    assert same(first, cached(folder, tiny_vae(), 16, 2, tmp_path / "cache"))


def test_a_damaged_shard_is_made_anew(folder, tmp_path, capsys):
    first = cached(folder, tiny_vae(), 16, 2, tmp_path / "cache")
    (file,) = (tmp_path / "cache").rglob("shard-*")
    file.write_bytes(file.read_bytes()[:-10])
    assert same(first, cached(folder, tiny_vae(), 16, 2, tmp_path / "cache"))
    assert "is damaged" in capsys.readouterr().out and not file.exists()


def test_latents_that_are_not_finite_are_an_error_not_a_file(folder, tmp_path):
    vae = tiny_vae()
    torch.nn.init.constant_(vae.to_latents.bias, 1e5)  # finite in float32, not in float16
    with pytest.raises(ValueError, match="clip '0.mp4' are not finite as torch.float16"):
        cached(folder, vae, 16, 2, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("shard-*"))


def count_encoded(monkeypatch) -> list[int]:
    """Frames of each call of the autoencoder from now on."""
    counted = []
    real = module.encode_frames
    monkeypatch.setattr(
        module,
        "encode_frames",
        lambda vae, frames, downscale: counted.append(len(frames)) or real(vae, frames, downscale),
    )
    return counted


def tiny_kl() -> AutoencoderKL:
    """An autoencoder with a variance, two times smaller latents."""
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1, norm_num_groups=4, latent_channels=4, scaling_factor=0.5, shift_factor=0.1, sample_size=16,
    ).eval()  # fmt: skip


def build(folder, tmp_path, vae, source=None, **options):
    source = source or VideoFolder(folder)
    manifest = make_manifest(source, tmp_path / "manifest.parquet")
    return build_latent_cache(source, manifest.ok, vae, (16, 32), 2, tmp_path / "cache", **options), manifest.ok


def test_moments_are_stored_and_each_sample_is_new(folder, tmp_path):
    vae = tiny_kl()
    cache, entries = build(folder, tmp_path, vae)
    read = cache.read(entries[0], [1, 4])
    frames = fit(read_video(folder / "0.mp4")[0], 16, 32)[[1, 4]]
    video = frames[None].float() / 127.5 - 1
    with torch.no_grad():
        posterior = vae.encode(video[0]).latent_dist
    assert read.mean.shape == (2, 4, 8, 16) and read.planner_mean.shape == (2, 4, 4, 8)
    torch.testing.assert_close(read.mean.float(), (posterior.mean - 0.1) * 0.5, atol=2e-3, rtol=2e-3)
    first, _ = read.sample(torch.Generator().manual_seed(0))
    again, planner = read.sample(torch.Generator().manual_seed(0))
    other, _ = read.sample(torch.Generator().manual_seed(1))
    assert (
        torch.equal(first, again) and not torch.equal(first, other) and first.dtype == planner.dtype == torch.float32
    )
    with torch.no_grad():
        expected = encode_video(vae, video, torch.Generator().manual_seed(0))[0]  # draws as the pipeline does
    torch.testing.assert_close(first, expected, atol=5e-3, rtol=5e-3)


def test_deterministic_autoencoders_store_means_alone(folder, tmp_path):
    cache, entries = build(folder, tmp_path, tiny_vae())
    moments, generator = cache.read(entries[0], range(3)), torch.Generator().manual_seed(0)
    assert moments.logvar is None and moments.planner_logvar is None
    assert torch.equal(moments.sample(generator)[0], moments.mean.float())
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(0).get_state())


def test_clips_may_be_split_between_shards(folder, tmp_path):
    whole, entries = build(folder, tmp_path / "a", tiny_kl())
    split, _ = build(folder, tmp_path / "b", tiny_kl(), batch_size=2, shard_bytes=4000)
    assert len(list((tmp_path / "b").rglob("shard-*"))) > 3 > len(list((tmp_path / "a").rglob("shard-*")))
    for entry in entries:
        indices = [0, entry.num_frames - 1, 1]
        for first, second in zip(vars(whole.read(entry, indices)).values(), vars(split.read(entry, indices)).values()):
            torch.testing.assert_close(first, second, atol=1e-2, rtol=1e-2)
    with pytest.raises(ValueError, match="has 7 frames"):
        whole.read(entries[0], [7])


def test_a_long_clip_is_encoded_with_one_decoded_frame_in_memory(tmp_path, monkeypatch):
    write_video(tmp_path / "clips" / "long.mp4", noise(100, 64, 64), fps=10)
    alive, most = set(), 0
    decode = module.iterate_frames

    def counted(*arguments):
        nonlocal most
        for number, (time, frame) in enumerate(decode(*arguments)):
            alive.add(number)
            weakref.finalize(frame, alive.discard, number)
            most = max(most, len(alive))
            yield time, frame
            del frame

    monkeypatch.setattr(module, "iterate_frames", counted)
    clips = cached(tmp_path / "clips", tiny_vae(), 16, 2, tmp_path / "cache", batch_size=40)
    assert clips["long.mp4"].mean.shape[0] == 100
    assert most <= 3  # the next one is there before the loop lets go of the last


def test_mirrored_frames_are_encoded_not_flipped(folder, tmp_path):
    vae = tiny_kl()
    cache, entries = build(folder, tmp_path, vae, views=(View(), View(flip=True)))
    frames = fit(read_video(folder / "0.mp4")[0], 16, 32)
    expected = encode_frames(vae, frames.flip(-1), 2)
    torch.testing.assert_close(
        cache.read(entries[0], range(7), View(flip=True)).mean, expected.mean.half(), atol=1e-2, rtol=1e-2
    )
    plain, _ = build(folder, tmp_path, vae)
    with pytest.raises(
        ValueError, match=r"holds no View\(crop=0.5, flip=True\), but \[View\(crop=0.5, flip=False\)\]"
    ):
        plain.read(entries[0], [0], View(flip=True))


def test_crops_are_kept_each_mirrored_or_none_and_leave_a_cache_of_the_middle_as_it_was(folder, tmp_path):
    vae, views = tiny_kl(), tuple(View(crop, flip) for flip in (False, True) for crop in (0.5, 0.0, 1.0))
    cache, entries = build(folder, tmp_path, vae, views=views)
    assert cache.views == set(views)
    frames = read_video(folder / "0.mp4")[0]
    for view in views:
        expected = encode_frames(vae, view.of(frames, 16, 32), 2)
        torch.testing.assert_close(
            cache.read(entries[0], range(7), view).mean, expected.mean.half(), atol=1e-2, rtol=1e-2
        )
    plain, _ = build(folder, tmp_path, vae)
    assert plain.folder != cache.folder
    assert "crops" not in json.loads((plain.folder / "index.json").read_text())["settings"]


def test_a_killed_build_goes_on_with_what_no_whole_shard_holds(folder, tmp_path, monkeypatch):
    expected, entries = build(folder, tmp_path / "whole", tiny_vae())
    real, calls = module.encode_frames, []

    def killed(vae, frames, downscale):
        calls.append(len(frames))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(vae, frames, downscale)

    monkeypatch.setattr(module, "encode_frames", killed)
    with pytest.raises(KeyboardInterrupt):  # a shard for each batch of 3: the first clip (7 frames) is whole, no other
        build(folder, tmp_path, tiny_vae(), batch_size=3, shard_bytes=1)
    (tmp_path / "cache").joinpath(next((tmp_path / "cache").iterdir()).name, ".shard-0-00009.part").touch()
    monkeypatch.setattr(module, "encode_frames", real)
    counted = count_encoded(monkeypatch)
    cache, _ = build(folder, tmp_path, tiny_vae(), batch_size=3, shard_bytes=1)
    assert sum(counted) == 8
    for entry in entries:
        assert torch.equal(cache.read(entry, [0, 2]).mean, expected.read(entry, [0, 2]).mean)
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_processes_share_the_clips_and_see_the_same_index(folder, tmp_path, monkeypatch):
    alone, entries = build(folder, tmp_path / "alone", tiny_vae())
    counted = count_encoded(monkeypatch)
    barrier, caches = threading.Barrier(2, timeout=60), {}
    source, vae = VideoFolder(folder), tiny_vae()

    def process(rank):
        caches[rank] = build_latent_cache(
            source, entries, vae, (16, 32), 2, tmp_path / "both", rank=rank, world=2, wait=barrier.wait
        )

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(counted) == sorted(LENGTHS)
    assert caches[0].index == caches[1].index and len(list((tmp_path / "both").rglob("shard-*"))) == 2
    for entry in entries:
        assert torch.equal(caches[1].read(entry, [0, 2]).mean, alone.read(entry, [0, 2]).mean)


def test_clips_that_break_after_the_manifest_are_counted(folder, tmp_path, capsys):
    source = VideoFolder(folder)
    entries = make_manifest(source, tmp_path / "manifest.parquet").ok
    (folder / "1.mp4").unlink()
    write_video(folder / "2.mp4", noise(9), fps=10)
    cache = build_latent_cache(source, entries, tiny_vae(), (16, 32), 2, tmp_path / "cache")
    assert set(cache.left_out) == {"1.mp4", "2.mp4"} and "changed since the manifest" in cache.left_out["2.mp4"]
    assert [entry in cache for entry in entries] == [True, False, False]
    assert "2 clips could not be encoded" in capsys.readouterr().out
    (folder / "0.mp4").unlink()
    with pytest.raises(ValueError, match="none of the 2 clips"):
        build_latent_cache(source, entries[1:], tiny_vae(), (16, 32), 2, tmp_path / "cache")


def test_a_clip_that_breaks_off_leaves_nothing_in_the_shard(folder, tmp_path, monkeypatch):
    real = module.iterate_frames

    def breaks_off(path, *arguments):
        for index, frame in enumerate(real(path, *arguments)):
            if index == 2 and path.name == "1.mp4":
                raise ValueError("the disk is gone")
            yield frame

    monkeypatch.setattr(module, "iterate_frames", breaks_off)
    cache, entries = build(folder, tmp_path, tiny_vae(), batch_size=1)
    assert cache.left_out == {"1.mp4": "the disk is gone"}
    assert [entry in cache for entry in entries] == [True, False, True]
    frames = fit(read_video(folder / "2.mp4")[0], 16, 32)
    # Batches of one and of five round differently where torch has several threads.
    expected = encode_frames(tiny_vae(), frames, 2).mean.half()
    torch.testing.assert_close(cache.read(entries[2], range(5)).mean, expected, atol=1e-3, rtol=1e-3)
    with safe_open(next((tmp_path / "cache").rglob("shard-*")), framework="pt") as file:
        assert {name.split(".")[0] for name in file.keys()} == {"0", "1"}
    monkeypatch.undo()
    assert build(folder, tmp_path, tiny_vae())[0].left_out == {}  # tried again


def test_few_shards_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(latent_shards, "MOST_OPEN", 2)
    for index in range(4):
        save_file({"0.x": torch.full((3, 1), float(index))}, tmp_path / f"{index}.safetensors")
    reader = latent_shards.ShardReader(tmp_path)
    for index in (0, 1, 2, 3, 1, 0):
        assert reader.rows(f"{index}.safetensors", "0.x", 1, 3).flatten().tolist() == [index, index]
        assert len(reader._files) <= 2
    assert reader.rows("0.safetensors", "0.y", 0, 1) is None
