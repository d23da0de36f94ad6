"""Every clip has one bucket, or a reason."""

import pytest

from training.data.buckets import Bucket, WindowRequest, assign, size_multiple
from training.data.entries import Entry


SQUARE, WIDE, TALL = Bucket(64, 64, 9), Bucket(48, 80, 9), Bucket(80, 48, 9)


def entry(key, width, height, num_frames=64, fps=25.0) -> Entry:
    return Entry(
        key=key, status="ok", width=width, height=height, num_frames=num_frames, fps=fps, duration=num_frames / fps
    )


def test_clips_go_to_the_nearest_aspect_ratio():
    clips = [
        entry("square", 90, 100),
        entry("wide", 1920, 1080),
        entry("tall", 1080, 1920),
        entry("cinema", 2390, 1000),
    ]
    census = assign(clips, WindowRequest("stage", (SQUARE, WIDE, TALL), fps=((8.0, 1.0),)))
    assert [[clip.key for clip in clips] for clips in census.clips] == [["square"], ["wide", "cinema"], ["tall"]]
    assert census.left_out == {}


def test_of_equal_aspect_ratios_the_longest_window_then_the_largest_size_not_enlarged():
    short, large, huge = Bucket(64, 64, 5), Bucket(128, 128, 9), Bucket(512, 512, 9)
    request = WindowRequest("stage", (short, SQUARE, large, huge), strides=((1, 1.0),))
    census = assign([entry("a", 200, 200), entry("b", 200, 200, num_frames=6), entry("c", 32, 32)], request)
    assert [[clip.key for clip in clips] for clips in census.clips] == [["b"], ["c"], ["a"], []]
    assert "64x64, 9 frames: 1 clips, 1 of them enlarged" in str(census)


def test_every_clip_left_out_has_a_reason():
    bad = Entry(key="bad", status="left out", reason="the file is empty (0 bytes)")
    clips = [bad, entry("short", 64, 64, num_frames=8), entry("slow", 64, 64, fps=5.0)]
    census = assign(clips, WindowRequest("stage", (SQUARE,), fps=((8.0, 1.0),)))
    assert census.clips == ((),)
    assert census.left_out["bad"] == "the file is empty (0 bytes)"
    assert "lasts 0.32 s" in census.left_out["short"] and "frames would be repeated" in census.left_out["slow"]
    assert all(reason in str(census) for reason in census.left_out.values())


def test_a_mixture_of_strides_keeps_clips_that_fit_one_of_them():
    request = WindowRequest("stage", (SQUARE,), strides=((3, 0.5), (1, 0.5), (9, 0.0)))
    census = assign([entry("a", 64, 64, num_frames=9), entry("b", 64, 64, num_frames=8)], request)
    assert [clip.key for clip in census.clips[0]] == ["a"]
    assert census.left_out == {"b": "has 8 frames; 9 at stride 1 span 9"}


def test_sides_must_suit_autoencoder_patches_and_planner():
    assert size_multiple(8, patch_size=2, planner_patch_size=1, planner_downscale=4) == 32
    assert size_multiple(8, patch_size=3, planner_patch_size=2, planner_downscale=2) == 96


@pytest.mark.parametrize(
    "arguments",
    [{"fps": ((8.0, 1.0),), "strides": ((1, 1.0),)}, {}, {"fps": ((8.0, 1.0),), "flip": 1.5}, {"fps": ((8.0, 1.0),), "off_centre": -0.1},
     {"fps": ((8.0, 1.0),), "buckets": ()}],
)  # fmt: skip
def test_contradictory_samplings_are_refused(arguments):
    with pytest.raises(ValueError, match="stage 'a'|stage 'a' "):
        WindowRequest(**{"stage": "a", "buckets": (SQUARE,), **arguments})
