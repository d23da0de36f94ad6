import json

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_mardini.video_io import write_video
from pipelines_tests.tiny_pipeline import SIZE, tiny_pipeline
from training import evaluate
from training.contact_sheet import GIVEN_COLOUR, contact_sheet, side_by_side


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    generator = np.random.default_rng(0)
    for index, length in enumerate((12, 12, 3)):
        picture = generator.integers(0, 255, (4, 4 + length, 3), dtype=np.uint8).repeat(10, axis=0).repeat(10, axis=1)
        frames = np.stack([picture[:, 10 * i : 10 * i + 40] for i in range(length)])
        write_video(folder / f"clip_{index}.mp4", frames, 10)
    return folder


@pytest.fixture(scope="module")
def windows(clips):
    return evaluate.load_windows(clips, SIZE, num_frames=5, stride=2, per_clip=2)


def test_windows_are_evenly_spaced_from_the_first_to_the_last_possible_start():
    assert evaluate.window_starts(64, 9, 2, 2) == [0, 47]
    assert evaluate.window_starts(64, 9, 2, 3) == [0, 24, 47]
    assert evaluate.window_starts(18, 9, 2, 3) == [0, 1]
    assert evaluate.window_starts(17, 9, 2, 2) == [0]
    assert evaluate.window_starts(16, 9, 2, 2) == []
    assert evaluate.window_starts(64, 9, 2, 1) == [0]


def test_short_clips_are_counted_and_named(windows, clips, capsys):
    assert windows.frames.shape == (4, 5, 3, SIZE, SIZE)
    assert windows.clips == ["clip_0.mp4"] * 2 + ["clip_1.mp4"] * 2 and windows.starts == [0, 3, 0, 3]
    assert windows.skipped == {"clip_2.mp4": "3 frames, a window needs 9"}
    with pytest.raises(ValueError, match="no clip .* gives 30 frames"):
        evaluate.load_windows(clips, SIZE, num_frames=30, stride=2, per_clip=2)
    assert "clip_2.mp4: 3 frames" in capsys.readouterr().out


def test_tasks_give_the_frames_of_the_paper():
    assert evaluate.given_indices("interpolation", 9) == [0, 8]
    assert evaluate.given_indices("image-to-video", 9) == [0]
    assert evaluate.given_indices("expansion", 9) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="'guessing'.*interpolation"):
        evaluate.given_indices("guessing", 9)


def test_a_window_is_painted_the_same_in_any_batch(pipe, windows):
    together = evaluate.generate(pipe, windows.frames, [0, 4], steps=2, batch_size=4)
    apart = evaluate.generate(pipe, windows.frames, [0, 4], steps=2, batch_size=2)
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=0)
    torch.testing.assert_close(together[:, [0, 4]], windows.frames[:, [0, 4]])
    other_seed = evaluate.generate(pipe, windows.frames, [0, 4], steps=2, seed=1)
    assert (together[:, 1:4] - other_seed[:, 1:4]).abs().max() > 0.01


def test_painting_does_not_see_the_frames_that_are_not_given(pipe, windows):
    spoiled = windows.frames.clone()
    spoiled[:, [1, 2, 3]] = 0.5
    torch.testing.assert_close(
        evaluate.generate(pipe, windows.frames, [0, 4], steps=1), evaluate.generate(pipe, spoiled, [0, 4], steps=1)
    )


def test_dropped_planning_is_the_transformers_own_unconditional_branch(pipe, windows):
    mask = torch.tensor([[True, False, False, False, True]]).expand(2, -1)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 5, 16, 4, 4, generator=generator)
    low = torch.randn(2, 5, 16, 2, 2, generator=generator)
    with torch.no_grad():
        own = pipe.planner(low, mask)[0]
        with evaluate.planning_replaced(pipe, "none"):
            none = pipe.planner(low, mask, return_dict=False)[0]
        with evaluate.planning_replaced(pipe, "other"):
            other = pipe.planner(low, mask).planning_signals
        timestep = torch.tensor(500)
        replaced = pipe.transformer(latents, timestep, none, mask)[0]
        torch.testing.assert_close(replaced, pipe.transformer(latents, timestep, None, mask)[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(other, own[[1, 0]])
        torch.testing.assert_close(pipe.planner(low, mask)[0], own)  # nothing is left behind
        assert (replaced - pipe.transformer(latents, timestep, own, mask)[0]).abs().max() > 1e-3


def test_the_program_writes_results_a_table_and_sheets(clips, tmp_path, capsys):
    checkpoint = tmp_path / "checkpoint"
    tiny_pipeline().save_pretrained(checkpoint)
    output = tmp_path / "out"
    evaluate.main(
        [str(checkpoint), str(clips), "--size", str(SIZE), "--num-frames", "5", "--steps", "2", "1", "--device", "cpu"]
        + ["--train-clips", str(clips), "--no-planning", "--wrong-planning", "--seeds", "0", "1", "-o", str(output)]
    )
    record = json.loads((output / "results.json").read_text())
    rows = {row["method"]: row for row in record["rows"]}
    assert list(rows) == [
        "copy of the nearest given frame",
        "cross-fade",
        "DIS optical flow",
        "best match among training windows",
        "autoencoder alone (ceiling)",
        "ours, 2 steps",
        "ours, 1 step",
        "ours, 2 steps, planning signal dropped",
        "ours, 2 steps, plan of another window",
    ]
    assert len(record["windows"]) == 4 and record["skipped"] == {"clip_2.mp4": "3 frames, a window needs 9"}
    assert rows["best match among training windows"]["mid_ssim"] == pytest.approx(1, abs=1e-3)  # its own clips
    ours = rows["ours, 2 steps"]
    assert len(ours["windows"]["mid_ssim"]) == 4 and len(ours["seeds_mid_ssim"]) == 2
    assert ours["mid_ssim"] == pytest.approx(np.mean(ours["windows"]["mid_ssim"]), abs=1e-4)
    assert ours["mid_ssim"] == pytest.approx(np.mean(ours["seeds_mid_ssim"]), abs=1e-4)
    table = (output / "results.md").read_text()
    assert "| cross-fade | " in table and table.count("\n| ") == 10
    assert Image.open(output / "sheet_0.png").width > 5 * 128
    assert capsys.readouterr().out.rstrip().endswith(f"contact sheets to {output}")


def test_given_frames_are_framed_and_all_frames_drawn():
    frames = torch.linspace(0.2, 0.9, 3).view(3, 1, 1, 1).repeat(1, 3, 16, 16)
    frames[:, 1] = 0.0  # a colour that text has not
    sheet = np.asarray(contact_sheet([("clip", {"truth": frames, "ours": frames})], [0, 2], width=32))
    # two rows of two framed frames, at least one side each
    assert (sheet == GIVEN_COLOUR).all(-1).sum() >= 2 * 2 * 4 * 32
    for value in (0.2, 0.55, 0.9):
        distance = np.abs(sheet - np.array([value * 255, 0, value * 255])).max(-1)
        assert (distance < 1).sum() == 2 * 32 * 32
    video = side_by_side([("clip", {"truth": frames, "ours": frames})], [0, 2], width=32)
    coloured = [(np.asarray(picture) == GIVEN_COLOUR).all(-1).any() for picture in video]
    assert coloured == [True, False, True]
    assert all(side % 2 == 0 for side in video[0].size)
