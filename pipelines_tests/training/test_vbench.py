"""The layout of files that VBench's own tool reads, and the scores that are computed here."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from diffusers_mardini.video_io import read_video
from pipelines_tests.tiny_pipeline import SIZE, tiny_pipeline
from pipelines_tests.training.evaluation.networks.test_consistency import tiny_networks
from training import vbench


SETTINGS = {"num_frames": 3, "height": SIZE, "width": SIZE, "steps": 1, "guidance_scale": None, "seed": 0, "fps": 8}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name in ("a beach-3.jpg", "a dog.png"):
        grey = generator.integers(0, 256, (3, 4, 1), dtype=np.uint8).repeat(20, axis=0).repeat(20, axis=1)
        Image.fromarray(grey.repeat(3, axis=2)).save(folder / name)  # of colours the codec keeps half the pixels
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def info(tmp_path):
    rows = [
        {"prompt_en": "a dog", "dimension": ["i2v_subject", "subject_consistency"], "image_name": "a dog.png"},
        {"prompt_en": "a dog, camera pans left", "dimension": ["camera_motion"], "image_name": "a dog.png"},
    ]
    (tmp_path / "info.json").write_text(json.dumps(rows))
    return tmp_path / "info.json"


def prompt_of(path) -> str:
    """How VBench's tool takes the prompt from a file's name (vbench/utils.py, get_prompt_from_filename)."""
    return re.sub(r"-\d+$", "", path.stem)


def test_prompts_are_names_of_images_or_those_of_vbenchs_list_that_are_not_text_alone(images, info):
    assert vbench.prompts_of(images) == {"a beach-3": images / "a beach-3.jpg", "a dog": images / "a dog.png"}
    assert vbench.prompts_of(images, info) == {"a dog": images / "a dog.png"}


def test_images_that_are_missing_or_cannot_be_named_are_refused(images, info, tmp_path):
    with pytest.raises(ValueError, match="no folder of images"):
        vbench.prompts_of(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no image"):
        vbench.prompts_of(tmp_path)
    with pytest.raises(ValueError, match="1 images .* the first is 'a dog.png'"):
        vbench.prompts_of(tmp_path, info)
    info.write_text(info.read_text().replace('"a dog"', '"a dog/cat"'))
    with pytest.raises(ValueError, match="'a dog/cat' cannot be the name of a file"):
        vbench.prompts_of(images, info)


def test_the_tool_finds_five_videos_of_each_image_and_the_image(images, tmp_path):
    prompts = vbench.prompts_of(images)
    videos = vbench.write_videos(tiny_pipeline(), prompts, tmp_path, SETTINGS)
    assert {path.name for path in videos} == {f"{p}-{i}.mp4" for p in prompts for i in range(5)}
    assert {path.name for path in (tmp_path / "videos").iterdir()} == {path.name for path in videos}
    custom = {path.stem: path for path in (tmp_path / "images").iterdir()}
    for path in videos:
        assert prompt_of(path) in custom
        frames, fps = read_video(path)
        given = np.asarray(Image.open(custom[prompt_of(path)]))
        assert frames.shape == (3, SIZE, SIZE, 3) and fps == 8
        assert np.abs(frames[0].astype(int) - given).mean() < 6  # the first frame is the image, but for the codec
    seeds = json.loads((tmp_path / "videos.json").read_text())["seeds"]
    assert len(set(seeds.values())) == 10
    first, second = (read_video(tmp_path / "videos" / f"a dog-{i}.mp4")[0][2].astype(int) for i in (0, 1))
    assert np.abs(first - second).mean() > 1


def test_typed_again_it_goes_on_and_never_mixes_settings(images, tmp_path):
    pipe, prompts = tiny_pipeline(), vbench.prompts_of(images)
    videos = vbench.write_videos(pipe, prompts, tmp_path, SETTINGS, samples=2)
    before = read_video(videos[1])[0].astype(int)
    videos[1].unlink()
    times = {path: path.stat().st_mtime_ns for path in videos if path.is_file()}
    vbench.write_videos(pipe, prompts, tmp_path, SETTINGS, samples=2)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    # The same as it would have been, but for rounding: another sample is further away than 1.
    assert np.abs(read_video(videos[1])[0] - before).mean() < 0.5
    with pytest.raises(ValueError, match="made with another steps, seed"):
        vbench.write_videos(pipe, prompts, tmp_path, {**SETTINGS, "steps": 2, "seed": 1}, samples=2)
    with pytest.raises(ValueError, match="another checkpoint"):
        vbench.write_videos(tiny_pipeline(planner_downscale=4), prompts, tmp_path, SETTINGS, samples=2)
    with pytest.raises(ValueError, match="another scheduler"):
        vbench.write_videos(tiny_pipeline(beta_schedule="linear"), prompts, tmp_path, SETTINGS, samples=2)
    with pytest.raises(ValueError, match="another image for 'a dog'; give another folder"):
        swapped = {"a beach-3": prompts["a beach-3"], "a dog": prompts["a beach-3"]}
        vbench.write_videos(pipe, swapped, tmp_path, SETTINGS, samples=2)
    # Fewer samples, or other images beside these: what lies there already stays told.
    before = json.loads((tmp_path / "videos.json").read_text())
    vbench.write_videos(pipe, {"a dog": prompts["a dog"]}, tmp_path, SETTINGS, samples=1)
    assert json.loads((tmp_path / "videos.json").read_text()) == before and len(before["seeds"]) == 4


def test_the_program_writes_videos_and_scores_in_vbenchs_form(images, tmp_path, capsys):
    tiny_pipeline().save_pretrained(tmp_path / "checkpoint")
    networks = tiny_networks()
    networks.dino.save_pretrained(tmp_path / "dino")
    networks.clip.save_pretrained(tmp_path / "clip")
    output = tmp_path / "out"
    arguments = [
        str(tmp_path / "checkpoint"),
        str(images),
        "--num-frames",
        "3",
        "--size",
        str(SIZE),
    ]
    arguments += [
        "--steps",
        "1",
        "--samples",
        "2",
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "-o",
        str(output),
        "--score",
    ]
    with pytest.raises(SystemExit, match="error: .*put config.json"):  # before anything is sampled
        vbench.main([*arguments, "--dino", str(tmp_path / "nothing")])
    assert not output.exists()
    vbench.main([*arguments, "--dino", str(tmp_path / "dino"), "--clip", str(tmp_path / "clip")])
    results = json.loads((output / "results.json").read_text())
    assert set(results) == {"subject_consistency", "background_consistency", "i2v_subject"}
    for mean, each in results.values():
        assert len(each) == 4 and mean == pytest.approx(sum(row["video_results"] for row in each) / 4)
        assert 0 <= mean <= 1 and each[0]["video_path"].endswith("a beach-3-0.mp4")
    assert capsys.readouterr().out.rstrip().endswith("results.json")
