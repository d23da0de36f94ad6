"""Pictures of any kind become 8-bit sRGB as viewers show them."""

import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from diffusers_mardini.pictures import to_rgb
from diffusers_mardini.video_io import read_images


def wide_profile() -> bytes:
    """The least ICC profile of Display P3's primaries and a gamma of 2.2."""

    def fractions(*values):
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + b"\0\0"
    tags = {
        b"rXYZ": b"XYZ \0\0\0\0" + fractions(0.51512, 0.24120, -0.00105),
        b"gXYZ": b"XYZ \0\0\0\0" + fractions(0.29198, 0.69225, 0.04189),
        b"bXYZ": b"XYZ \0\0\0\0" + fractions(0.15710, 0.06657, 0.78407),
        b"wtpt": b"XYZ \0\0\0\0" + fractions(0.96420, 1.0, 0.82491),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"wide\0" + bytes(79),
        b"cprt": b"text\0\0\0\0none\0",
    }
    table, data, offset = b"", b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">II", offset + len(data), len(value))
        data += value
    head = struct.pack(">I4sI4s4s4s", offset + len(data), b"none", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acspAPPL" + bytes(24) + fractions(0.9642, 1, 0.82491)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


RED, RED_BY_PROFILE = (200, 60, 40), (220, 37, 12)


def red(mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (16, 8), RED).convert(mode)


@pytest.mark.parametrize(
    "name, options",
    [("a.jpg", {"quality": 100, "subsampling": 0}), ("a.png", {}), ("a.webp", {"lossless": True}), ("a.tif", {})],
)
def test_the_profile_of_a_picture_is_applied(tmp_path, name, options):
    red().save(tmp_path / name, icc_profile=wide_profile(), **options)
    picture = read_images(tmp_path / name)[0][0]
    assert np.abs(np.asarray(picture).astype(int) - RED_BY_PROFILE).max() <= 3
    assert np.array_equal(to_rgb(picture), picture)  # not twice
    assert np.array_equal(to_rgb(Image.open(tmp_path / name)), picture)


def test_a_profile_of_srgb_and_none_leave_pixels_as_they_are(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    noise.save(tmp_path / "srgb.png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    noise.save(tmp_path / "none.png")
    for name in ("srgb.png", "none.png"):
        assert np.array_equal(read_images(tmp_path / name)[0][0], noise)


def test_profiles_of_transparent_grey_and_indexed_pictures_are_applied_too():
    def shown(picture):
        picture.info["icc_profile"] = wide_profile()
        return np.asarray(to_rgb(picture)).astype(int)[4, 4]

    half = red("RGBA")
    half.putalpha(128)
    expected = np.array(RED_BY_PROFILE) * 128 / 255 + 255 * 127 / 255
    assert np.abs(shown(half) - expected).max() <= 3
    assert np.abs(shown(red().quantize(4)) - RED_BY_PROFILE).max() <= 3
    for mode in ("L", "LA"):  # a grey by these primaries is a grey
        assert np.ptp(shown(red(mode))) <= 1


@pytest.mark.parametrize("mode, profile", [("RGB", b"nonsense" * 40), ("CMYK", wide_profile())])
def test_a_profile_that_cannot_be_used_is_left_aside_with_a_warning(tmp_path, caplog, mode, profile):
    red(mode).save(tmp_path / "odd.tif", icc_profile=profile)
    picture = read_images(tmp_path / "odd.tif")[0][0]
    assert np.abs(np.asarray(picture).astype(int) - RED).max() <= 1
    assert "odd.tif' has a colour profile that cannot be used" in caplog.text
