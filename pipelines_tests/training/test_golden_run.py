"""The golden run: clips, autoencoder, all four stages, from nothing, beside the curve that the repository carries."""

import json
from pathlib import Path

import numpy as np
import pytest

from diffusers_mardini import MarDiniPipeline
from training import train_autoencoder
from training.config.layers import load_config
from training.data.recipes.moving_shapes import draw_clip, record
from training.loop import Stopped
from training.train_mardini import train


ROOT = Path(__file__).resolve().parents[2]


def test_shapes_move_at_constant_speed_and_stay_in_the_picture():
    clip = draw_clip(3, 40, 64)
    assert clip.shape == (40, 64, 64, 3) and np.array_equal(clip, draw_clip(3, 40, 64))
    assert not np.array_equal(clip, draw_clip(4, 40, 64))
    drawn = (clip != clip[:1, :1, :1]).any(-1).sum((1, 2))
    assert drawn.min() > 100 and (np.abs(np.diff(clip.astype(int), axis=0)).mean((1, 2, 3)) > 0.3).all()


def test_clips_are_not_overwritten(tmp_path):
    record(tmp_path, 1, 2, 16)
    with pytest.raises(ValueError, match="already holds clips"):
        record(tmp_path, 1, 2, 16)


def test_the_golden_run_follows_its_curve(tmp_path, monkeypatch):
    config = load_config(ROOT / "training/configs/golden.yaml")
    autoencoder = train_autoencoder.AutoencoderTrainingConfig.from_yaml(
        ROOT / "training/configs/autoencoder-golden.yaml"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    record(Path(config.data.train), 16, 16, 32)
    record(Path(config.data.validation), 4, 16, 32, first_seed=1000)
    train_autoencoder.run(autoencoder)
    pipeline = train(config)

    told = [json.loads(line) for line in Path("runs/golden/metrics.jsonl").read_text().splitlines()]
    golden = [json.loads(line) for line in (ROOT / "training/runs/golden.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["step"], "heldout" in r) for r in told] == [
        (r["stage"], r["step"], "heldout" in r) for r in golden
    ]
    for ours, theirs in zip(told, golden):
        names = theirs["heldout"].keys() if "heldout" in theirs else [name for name in theirs if name.endswith("loss")]
        for name in names:  # other processors round otherwise, and a hundred steps spread it
            ours_value, golden_value = (r["heldout"][name] if "heldout" in r else r[name] for r in (ours, theirs))
            assert ours_value == pytest.approx(golden_value, rel=0.05), (theirs["stage"], theirs["step"], name)
    heldout = [r["heldout"] for r in told if "heldout" in r]
    assert heldout[-1]["diffusion/0.6"] < 0.8 * next(h for h in heldout if "diffusion/0.6" in h)["diffusion/0.6"]
    assert heldout[-1]["quality/mid_ssim"] > next(h for h in heldout if "quality/mid_ssim" in h)["quality/mid_ssim"]
    assert MarDiniPipeline.from_pretrained(pipeline).config.planner_downscale == 2
    report = Path("runs/golden/report.md").read_text()
    assert "**Finished** at step 110" in report and "report/quality.png" in report

    with pytest.raises(Stopped):
        train(config.model_copy(update={"name": "stopped", "max_hours": 1e-9}))
    report = Path("runs/stopped/report.md").read_text()
    assert "**Stopped** at step 1" in report and "Why: max_hours" in report

    kept = Path("runs/golden/config.json").read_text()
    changed = config.stages[-1].model_copy(update={"reference_ratio": (0.2, 0.3)})
    with pytest.raises(ValueError, match="reference_ratio"):  # refused, and the run's own record stays
        train(config.model_copy(update={"stages": [*config.stages[:-1], changed]}))
    assert Path("runs/golden/config.json").read_text() == kept
