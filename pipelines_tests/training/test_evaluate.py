"""The whole evaluation at toy size: what it writes, that it goes on, and what it refuses before it samples."""

import csv
import json
import math
import re

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.video_io import write_video
from pipelines_tests.tiny_pipeline import SIZE, tiny_pipeline
from pipelines_tests.training.evaluation.networks.test_frechet import has_efficientnet
from training import evaluate
from training.evaluation.altered_signals import OTHER
from training.evaluation.evaluation_windows import EvaluationWindows, load_windows, to_bytes
from training.evaluation.finished_parts import FinishedParts
from training.evaluation.methods import BASELINE, OURS, Method, SamplerSettings, TrainingClips, baselines, ours
from training.evaluation.metrics import score_windows, summarize
from training.evaluation.networks.frechet import Features, frechet_distance
from training.evaluation.networks.loading import Networks
from training.evaluation.results import read_results, write_results
from training.evaluation.scores import Evaluation
from training.evaluation.tables import difference_table, score_table
from training.figures.contact_sheets import GIVEN_COLOUR, contact_sheet, side_by_side


NOTHING = Networks({}, {})


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
    return load_windows(clips, SIZE, num_frames=5, stride=2, per_clip=2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_pipeline().save_pretrained(folder)
    return folder


def command(checkpoint, clips, output, *more: str) -> list[str]:
    basic = [
        str(checkpoint),
        str(clips),
        "--size",
        str(SIZE),
        "--num-frames",
        "5",
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    return [*basic, "-o", str(output), *more]


class Sampled:
    """A method that counts what it samples, brightens by its seed, and can be interrupted."""

    def __init__(self, seeds=(0, 1), breaks_at: int | None = None, **key):
        self.batches, self.breaks_at = [], breaks_at
        self.method = Method("ours, counted", OURS, {"method": "counted", **key}, seeds, [(0, 2), (2, 4)], self.sample)

    def sample(self, windows, given, first, seed):
        if len(self.batches) == self.breaks_at:
            raise KeyboardInterrupt
        self.batches.append((seed, first))
        return (windows + 0.1 * (seed + 1)).clamp(0, 1)


class MeanDifference(torch.nn.Module):
    """In place of LPIPS."""

    sources = {"weights": "0" * 64}

    def forward(self, frames, truth):
        return (frames - truth).abs().flatten(1).mean(dim=1)


def test_networks_are_asked_about_the_sampled_frames_and_whole_windows(clips, tmp_path):
    windows = load_windows(clips, SIZE, num_frames=5, stride=1, per_clip=3)
    assert len(windows.frames) * 3 > 16  # more sampled frames than are asked about at once
    brighter = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.0]).view(5, 1, 1, 1)

    def sample(frames, given, first, seed):
        return (frames * 0.6 + brighter + 0.05 * seed).clamp(0, 1)

    def colours(frames):  # (batch, 3, height, width) to (batch, 3)
        return frames.mean(dim=(-2, -1))

    def colours_over_time(videos):  # (batch, frames, 3, height, width) to (batch, 3): the first frame counts, too
        return colours(videos)[:, 0] - colours(videos)[:, -2]

    features = {
        "fd_efficientnet_lite0": Features("frame", colours, {"colours": "1" * 64}),
        "fd_window": Features("window", colours_over_time, {"colours": "2" * 64}),
    }
    networks = Networks({"alex": MeanDifference(), "vgg": MeanDifference()}, features)
    method = Method("ours, bright", OURS, {"method": "bright"}, (0, 1), [(0, 4), (4, len(windows.frames))], sample)
    (row,), _, _ = Evaluation(windows, [0, 4], networks, FinishedParts(tmp_path)).run([method])

    truth = to_bytes(windows.frames).float() / 255
    each = [to_bytes(sample(truth, None, 0, seed)).float() / 255 for seed in (0, 1)]
    distances = torch.stack([(frames - truth).abs().mean(dim=(2, 3, 4)) for frames in each]).mean(dim=0)
    for suffix in ("", "_vgg"):
        assert row["windows"][f"mid_lpips{suffix}"] == pytest.approx(distances[:, 2].tolist(), abs=1e-5)
        assert row["windows"][f"lpips{suffix}"] == pytest.approx(distances[:, 1:4].mean(dim=1).tolist(), abs=1e-5)
    for column, of in (
        ("fd_efficientnet_lite0", lambda video: colours(video[:, 1:4].flatten(0, 1))),
        ("fd_window", colours_over_time),
    ):
        expected = [frechet_distance(of(frames), of(truth)) for frames in each]
        assert expected[0] > 1e-3 and row["seeds"][column] == pytest.approx(expected, rel=1e-3)
        assert row[column] == pytest.approx(sum(expected) / 2, rel=1e-3)


