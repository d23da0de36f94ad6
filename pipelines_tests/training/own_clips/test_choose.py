"""Check what `training.fit` chooses, and the files that it writes."""

from types import SimpleNamespace

import pytest
import torch

from training.config.layers import load_config
from training.own_clips import choose
from training.own_clips.choose import Choices
from training.own_clips.configs import autoencoder_text, run_text
from training.train_autoencoder import AutoencoderTrainingConfig


WHY = {"fps": "far enough", "size": "like the clips", "latent_channels": "enough", "preset": "fast enough"}
CHOICES = Choices(10.0, 48, 96, 24, "mardini-nano", 16, 2, 400, WHY)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(64, 64, (64, 64)), (160, 120, (48, 64)), (320, 160, (48, 96)), (120, 160, (64, 48)), (1920, 1080, (48, 80))],
)
def test_frames_keep_the_aspect_ratio_of_the_clips(width, height, expected):
    assert choose.choose_size(width, height, 64 * 64) == expected


def test_frames_are_not_enlarged():
    height, width = choose.choose_size(40, 34, 64 * 64)
    assert (height, width) == (32, 32)


def test_clips_smaller_than_the_least_size_get_it():
    assert choose.choose_size(8, 8, 64 * 64) == (16, 16)


def _probed(*rooms: tuple[float, float]) -> dict:
    rows = [{"method": "cross-fade", "mid_ssim": 0.5}, {"method": "autoencoder", "mid_ssim": 0.9}]
    return {
        "distances": [
            {"seconds": seconds, "room": room, "best": "cross-fade", "rows": rows} for seconds, room in rooms
        ]
    }


def test_the_shortest_distance_with_enough_room_is_taken():
    fps, why = choose.choose_fps(_probed((0.05, 0.1), (0.1, 0.4), (0.2, 0.5)))
    assert fps == 10
    assert "0.8 seconds apart" in why
    assert "SSIM of 0.50" in why


def test_without_room_anywhere_the_distance_with_the_most_is_taken():
    assert choose.choose_fps(_probed((0.1, -0.3), (0.2, -0.1)))[0] == 5


def test_latents_have_as_few_channels_as_keep_enough():
    flat = torch.randint(0, 255, (40, 3, 1, 1), dtype=torch.uint8).expand(40, 3, 32, 32)
    vae, why = choose.choose_latents(flat, flat)
    assert vae.config.latent_channels == choose.LATENTS[0]
    noise = torch.randint(0, 255, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    vae, why = choose.choose_latents(noise, noise.flip(0).roll(5, dims=3))
    assert vae.config.latent_channels == choose.LATENTS[-1]
    assert all(f"{channels} channels keep" in why for channels in choose.LATENTS)


def test_the_largest_models_that_see_enough_windows_are_taken(monkeypatch):
    configs = [("large", "large", 1000), ("middle", "middle", 100), ("small", "small", 0)]
    seconds = {"large": 10.0, "middle": 1.0, "small": 0.1}
    asked = []

    class Run:
        def __init__(self, name):
            self.name, self.stages, self.windows_per_step = name, [self], 10

        def for_processes(self, _):
            return self

        def size_of(self, _):
            return 64, 64

    monkeypatch.setattr(
        choose, "probe", lambda config, stage, steps: asked.append(config.name) or seconds[config.name]
    )
    monkeypatch.setattr(choose, "count_operations", lambda config, stage: seconds[config.name])
    runs = [(preset, Run(name), needed) for preset, name, needed in configs]
    index, step, why = choose.choose_models(runs, 20.0, 1)
    assert (index, step) == (1, 1.0)
    assert asked == ["small", "middle"]  # `large` could not see 1,000 windows
    assert "middle at 64x64: 1.00 s a step of 10 windows, so 200 windows" in why
    assert choose.choose_models(runs, 0.5, 1)[0] == 2

    def little_memory(config, stage, steps):
        if config.name == "middle":
            raise RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB)")  # no error class of its own
        return seconds[config.name]

    monkeypatch.setattr(choose, "probe", little_memory)
    index, _, why = choose.choose_models(runs, 20.0, 1)
    assert index == 2 and "middle does not fit into the device's memory" in why
    monkeypatch.setattr(choose, "probe", lambda *_: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        choose.choose_models(runs, 20.0, 1)


@pytest.mark.parametrize(
    ("device", "cores", "expected"), [("cpu", 2, 2), ("cpu", 6, 4), ("cpu", 64, 16), ("cuda", 8, 1)]
)
def test_a_steps_windows_are_shared_equally(device, cores, expected):
    assert choose.processes_for(device, cores, 16) == expected


def test_on_windows_one_process_trains(monkeypatch):
    """The launcher of several does not start there."""
    monkeypatch.setattr(choose, "os", SimpleNamespace(name="nt"))
    assert choose.processes_for("cpu", 8, 16) == 1


@pytest.mark.parametrize(("hours", "stages"), [(0.5, ["joint"]), (3.0, ["planner", "joint"])])
def test_the_run_that_is_written_says_what_was_chosen(tmp_path, hours, stages):
    path, out = tmp_path / "config.yaml", tmp_path / "my #1: clips {a}"
    path.write_text(run_text(CHOICES, out, hours, anyway=hours > 1), encoding="utf-8")
    config = load_config(str(path))
    assert config.anyway == (hours > 1)
    assert config.data.train == str(out / "clips/train.jsonl") and config.vae == str(out / "autoencoder")
    assert [stage.name for stage in config.stages] == stages
    assert config.hours == hours
    assert config.size_of(config.stages[-1]) == (48, 96)
    assert config.stages[-1].rates == {10.0: 1.0}
    assert config.stages[-1].global_batch == 16
    assert sum(stage.steps for stage in config.stages) == 400
    assert config.planner["in_channels"] == config.transformer["in_channels"] == 24
    assert all(reason in path.read_text(encoding="utf-8") for name, reason in WHY.items() if name != "latent_channels")


def test_the_autoencoders_file_says_what_was_chosen(tmp_path):
    path, out = tmp_path / "autoencoder.yaml", tmp_path / "my #1: clips"
    path.write_text(autoencoder_text(CHOICES, out, 3.5, 2), encoding="utf-8")
    config = AutoencoderTrainingConfig.from_yaml(path)
    assert (config.latent_channels, config.max_minutes, config.threads) == (24, 3.5, 2)
    assert config.output == out / "autoencoder"


def test_nine_of_ten_clips_have_the_usual_rate():
    assert choose.usual_rate([29.97] * 95 + [24.0] * 5) == 29.97
    assert choose.usual_rate([60.0] * 3 + [29.8] * 3) == choose.usual_rate([29.8]) == 29.8
