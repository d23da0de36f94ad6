"""Pictures in every form of diffusers' `VideoProcessor` are accepted, and mean the same."""

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers.utils import logging
from diffusers.video_processor import VideoProcessor

from diffusers_mardini.pictures import to_rgb
from diffusers_mardini.pipelines.inputs import read_given_frames, to_pixels
from pipelines_tests.tiny_pipeline import tiny_pipeline


COLOUR = (
    (np.random.default_rng(0).random((3, 32, 32, 3)) * 255).round().astype(np.uint8)
)  # (frames, height, width, RGB)
GREY = COLOUR[..., 0]
OPACITY = COLOUR[..., 1]
RGBA = np.concatenate([COLOUR, OPACITY[..., None]], axis=-1)
LA = np.stack([GREY, OPACITY], axis=-1)


def pixels(**kwargs) -> torch.Tensor:
    arguments = {"image": None, "last_image": None, "video": None, "frame_indices": None, "num_frames": 5}
    given = read_given_frames(**{**arguments, "height": None, "width": None, "size_multiple": 16, **kwargs})
    return to_pixels(given.videos, given.height, given.width, VideoProcessor())


def pictures(frames: np.ndarray, mode: str) -> torch.Tensor:
    """Pixels of the same frames as PIL pictures."""
    return pixels(video=[PIL.Image.fromarray(frame, mode) for frame in frames])


def channels_first(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames if frames.ndim == 3 else frames.transpose(0, 3, 1, 2).copy())


FORMS = {"grey": (GREY, "L"), "RGB": (COLOUR, "RGB"), "RGBA": (RGBA, "RGBA"), "LA": (LA, "LA")}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Pillow's, of `mode`
@pytest.mark.parametrize("form", FORMS)
def test_arrays_and_tensors_of_every_kind_of_channels_are_the_pictures_they_hold(form):
    frames, mode = FORMS[form]
    expected = pictures(frames, mode)
    tensor = channels_first(frames)
    given = {
        "uint8 arrays": list(frames),
        "float arrays": list(frames / 255),
        "float32 arrays": list((frames / 255).astype(np.float32)),
        "signed arrays": list(frames / 127.5 - 1),
        "uint8 tensors": list(tensor),
        "float tensors": list(tensor / 255),
        "signed tensors": list(tensor / 127.5 - 1),
        "turned arrays": list(frames[:, ::-1, ::-1][:, ::-1, ::-1]),
    }
    for name, video in given.items():
        # The step of 8 bits that PIL rounds to where something is transparent.
        torch.testing.assert_close(
            pixels(video=video), expected, rtol=0, atol=0.005 if "A" in form else 1e-6, msg=name
        )


def test_a_channel_of_its_own_may_hold_the_grey():
    expected = pixels(video=list(GREY))
    torch.testing.assert_close(pixels(video=GREY[..., None]), expected)
    torch.testing.assert_close(pixels(video=torch.from_numpy(GREY)[:, None]), expected)
    torch.testing.assert_close(pixels(image=GREY[0])[0], expected[0, :1])


def test_a_signed_tensor_is_what_the_processor_of_diffusers_makes_of_it():
    signed = torch.from_numpy(COLOUR).permute(0, 3, 1, 2) / 127.5 - 1
    with pytest.warns(FutureWarning):
        expected = VideoProcessor().preprocess_video(signed).transpose(1, 2)
    torch.testing.assert_close(pixels(video=signed), expected)
    unsigned = VideoProcessor().preprocess_video(signed / 2 + 0.5).transpose(1, 2)
    torch.testing.assert_close(pixels(video=signed / 2 + 0.5), unsigned)


def test_one_value_below_zero_speaks_for_all_pictures_of_a_call():
    """A bright last picture is not taken for [0, 1] beside a first one that is in [-1, 1]."""
    dark, bright = np.full((32, 32, 3), -0.5), np.full((32, 32, 3), 0.5)
    both = pixels(image=dark, last_image=bright)
    assert both[0, 0].unique().item() == pytest.approx(-0.5) and both[0, 1].unique().item() == pytest.approx(0.5)
    assert pixels(image=bright)[0].unique().item() == pytest.approx(0.0)


def test_signed_pictures_are_said_to_be_taken_so(caplog):
    logging.enable_propagation()
    try:
        pixels(image=COLOUR[0] / 127.5 - 1)
        assert "are therefore taken as [-1, 1]" in caplog.text
        caplog.clear()
        pixels(image=COLOUR[0] / 255)
        assert not caplog.records
    finally:
        logging.disable_propagation()


@pytest.mark.parametrize("beyond", [1e-7, 1e-4, 9e-4])
def test_values_a_hair_beyond_the_range_are_clamped(beyond):
    for picture, expected in ((1 + beyond, 1.0), (-beyond, -1.0)):
        for kind in (np.float64, np.float32):
            made = pixels(image=np.full((64, 64, 3), picture, kind))
            assert made.unique().item() == expected
    signed = np.full((64, 64, 3), -1 - beyond)
    assert pixels(image=signed).unique().item() == -1


@pytest.mark.parametrize(
    "value, told", [(1.0016, "1.0016"), (-1.5, "-1.5"), (np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")]
)
def test_values_far_beyond_the_range_are_refused_with_enough_digits(value, told):
    picture = np.full((32, 32, 3), 0.5)
    picture[3, 4, 1] = value
    for form in (picture, torch.from_numpy(picture).permute(2, 0, 1), list(picture[None])):
        with pytest.raises(ValueError, match=f"`image` holds values from .*{told}.*floats must be finite"):
            pixels(image=form)


def test_a_little_below_zero_is_neither_the_one_nor_the_other():
    with pytest.raises(ValueError, match="down to -0.05, which may be .* that overshot; use .*`picture.clip"):
        pixels(image=np.full((32, 32, 3), -0.05))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I;16"])
def test_pil_pictures_of_every_mode_are_taken(mode):
    picture = PIL.Image.fromarray(COLOUR[0])
    picture = PIL.Image.fromarray(GREY[0].astype(np.uint16) * 257) if mode == "I;16" else _convert(picture, mode)
    expected = torch.from_numpy(np.asarray(to_rgb(picture))).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(pixels(image=picture)[0, 0], expected)


def _convert(picture: PIL.Image.Image, mode: str) -> PIL.Image.Image:
    if mode == "PA":
        return picture.convert("RGBA").convert("PA")
    if mode == "LAB":
        from PIL import ImageCms

        return ImageCms.profileToProfile(
            picture, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    return picture.convert(mode)


def test_the_pipeline_itself_takes_them():
    pipe = tiny_pipeline()
    for form in (GREY[0], RGBA[0], COLOUR[0] / 127.5 - 1, torch.from_numpy(GREY[0])):
        frames = pipe(image=form, num_frames=3, num_inference_steps=1, output_type="pt").frames
        assert frames.shape == (1, 3, 3, 32, 32)
