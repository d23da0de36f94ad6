"""Drift is measured per range of frames, and remedies are compared as arms of one run."""

import json

import pytest
import torch

from diffusers_mardini.video_io import write_video
from pipelines_tests.pipelines.test_conditions import told_pipeline
from pipelines_tests.tiny_pipeline import SIZE, clip, seeded, tiny_pipeline
from training import drift
from training.evaluation.drift import Arm, colour_distance, colour_moments, continue_clips
from training.evaluation.metrics import frame_sharpness, motion_steps


BASE = Arm("", window=5, overlap=2, steps=2)


def test_an_arm_is_read_from_text_and_keeps_what_it_does_not_name():
    arm = Arm.read("far: overlap=3 generated_noise=0.1", BASE)
    assert (arm.name, arm.overlap, arm.generated_noise, arm.window) == ("far", 3, 0.1, 5)
    assert Arm.read("plain", BASE) == Arm("plain", window=5, overlap=2, steps=2)
    for text, message in (
        ("a: speed=3", "'a' sets 'speed'; the settings are window, overlap"),
        ("a: steps=many", "'a' sets steps to 'many'; give a whole number"),
        ("a: window=0.5", "'a' sets window to '0.5'; give a whole number"),
        ("a: colours=all", "'a' sets colours to 'all'; give a number"),
        ("a: overlap=5", "overlap of 5 in windows of 5; give 1 to 4"),
    ):
        with pytest.raises(ValueError, match=message):
            Arm.read(text, BASE)


def test_frames_are_those_of_a_rollout_and_are_kept_within_the_ranges():
    pipe, given = tiny_pipeline(), clip(2, 3)
    curves = continue_clips(pipe, given, BASE, 7, [0, 1, 2], [(2, 3), (7, 9)], {})
    rollout = pipe.rollout(
        given, 5, 2, num_inference_steps=2, generator=[seeded(i) for i in range(3)], output_type="pt"
    )
    frames = torch.cat([rollout.step().frames for _ in range(3)], dim=1)[:, :7]
    assert sorted(curves.kept) == [2, 3, 7]
    for number, kept in curves.kept.items():
        torch.testing.assert_close(kept / 255, frames[:, number - 1], atol=1 / 255, rtol=0)
    torch.testing.assert_close(curves.motion, motion_steps(torch.cat([given[:, -1:], frames], dim=1)))
    torch.testing.assert_close(curves.sharpness, frame_sharpness(frames))
    torch.testing.assert_close(curves.colours, colour_moments(frames))


def test_conditions_are_told_to_all_frames():
    pipe, given = told_pipeline(), clip(2, 2)
    name = next(name for name, condition in pipe.conditions.items() if condition.channels == 1)
    plain, told = (continue_clips(pipe, given, BASE, 4, [0, 1], [], conditions) for conditions in ({}, {name: 0.5}))
    assert not torch.allclose(plain.colours, told.colours)


def test_colours_are_brought_back_to_those_of_the_given_frames():
    pipe, given = tiny_pipeline(), clip(2, 2)
    latents = pipe.encode_frames(given * 2 - 1)
    made = {}
    for share in (0.0, 1.0):
        arm = Arm.read(f"a: colours={share}", BASE)
        rollouts = []
        inner = pipe.denoise
        pipe.denoise = lambda *args: rollouts.append(inner(*args)) or rollouts[-1]
        continue_clips(pipe, given, arm, 6, [0, 1], [], {})
        pipe.denoise = inner
        made[share] = rollouts[-1][:, 2:].mean(dim=(1, 3, 4)) - latents.mean(dim=(1, 3, 4))
    assert made[1.0].abs().mean() < 0.5 * made[0.0].abs().mean()


