"""Test what is said of the motion of clips as a prediction of scores."""

import json

import pytest

from training.reproduction.motion_predicts import main


MOTION = {"slow": 2.0, "mixed": 4.0, "fast": 8.0}


def scored(folder, own, flow=0.5):
    """Write what `training.evaluate` writes, as far as it is read."""
    folder.mkdir()
    rows = [
        {"method": name, "kind": kind, "mid_ssim": score, "windows": {"mid_ssim": [score]}, "intervals": {}}
        for name, kind, score in (("DIS optical flow", "baseline", flow), ("ours, 25 steps", "ours", own))
    ]
    facts = {"rows": rows, "windows": [{"clip": "a", "start": 0}], "task": "interpolation"}
    (folder / "results.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture
def lists(tmp_path):
    path = tmp_path / "motion.json"
    sides = {f"{side}-{kind}": {"0.1": [1.0, of, 9.0]} for side in ("train", "val") for kind, of in MOTION.items()}
    path.write_text(json.dumps(sides))
    return path


def test_what_is_lost_is_ranked_by_how_far_the_motions_differ(tmp_path, lists, capsys):
    # Optical flow falls with motion, our models with the ratio of motions: by 0.1 for each doubling, 0.03 from above.
    arguments = []
    for judged, flow in (("slow", 0.6), ("mixed", 0.5), ("fast", 0.4)):
        for trained in MOTION:
            steps = abs(list(MOTION).index(trained) - list(MOTION).index(judged))
            folders = [
                scored(tmp_path / f"{trained}-{judged}-{i}", 0.8 - 0.1 * steps + i, flow) for i in (-0.01, 0.01)
            ]
            arguments.append(f"{trained}/{judged}={folders[0]},{folders[1]}")
    page = tmp_path / "page.md"
    page.write_text("<!-- m: begin -->\n<!-- m: end -->\n")
    main([str(lists), *arguments, "--page", str(page), "m"])
    text = page.read_text()
    assert (
        "| slow | fast | 8.0 | 0.25 | +0.200, -0.200 |" in text
        and "| fast | fast | 8.0 | 1.00 | +0.400, +0.000 |" in text
    )
    assert "how far the motions differ | +1.00 |" in text
    assert float(text.rsplit("clips move | ")[1].split(" |")[0]) > 0.5


def test_a_kind_without_a_model_of_its_own_is_refused(tmp_path, lists):
    with pytest.raises(SystemExit, match="slow/fast has no fast/fast beside it"):
        main([str(lists), f"slow/fast={scored(tmp_path / 'a', 0.5)}"])
    with pytest.raises(SystemExit, match="not of the form TRAINED/JUDGED=FOLDER"):
        main([str(lists), "slow=outputs"])
