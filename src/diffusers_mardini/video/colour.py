"""Convert a decoded frame to 8-bit sRGB on white, by its own colour tags and those of its stream.

Crop, turns and the shape of pixels are handled in `upright.py`.
"""

from collections.abc import Callable
from functools import lru_cache

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from ..pictures import to_rgb


# Numbers of ITU-T H.273, which FFmpeg and all containers share.
UNSPECIFIED = 2
BT2020 = 9  # as primaries and as matrix
PQ, HLG = 16, 18  # transfer: SMPTE ST 2084, ARIB STD-B67
SWS_BT709, SWS_BT2020 = 1, 9  # matrices as swscale numbers them
DERIVED_MATRICES = (12, 13)  # "as the primaries say"
UNREADABLE_MATRICES = {8: "YCgCo", 10: "BT.2020 with constant luminance", 14: "ICtCp", 15: "IPT-C2 of Dolby Vision"}

REFERENCE_WHITE = 203  # nits, ITU-R BT.2408
HLG_PEAK = 1000  # nits of the display that HLG's own curve is meant for; reference white then is a signal of 75%

BT2020_TO_BT709 = ((1.660491, -0.587641, -0.07285), (-0.12455, 1.1329, -0.00835), (-0.018151, -0.100579, 1.11873))
P3_TO_BT709 = ((1.22494, -0.22494, 0.0), (-0.042057, 1.042057, 0.0), (-0.019638, -0.078636, 1.098274))
WIDE_PRIMARIES = {BT2020: BT2020_TO_BT709, 11: P3_TO_BT709, 12: P3_TO_BT709}

# swscale's usual way rounds more than 8 bits down to 253 of 255.
DEEP_INTERPOLATION = 2 | 0x2000  # BILINEAR | FULL_CHR_H_INT
DEEP_YUV_WHITE = 255 * 256  # what swscale makes white of YUV in 16 bits
ROWS = 64  # converted at once, so that the results of the tables stay in the processor's cache


def frame_to_rgb(
    frame: av.VideoFrame, stream: av.VideoStream, reformatter: VideoReformatter, warn: Callable[[str], None]
) -> np.ndarray:
    """Return a stored frame as 8-bit sRGB: by its matrix and range, tone-mapped if HDR, on white if transparent.

    Args:
        frame: a frame of any pixel format.
        stream: its stream, whose decoder knows transfer and primaries.
        reformatter: of the frames of this stream.
        warn: called with a sentence, without its subject, about what is lost.

    Returns:
        `uint8` shaped `(height, width, 3)`; it may share the frame's memory.
    """

    def converted(pixel_format: str, **options: int) -> np.ndarray:
        return reformatter.reformat(frame, format=pixel_format, **options).to_ndarray()

    transparent, deep, yuv = _kind(frame.format.name)
    transfer, primaries = int(stream.codec_context.color_trc), int(stream.codec_context.color_primaries)
    options = _matrix(frame, transfer, primaries) if yuv else {}
    is_hdr = transfer in (PQ, HLG)
    if is_hdr:
        warn(
            f"is HDR ({'PQ' if transfer == PQ else 'HLG'}); it is tone-mapped to SDR, where everything brighter than "
            f"reference white ({REFERENCE_WHITE} nits) is white"
        )
        colours = converted("rgb48le", **options)
        light = _hdr_light(transfer, DEEP_YUV_WHITE if yuv else 65535)
        to_bt709 = BT2020_TO_BT709 if primaries == UNSPECIFIED else WIDE_PRIMARIES.get(primaries)
        array = _by_light(colours, light, to_bt709, transfer == HLG)
    else:
        if deep:
            options["interpolation"] = DEEP_INTERPOLATION
        if deep and not yuv and not transparent:
            array = _to_8_bits(converted("rgb48le"))
        else:
            array = converted("rgba" if transparent else "rgb24", **options)
        if primaries in WIDE_PRIMARIES:
            narrow = _by_light(array[..., :3], _srgb_light(), WIDE_PRIMARIES[primaries], False)
            array = np.dstack([narrow, array[..., 3]]) if transparent else narrow
    if is_hdr and transparent:
        array = np.dstack([array, converted("rgba")[..., 3]])
    return _on_white(array, stream) if transparent else array