@pytest.mark.parametrize("change_within_a_clip", [0.0, 0.3, 3.0])
def test_clips_of_the_same_kind_lie_as_far_away_as_is_usual_however_long_they_are(change_within_a_clip):
    torch.manual_seed(0)
    clips = torch.rand(80, 1, 6) + change_within_a_clip * torch.rand(80, 48, 6)
    true, others = clips[:40, :6], clips[40:]
    usual = colour_distance(true, true).mean()
    for length in (1, 6, 48):
        assert (colour_distance(others[:, :length], true).mean() / usual).item() == pytest.approx(1, abs=0.15)
    assert (colour_distance(others + 10, true) / usual > 2).all()


def test_a_clip_is_compared_with_the_others_and_not_with_its_own_true_frames():
    true = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0))
    changed = torch.cat([true[:1] + 100, true[1:]])
    assert colour_distance(true[:1], true) == colour_distance(true[:1], changed)
    assert (colour_distance(true, true)[1:] != colour_distance(true, changed)[1:]).all()


def test_moments_that_hardly_vary_do_not_make_true_clips_nearer_than_is_usual():
    torch.manual_seed(0)
    clips = 0.5 + torch.tensor([0.1, 0.1, 0.1, 0.1, 1e-5, 1e-5]) * torch.randn(200, 4, 6)
    ratio = colour_distance(clips[100:], clips[:100]).mean() / colour_distance(clips[:100], clips[:100]).mean()
    assert ratio.item() == pytest.approx(1, abs=0.1)


def test_colours_that_nobody_can_tell_apart_are_near():
    true = 0.5 + 1e-4 * torch.randn(40, 1, 6, generator=torch.Generator().manual_seed(0))
    assert (colour_distance(true + 0.5 / 255, true) < 1).all()  # half a grey level, twenty deviations
    assert (colour_distance(true + 5 / 255, true) > 4).all()


def test_the_program_writes_tables_and_goes_on_with_what_is_kept(tmp_path, monkeypatch, capsys):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "tiny")
    (tmp_path / "clips").mkdir()
    for i in range(3):
        frames = (clip(12, seed=i) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        write_video(tmp_path / "clips" / f"{i}.mp4", frames, 10)
    monkeypatch.setattr(drift, "RANGES", ((1, 5), (8, 10)))
    monkeypatch.setattr(drift, "BIN", 5)
    command = [
        str(tmp_path / "tiny"), str(tmp_path / "clips"), "-o", str(tmp_path / "out"), "--frames", "10", "--given", "2",
        "--true-frames", "6", "--num-frames", "5", "--steps", "1", "--size", str(SIZE), "--stride", "1",
        "--max-clips", "2", "--arm", "plain", "--arm", "noise: generated_noise=0.1",
    ]  # fmt: skip
    drift.main(command)
    folder = tmp_path / "out" / "tiny"
    result = json.loads((folder / "drift.json").read_text())
    assert [(row["arm"], row["first"], row["last"]) for row in result["rows"]] == [
        ("plain", 1, 5), ("plain", 8, 10), ("noise", 1, 5), ("noise", 8, 10),
    ]  # fmt: skip
    assert result["clips"] == 2 and {"drift.md", "drift.png", "drift-sheet.png"} <= {f.name for f in folder.iterdir()}
    assert "plain: in frames 8 to 10 within the interval of frames 1 to 5" in (folder / "drift.md").read_text()
    monkeypatch.setattr(drift, "continue_clips", lambda *args: pytest.fail("sampled again"))
    drift.main(command)
    assert json.loads((folder / "drift.json").read_text())["rows"] == result["rows"]
    other = [str(tmp_path / "other") if word == str(tmp_path / "out") else word for word in command]
    drift.main([*other, "--kept", str(tmp_path / "out" / "kept")])  # another run that shares its parts
    assert json.loads((tmp_path / "other" / "tiny" / "drift.json").read_text())["rows"] == result["rows"]
    with pytest.raises(SystemExit, match="give every arm a name of its own"):
        drift.main([*command, "--arm", "plain"])
    with pytest.raises(SystemExit, match="--tell names 'speed'; conditions of one channel of this checkpoint: none"):
        drift.main([*command, "--tell", "speed=1"])
