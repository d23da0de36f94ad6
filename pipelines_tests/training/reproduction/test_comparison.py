"""Methods of several evaluations side by side."""

import json

import pytest
import torch

from training.evaluation.metrics import summarize
from training.reproduction.comparison import clear_from, compare, main, read_method


SCORES = ("mid_ssim", "mid_psnr", "ssim", "psnr", "motion", "true_motion", "evenness", "true_evenness", "sharpness", "true_sharpness")  # fmt: skip


def results(folder, better, clips=("a", "a", "b", "b"), task="interpolation", **facts):
    """What `training.evaluate` writes for one row of ours that is `better` by so much in every score, and a baseline."""
    rows = []
    for method, kind, more in (
        ("cross-fade", "baseline", 0.0),
        ("ours, 5 steps", "ours", better),
        ("ours, 1 step", "ours", 0.0),
    ):
        base = torch.arange(1, len(clips) + 1, dtype=torch.float64) / 10
        windows = {name: base + (0 if name.startswith("true") else more) for name in SCORES}
        intervals = {name: [0.0, 1.0] for name in SCORES}
        rows.append(
            {"method": method, "kind": kind, **summarize(windows), "intervals": intervals, "spread": {}}
            | {"windows": {name: values.tolist() for name, values in windows.items()}}
        )
    folder.mkdir()
    told = {
        "rows": rows,
        "task": task,
        "size": 64,
        **facts,
        "windows": [{"clip": clip, "start": i} for i, clip in enumerate(clips)],
    }
    (folder / "results.json").write_text(json.dumps(told))
    return folder


def test_differences_are_of_the_same_windows_and_to_the_first(tmp_path):
    one, two = results(tmp_path / "one", 0.1), results(tmp_path / "two", 0.3)
    rows, differences = compare([read_method(f"small={one}"), read_method(f"large={two}")])
    assert [row["method"] for row in rows] == ["small", "large"]
    (found,) = differences
    assert (found["method"], found["than"]) == ("large", "small")
    # Windows differ much from each other and all by the same from their pair, so that the interval of the difference has no width.
    assert found["difference"]["mid_ssim"] == pytest.approx(0.2)
    assert found["intervals"]["mid_ssim"] == pytest.approx((0.2, 0.2))


def test_trainings_of_one_method_are_averaged_and_told_apart(tmp_path):
    for name, better in (("a0", 0.1), ("a1", 0.2), ("b0", 0.4), ("b1", 0.3), ("c", 0.5)):
        folder = results(tmp_path / name, better)
        told = json.loads((folder / "results.json").read_text())
        for row in told["rows"]:
            row["fd_window"] = 100 * better
        (folder / "results.json").write_text(json.dumps(told))
    a, b = (f"{name}={tmp_path / name}0,{tmp_path / name}1:ours, 5 steps" for name in "ab")
    rows, differences = compare([read_method(a), read_method(b)])
    # Windows have the scores .1 to .4 and a training's own offset.
    assert [row["mid_ssim"] for row in rows] == pytest.approx([0.25 + 0.15, 0.25 + 0.35])
    assert [row["fd_window"] for row in rows] == pytest.approx([15, 35])
    assert rows[0]["spread"]["mid_ssim"] == pytest.approx(0.1 / 2**0.5)
    assert rows[0]["spread"]["fd_window"] == pytest.approx(10 / 2**0.5)
    assert rows[0]["intervals"]["mid_ssim"][0] < 0.4 < rows[0]["intervals"]["mid_ssim"][1]
    assert [found["than"] for found in differences] == ["a", "a, training 1", "a, training 2"]
    assert [found["difference"]["mid_ssim"] for found in differences] == pytest.approx([0.2, 0.3, 0.1])
    # Both pairs deviate by 0.0707, and windows not at all: Student's t of two degrees, 4.30, times that.
    shown = clear_from([read_method(a), read_method(b)], differences)
    assert "clear from this size on: mid SSIM 0.304, mid PSNR 0.30," in shown
    # Of one training beside two there are no pairs; its own line has no deviation.
    rows, differences = compare([read_method(a), read_method(f"c={tmp_path / 'c'}")])
    assert [found["than"] for found in differences] == ["a"] and rows[1]["spread"] == {}
    main([a, f"c={tmp_path / 'c'}", "-o", str(tmp_path / "out")])
    page = (tmp_path / "out" / "comparison.md").read_text()
    assert "| standard deviation over trainings | mid SSIM |" in page and "\n| a | 0.0707 |" in page


def test_simple_methods_and_single_trainings_have_no_chance_of_trainings(tmp_path):
    folders = [results(tmp_path / name, 0.1) for name in ("a", "b", "c")]
    methods = [
        read_method(f"one={folders[0]},{folders[1]}"),
        read_method(f"copy={folders[0]},{folders[1]}:cross-fade"),
    ]
    assert clear_from(methods, compare(methods)[1]) == ""
    methods[1] = read_method(f"other={folders[2]}")
    assert clear_from(methods, compare(methods)[1]) == ""


