"""What the repository carries: whole, small, loadable, and better than cross-fading on clips it carries too."""

from pathlib import Path

import pytest
import torch

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.cards import card_metadata, markdown_table, render_model_card
from training.card import facts_of, read_record
from training.evaluation.baselines import cross_fade
from training.evaluation.evaluation_windows import load_windows
from training.evaluation.metrics import score_windows, summarize
from training.evaluation.sampling import generate


ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = sorted(path.parent for path in (ROOT / "checkpoints").glob("*/model_index.json"))


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda path: path.name)
def test_a_carried_checkpoint_is_small_safe_and_has_a_card(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 30e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".py", ".png", ".mp4"}
    assert card_metadata((folder / "README.md").read_text())["library_name"] == "diffusers"
    assert (folder / "pipeline_mardini.py").is_file()


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda path: path.name)
def test_what_a_carried_card_repeats_is_kept_where_it_can_be_made_again_from(folder):
    """After `training.publish --keep-record`; `training.card` makes the card anew."""
    card = ROOT / "training/runs" / f"{folder.name}.yaml"
    record = read_record(card)
    text = (folder / "README.md").read_text()
    for table in (record["stages"], record["metrics"]):
        assert markdown_table(table) in text
    assert f"`{record['evaluation']}`" in text
    facts = facts_of(card, record)
    assert all(str(facts[key]).strip() in text for key in ("description", "data", "metrics_setting"))
    for section in facts.get("sections", []):
        assert f"## {section['heading']}\n\n{section['text']}\n" in text
    assert markdown_table(record["metrics"]) in render_model_card({"name": folder.name, **facts})


@pytest.mark.skipif(not (ROOT / "checkpoints/mardini-tiny-carracing").is_dir(), reason="the checkpoint is not here")
def test_the_carracing_checkpoint_samples_better_than_a_cross_fade_and_with_the_motion_of_the_game():
    pipe = MarDiniPipeline.from_pretrained(ROOT / "checkpoints/mardini-tiny-carracing")
    pipe.set_progress_bar_config(disable=True)
    windows = load_windows(ROOT / "examples/clips", size=64, num_frames=9, stride=2, per_clip=2).frames
    with torch.no_grad():
        ours = summarize(score_windows(generate(pipe, windows, [0, 8], steps=5), windows, [0, 8]))
    fade = summarize(score_windows(cross_fade(windows, [0, 8]), windows, [0, 8]))
    assert ours["mid_ssim"] > fade["mid_ssim"] and ours["mid_psnr"] > fade["mid_psnr"]
    assert 0.75 < ours["motion"] < 1.25 and fade["motion"] < 0.5
