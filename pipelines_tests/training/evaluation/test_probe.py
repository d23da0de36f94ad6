"""Find where clips leave room for a model: on clips whose motion is known, beside an exact and a useless autoencoder."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffusers_mardini import AutoencoderPatchBasis
from diffusers_mardini.video_io import write_video
from training.data.manifest import make_manifest
from training.data.order import Rate
from training.data.recipes.moving_shapes import draw_clip
from training.data.sources import open_source
from training.evaluation import probe as module
from training.evaluation.intervals import SURE
from training.evaluation.networks.lpips import Lpips
from training.evaluation.probe import own_rates, probe


class Exact(torch.nn.Module):
    """An autoencoder without any loss: latents are the frames."""

    config = SimpleNamespace(scaling_factor=1.0, shift_factor=0.0)

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def encode(self, frames):
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: frames))

    def decode(self, latents, return_dict=True):
        return (latents,)


def write_clips(folder, clips, fps=10):
    for number, frames in enumerate(clips):
        write_video(folder / f"{number}.mp4", frames, fps=fps, crf=5)
    source = open_source(folder)
    return source, make_manifest(source, folder.parent / "manifest.parquet").entries


def drifting(seed: int, pixels: float, frames: int = 30, height: int = 32, width: int = 48) -> np.ndarray:
    """Noise that moves to the right by so many pixels a frame."""
    small = np.random.default_rng(seed).integers(0, 255, (height // 4, width // 2, 3), dtype=np.uint8)
    wide = small.repeat(4, 0).repeat(4, 1)  # (height, 2 * width, 3)
    return np.stack([np.roll(wide, round(frame * pixels), 1)[:, :width] for frame in range(frames)])


def noise_vae() -> AutoencoderPatchBasis:
    torch.manual_seed(0)
    return AutoencoderPatchBasis(block_out_channels=(8,) * 4, encoder_blocks=0, decoder_blocks=0).eval()


def test_clips_that_jump_leave_room_for_an_exact_autoencoder(tmp_path):
    source, entries = write_clips(tmp_path / "clips", [drifting(seed, 3) for seed in range(SURE)])
    found = probe(source, entries, (32, 48), (Rate(fps=10), Rate(fps=5)), Exact())
    assert [d.name for d in found.distances] == ["10 frames per second", "5 frames per second"]
    assert [d.seconds for d in found.distances] == pytest.approx([0.1, 0.2])
    for distance in found.distances:
        assert distance.ceiling == pytest.approx(1) and distance.judged == "room" and distance.clips == SURE
        assert distance.room == pytest.approx(1 - distance.ssim(distance.best)) and distance.room > 0.3
        assert distance.room_interval[0] < distance.room < distance.room_interval[1]
    assert found.has_room and not found.is_below
    (sentence,) = found.verdict()
    assert "there is room at every distance tried" in sentence and "the autoencoder 1.00" in sentence
    assert "| 10 frames per second, 0.1 s |" in found.table()


def test_clips_that_stand_still_leave_none(tmp_path):
    source, entries = write_clips(tmp_path / "clips", [drifting(seed, 0) for seed in range(SURE)])
    found = probe(source, entries, (32, 48), vae=Exact())
    assert {d.judged for d in found.distances} == {"little"} and not found.has_room
    (sentence,) = found.verdict()
    assert (
        sentence.startswith("these clips hardly move at 10 frames per second, 5 frames") and "cannot win" in sentence
    )


def test_where_learning_has_room_is_named_beside_where_it_has_none(tmp_path):
    clips = [draw_clip(seed, 60, 32) for seed in range(SURE)]
    slow = [clip.repeat(4, 0) for clip in clips]  # every picture is shown four times
    source, entries = write_clips(tmp_path / "clips", slow, fps=40)
    still, far = probe(source, entries, (32, 32), (Rate(fps=40), Rate(fps=2)), Exact()).distances
    assert still.room < far.room and still.seconds == 1 / 40
    assert far.ssim("copying") < still.ssim("copying")


def test_an_autoencoder_below_simple_methods_is_called_so(tmp_path):
    source, entries = write_clips(tmp_path / "clips", [drifting(seed, 0) for seed in range(SURE)])
    found = probe(source, entries, (32, 48), (Rate(stride=1),), noise_vae())
    assert found.is_below and not found.has_room
    (sentence,) = found.verdict()
    assert "less than the" in sentence and "no model with this autoencoder can win there" in sentence
    few = probe(source, entries[:2], (32, 48), (Rate(stride=1),), noise_vae())
    assert not few.is_below and "rests on 2 clips" in few.verdict()[-1]


def test_without_an_autoencoder_the_ceiling_is_a_perfect_picture(tmp_path):
    source, entries = write_clips(tmp_path / "clips", [drifting(0, 3)])
    (distance,) = probe(source, entries, (32, 48), (Rate(stride=2),)).distances
    assert distance.ceiling == 1 and [row["method"] for row in distance.rows] == list(module.SIMPLE)
    assert distance.seconds == pytest.approx(0.2)
    json.dumps(probe(source, entries, (32, 48)).as_json(), allow_nan=False)  # a single clip has no intervals


def test_windows_are_the_same_every_time_and_as_many_as_asked_for(tmp_path):
    source, entries = write_clips(tmp_path / "clips", [drifting(seed, 2) for seed in range(3)])
    one, two = (probe(source, entries, (32, 48), (Rate(stride=1),), most_windows=5).as_json() for _ in range(2))
    assert one == two and one["distances"][0]["windows"] == 5


@pytest.mark.parametrize("num_frames", [4, 5])
def test_the_middle_is_that_of_the_window(tmp_path, num_frames):
    source, entries = write_clips(tmp_path / "clips", [drifting(seed, 2) for seed in range(2)])
    (distance,) = probe(source, entries, (32, 48), (Rate(stride=1),), Exact(), num_frames).distances
    assert distance.ceiling == pytest.approx(1) and distance.ssim("copying") < 1
    with pytest.raises(ValueError, match="2 frames has no middle one"):
        probe(source, entries, (32, 48), num_frames=2)


def test_a_clip_that_is_gone_is_left_out_by_name_and_short_ones_give_none(tmp_path):
    source, entries = write_clips(tmp_path / "clips", [drifting(seed, 2) for seed in range(3)])
    (tmp_path / "clips/1.mp4").unlink()
    found = probe(source, entries, (32, 48), (Rate(stride=1), Rate(stride=20)))
    (distance,) = found.distances
    assert list(distance.left_out) == ["1.mp4"] and distance.clips == 2
    assert "no clip has 9 frames at stride 20" in found.notes
    nothing = probe(source, entries, (32, 48), (Rate(stride=20),))
    assert not nothing.has_room and "no clip has windows of 9 frames" in nothing.verdict()[0]


def test_the_clips_own_rate_and_slower_ones_are_tried(tmp_path):
    _, entries = write_clips(tmp_path / "clips", [drifting(0, 2, frames=40)], fps=30)
    assert [rate.fps for rate in own_rates(entries)] == [30, 15, 10]  # at 5 a window takes 49 frames
    assert own_rates([]) == ()


def test_lpips_is_measured_where_its_weights_are(tmp_path, monkeypatch):
    source, entries = write_clips(tmp_path / "clips", [drifting(seed, 3) for seed in range(2)])
    monkeypatch.setattr(module, "load_lpips", lambda: Lpips())
    state = torch.get_rng_state()
    found = probe(source, entries, (32, 48), (Rate(stride=1),), Exact())
    assert torch.equal(torch.get_rng_state(), state), "what a run draws must not depend on being probed"
    scores = {row["method"]: row["mid_lpips"] for row in found.distances[0].rows}
    assert 0 <= scores["autoencoder"] < 1e-4 < scores["copying"]
    assert "mid LPIPS" in found.table()
