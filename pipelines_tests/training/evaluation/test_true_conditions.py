"""A checkpoint with conditions is scored with the true ones of each window, without them, and with changed ones."""

import json

import numpy as np
import pytest
import torch

from diffusers_mardini.video_io import write_video
from pipelines_tests.loaders.adapters import save_conditioned
from pipelines_tests.tiny_pipeline import SIZE, tiny_pipeline
from training import evaluate
from training.card import scores_of
from training.config.data_section import ConditionConfig
from training.data.conditions import condition_arguments, latent_motion
from training.evaluation.evaluation_windows import load_windows
from training.evaluation.sampling import sample_batch
from training.evaluation.true_conditions import true_conditions


CONDITIONS = {
    "action": ConditionConfig(columns=["steer", "gas"], range=[(-1, 1), (0, 1)], unit="shares"),
    "rate": ConditionConfig(derive="rate", range=[(0, 1)], unit="s"),
    "motion": ConditionConfig(derive="motion", range=[(0, 0.38)]),
}


def conditioned_pipeline(conditions=None):
    pipe = tiny_pipeline()
    for model in (pipe.planner, pipe.transformer):
        model.add_conditions(**condition_arguments(CONDITIONS if conditions is None else conditions))
        for parameter in model.condition_embedder.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return pipe


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for index in range(2):
        frames = np.random.default_rng(index).integers(0, 255, (14, 4, 4, 3), dtype=np.uint8)
        write_video(folder / f"clip_{index}.mp4", frames.repeat(8, axis=1).repeat(8, axis=2), 10)
        rows = "".join(f"{i / 20 - 0.3},{index}\n" for i in range(14))
        (folder / f"clip_{index}.csv").write_text("steer,gas\n" + rows)
    return folder


@pytest.fixture(scope="module")
def windows(clips):
    return load_windows(clips, SIZE, num_frames=5, stride=2, per_clip=2)


def test_conditions_are_those_of_training(windows):
    pipe = conditioned_pipeline()
    true = true_conditions(pipe, windows)
    assert set(true.values) == set(CONDITIONS)
    assert windows.starts == [0, 5, 0, 5]
    # The mean over the two clip frames of each interval.
    expected = [(start / 20 - 0.3) - 0.025 for start in (5, 7, 9, 11, 13)]
    assert true.values["action"][1, :, 0].tolist() == pytest.approx(expected)
    assert true.values["action"][:, :, 1].unique(dim=1).flatten().tolist() == [0, 0, 1, 1]
    assert true.values["rate"][2, 1:, 0].tolist() == pytest.approx([0.2] * 4)
    latents = pipe.encode_frames(windows.frames[:1] * 2 - 1)[0]
    torch.testing.assert_close(true.values["motion"][0], latent_motion(latents), equal_nan=True)
    assert true.values["rate"][:, 0].isnan().all() and true.values["motion"][:, 0].isnan().all()


def test_values_beyond_the_learned_range_are_clamped_and_counted(windows):
    true = true_conditions(conditioned_pipeline(), windows)
    assert 0.38 < true.values["motion"].nan_to_num().max()
    given = true.of(1, 2)["motion"]
    assert given.shape == (2, 5, 1) and given.nan_to_num().max() == pytest.approx(0.38) and given[:, 0].isnan().all()
    facts = true.facts()
    assert facts["action"] == "action: 2 channels (steer -1 to 1, gas 0 to 1), in shares"
    assert "% of the frames lie beyond the learned range, and are clamped to it" in facts["motion"]


def test_between_given_frames_a_scaled_condition_keeps_its_values(windows):
    true = true_conditions(conditioned_pipeline(), windows)
    half = true.scaled("action", 0.5, given=[0, 1, 4])
    ratios = (half.values["action"] / true.values["action"])[0, :, 0].tolist()
    assert ratios == pytest.approx([0.5, 1, 0.5, 0.5, 0.5])  # the first one's interval begins outside of the window
    assert half.values["rate"] is true.values["rate"]
    assert half.told_of("action", true, [0, 1, 4])["factor"] == pytest.approx(0.5)
    far = true.scaled("motion", 10, given=[0]).told_of("motion", true, [0])
    assert far["clamped"] == 1 and 1 <= far["factor"] < 1.2  # the range ends little above the true motion
    with pytest.raises(ValueError, match="--condition-scale names speed; this checkpoint takes action, motion, rate"):
        true.scaled("speed", 2, given=[0])


def test_a_checkpoint_without_conditions_gets_none_and_one_with_unreadable_ones_is_refused(windows):
    assert true_conditions(tiny_pipeline(), windows).values == {}
    pipe = tiny_pipeline()
    pipe.planner.add_conditions({"weather": 2})
    with pytest.raises(ValueError, match="takes weather: 2 channels, and does not say how it is read.*add `names`"):
        true_conditions(pipe, windows)


def test_sampling_uses_them(windows):
    pipe = conditioned_pipeline()
    true = true_conditions(pipe, windows)
    arguments = {"windows": windows.frames[:2], "given": [0, 4], "steps": 1}
    with_them = sample_batch(pipe, **arguments, conditions=true.of(0, 2))
    assert not torch.allclose(with_them, sample_batch(pipe, **arguments), atol=1e-3)