def test_the_program_writes_results_a_table_and_sheets(checkpoint, clips, tmp_path, capsys):
    output = tmp_path / "out"
    more = ["--train-clips", str(clips), "--no-planning", "--wrong-planning", "--seeds", "0", "1", "--steps", "2", "1"]
    evaluate.main(command(checkpoint, clips, output, *more, "--metrics"))
    record = json.loads((output / "results.json").read_text())
    assert re.fullmatch("[0-9a-f]{64}", record["sampled_by"]["checkpoint"])
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
        "ours, 2 steps, planning signals of another window",
    ]
    assert len(record["windows"]) == 4 and record["skipped"] == {"clip_2.mp4": "has 3 frames; 5 at stride 2 span 9"}
    assert rows["best match among training windows"]["mid_ssim"] == pytest.approx(1, abs=1e-3)  # its own clips
    ours = rows["ours, 2 steps"]
    assert len(ours["windows"]["mid_ssim"]) == 4 and len(ours["seeds"]["mid_ssim"]) == 2
    assert ours["mid_ssim"] == pytest.approx(np.mean(ours["windows"]["mid_ssim"]), abs=1e-4)
    assert ours["mid_ssim"] == pytest.approx(np.mean(ours["seeds"]["mid_ssim"]), abs=1e-4)
    assert ours["spread"]["mid_ssim"] == pytest.approx(np.std(ours["seeds"]["mid_ssim"], ddof=1), abs=1e-6)
    low, high = ours["intervals"]["mid_ssim"]
    assert low <= ours["mid_ssim"] <= high
    assert len(record["differences"]) == 4 * 4 + 2  # ours in four ways, four simple methods; two other plans
    pair = record["differences"][0]
    assert (pair["method"], pair["than"]) == ("ours, 2 steps", "copy of the nearest given frame")
    assert pair["difference"]["ssim"] == pytest.approx(ours["ssim"] - rows[pair["than"]]["ssim"], abs=1e-6)
    pair = record["differences"][-2]
    assert (pair["method"], pair["than"]) == ("ours, 2 steps", "ours, 2 steps, planning signal dropped")
    assert pair["difference"]["ssim"] == pytest.approx(ours["ssim"] - rows[pair["than"]]["ssim"], abs=1e-6)

    table = (output / "results.md").read_text()
    assert "| cross-fade | " in table and "standard deviation over seeds" in table and "Paired differences" in table
    with open(output / "results.csv", newline="") as file:
        found = {(row["method"], row["score"]): row for row in csv.DictReader(file)}
    assert float(found["ours, 2 steps", "mid_ssim"]["value"]) == pytest.approx(ours["mid_ssim"])
    assert found["cross-fade", "psnr"]["spread_over_seeds"] == ""
    sheet, planning = (Image.open(output / f"{name}_0.png") for name in ("sheet", "planning"))
    assert sheet.width > 5 * 128
    assert planning.height == sheet.height + 4 * (
        128 + 8
    )  # four windows, each with the rows truth, planned, not planned, another's plan
    assert capsys.readouterr().out.rstrip().endswith(f"contact sheets to {output}")


def test_typed_again_nothing_is_sampled_twice_and_the_results_are_the_same(checkpoint, clips, tmp_path):
    arguments = command(checkpoint, clips, tmp_path, "--steps", "1", "--metrics")
    evaluate.main(arguments)
    before = (tmp_path / "results.json").read_text()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.safetensors")}
    evaluate.main(arguments)
    assert (tmp_path / "results.json").read_text() == before
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.safetensors")}


