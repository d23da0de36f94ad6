"""Long videos at toy size: which frames are scored, by which level or window, and that it goes on."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipelines_tests.tiny_pipeline import SIZE, tiny_pipeline
from training.data.recipes import moving_shapes
from training.evaluation.metrics import score_windows
from training.reproduction import long_video
from training.reproduction.frame_scores import over, score_each_frame


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long_video")
    tiny_pipeline().save_pretrained(folder / "checkpoint")
    moving_shapes.record(folder / "clips", clips=2, num_frames=9, size=SIZE)
    small = ["--size", str(SIZE), "--window", "3", "--steps", "1", "--dtype", "float32"]
    more = [
        "--distances",
        "2",
        "4",
        "--num-frames",
        "5",
        "--overlap",
        "1",
        "--far-clips",
        "2",
        "--far-frames",
        "6",
        "--far-block",
        "4",
    ]
    return [str(folder / "checkpoint"), str(folder / "clips"), *small, *more]


def test_slow_motion_and_extension_are_scored_where_they_can_be_compared(arguments, tmp_path):
    page = tmp_path / "page.md"
    blocks = [
        "slow motion",
        "slow motion, paired",
        "slow motion, levels",
        "extension",
        "extension, paired",
        "far extension",
    ]
    page.write_text("".join(f"<!-- {name}: begin -->\n<!-- {name}: end -->\n" for name in blocks))
    long_video.main([*arguments, "-o", str(tmp_path), "--page", str(page)])
    record = json.loads((tmp_path / "results.json").read_text())
    slow, extended, far = record["slow_motion"], record["extension"], record["far"]

    assert slow["scored_places"] == [1, 3]  # 2 is given where every second frame is
    names = ["copy", "cross-fade", "DIS optical flow", "autoencoder", "ours"]
    assert [row["method"] for row in slow["rows"] if row["level"] is None] == [
        f"{distance} apart, {name}" for distance in (2, 4) for name in names
    ]
    assert {(row["distance"], row["level"]) for row in slow["rows"]} == {
        (2, None), (2, 1), (4, None), (4, 1), (4, 2)
    }  # fmt: skip
    rows = {row["method"]: row for row in slow["rows"]}
    pairs = {(found["method"], found["than"]): found["difference"]["ssim"] for found in slow["differences"]}
    assert pairs["4 apart, ours", "2 apart, ours"] == pytest.approx(
        rows["4 apart, ours"]["ssim"] - rows["2 apart, ours"]["ssim"], abs=1e-6
    )
    assert ("2 apart, ours", "2 apart, cross-fade") in pairs and ("2 apart, ours", "4 apart, cross-fade") not in pairs

    # window 3, overlap 1: frames 1 and 2, then 3 and 4
    assert [row["method"] for row in extended["rows"] if row["name"] == "ours"] == [
        "frames 1 to 2, ours",
        "frames 3 to 4, ours",
    ]
    assert [row["place"] for row in extended["frames"] if row["name"] == "copy"] == [1, 2, 3, 4]
    another = next(row for row in extended["rows"] if row["name"] == long_video.ANOTHER)
    assert another["motion"] == pytest.approx(1, abs=1e-6) and another["ssim"] < 0.9
    assert [(block["first"], block["last"], len(block["motion"])) for block in far["blocks"]] == [(1, 4, 2), (5, 6, 2)]

    # What is told of a block is of its own frames, relative to the true clips'.
    length = 7
    kept = [
        load_file(path)["frames"] for path in (tmp_path / "kept").rglob("*.safetensors") if "frames" in load_file(path)
    ]
    (video,) = [frames.float() / 255 for frames in kept if frames.shape[1] == length]
    truth = long_video.load_windows(arguments[1], SIZE, 5, 2, per_clip=1).frames
    for block in far["blocks"]:
        steps = (video[:, block["first"] : block["last"] + 1] - video[:, block["first"] - 1 : block["last"]]).abs()
        true = (truth[:, 1:] - truth[:, :-1]).abs().mean().item()
        assert block["motion"] == pytest.approx((steps.mean(dim=(1, 2, 3, 4)) / true).tolist(), rel=1e-2)
    assert far["blocks"][0]["motion"] != pytest.approx(far["blocks"][1]["motion"], rel=1e-2)
    assert far["blocks"][0]["sharpness"] != pytest.approx(far["blocks"][1]["sharpness"], rel=1e-3)

    assert "| 4 apart, ours, level 2 |" in (tmp_path / "results.md").read_text()
    filled = page.read_text().split(": begin -->\n")[1:]
    assert all(block.startswith("| ") for block in filled)
    shown = filled[blocks.index("extension")].splitlines()
    assert [line.split(" | ")[0] for line in shown[2:4]] == ["| 1 to 2 (1)", "| 3 to 4 (2)"]
    first = {row["name"]: row for row in extended["rows"] if row["window"] == 1}
    named = dict(zip(shown[0].strip("| ").split(" | "), shown[2].strip("| ").split(" | ")))
    assert named["copy: mean SSIM"] == f"{first['copy']['ssim']:.3f}"
    assert named["ours: mean SSIM"].startswith(f"{first['ours']['ssim']:.3f} [")
    for name in ("slow_motion_chart", "extension_chart", "slow_motion_sheet", "extension_sheet", "far_sheet"):
        assert Image.open(tmp_path / f"{name}.png").width > 300

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.safetensors")}
    long_video.main([*arguments, "-o", str(tmp_path), "--page", str(page)])
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.safetensors")}
    assert json.loads((tmp_path / "results.json").read_text()) == record


def test_more_clips_go_on_from_fewer(arguments, tmp_path):
    few, all_clips = ["--batch-size", "1", "--max-clips", "1"], ["--batch-size", "1"]
    more = ["--distances", "2", "--far-clips", "1", "--far-frames", "1"]
    long_video.main([*arguments, *more, *few, "-o", str(tmp_path)])
    ours = set((tmp_path / "kept").rglob("00000-00001.safetensors"))
    times = {path: path.stat().st_mtime_ns for path in ours}
    long_video.main([*arguments, *more, *all_clips, "-o", str(tmp_path)])
    assert len(json.loads((tmp_path / "results.json").read_text())["slow_motion"]["clips"]) == 2
    assert times == {path: path.stat().st_mtime_ns for path in ours}
    assert len(list((tmp_path / "kept").rglob("00001-00002.safetensors"))) >= 4


def test_levels_are_those_of_the_recursion():
    assert long_video.slow_motion_levels(2, 4, 3) == [0, 2, 1, 2, 0]
    levels = long_video.slow_motion_levels(3, 16, 9)
    assert [place for place, level in enumerate(levels) if level == 0] == [0, 16, 32]
    assert all(level == (1 if place % 2 == 0 else 2) for place, level in enumerate(levels) if level)


def test_scores_of_single_frames_are_those_of_windows():
    generator = torch.Generator().manual_seed(0)
    truth, frames = torch.rand(2, 4, 3, 16, 16, generator=generator), torch.rand(2, 4, 3, 16, 16, generator=generator)
    each, windows = score_each_frame(frames, truth, None), score_windows(frames, truth, [0])
    for name in ("ssim", "psnr", "sharpness", "true_sharpness"):
        torch.testing.assert_close(over([each, each], [1, 2, 3])[name], windows[name])
    assert each["true_motion"][:, 0].eq(0).all()
    torch.testing.assert_close(over([each], [1, 2, 3])["true_motion"], windows["true_motion"])


def test_distances_that_do_not_fit_are_refused(arguments, tmp_path):
    with pytest.raises(SystemExit, match="max_clips is 0"):
        long_video.main([*arguments, "--max-clips", "0", "-o", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"\[3, 4\]: each must be at least 2 and divide the largest one, 4"):
        long_video.main([*arguments, "--distances", "3", "4", "-o", str(tmp_path / "out")])
    for more, message in (
        (["--overlap", "3"], "--overlap 3: give at least 1, and less than --window 3"),
        (["--overlap", "0"], "--overlap 0: give at least 1"),
        (["--num-frames", "1"], "--num-frames 1: give more than the --overlap of 1"),
        (["--far-block", "0"], "--far-block 0: give at least 1"),
        (["--batch-size", "0"], "--batch-size 0: give at least 1"),
    ):
        with pytest.raises(SystemExit, match=message):
            long_video.main([*arguments, *more, "-o", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
