"""Pictures of 16 bits are scaled by the bits that their clip uses; none becomes dark in silence."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from diffusers_mardini.pictures import clip_to_rgb, to_rgb, white_of
from diffusers_mardini.video_io import PictureSeries, iterate_frames, read_frames, read_images


def ramp(white: int) -> np.ndarray:
    """From black to white, `(8, 64)`."""
    return np.tile(np.linspace(0, white, 64).round().astype(np.uint16), (8, 1))


def write_colours(path: Path, values: np.ndarray, alpha: bool = False) -> None:
    """A picture of `(height, width)` 16-bit values in three channels, which Pillow cannot write."""
    kind = ("rgba64" if alpha else "rgb48") + ("be" if path.suffix == ".png" else "le")
    layers = [values] * 3 + [np.full_like(values, 65535)] * alpha
    frame = av.VideoFrame.from_ndarray(np.stack(layers, -1), format="rgba64le" if alpha else "rgb48le")
    context = av.CodecContext.create(path.suffix[1:].replace("tif", "tiff"), "w")
    context.height, context.width = values.shape
    context.pix_fmt, context.time_base = kind, Fraction(1, 1)
    path.write_bytes(b"".join(map(bytes, [*context.encode(frame.reformat(format=kind)), *context.encode(None)])))


def write_grey(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(path)


def grey(picture: Image.Image) -> np.ndarray:
    frame = np.asarray(picture).astype(int)
    assert frame.shape[-1] == 3 and (np.ptp(frame, axis=-1) == 0).all()
    return frame[..., 0]


WRITERS = {
    "grey.png": write_grey,
    "grey.tif": write_grey,
    "colours.png": write_colours,
    "colours.tif": write_colours,
    "clear.png": lambda path, values: write_colours(path, values, alpha=True),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_pictures_of_every_number_of_bits_reach_white(tmp_path, name, bits):
    values = ramp(2**bits - 1)
    WRITERS[name](tmp_path / name, values)
    (picture,), _ = read_images(tmp_path / name)
    assert np.abs(grey(picture) - values.astype(float) * 255 / (2**bits - 1)).max() <= 1


@pytest.mark.parametrize("name", ["grey.png", "colours.tif"])
def test_the_pictures_of_a_clip_are_scaled_alike(tmp_path, name):
    (tmp_path / "clip").mkdir()
    for index, peak in enumerate((200, 4000, 900)):
        WRITERS[name](tmp_path / "clip" / f"{index}{name}", ramp(peak))
    expected = [round(peak * 255 / 4095) for peak in (200, 4000, 900)]
    for frames in (
        [np.asarray(picture) for picture in read_images(tmp_path / "clip")[0]],
        [frame for _, frame in iterate_frames(tmp_path / "clip", 5)],
        list(read_frames(tmp_path / "clip", [0.0, 0.2, 0.4], 5)),
    ):
        assert np.abs(np.array([frame.max() for frame in frames]) - expected).max() <= 1
    WRITERS[name](tmp_path / "clip" / f"3{name}", ramp(65535))
    assert PictureSeries.of_folder(tmp_path / "clip").white == 65535
    assert np.asarray(PictureSeries.of_folder(tmp_path / "clip").read(0)).max() <= 1


def test_pictures_given_together_are_scaled_alike():
    dark, bright = (Image.fromarray(ramp(peak)) for peak in (1000, 4000))
    together = [np.asarray(picture).max() for picture in clip_to_rgb([dark, bright, Image.new("L", (64, 8), 77)])]
    assert together == [round(1000 * 255 / 4095), round(4000 * 255 / 4095), 77]
    assert np.asarray(to_rgb(dark)).max() == round(1000 * 255 / 1023)


def test_white_is_the_least_number_of_bits_that_holds_all():
    assert [white_of([peak]) for peak in (0, 255, 256, 4095, 4096, 16383, 16384, 65535)] == [
        255, 255, 1023, 4095, 16383, 16383, 65535, 65535,
    ]  # fmt: skip
    read = iter([20000, 3])
    assert white_of(read) == 65535 and next(read) == 3  # the others need not be read
