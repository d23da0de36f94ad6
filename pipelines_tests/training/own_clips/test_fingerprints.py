"""Copies of footage are found by content, whatever their encoding, size and beginning; other footage is not."""

import cv2
import numpy as np
import pytest

from diffusers_mardini.video_io import read_video
from pipelines_tests.training.own_clips.footage import shot
from training.own_clips import fingerprints
from training.own_clips.fingerprints import PrintMaker, Prints, find_copies


def prints(frames, fps=20.0) -> Prints:
    maker = PrintMaker(fps)
    for index, frame in enumerate(frames):
        maker.add(index / fps, cv2.cvtColor(cv2.resize(frame, (64, 48)), cv2.COLOR_RGB2GRAY))
    return maker.finish()


def noisy(frames: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 6, frames.shape)
    return (frames + noise).clip(0, 255).astype(np.uint8)


def test_a_noisy_copy_is_found_with_its_offset():
    footage = shot(1, 120)
    ((first, second, offset),) = find_copies([prints(footage), prints(shot(2, 120)), prints(noisy(footage[23:]))])
    assert (first, second) == (0, 2) and offset == pytest.approx(1.15, abs=0.1)


def test_a_copy_at_half_the_rate_is_found():
    footage = shot(1, 160)
    assert [pair[:2] for pair in find_copies([prints(footage), prints(footage[::2], 10.0)])] == [(0, 1)]


def test_two_passes_over_one_place_are_no_copies():
    assert find_copies([prints(shot(1, 120)), prints(shot(1, 120, speed=3.1))]) == []


def test_clips_in_which_nothing_moves_have_no_fingerprints():
    still = prints(noisy(shot(1, 120, 0.0)))
    assert len(still.times) == 0 and find_copies([still, still]) == []


def test_work_stays_bounded_when_all_clips_are_alike(monkeypatch):
    monkeypatch.setattr(fingerprints, "MOST_PRINTS", 2000)
    footage = prints(shot(1, 120))
    pairs = find_copies([footage] * 300)
    assert 0 < len(pairs) < 300 * 3 * 64


def test_a_thousand_different_clips_have_no_copies():
    random = np.random.default_rng(0)
    clips = [
        Prints(np.arange(8.0), np.full(8, 9.0), random.integers(0, 255, (8, 64), dtype=np.uint8)) for _ in range(1000)
    ]
    assert find_copies(clips) == []


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["sim_driving", "rc_racing", "robot_droid"])
def test_copies_of_real_clips_are_found_among_others(shared_clips, folder):
    clips = [
        np.stack([cv2.resize(frame, (64, 48)) for frame in read_video(path)[0]])
        for path in sorted((shared_clips / folder / "train").glob("*.mp4"))[:12]
    ]
    pairs = find_copies([prints(clip) for clip in clips] + [prints(noisy(clip[7:])) for clip in clips])
    found = {pair[:2] for pair in pairs}
    assert all(second == first + 12 for first, second in found) and len(found) >= 6