def arguments(checkpoint, clips, output, *more):
    common = ["--size", str(SIZE), "--num-frames", "5", "--steps", "1", "--metrics", "--device", "cpu"]
    return [str(checkpoint), str(clips), *common, "--dtype", "float32", "-o", str(output), *more]


def test_folders_of_pictures_have_conditions_at_the_rate_that_is_given(tmp_path):
    for index in range(2):
        frames = np.random.default_rng(index).integers(0, 255, (9, 32, 32, 3), dtype=np.uint8)
        write_video(tmp_path / "clips" / f"clip_{index}", frames, 10)
    pipe = conditioned_pipeline({"rate": CONDITIONS["rate"]})
    windows = load_windows(tmp_path / "clips", SIZE, 5, 2, 1, picture_fps=10)
    assert true_conditions(pipe, windows).values["rate"][:, 1:].flatten().tolist() == pytest.approx([0.2] * 8)


def test_rows_without_and_with_changed_conditions_stand_beside_the_true_ones(clips, tmp_path):
    conditioned_pipeline().save_pretrained(tmp_path / "checkpoint")
    more = ["--no-planning", "--no-conditions", "--condition-scale", "motion=0.5", "motion=2"]
    evaluate.main(arguments(tmp_path / "checkpoint", clips, tmp_path / "out", *more))
    results = json.loads((tmp_path / "out/results.json").read_text())
    scored = [row for row in results["rows"] if row["kind"] == "ours"]
    names = [row["method"] for row in scored]
    plain = "ours, 1 step"
    dropped = f"{plain}, planning signal dropped, without conditions"  # as training drops them: together
    assert names == [plain, dropped, f"{plain}, without conditions", f"{plain}, motion × 0.5", f"{plain}, motion × 2"]
    assert len({row["mid_psnr"] for row in scored}) == 5
    assert (f"{plain}, without conditions", dropped) in {(d["method"], d["than"]) for d in results["differences"]}
    assert scored[-1]["told"]["factor"] < 2 and scored[-1]["told"]["clamped"] > 0.5
    assert {f"{plain}, without conditions", f"{plain}, motion × 2"} <= {d["than"] for d in results["differences"]}
    assert list(results["conditions"]) == ["action", "motion", "rate"]
    assert "given with each window, action: 2 channels" in (tmp_path / "out/results.md").read_text()
    assert (tmp_path / "out/conditions_0.png").is_file()
    cards = [row["method"] for row in scores_of(tmp_path / "out/results.json")["metrics"]]
    assert f"{plain}, given action and motion and rate" in cards and f"{plain}, without conditions" in cards
    said = scores_of(tmp_path / "out/results.json")["verdict"]
    assert "It was told action and motion and rate of the true clip, which no simple method was." in said
    assert any(sentence.startswith("Told nothing: ") for sentence in said)


def test_conditions_of_an_adapter_are_given_to_its_rows_alone(clips, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "checkpoint")
    save_conditioned(tmp_path / "adapter")
    more = ["--adapter", str(tmp_path / "adapter"), "--no-conditions"]
    evaluate.main(arguments(tmp_path / "checkpoint", clips, tmp_path / "out", *more))
    results = json.loads((tmp_path / "out/results.json").read_text())
    scores = {row["method"]: row["mid_psnr"] for row in results["rows"] if row["kind"] == "ours"}
    adapted = "ours, 1 step, with the adapter"
    assert list(scores) == ["ours, 1 step", adapted, f"{adapted}, without conditions"]
    assert len(set(scores.values())) == 3
    assert list(results["conditions"]) == results["adapter_conditions"] == ["action"]
    assert f"{adapted}, without conditions" in {difference["than"] for difference in results["differences"]}
    assert (tmp_path / "out/conditions_0.png").is_file()
    cards = [row["method"] for row in scores_of(tmp_path / "out/results.json")["metrics"]]
    assert {"ours, 1 step", f"{adapted}, given action", f"{adapted}, without conditions"} <= set(cards)


def test_several_paces_make_one_table(clips, tmp_path):
    conditioned_pipeline({"rate": CONDITIONS["rate"]}).save_pretrained(tmp_path / "checkpoint")
    evaluate.main(arguments(tmp_path / "checkpoint", clips, tmp_path / "out", "--stride", "1", "2"))
    lines = (tmp_path / "out/paces.md").read_text().splitlines()
    assert sum(line.startswith("| every 1 frames | ours, 1 step |") for line in lines) == 1
    assert sum(line.startswith("| every 2 frames | ours, 1 step |") for line in lines) == 1
    facts = [json.loads((tmp_path / f"out/stride-{stride}/results.json").read_text()) for stride in (1, 2)]
    assert [one["stride"] for one in facts] == [1, 2]


@pytest.mark.parametrize(
    "more, message",
    [
        (["--condition-scale", "motion"], "--condition-scale is 'motion'; write NAME=FACTOR"),
        (["--condition-scale", "motion=fast"], "--condition-scale is 'motion=fast'; write NAME=FACTOR"),
        (["--condition-scale", "motion=2"], "names motion; this checkpoint takes no conditions"),
        (["--no-conditions"], "asks for a row without conditions, but this checkpoint has none"),
    ],
)
def test_what_cannot_be_changed_is_refused(clips, tmp_path, more, message):
    tiny_pipeline().save_pretrained(tmp_path / "checkpoint")
    with pytest.raises(SystemExit, match=message):
        evaluate.main(arguments(tmp_path / "checkpoint", clips, tmp_path / "out", *more))