@lru_cache(maxsize=64)
def _kind(pixel_format: str) -> tuple[bool, bool, bool]:
    """Return whether a pixel format may be transparent, has more than 8 bits, and is YUV."""
    kind = av.VideoFormat(pixel_format, 16, 16)
    components = kind.components
    transparent = kind.has_palette or any(component.is_alpha for component in components)
    yuv = not kind.is_rgb and not kind.has_palette and sum(not component.is_alpha for component in components) == 3
    return transparent, max(component.bits for component in components) > 8, yuv


def _matrix(frame: av.VideoFrame, transfer: int, primaries: int) -> dict[str, int]:
    """Return swscale's options for the right matrix: the tagged one, else the one that players assume for the size."""
    tagged = int(frame.colorspace)
    if tagged in UNREADABLE_MATRICES:
        raise ValueError(
            f"its colours are coded as {UNREADABLE_MATRICES[tagged]}; encode it again with the matrix of BT.709"
        )
    if tagged != UNSPECIFIED and tagged not in DERIVED_MATRICES:
        return {}
    if transfer in (PQ, HLG) or primaries == BT2020:
        return {"src_colorspace": SWS_BT2020}
    return {"src_colorspace": SWS_BT709} if frame.height >= 720 or frame.width >= 1280 else {}


def _on_white(array: np.ndarray, stream: av.VideoStream) -> np.ndarray:
    """Return a picture of `(height, width, 4)` on white, as `to_rgb` does it for files of pictures."""
    alpha = array[..., 3]
    if alpha.min() == 255:
        return array[..., :3]
    if stream.codec_context.name == "rawvideo" and alpha.max() == 0:  # AVI with 32 bits, of which 8 are padding
        return array[..., :3]
    return np.asarray(to_rgb(Image.fromarray(np.ascontiguousarray(array))))


def _to_8_bits(array: np.ndarray) -> np.ndarray:
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _by_light(array: np.ndarray, light: np.ndarray, to_bt709: tuple | None, system_gamma: bool) -> np.ndarray:
    """Return 8-bit sRGB `(height, width, 3)` of a picture whose values are converted through linear light.

    Args:
        array: the signal, integers that index `light`.
        light: the light of each signal; 1 is white.
        to_bt709: the matrix from the picture's primaries to those of sRGB.
        system_gamma: whether `light` is the light of the scene, as in HLG, rather than of the screen.
    """
    result = np.empty(array.shape, np.uint8)
    encoded = _srgb_encoded()
    matrix = None if to_bt709 is None else np.array(to_bt709, np.float32).T
    for start in range(0, len(array), ROWS):
        linear = light[array[start : start + ROWS]]
        if system_gamma:
            brightness = linear @ np.array([0.2627, 0.678, 0.0593], np.float32)
            linear *= (HLG_PEAK / REFERENCE_WHITE) * np.power(brightness, 0.2)[..., None]
        if matrix is not None:
            linear = linear @ matrix
        np.clip(linear, 0, 1, out=linear)
        result[start : start + ROWS] = encoded[(linear * 65535 + 0.5).astype(np.uint16)]
    return result


@lru_cache(maxsize=4)
def _hdr_light(transfer: int, white: int) -> np.ndarray:
    """Return the light of each 16-bit signal up to `white`: for PQ that of the screen, for HLG that of the scene."""
    signal = np.minimum(np.arange(65536) / white, 1.0)
    if transfer == PQ:
        power = signal ** (1 / 78.84375)
        nits = 10000 * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
        return (nits / REFERENCE_WHITE).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)


@lru_cache(maxsize=1)
def _srgb_light() -> np.ndarray:
    signal = np.arange(256) / 255
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4).astype(np.float32)


@lru_cache(maxsize=1)
def _srgb_encoded() -> np.ndarray:
    light = np.arange(65536) / 65535
    signal = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (255 * signal).round().astype(np.uint8)
