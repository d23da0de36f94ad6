"""The latent cache: what the pipeline would encode, made once, and never trusted when stale."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffusers_mardini.latents import downscale_video, encode_video
from diffusers_mardini.models.autoencoder_patch_basis import AutoencoderPatchBasis
from diffusers_mardini.video_io import write_video
from training.data import latents as module
from training.data.clips import load_clip
from training.data.latents import LatentClips, cache_latents


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


def numbered_clips() -> LatentClips:
    """Latents that hold the index of their frame."""
    total = sum(LENGTHS)
    values = torch.arange(total, dtype=torch.float16).view(total, 1, 1, 1)
    offsets = torch.tensor([0, *np.cumsum(LENGTHS)])
    latents, planner_latents = values.expand(total, 2, 4, 4), -values.expand(total, 2, 2, 2)
    return LatentClips(latents, planner_latents, offsets, ["a", "b", "c"], [10.0] * 3)


def test_windows_stay_within_their_clip():
    clips = numbered_clips()
    assert clips.windows(3).tolist() == [0, 1, 2, 3, 4, 7, 10, 11, 12]
    assert clips.windows(3, stride=2).tolist() == [0, 1, 2, 10]
    assert clips.num_windows(3, stride=2) == 4
    assert clips.windows(1).tolist() == list(range(15))


def test_windows_longer_than_every_clip_are_refused():
    with pytest.raises(ValueError, match="span 9 frames, but the longest clip has 7"):
        numbered_clips().windows(5, stride=2)
    with pytest.raises(ValueError, match="at least 1"):
        numbered_clips().windows(5, stride=0)


def test_gather_takes_one_stride_for_each_row():
    clips = numbered_clips()
    full, low = clips.gather(torch.tensor([0, 10]), 3, torch.tensor([3, 2]))
    assert full.shape == (2, 3, 2, 4, 4) and low.shape == (2, 3, 2, 2, 2)
    assert full.dtype == low.dtype == torch.float32
    assert full[:, :, 0, 0, 0].tolist() == [[0, 3, 6], [10, 12, 14]]
    assert torch.equal(low[:, :, 0, 0, 0], -full[:, :, 0, 0, 0])
    assert clips.gather(torch.tensor([7]), 3)[0][0, :, 0, 0, 0].tolist() == [7, 8, 9]


@pytest.mark.parametrize("start", [5, 8, 13, 14, -1])
def test_windows_that_leave_their_clip_are_refused(start):
    with pytest.raises(ValueError, match=f"from frame {start}"):
        numbered_clips().gather(torch.tensor([start]), 3)


def test_latents_are_those_of_the_pipeline(folder, tmp_path):
    vae = tiny_vae()
    clips = cache_latents(folder, vae, 16, 2, tmp_path / "cache", batch_size=2, dtype=torch.float32)
    assert clips.offsets.tolist() == [0, 7, 10, 15] and clips.names == ["0.mp4", "1.mp4", "2.mp4"]
    assert clips.fps == [10.0] * 3
    frames, _ = load_clip(folder / "1.mp4", 16)
    video = frames[None].float() / 127.5 - 1
    with torch.no_grad():
        torch.testing.assert_close(clips.latents[7:10], encode_video(vae, video)[0])
        torch.testing.assert_close(clips.planner_latents[7:10], encode_video(vae, downscale_video(video, 2))[0])


def test_cache_is_reused_while_nothing_changed(folder, tmp_path, monkeypatch):
    first = cache_latents(folder, tiny_vae(), 16, 2, tmp_path / "cache")
    assert first.latents.dtype == torch.float16
    monkeypatch.setattr(module, "_encode_folder", lambda *_: pytest.fail("encoded again"))
    second = cache_latents(folder, tiny_vae(), 16, 2, tmp_path / "cache", batch_size=1)
    assert torch.equal(first.latents, second.latents) and torch.equal(first.planner_latents, second.planner_latents)
    assert torch.equal(first.offsets, second.offsets)
    assert (first.names, first.fps) == (second.names, second.fps)


@pytest.mark.parametrize("change", ["weights", "config", "downscale", "clips"])
def test_a_stale_cache_is_made_anew(folder, tmp_path, capsys, change):
    cache_latents(folder, tiny_vae(), 32, 2, tmp_path / "cache")
    vae, downscale, expected = tiny_vae(), 2, "vae changed"
    if change == "weights":
        vae = tiny_vae(seed=1)
    elif change == "config":
        vae.register_to_config(scaling_factor=3.0)
    elif change == "downscale":
        downscale, expected = 4, "planner_downscale changed"
    else:
        (folder / "2.mp4").unlink()
        expected = "clips changed"
    capsys.readouterr()
    fresh = cache_latents(folder, vae, 32, downscale, tmp_path / "cache")
    assert expected in capsys.readouterr().out
    assert len(fresh.names) == (2 if change == "clips" else 3)
    assert fresh.planner_latents.shape[-1] == 4 // downscale
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_damaged_cache_is_made_anew(folder, tmp_path, capsys):
    cache_latents(folder, tiny_vae(), 16, 2, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert len(cache_latents(folder, tiny_vae(), 16, 2, tmp_path / "cache").names) == 3
    assert "is damaged" in capsys.readouterr().out


def test_latents_that_are_not_finite_are_an_error_not_a_file(folder, tmp_path):
    vae = tiny_vae()
    torch.nn.init.constant_(vae.to_latents.bias, float("nan"))
    with pytest.raises(ValueError, match="clip '0.mp4' are not finite"):
        cache_latents(folder, vae, 16, 2, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