def test_trainings_of_one_method_that_were_sampled_in_other_ways_are_refused(tmp_path):
    one, two = (results(tmp_path / name, 0.1, seeds=seeds) for name, seeds in (("one", [0]), ("two", [0, 1])))
    with pytest.raises(ValueError, match="'a' has trainings that were sampled as .* sample all alike"):
        read_method(f"a={one},{two}")


def test_trainings_that_scored_other_windows_are_refused(tmp_path):
    one, two = results(tmp_path / "one", 0.1), results(tmp_path / "two", 0.1, clips=("a", "a", "b", "c"))
    with pytest.raises(ValueError, match="evaluate both with the same clips"):
        read_method(f"a={one},{two}")
    with pytest.raises(ValueError, match=r"not of the form LABEL=FOLDER\[,FOLDER\]"):
        read_method(f"a={one},")
    with pytest.raises(ValueError, match="names a folder twice"):
        read_method(f"a={one},{one}")


def test_methods_of_one_label_are_refused(tmp_path):
    methods = [read_method(f"pair={results(tmp_path / name, 0.1)}") for name in ("one", "two")]
    with pytest.raises(ValueError, match="labels are 'pair', 'pair'; give each method one of its own"):
        compare(methods)


def test_a_row_is_chosen_by_its_name(tmp_path):
    folder = results(tmp_path / "one", 0.1)
    assert read_method(f"a={folder}").rows[0]["method"] == "ours, 5 steps"
    assert read_method(f"a={folder}:cross-fade").rows[0]["method"] == "cross-fade"
    with pytest.raises(ValueError, match="no row 'RIFE'; it has cross-fade, ours, 5 steps"):
        read_method(f"a={folder}:RIFE")


def test_other_windows_or_tasks_are_refused(tmp_path):
    one = read_method(f"one={results(tmp_path / 'one', 0)}")
    with pytest.raises(ValueError, match="'one' scored 4 windows .task interpolation, .* and 'two' scored 4 windows"):
        compare([one, read_method(f"two={results(tmp_path / 'two', 0, clips=('a', 'a', 'b', 'c'))}")])
    for number, changed in enumerate(({"task": "expansion"}, {"size": 128}, {"stride": 3}, {"windows_digest": "b"})):
        folder = results(tmp_path / f"three-{number}", 0, **{"windows_digest": "a", **changed})
        with pytest.raises(ValueError, match="same clips, size, stride"):
            compare(
                [
                    read_method(f"one={results(tmp_path / f'one-{number}', 0, windows_digest='a')}"),
                    read_method(f"two={folder}"),
                ]
            )


def test_scores_that_only_one_has_are_left_out_and_named(tmp_path, capsys):
    one, two = results(tmp_path / "one", 0.1), results(tmp_path / "two", 0.3)
    more = json.loads((one / "results.json").read_text())
    for row in more["rows"]:
        row |= {"fd_window": 1.0, "lpips": 0.5}
        row["windows"]["lpips"] = [0.5] * 4
        row["intervals"]["lpips"] = [0.4, 0.6]
    (one / "results.json").write_text(json.dumps(more))
    main([f"one={one}", f"two={two}", "-o", str(tmp_path / "out")])
    page = (tmp_path / "out" / "comparison.md").read_text()
    assert "LPIPS" not in page and "FD-window" not in page and "| two − one | +0.200" in page
    assert "left out, because not all methods have them: mean LPIPS, FD-window" in capsys.readouterr().out


def test_the_program_writes_a_page(tmp_path):
    one, two = results(tmp_path / "one", 0.1), results(tmp_path / "two", 0.3)
    told = tmp_path / "told.md"
    blocks = "".join(
        f"<!-- {name}: begin -->\nold\n<!-- {name}: end -->\n" for name in ("scores", "scores, differences")
    )
    told.write_text(f"Before\n{blocks}after\n")
    main([f"the small pair={one}", f"large={two}", "-o", str(tmp_path / "out"), "--page", str(told), "scores"])
    page = (tmp_path / "out" / "comparison.md").read_text()
    assert f'comparison "the small pair={one}" large={two}' in page
    assert "| the small pair | 0.350 [" in page and "| large − the small pair | +0.200 [+0.200, +0.200]" in page
    assert told.read_text().startswith("Before\n") and told.read_text().endswith("after\n")
    both, differences = told.read_text().split("<!-- scores: end -->")
    assert (
        "old" not in both + differences
        and "| the small pair | 0.350 [" in both
        and "| the small pair |" not in differences
    )
    assert "| large − the small pair | +0.200" in both and "| large − the small pair | +0.200" in differences
    with pytest.raises(SystemExit, match="run training.evaluate with -o"):
        main([f"a={tmp_path / 'nothing'}", "-o", str(tmp_path / "out")])
