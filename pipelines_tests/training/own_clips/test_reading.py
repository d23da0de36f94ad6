"""Scenes, motion and still stretches are found in one pass over a clip."""

import random

import cv2
import numpy as np
import pytest

from diffusers_mardini.video_io import read_video
from pipelines_tests.training.own_clips.footage import shot, world, write
from training.own_clips.reading import ClipLook, look_at_clip


def look_at(path, frames, fps=20, **options):
    return look_at_clip(write(path, frames, fps, **options), fps, len(frames))


def test_hard_cuts_are_found_at_their_frames(tmp_path):
    frames = np.concatenate([shot(1, 30), shot(2, 25), shot(3, 40)])
    assert look_at(tmp_path / "a.mp4", frames).scenes == ((0, 30), (30, 25), (55, 40))


def test_a_fade_through_black_parts_two_scenes_and_its_black_belongs_to_none(tmp_path):
    fade = np.linspace(1, 0, 12)[:, None, None, None]
    first, second = shot(1, 42), shot(2, 42)
    first[-12:], second[:12] = first[-12:] * fade, second[:12] * fade[::-1]
    black = np.zeros((6, *first.shape[1:]), dtype=np.uint8)
    (one, begin), (two, count) = look_at(tmp_path / "a.mp4", np.concatenate([first, black, second])).scenes
    assert one == 0 and 38 <= begin <= 42 and 48 <= two <= 52 and two + count == 90


@pytest.mark.parametrize("speed", [2, 6, 10])
def test_a_fast_pan_is_no_cut(tmp_path, speed):
    assert look_at(tmp_path / "a.mp4", shot(4, 80, speed)).scenes == ((0, 80),)


def test_a_pan_that_begins_and_ends_abruptly_is_no_cut(tmp_path):
    frames = np.concatenate([shot(4, 30, 0.0), shot(4, 30, 4.0)])
    frames = np.concatenate([frames, np.repeat(frames[-1:], 30, axis=0)])
    assert look_at(tmp_path / "a.mp4", frames).scenes == ((0, 90),)


def test_footage_that_shows_every_frame_three_times_is_not_cut_to_pieces(tmp_path):
    assert look_at(tmp_path / "a.mp4", np.repeat(shot(4, 30, 6.0), 3, axis=0)).scenes == ((0, 90),)


def test_scenes_are_those_of_a_folder_of_pictures_too(tmp_path):
    for index, frame in enumerate(np.concatenate([shot(1, 20), shot(2, 20)])):
        cv2.imwrite(str(tmp_path / f"{index}.png"), frame[..., ::-1])
    assert look_at_clip(tmp_path, 10.0, 40).scenes == ((0, 20), (20, 20))


def test_motion_grows_with_distance_and_is_unknown_beyond_the_clip_and_below_a_frame(tmp_path):
    motion = look_at(tmp_path / "a.mp4", shot(5, 18, 1.0)).motion
    assert list(motion) == [0.04, 0.1, 0.2, 0.5] and motion[0.04] < motion[0.1] < motion[0.5]
    assert 0.04 not in look_at(tmp_path / "b.mp4", shot(5, 18, 1.0), fps=10).motion


def test_still_stretches_are_found_but_slow_change_is_not_still(tmp_path):
    frames = np.concatenate([shot(6, 40), np.repeat(shot(6, 40)[-1:], 60, axis=0), shot(7, 20)])
    found = look_at(tmp_path / "a.mp4", frames)
    ((start, length),) = found.stills
    assert 1.9 <= start <= 2.6 and 2.4 <= length <= 3.6 and not found.all_still
    assert look_at(tmp_path / "b.mp4", shot(6, 60, 0.0)).all_still
    slow = (world(8)[:48, :64] * np.linspace(0.5, 1.0, 200)[:, None, None, None]).astype(np.uint8)
    assert not look_at(tmp_path / "c.mp4", slow).stills


def test_a_record_is_read_as_it_was_written(tmp_path):
    found = look_at(tmp_path / "a.mp4", np.concatenate([shot(1, 60), shot(2, 40)]))
    again = ClipLook.of(found.record())
    assert again.scenes == found.scenes and again.stills == found.stills and again.motion.keys() == found.motion.keys()
    assert np.array_equal(again.prints.blocks, found.prints.blocks) and len(again.prints.times) > 0


def test_reading_ends_when_asked_to_stop(tmp_path):
    assert look_at_clip(write(tmp_path / "a.mp4", shot(1, 90)), 20, 90, stop=lambda: True) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "least"), [("sim_driving", 0.6), ("rc_racing", 0.4), ("robot_droid", 0.95), ("real_clips", 0.6)]
)
def test_real_clips_that_are_joined_are_cut_there_and_nowhere_else(tmp_path, shared_clips, folder, least):
    random.seed(0)
    paths = random.sample(sorted((shared_clips / folder / "train").glob("*.mp4")), 24)
    right = elsewhere = 0
    for first, second in zip(paths[::2], paths[1::2]):
        one, two = ([cv2.resize(frame, (64, 48)) for frame in read_video(path)[0][:30]] for path in (first, second))
        found = look_at(tmp_path / "joined.mp4", np.stack(one + two))
        begins = {begin for begin, _ in found.scenes} - {0}
        right += len(one) in begins
        elsewhere += len(begins - {len(one)})
    assert right >= least * 12 and elsewhere <= 1
