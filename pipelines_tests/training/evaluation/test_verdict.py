"""The scores in words."""

import math

import pytest

from training.evaluation.methods import BASELINE, CEILING, OURS
from training.evaluation.verdict import verdict


def row(method, kind, ssim, lpips=None, **more):
    return {
        "method": method,
        "kind": kind,
        "mid_ssim": ssim,
        **({} if lpips is None else {"mid_lpips": lpips}),
        **more,
    }


def difference(than, ssim, lpips=None, method="ours, 25 steps"):
    found = {"mid_ssim": ssim, **({} if lpips is None else {"mid_lpips": lpips})}
    return {
        "method": method, "than": than, "difference": {name: each[0] for name, each in found.items()},
        "intervals": {name: each[1:] for name, each in found.items()},
    }  # fmt: skip


SIMPLE = [row("cross-fade", BASELINE, 0.8, 0.06), row("DIS optical flow", BASELINE, 0.9, 0.05)]
OTHERS = [row("autoencoder alone (ceiling)", CEILING, 0.95, 0.01)]


def test_better_worse_and_the_same_are_said_with_differences_and_intervals():
    ours = row("ours, 25 steps", OURS, 0.895, 0.02, motion=0.96, sharpness=0.99)
    differences = [
        difference("cross-fade", (0.095, 0.08, 0.11), (-0.04, -0.05, -0.03)),
        difference("DIS optical flow", (-0.005, -0.015, 0.005), (0.01, 0.005, 0.02)),
    ]
    sentences = verdict([*SIMPLE, *OTHERS, ours], differences)
    assert sentences == [
        "Not better than every simple method, but better than cross-fade in all that was judged: ours, 25 steps.",
        "mid SSIM 0.895: better than cross-fade (+0.095 [+0.080, +0.110]); the same, within noise, as DIS optical "
        "flow (-0.005 [-0.015, +0.005]).",
        "mid LPIPS 0.020: better than cross-fade (-0.040 [-0.050, -0.030]); worse than DIS optical flow "
        "(+0.010 [+0.005, +0.020]).",
        "Of the room that the simple methods leave, 0% is used: the autoencoder alone reaches mid SSIM 0.950, DIS "
        "optical flow 0.900.",
        "Beside the true clips' 1: motion 0.96, sharpness 0.99.",
    ]


@pytest.mark.parametrize(
    "interval, summary",
    [
        ((0.04, 0.06), "Better than every simple method: ours, 25 steps."),
        ((-0.06, -0.04), "Not better than any simple method: ours, 25 steps."),
        ((-0.01, 0.1), "Not better than any simple method: ours, 25 steps."),
        (
            (math.nan, math.nan),
            "Not decided, since the windows are of one clip and have no intervals: ours, 25 steps.",
        ),
    ],
)
def test_the_first_sentence_sums_up(interval, summary):
    simple = row("cross-fade", BASELINE, 0.5)
    sentences = verdict([simple, row("ours, 25 steps", OURS, 0.55)], [difference("cross-fade", (0.05, *interval))])
    assert sentences[0] == summary and "cross-fade (+0.050" in sentences[1] and len(sentences) == 2


def test_an_autoencoder_below_the_simple_methods_leaves_no_room():
    low = row("autoencoder alone (ceiling)", CEILING, 0.42)
    sentences = verdict(
        [row("cross-fade", BASELINE, 0.53), low, row("ours, 25 steps", OURS, 0.4)],
        [difference("cross-fade", (-0.13, -0.2, -0.1))],
    )
    assert sentences[-1] == (
        "There is no room to be better: the autoencoder alone reaches mid SSIM 0.420, cross-fade 0.530."
    )


def test_without_our_row_or_simple_methods_nothing_is_said():
    assert verdict(SIMPLE, []) == [] and verdict([row("ours", OURS, 0.5)], []) == []
    two = [*SIMPLE, row("a", OURS, 0.5), row("b", OURS, 0.6)]
    found = [difference("cross-fade", (0.1, 0.05, 0.2), method=name) for name in ("a", "b")]
    assert verdict(two, found)[0].endswith(": a.") and verdict(two, found, "b")[0].endswith(": b.")


def test_few_clips_decide_nothing():
    """The bootstrap of two clips is their smaller and their larger score: no noise at all, where there is much."""
    ours = row("ours, 25 steps", OURS, 0.95, 0.02)
    found = [{**difference(one["method"], (0.05, 0.04, 0.06), (-0.03, -0.04, -0.02)), "clips": 4} for one in SIMPLE]
    sentences = verdict([*SIMPLE, ours], found)
    assert sentences[0] == "Not decided, since 4 clips are too few, hold out 5 or more: ours, 25 steps."
    assert "beside cross-fade (+0.050 [+0.040, +0.060])" in sentences[1] and "not decided" in sentences[1]
    assert verdict([*SIMPLE, ours], [{**each, "clips": 5} for each in found])[0].startswith("Better than every")
