import numpy as np
import pytest
from PIL import Image

from diffusers_mardini.video_io import read_video, write_video
from examples import demo
from pipelines_tests.tiny_pipeline import SIZE, tiny_pipeline
from pipelines_tests.training.evaluation.test_counterfactuals import driven_pipeline


def test_the_demo_shows_three_tasks_and_scores_them(tmp_path, capsys):
    checkpoint = tmp_path / "checkpoint"
    tiny_pipeline().save_pretrained(checkpoint)
    (tmp_path / "clips").mkdir()
    generator = np.random.default_rng(0)
    for index in range(2):
        frames = generator.integers(0, 255, (9, 40, 40, 3), dtype=np.uint8)
        write_video(tmp_path / "clips" / f"{index}.mp4", frames, 20)
    output = tmp_path / "out"
    demo.main(["--clips", str(tmp_path / "clips"), "--checkpoint", str(checkpoint), "--output", str(output)]
              + ["--steps", "1", "--size", str(SIZE), "--num-frames", "5"])  # fmt: skip
    text = capsys.readouterr().out
    for task in ("interpolation", "image-to-video", "expansion"):
        assert Image.open(output / f"{task}.png").width > 5 * 128
        frames, fps = read_video(output / f"{task}.mp4")
        assert len(frames) == 3 * 5 and fps == 5  # 20 a second, every second frame, at half speed, three times
        assert len(read_video(output / f"{task}.gif")[0]) == 5
        assert f"{task}: frames 0" in text
    assert text.count("  ours ") == 3 and text.count("  copy ") == 3 and text.count("  cross-fade ") == 1
    assert text.rstrip().endswith(str(output))


def test_folders_of_pictures_are_clips_at_the_rate_that_is_given(tmp_path, capsys):
    tiny_pipeline().save_pretrained(tmp_path / "checkpoint")
    frames = np.random.default_rng(0).integers(0, 255, (9, 40, 40, 3), dtype=np.uint8)
    write_video(tmp_path / "clips" / "a", frames, 20)
    arguments = ["--clips", str(tmp_path / "clips"), "--checkpoint", str(tmp_path / "checkpoint"), "--steps", "1",
                 "--output", str(tmp_path / "out"), "--size", str(SIZE), "--num-frames", "5"]  # fmt: skip
    with pytest.raises(SystemExit, match="do not say how many frames they have per second.*--picture-fps"):
        demo.main(arguments)
    demo.main([*arguments, "--picture-fps", "20"])
    assert read_video(tmp_path / "out" / "interpolation.mp4")[1] == 5  # every second frame, at half speed


def test_a_checkpoint_that_takes_actions_drives_left_and_right(tmp_path, capsys):
    driven_pipeline().save_pretrained(tmp_path / "checkpoint")
    (tmp_path / "clips").mkdir()
    frames = np.random.default_rng(0).integers(0, 255, (9, 40, 40, 3), dtype=np.uint8)
    write_video(tmp_path / "clips" / "a.mp4", frames, 20)
    output = tmp_path / "out"
    demo.main(["--clips", str(tmp_path / "clips"), "--checkpoint", str(tmp_path / "checkpoint"), "--output", str(output)]
              + ["--steps", "1", "--size", str(SIZE), "--num-frames", "5"])  # fmt: skip
    assert "drive: left and up, up, right and up, 12 frames each from the end of a" in capsys.readouterr().out
    frames, _ = read_video(output / "drive.mp4")
    assert len(frames) == 13
    left, straight, right = np.split(frames[-1][:, : frames.shape[2] // 3 * 3], 3, axis=1)
    assert np.abs(left.astype(int) - right).mean() > 1 and np.abs(left.astype(int) - straight).mean() > 1
    assert Image.open(output / "drive.png").width > 12 * 64 and (output / "drive.gif").is_file()


def test_clips_that_cannot_be_used_are_said_before_a_model_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "clips").mkdir()
    for clips, message in (("nowhere", "no source of clips"), ("clips", "holds no clips")):
        with pytest.raises(SystemExit, match=message):
            demo.main(["--clips", str(tmp_path / clips), "--checkpoint", str(tmp_path)])


def test_a_missing_checkpoint_is_named_with_what_to_do(tmp_path):
    with pytest.raises(SystemExit, match="CHECKPOINT=folder"):
        demo.main(["--checkpoint", str(tmp_path / "nothing")])