def test_an_interrupted_evaluation_goes_on_with_the_batch_that_was_missing(windows, tmp_path):
    broken, whole = Sampled(breaks_at=3), Sampled()
    with pytest.raises(KeyboardInterrupt):
        Evaluation(windows, [0, 4], NOTHING, FinishedParts(tmp_path)).run([broken.method])
    rows, _, sampled = Evaluation(windows, [0, 4], NOTHING, FinishedParts(tmp_path)).run([whole.method])
    assert broken.batches == [(0, 0), (0, 2), (1, 0)] and whole.batches == [(1, 2)]
    fresh, _, expected = Evaluation(windows, [0, 4], NOTHING, FinishedParts(tmp_path / "fresh")).run(
        [Sampled().method]
    )
    torch.testing.assert_close(sampled["ours, counted"], expected["ours, counted"], rtol=0, atol=0)
    assert {**rows[0], "seconds_per_window": 0} == {**fresh[0], "seconds_per_window": 0}


def test_everything_that_matters_is_in_the_key(windows, tmp_path):
    def batches_sampled(of: EvaluationWindows = windows, given=(0, 4), **key) -> int:
        sampled = Sampled(seeds=(0,), **key)
        Evaluation(of, list(given), NOTHING, FinishedParts(tmp_path)).run([sampled.method])
        return len(sampled.batches)

    brighter = EvaluationWindows(windows.frames * 0.9, windows.clips, windows.starts, {})
    assert [batches_sampled(), batches_sampled()] == [2, 0]
    assert batches_sampled(of=brighter) == batches_sampled(given=(0,)) == batches_sampled(steps=3) == 2
    keys = [
        [method.key for method in ours(pipe, ["a.mp4", "b.mp4"], sampling)]
        for pipe in (tiny_pipeline(), tiny_pipeline(planner_downscale=4), tiny_pipeline(beta_schedule="linear"))
        for sampling in (
            SamplerSettings(),
            SamplerSettings(steps=(3,)),
            SamplerSettings(guidance_scale=2.0),
            SamplerSettings(schedulers=("DDIMScheduler",)),
        )
    ]
    assert len({json.dumps(key[1]) for key in keys}) == 12


def test_rows_are_called_by_what_is_not_left_to_the_pipeline():
    assert SamplerSettings().label(1) == "ours, 1 step"
    assert (
        SamplerSettings(guidance_scale=1.0).label(25, "DDIMScheduler") == "ours, 25 steps, DDIMScheduler, guidance 1"
    )
    assert SamplerSettings(guidance_scale=3.5).label(5) == "ours, 5 steps, guidance 3.5"
    assert SamplerSettings().label(25, alteration=OTHER) == f"ours, 25 steps{OTHER.suffix}"


def test_training_clips_are_known_by_their_files(clips, tmp_path):
    (tmp_path / "a.mp4").write_bytes((clips / "clip_0.mp4").read_bytes())
    key = TrainingClips(tmp_path, SIZE, 2).key()
    assert key == TrainingClips(tmp_path, SIZE, 2).key() != TrainingClips(tmp_path, SIZE, 3).key()
    (tmp_path / "b.mp4").write_bytes((clips / "clip_1.mp4").read_bytes())
    assert TrainingClips(tmp_path, SIZE, 2).key() != key


@pytest.mark.parametrize(
    "given, names",
    [([0, 8], ["copy", "cross-fade", "DIS", "RIFE"]), ([0], ["copy"]), ([0, 1, 2, 3, 4], ["copy", "DIS"])],
)
def test_a_task_has_the_simple_methods_that_it_allows(given, names):
    found = [method.name for method in baselines(4, given, 9, None, "rife-v4.6")]
    assert [method.split()[0] for method in found] == names
    assert all(method.kind == BASELINE for method in baselines(4, given, 9, None))


