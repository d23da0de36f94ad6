"""Clips continued for long, by several checkpoints."""

import json

import pytest
from PIL import Image

from training.reproduction.drift_comparison import main


def drifted(folder, motion, names=("a", "b", "c"), arm="plain"):
    folder.mkdir(parents=True)
    rows = [
        {
            "arm": arm, "first": first, "last": last,
            "each": {
                "motion": [motion * late] * 3, "true_motion": [2.0] * 3, "sharpness": [1.0, 2.0, 3.0],
                "true_sharpness": [2.0] * 3, "colours": [1.0] * 3,
            },
        }
        for first, last, late in ((1, 16, 1.0), (49, 64, 0.5))
    ]  # fmt: skip
    (folder / "drift.json").write_text(json.dumps({"rows": rows, "names": list(names), "truth": "digest"}))
    return folder


def test_trainings_are_averaged_and_methods_are_compared_clip_by_clip(tmp_path, capsys):
    one, two, other = (drifted(tmp_path / name, motion) for name, motion in (("a-1", 1.0), ("a-2", 3.0), ("b", 3.0)))
    page = tmp_path / "page.md"
    page.write_text("<!-- d: begin -->\n<!-- d: end -->\n")
    main([f"two={one},{two}", f"one={other}:plain", "-o", str(tmp_path / "d.png"), "--page", str(page), "d"])
    filled = page.read_text()
    assert "| two | 1 to 16 | 1.00 [1.00, 1.00] |" in filled and "| one | 49 to 64 | 0.75 [0.75, 0.75] |" in filled
    assert "| one − two | 1 to 16 | +0.50 [+0.50, +0.50] | +0.00 [+0.00, +0.00] |" in filled
    assert "](d.png)\n\n| arm |" in filled and Image.open(tmp_path / "d.png").width > 1000


def test_other_clips_and_unknown_arms_are_refused(tmp_path):
    one = drifted(tmp_path / "a", 1.0)
    other = drifted(tmp_path / "b", 1.0, names=("a", "b", "d"))
    with pytest.raises(SystemExit, match="'one' and 'other' continued other clips"):
        main([f"one={one}", f"other={other}"])
    with pytest.raises(SystemExit, match="has no arm 'noise'; it has plain"):
        main([f"one={one}:noise"])
    with pytest.raises(SystemExit, match="not of the form LABEL=FOLDER"):
        main(["one"])
