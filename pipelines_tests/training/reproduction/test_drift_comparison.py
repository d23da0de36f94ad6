"""Clips continued for long, by several checkpoints."""

import json

import pytest
from PIL import Image

from training.reproduction.drift_comparison import main


def drifted(folder, motion, names=("a", "b", "c"), arm="plain", **settings):
    folder.mkdir(parents=True)
    rows = [
        {
            "arm": arm, "first": first, "last": last,
            "each": {
                "motion": [motion * late] * 3, "true_motion": [2.0] * 3, "sharpness": [1.0, 2.0, 3.0],
                "true_sharpness": [2.0] * 3, "colours": [1.0] * 3, "true_colours": [0.5] * 3,
            },
            "fd_efficientnet_lite0": 10 * motion,
        }
        for first, last, late in ((1, 16, 1.0), (49, 64, 0.5))
    ]  # fmt: skip
    (folder / "drift.json").write_text(json.dumps({"rows": rows, "names": list(names), "truth": "digest", **settings}))
    return folder


def test_ratios_of_trainings_are_averaged_and_each_ones_distance_from_the_truth(tmp_path, capsys):
    one, two, other = (drifted(tmp_path / name, motion) for name, motion in (("a-1", 1.0), ("a-2", 3.0), ("b", 3.0)))
    page = tmp_path / "page.md"
    page.write_text("<!-- d: begin -->\n<!-- d: end -->\n")
    main([f"two={one},{two}", f"one={other}:plain", "-o", str(tmp_path / "d.png"), "--page", str(page), "d"])
    filled = page.read_text()
    assert "| two | 1 to 16 | 1.00 [1.00, 1.00] |" in filled and "| one | 49 to 64 | 0.75 [0.75, 0.75] |" in filled
    assert "| 2.00 [2.00, 2.00] |" in filled  # colours twice as far as is usual
    # Half the truth and one and a half of it do not make the truth: log 1.5 against the mean of log 2 and log 1.5, and
    # log 4/3 against that of log 4 and log 4/3.
    assert "| one − two | 1 to 16 | -0.14 [-0.14, -0.14] | +0.00 [+0.00, +0.00] |" in filled
    assert "| one − two | 49 to 64 | -0.55 [-0.55, -0.55] |" in filled
    assert (
        "- one: in frames 49 to 64 within the interval of frames 1 to 16: sharpness, colours; outside: motion"
        in filled
    )
    assert "clear from" not in filled  # of one training nobody knows its chance
    assert "](d.png)\n\n| arm |" in filled and Image.open(tmp_path / "d.png").width > 1000


def test_the_chance_of_trainings_says_from_where_on_a_difference_is_clear(tmp_path, capsys):
    motions = {"a": (2.0, 2.2), "b": (4.0, 4.0)}
    a, b = ([drifted(tmp_path / f"{name}-{i}", one) for i, one in enumerate(of)] for name, of in motions.items())
    main([f"a={a[0]},{a[1]}", f"b={b[0]},{b[1]}"])
    text = capsys.readouterr().out
    # Logarithms of 0.5 and 0.55 deviate by 0.067, those of the others not at all; Student's t of two degrees is 4.30.
    assert "| clear from, beside the chance of trainings | 49 to 64 | 0.20 | 0.00 | 0.00 |" in text
    assert "FD-EfficientNetLite0 of each seed: a 20 and 22; b 40 and 40" in text


def test_some_of_the_ranges_are_shown(tmp_path, capsys):
    one, two, other = (drifted(tmp_path / name, motion) for name, motion in (("a-1", 1.0), ("a-2", 3.0), ("b", 3.0)))
    main([f"two={one},{two}", f"one={other},{other}", "--range", "49", "64"])
    text = capsys.readouterr().out
    assert "| two | 49 to 64 | 0.50 " in text and "1 to 16" not in text and "within the interval" not in text
    assert "of each seed: two 10 and 30; one 30 and 30" in text
    with pytest.raises(SystemExit, match="--range is 1 20; of 'two' were measured 1 to 16, 49 to 64"):
        main([f"two={one},{two}", "--range", "1", "20"])


def test_seeds_that_were_continued_in_other_ways_are_refused(tmp_path):
    one, two = drifted(tmp_path / "a", 1.0, steps=4), drifted(tmp_path / "b", 1.0, steps=10)
    with pytest.raises(
        SystemExit, match="'one' was continued with .*'steps': 4.* and with .*'steps': 10.*; do all alike"
    ):
        main([f"one={one},{two}"])


def test_other_clips_and_unknown_arms_are_refused(tmp_path):
    one = drifted(tmp_path / "a", 1.0)
    other = drifted(tmp_path / "b", 1.0, names=("a", "b", "d"))
    with pytest.raises(SystemExit, match="'one' and 'other' continued other clips"):
        main([f"one={one}", f"other={other}"])
    with pytest.raises(SystemExit, match="has no arm 'noise'; it has plain"):
        main([f"one={one}:noise"])
    with pytest.raises(SystemExit, match="not of the form LABEL=FOLDER"):
        main(["one"])