def test_scores_are_of_the_frames_as_a_file_holds_them(windows, tmp_path):
    sampled = Sampled(seeds=(0,))
    rows, _, frames = Evaluation(windows, [0, 4], NOTHING, FinishedParts(tmp_path)).run([sampled.method])
    values = frames["ours, counted"] * 255
    torch.testing.assert_close(values, values.round(), atol=1e-4, rtol=0)
    expected = summarize(score_windows(frames["ours, counted"], windows.frames, [0, 4]))
    assert rows[0]["mid_psnr"] == pytest.approx(expected["mid_psnr"], abs=1e-4)


def test_other_tasks_schedulers_and_paces_are_scored(checkpoint, clips, tmp_path):
    more = ["--task", "image-to-video", "--fps", "5", "--guidance-scale", "1", "--steps", "2", "--metrics"]
    evaluate.main(
        command(checkpoint, clips, tmp_path, *more, "--scheduler", "UniPCMultistepScheduler", "DDIMScheduler")
    )
    record = json.loads((tmp_path / "results.json").read_text())
    methods = [row["method"] for row in record["rows"]]
    assert methods[0] == "copy of the nearest given frame" and methods[-2:] == [
        "ours, 2 steps, UniPCMultistepScheduler, guidance 1",
        "ours, 2 steps, DDIMScheduler, guidance 1",
    ]
    assert record["rows"][0]["motion"] == 0 and record["fps"] == 5


