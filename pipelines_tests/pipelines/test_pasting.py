"""`paste_given`: given frames keep their own pixels, and the difference fades into their neighbours."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines_tests.tiny_pipeline import clip, seeded, tiny_pipeline


STEPS = {"num_inference_steps": 2, "output_type": "pt"}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def calls(pipe, **options):
    """Return frames and places of the given ones, for each method that pastes."""
    video = clip(3)
    yield pipe(video=video, frame_indices=[0, 3, 7], num_frames=8, generator=seeded(), **options).frames, [0, 3, 7]
    yield pipe.slow_motion(video, factor=4, window=5, generator=seeded(), **options).frames, [0, 4, 8]
    yield pipe.extend(video, num_new_frames=6, window=5, generator=seeded(), **options).frames, [0, 1, 2]
    yield pipe.fill(dict(zip((2, 5, 9), video)), 12, window=5, generator=seeded(), **options).frames, [2, 5, 9]


def test_given_frames_keep_their_pixels_and_others_are_as_without(pipe):
    for (plain, places), (pasted, _) in zip(
        calls(pipe, decode_chunk_size=3, **STEPS), calls(pipe, paste_given=True, decode_chunk_size=3, **STEPS)
    ):
        others = [i for i in range(plain.shape[1]) if i not in places]
        assert torch.equal(plain[:, others], pasted[:, others])
        torch.testing.assert_close(pasted[0, places], clip(3))
        assert (plain[0, places] - clip(3)).abs().max() > 0.01


def test_the_difference_fades_over_as_many_frames_as_asked(pipe):
    options = {"video": clip(1), "num_frames": 6, **STEPS}
    plain, pasted, blended = (
        pipe(generator=seeded(), **more, **options).frames[0]
        for more in ({}, {"paste_given": True}, {"paste_given": True, "blend": 2})
    )
    difference = pasted[0] - plain[0]
    for place, weight in ((1, 2 / 3), (2, 1 / 3), (3, 0)):
        expected = (plain[place] + weight * difference).clamp(0, 1)
        inside = (plain[place] > 0.001) & (plain[place] < 0.999)  # values beyond were cut off
        assert inside.any()
        torch.testing.assert_close(blended[place][inside], expected[inside], atol=1e-4, rtol=0)


def test_in_a_loop_the_difference_fades_into_the_frames_before_the_first_one_too(pipe):
    options = {"num_new_frames": 5, "window": 7, "overlap": 1, **STEPS}
    plain, pasted, blended = (
        pipe.loop(clip(3), generator=seeded(), **more, **options).frames[0]
        for more in ({}, {"paste_given": True}, {"paste_given": True, "blend": 1})
    )
    for place, given in ((3, 2), (7, 0)):
        expected = (plain[place] + 0.5 * (pasted[given] - plain[given])).clamp(0, 1)
        inside = (plain[place] > 0.001) & (plain[place] < 0.999)
        torch.testing.assert_close(blended[place][inside], expected[inside], atol=1e-4, rtol=0)
    assert torch.equal(blended[4:7], plain[4:7])
    with pytest.raises(ValueError, match="`new_frames_only` leaves these out"):
        pipe.loop(clip(3), paste_given=True, new_frames_only=True, **options)


def test_weights_never_exceed_one(pipe):
    from diffusers_mardini.pipelines.pasting import OwnPixels

    own = OwnPixels(torch.zeros(1, 2, 3, 1, 1), [0, 4], blend=8)
    for place in range(-2, 8):
        assert sum(weight for _, weight in own._weights(place)) <= 1
    assert own._weights(2) == [(0, 0.5), (1, 0.5)]
    assert own._weights(1)[0][1] > own._weights(1)[1][1]


def test_pictures_come_back_bit_for_bit_also_for_each_of_several_videos(pipe):
    values = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    first, last = map(Image.fromarray, values)
    made = pipe(
        image=[first, last], last_image=[last, first], num_frames=5, num_videos_per_prompt=2, paste_given=True,
        num_inference_steps=1,
    ).frames  # fmt: skip
    for row, (start, end) in enumerate([values, values, values[::-1], values[::-1]]):
        assert (np.asarray(made[row][0]) == start).all() and (np.asarray(made[row][-1]) == end).all()


def test_streams_paste_too_and_cannot_blend(pipe):
    video = clip(4)
    options = {"window": 5, "decode_chunk_size": 3, **STEPS}
    for method, arguments, places in (
        (pipe.slow_motion, {"factor": 2}, [0, 2, 4, 6]),
        (pipe.extend, {"num_new_frames": 5}, [0, 1, 2, 3]),
        (pipe.retime, {"fps": 8, "source_fps": 4}, [0, 2, 4, 6]),
    ):
        plain, pasted = (
            torch.stack(list(method(iter(video), generator=seeded(), stream=True, **more, **arguments, **options)))
            for more in ({}, {"paste_given": True})
        )
        others = [place for place in range(len(plain)) if place not in places]
        assert torch.equal(plain[others], pasted[others])
        torch.testing.assert_close(pasted[places], video)
    for method, arguments in ((pipe.slow_motion, {"factor": 2}), (pipe.extend, {"num_new_frames": 5})):
        with pytest.raises(ValueError, match="`blend` needs the given frames that are still to come"):
            method(video, stream=True, paste_given=True, blend=1, **arguments, **STEPS)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"paste_given": "yes"}, "`paste_given` is 'yes'"),
        ({"paste_given": True, "blend": -1}, "`blend` is -1"),
        ({"paste_given": True, "blend": 0.5}, "`blend` is 0.5"),
        ({"blend": 2}, "pass `paste_given=True` too"),
        ({"paste_given": True, "output_type": "latent"}, "latents are not decoded"),
    ],
)
def test_what_cannot_be_pasted_is_refused(pipe, options, message):
    for method in (lambda: pipe(video=clip(1), num_frames=3, **options), lambda: pipe.extend(clip(2), 2, **options)):
        with pytest.raises(ValueError, match=message):
            method()