@pytest.mark.parametrize(
    "more, message",
    [
        (["--metrics", "fvd"], "at least 9 frames, got 5"),
        (["--metrics", "vmaf"], "'vmaf' is unknown; use auto or some of lpips"),
        (["--sha256", "other.pth=00"], "'other.pth', which no metric reads"),
        (["--sha256", "i3d_torchscript.pt"], "gives no digest; write i3d_torchscript.pt=DIGEST"),
        (["--scheduler", "DDIM"], "'DDIM' cannot take over"),
        (["--fps", "60"], "60 frames per second"),
        (["--rife", "rife-v2.3"], "RIFE needs the package|samples only the middle"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_sampled(checkpoint, clips, tmp_path, more, message):
    with pytest.raises(SystemExit, match=f"error: .*({message})"):
        evaluate.main(command(checkpoint, clips, tmp_path / "out", "--metrics", *more))
    assert not (tmp_path / "out").exists()


def test_a_single_window_is_no_set_for_a_frechet_distance(checkpoint, clips, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one/clip.mp4").write_bytes((clips / "clip_0.mp4").read_bytes())
    single = command(
        checkpoint, tmp_path / "one", tmp_path / "out", "--windows-per-clip", "1", "--steps", "1", "--metrics"
    )
    evaluate.main(single)
    row = read_results(tmp_path / "out")["rows"][-1]
    assert row["mid_ssim"] > 0 and all(map(math.isnan, row["intervals"]["mid_ssim"]))  # nothing to draw from one clip
    with pytest.raises(SystemExit, match="need at least 2 windows where a clip has 1; there are 1: add clips"):
        evaluate.main([*single, "--wrong-planning", "-o", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()  # said before anything was sampled


@has_efficientnet
def test_a_frechet_distance_of_a_single_window_is_refused(checkpoint, clips, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one/clip.mp4").write_bytes((clips / "clip_0.mp4").read_bytes())
    with pytest.raises(SystemExit, match="at least 2 windows; add clips"):
        evaluate.main(
            command(
                checkpoint, tmp_path / "one", tmp_path / "out", "--windows-per-clip", "1", "--metrics", "fd-window"
            )
        )


def test_a_metric_without_its_network_is_left_out_and_named_unless_it_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    networks, missing = evaluate.load_networks(["auto"], size=24, num_frames=5)
    assert not networks.lpips and missing[0] == "lpips: LPIPS needs frames of at least 32 pixels a side, got 24x24"
    with pytest.raises(ValueError, match="at least 32 pixels"):
        evaluate.load_networks(["lpips"], size=24, num_frames=5)
    with pytest.raises(ValueError, match="FID needs the file"):
        evaluate.load_networks(["auto", "fid"], size=24, num_frames=5)


def test_a_number_that_is_none_becomes_null_and_a_dash(windows, tmp_path):
    row = {"method": "still", "kind": OURS, "motion": float("nan"), "mid_ssim": 0.5}
    row |= {"intervals": {"motion": (float("nan"), 1.0), "mid_ssim": (0.4, 0.6)}, "spread": {}}
    facts = {"command": "x", "task": "interpolation", "seeds": [0], "not_measured": ["fid: no file"]}
    write_results(tmp_path, facts, [row], [], windows)
    assert json.loads((tmp_path / "results.json").read_text())["rows"][0]["motion"] is None
    assert "| still | 0.500 [0.400, 0.600] | – |" in score_table([row])
    assert "Not measured: fid: no file." in (tmp_path / "results.md").read_text() and difference_table([]) == ""


def test_given_frames_are_framed_and_all_frames_drawn():
    frames = torch.linspace(0.2, 0.9, 3).view(3, 1, 1, 1).repeat(1, 3, 16, 16)
    frames[:, 1] = 0.0  # a colour that text has not
    sheet = np.asarray(contact_sheet([("clip", {"truth": frames, "ours": frames})], [0, 2], width=32))
    # two rows of two framed frames, at least one side each
    assert (sheet == GIVEN_COLOUR).all(-1).sum() >= 2 * 2 * 4 * 32
    for value in (0.2, 0.55, 0.9):
        distance = np.abs(sheet - np.array([value * 255, 0, value * 255])).max(-1)
        assert (distance < 1).sum() == 2 * 32 * 32
    named = np.asarray(
        contact_sheet([("clip", {"truth": frames, "ours": frames})], [0, 2], width=32, names=["0", "8", "16"])
    )
    changed = (
        (named != sheet).any(-1).any(0).nonzero()[0]
    )  # the names of the second and third column, and nothing else
    assert named.shape == sheet.shape and len(changed) and (named != sheet).any(-1).any(1).nonzero()[0].max() < 60
    assert changed.min() > named.shape[1] - 2 * 40 - 8
    video = side_by_side([("clip", {"truth": frames, "ours": frames})], [0, 2], width=32)
    coloured = [(np.asarray(picture) == GIVEN_COLOUR).all(-1).any() for picture in video]
    assert coloured == [True, False, True]
    assert all(side % 2 == 0 for side in video[0].size)


def test_an_adapter_has_a_row_of_its_own_and_changes_no_other(tmp_path, clips, checkpoint):
    pipe = tiny_pipeline()
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_v"], init_lora_weights=False), adapter_name="new")
    layers = get_peft_model_state_dict(pipe.transformer, adapter_name="new")
    MarDiniPipeline.save_lora_weights(tmp_path / "adapter", transformer_lora_layers=layers)
    plain = command(checkpoint, clips, tmp_path / "plain", "--steps", "2", "--metrics", "--sheets", "1")
    evaluate.main(plain)
    evaluate.main(
        [
            *command(checkpoint, clips, tmp_path / "both", "--steps", "2", "--metrics", "--sheets", "1"),
            "--adapter",
            str(tmp_path / "adapter"),
        ]
    )
    without, both = (
        {row["method"]: row for row in json.loads((tmp_path / name / "results.json").read_text())["rows"]}
        for name in ("plain", "both")
    )
    assert set(both) - set(without) == {"ours, 2 steps, with the adapter"}
    assert both["ours, 2 steps"]["mid_ssim"] == pytest.approx(without["ours, 2 steps"]["mid_ssim"], abs=1e-6)
    assert both["ours, 2 steps, with the adapter"]["mid_ssim"] != both["ours, 2 steps"]["mid_ssim"]
    told = [json.loads((tmp_path / name / "results.json").read_text())["sampled_by"] for name in ("plain", "both")]
    assert "adapted" not in told[0] and told[0] == {k: v for k, v in told[1].items() if k != "adapted"}
    assert told[1]["adapted"] != told[1]["checkpoint"]
    with pytest.raises(SystemExit, match="nowhere"):
        evaluate.main([*plain, "--adapter", str(tmp_path / "nowhere")])
