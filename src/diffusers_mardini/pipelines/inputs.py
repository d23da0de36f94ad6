"""Read and check what users pass: pictures, clips, and their places in the window.

Everything here happens before any model runs, and every error says what was given, what is accepted and what to do.
The result has one form, `GivenFrames`. Models, noise and sampling are in `pipeline_mardini.py`.
"""

import math
import operator
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers.utils import logging
from diffusers.video_processor import VideoProcessor

from ..pictures import clip_to_rgb
from ..sizes import size_text
from ..trained_window import UNKNOWN, TrainedWindow


logger = logging.get_logger(__name__)

Picture = PIL.Image.Image | np.ndarray | torch.Tensor

ACCEPTED_PICTURES = (
    "PIL images, numpy arrays (height, width, channels) and torch tensors (channels, height, width) are accepted, of "
    "1 channel (grey; its axis may be left out), 2 (with transparency), 3 (RGB) or 4, floats in [0, 1] or [-1, 1] or "
    "uint8"
)
OVERSHOOT = (
    1e-3  # floats may exceed their range by this, from rounding (a quarter of a step of 8 bits), and are clamped
)
STRETCHED = 0.1  # aspect ratios that differ by a tenth do so visibly
SIGNED_BELOW = -0.1  # about the lowest value of floats in [0, 1] after resizing with a sharp filter


@dataclass(frozen=True)
class GivenFrames:
    """The given frames, checked: every video of the batch gives the same number, at the same places.

    Args:
        videos: the pictures, `videos[row][i]`, all of one kind and size.
        given_indices: the place of `videos[row][i]` in the window; rising.
        num_frames: number of frames of the window.
        height: of the output, in pixels.
        width: of the output, in pixels.
    """

    videos: list[list[Picture]]
    given_indices: list[int]
    num_frames: int
    height: int
    width: int

    @property
    def batch_size(self) -> int:
        """Number of videos."""
        return len(self.videos)


def read_given_frames(
    image: Any,
    last_image: Any,
    video: Any,
    frame_indices: Sequence[int] | None,
    num_frames: int | None,
    height: int | None,
    width: int | None,
    size_multiple: int,
    window: TrainedWindow = UNKNOWN,
) -> GivenFrames:
    """Read the arguments of `MarDiniPipeline.__call__` that decide the task (Sec. 2.1: by masking).

    Raises:
        ValueError: for no or contradictory inputs, wrong types, sizes or places.
    """
    num_frames = window.frames if num_frames is None else num_frames
    num_frames = whole_number(num_frames, "num_frames", least=2, reason="one to keep and one to generate")
    check_task(image, last_image, video, frame_indices)
    if video is not None:
        videos = split_videos(video)
    elif last_image is None:
        videos = [[first] for first in split_images(image, "image")]
    else:
        firsts, lasts = split_images(image, "image"), split_images(last_image, "last_image")
        if len(firsts) != len(lasts):
            raise ValueError(
                f"`image` holds {len(firsts)} and `last_image` {len(lasts)} pictures; give one last for each first"
            )
        videos = [[first, last] for first, last in zip(firsts, lasts)]
        _check_pictures(videos, "image` and `last_image")
        frame_indices = [0, num_frames - 1]
    given_indices = _check_places(frame_indices, len(videos[0]), num_frames)
    if given_indices != sorted(given_indices):
        order = sorted(range(len(given_indices)), key=given_indices.__getitem__)
        videos, given_indices = [[frames[i] for i in order] for frames in videos], sorted(given_indices)
    if video is None and height is None and width is None:
        height, width = window.height, window.width
        warn_if_stretched(videos[0][0], height, width)
    height, width = output_size(videos, height, width, size_multiple)
    warn_if_far(window, height, width, num_frames)
    return GivenFrames(videos, given_indices, num_frames, height, width)


def check_task(image: Any, last_image: Any, video: Any, frame_indices: Sequence[int] | None) -> None:
    """Raise `ValueError` if nothing is given, or inputs that exclude each other; checks nothing else."""
    if image is None and video is None:
        if last_image is not None:
            raise ValueError(
                "got `last_image` without `image`; give both to interpolate, or "
                "`video=[last_image], frame_indices=[num_frames - 1]` to lead up to it"
            )
        raise ValueError(
            "no frames were given; pass `image` (image-to-video), `image` and `last_image` (interpolation) or `video` "
            "(expansion, or any places with `frame_indices`)"
        )
    if video is not None and (image is not None or last_image is not None):
        extra = "image" if image is not None else "last_image"
        raise ValueError(f"got both `video` and `{extra}`; give `video` alone and put the picture into it")
    if frame_indices is not None and video is None:
        raise ValueError("`frame_indices` names the places of the frames of `video`, but `video` is missing")


def split_videos(video: Any) -> list[list[Picture]]:
    """Split one clip or a batch of clips into pictures, `videos[row][frame]`.

    Raises:
        ValueError: for anything that is not a clip, and for pictures or clips that do not match each other.
    """
    if isinstance(video, (np.ndarray, torch.Tensor)):
        if video.ndim not in (4, 5):
            raise ValueError(f"`video` is an array shaped {tuple(video.shape)}; a clip has 4 axes, a batch of them 5")
        videos: list[list[Picture]] = [list(video)] if video.ndim == 4 else [list(clip) for clip in video]
    elif isinstance(video, (list, tuple)) and len(video) > 0:
        videos = [list(video)] if is_picture(video[0]) else [_split_clip(clip) for clip in video]
    elif isinstance(video, (list, tuple)):
        raise ValueError("`video` is an empty list; give at least one frame")
    else:
        raise ValueError(
            f"`video` is of type {type(video).__name__}; give a list of pictures, or a list of such lists for a "
            f"batch. {ACCEPTED_PICTURES}"
        )
    _check_pictures(videos, "video")
    counts = sorted({len(frames) for frames in videos})
    if not counts:
        raise ValueError(f"`video` is an array shaped {tuple(video.shape)}, a batch of no clips; give at least one")
    if counts == [0] or len(counts) > 1:
        raise ValueError(
            f"the clips of `video` have {', '.join(map(str, counts))} frames; give every clip of a batch the same "
            "number, at least 1"
        )
    return videos


def output_size(
    videos: list[list[Picture]], height: int | None, width: int | None, size_multiple: int
) -> tuple[int, int]:
    """Return height and width of the output, by default those of the pictures.

    Raises:
        ValueError: if one is not divisible by `size_multiple`.
    """
    given_height, given_width = _picture_size(videos[0][0])
    height = given_height if height is None else whole_number(height, "height", least=1)
    width = given_width if width is None else whole_number(width, "width", least=1)
    if height % size_multiple or width % size_multiple:
        nearest = [max(size_multiple, round(side / size_multiple) * size_multiple) for side in (height, width)]
        raise ValueError(
            f"the size {height}x{width} (height x width) is not divisible by {size_multiple}, which this pipeline's "
            f"VAE, patches and low-resolution planner require; the nearest size that fits is `height={nearest[0]}, "
            f"width={nearest[1]}`: pass it to have the pictures resized, or crop them first"
        )
    return height, width


def warn_if_far(window: TrainedWindow, height: int, width: int, num_frames: int) -> None:
    """Warn of a window that is far from the one trained on."""
    if far := window.why_far(height, width, num_frames):
        logger.warning(f"{far[0].upper()}{far[1:]}.")


def warn_if_stretched(picture: Picture, height: int | None, width: int | None) -> None:
    """Warn of a picture whose aspect the size of the training would change visibly; an unknown size would not."""
    given_height, given_width = _picture_size(picture)
    if height and width and abs(math.log(given_height / given_width * width / height)) > STRETCHED:
        logger.warning(
            f"The pictures of {size_text((given_height, given_width))} are stretched to {size_text((height, width))} "
            "(height x width), the size of this pipeline's training; crop them first, or pass `height` and `width`."
        )


def to_pixels(
    videos: list[list[Picture]], height: int, width: int, processor: VideoProcessor, signed: bool | None = None
) -> torch.Tensor:
    """Make one tensor of the pictures: `(batch, frames, 3, height, width)`, float32 in [-1, 1].

    Args:
        videos: the pictures.
        height, width: of the result, in pixels.
        processor: makes tensors of pictures.
        signed: whether floats are in [-1, 1]; by default the pictures tell.

    Raises:
        ValueError: for floats that may be in [0, 1] or in [-1, 1].
    """
    signed = are_signed(videos) if signed is None else signed
    clips = []
    for frames in videos:
        if isinstance(frames[0], PIL.Image.Image):
            frames = clip_to_rgb(frames)
        else:
            # (frames, 3, given height, given width)
            frames = torch.stack([_array_to_tensor(frame, signed) for frame in frames])
            if frames.shape[-2:] != (height, width):
                # For arrays the processor would take the nearest pixel; it interpolates only PIL images.
                if frames.device.type == "mps":  # which has no antialiasing in torch 2.6
                    frames = frames.cpu()
                frames = F.interpolate(frames, (height, width), mode="bilinear", antialias=True)
        clips.append(processor.preprocess_video(frames, height, width))  # (1, 3, frames, height, width)
    return torch.cat(clips).transpose(1, 2)  # (batch, frames, 3, height, width)


def whole_number(value: Any, name: str, least: int, reason: str = "") -> int:
    """Return `value` as a whole number.

    Raises:
        ValueError: for anything else, a bool included, and below `least`.
    """
    try:
        number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        why = f" ({reason})" if reason else ""
        raise ValueError(f"`{name}` is {value!r}; give a whole number of at least {least}{why}")
    return number


def read_window(height: Any, width: Any, num_frames: Any, fps: Any) -> TrainedWindow:
    """Check the window of a pipeline's configuration; each value may be `None`.

    Raises:
        ValueError: for a value that is no window's, and for a height without a width.
    """
    if (height is None) != (width is None):
        raise ValueError(f"`height` is {height!r} and `width` {width!r}; give both or neither")
    if height is not None:
        height, width = whole_number(height, "height", least=1), whole_number(width, "width", least=1)
    if num_frames is not None:
        num_frames = whole_number(num_frames, "num_frames", least=2, reason="one to keep and one to generate")
    if fps is not None and not (type(fps) in (int, float) and math.isfinite(fps) and fps > 0):
        raise ValueError(f"`fps` is {fps!r}; give a positive number of frames per second")
    return TrainedWindow(height, width, num_frames, fps)


def split_images(image: Any, name: str) -> list[Picture]:
    """Return one picture or a batch of pictures as a list.

    Raises:
        ValueError: for an empty batch, and what is no picture.
    """
    if isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 4 and len(image) == 0:
        raise ValueError(
            f"`{name}` is an array shaped {tuple(image.shape)}, a batch of no pictures; give at least one"
        )
    if (isinstance(image, (list, tuple)) and len(image) > 0) or (
        isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 4
    ):
        images: list[Any] = list(image)
    else:
        images = [image]
    _check_pictures([[picture] for picture in images], name)
    return images


def _split_clip(clip: Any) -> list[Picture]:
    if isinstance(clip, (list, tuple)) or (isinstance(clip, (np.ndarray, torch.Tensor)) and clip.ndim == 4):
        return list(clip)
    raise ValueError(
        f"`video` holds something of type {type(clip).__name__} where a clip or a picture belongs; {ACCEPTED_PICTURES}"
    )


def is_picture(picture: Any) -> bool:
    """Return whether something has the form of one picture."""
    if isinstance(picture, (np.ndarray, torch.Tensor)):
        return picture.ndim in (2, 3)
    return isinstance(picture, PIL.Image.Image)


def _check_pictures(videos: list[list[Any]], name: str) -> None:
    """Raise `ValueError` unless all pictures are of one accepted kind and size, with values in range."""
    pictures = [picture for frames in videos for picture in frames]
    for picture in pictures:
        if not is_picture(picture):
            hint = " (open a file with `PIL.Image.open`)" if isinstance(picture, str) else ""
            shape = f" shaped {tuple(picture.shape)}" if isinstance(picture, (np.ndarray, torch.Tensor)) else ""
            raise ValueError(
                f"`{name}` holds something of type {type(picture).__name__}{shape}{hint}; {ACCEPTED_PICTURES}"
            )
    # A PIL image may be of a subclass that names its file format.
    kinds = {"PIL.Image" if isinstance(p, PIL.Image.Image) else type(p).__name__ for p in pictures}
    if len(kinds) > 1:
        raise ValueError(f"`{name}` mixes {' and '.join(sorted(kinds))}; give pictures of one kind")
    for picture in pictures:
        if not isinstance(picture, PIL.Image.Image):
            _check_array(picture, name)
    sizes = sorted({_picture_size(picture) for picture in pictures})
    if len(sizes) > 1:
        listed = ", ".join(f"{height}x{width}" for height, width in sizes[:4])
        raise ValueError(
            f"the pictures of `{name}` differ in size (height x width: {listed}); resize them to one size"
        )


def _check_array(picture: np.ndarray | torch.Tensor, name: str) -> None:
    if _num_channels(picture) not in (1, 2, 3, 4) or 0 in picture.shape:
        raise ValueError(f"`{name}` holds an array shaped {tuple(picture.shape)}; {ACCEPTED_PICTURES}")
    try:
        values = _values(picture)
    except TypeError:  # a kind of numbers that torch does not have
        values = None
    if values is None or not (values.is_floating_point() or values.dtype == torch.uint8):
        raise ValueError(f"`{name}` holds an array of {picture.dtype}; {ACCEPTED_PICTURES}")
    if values.dtype == torch.uint8:
        return
    low, high = values.min().item(), values.max().item()
    if not (-1 - OVERSHOOT <= low and high <= 1 + OVERSHOOT):  # also true for NaN
        raise ValueError(
            f"`{name}` holds values from {low:.7g} to {high:.7g}; floats must be finite, and all of them in [-1, 1] "
            "or in [0, 1]: use `picture / 255` for 0 to 255, and clamp what overshoots"
        )


def are_signed(videos: list[list[Picture]], warn: bool = True) -> bool:
    """Return whether the floats of a call are in [-1, 1], not in [0, 1]: as in diffusers, one below 0 decides for
    all."""
    arrays = [frame for frames in videos for frame in frames if not isinstance(frame, PIL.Image.Image)]
    lows = [_values(array).min().item() for array in arrays if _values(array).is_floating_point()]
    lowest = min(lows, default=0.0)
    if SIGNED_BELOW < lowest < -OVERSHOOT:
        raise ValueError(
            f"the given pictures hold values down to {lowest:.4g}, which may be [-1, 1], or [0, 1] that overshot; use "
            "`picture / 2 + 0.5` for the first, `picture.clip(0, 1)` for the second"
        )
    if lowest < -OVERSHOOT and warn:
        logger.warning(
            f"The given pictures hold values down to {lowest:.4g}, and are therefore taken as [-1, 1], not as [0, 1]."
        )
    return lowest < -OVERSHOOT


def _values(picture: np.ndarray | torch.Tensor) -> torch.Tensor:
    # torch accepts no negative strides, as flipped pictures and reversed channels have.
    return torch.as_tensor(np.ascontiguousarray(picture) if isinstance(picture, np.ndarray) else picture)


def _num_channels(picture: np.ndarray | torch.Tensor) -> int:
    if picture.ndim == 2:
        return 1
    return picture.shape[2] if isinstance(picture, np.ndarray) else picture.shape[0]


def _picture_size(picture: Picture) -> tuple[int, int]:
    """Return height and width."""
    if isinstance(picture, PIL.Image.Image):
        return picture.height, picture.width
    height, width = picture.shape[:2] if isinstance(picture, np.ndarray) else picture.shape[-2:]
    return height, width


def _array_to_tensor(picture: np.ndarray | torch.Tensor, signed: bool) -> torch.Tensor:
    """Return a picture `(3, height, width)`, float32 in [0, 1]; `signed` if its floats are in [-1, 1]."""
    values = _values(picture)
    if values.ndim == 2:
        values = values[None]
    elif isinstance(picture, np.ndarray):
        values = values.permute(2, 0, 1)
    if values.dtype == torch.uint8:
        values = values.float() / 255
    else:
        values = (values.float() / 2 + 0.5 if signed else values.float()).clamp(0, 1)
    if len(values) in (2, 4):  # transparent parts become white, as in `to_rgb`
        opaque = values[-1:]
        values = values[:-1] * opaque + (1 - opaque)
    return values.expand(3, -1, -1)


def _check_places(frame_indices: Sequence[int] | None, num_given: int, num_frames: int) -> list[int]:
    """Return the places of the given frames, by default leading ones."""
    if frame_indices is None:
        places = list(range(num_given))
    else:
        try:
            # Sets and dictionaries have no order, or one of their own.
            unordered = isinstance(frame_indices, (str, bytes, Set, Mapping))
            given = None if unordered else list(frame_indices)
        except TypeError:  # a number, whatever its kind
            given = None
        if given is None:
            raise ValueError(f"`frame_indices` is {frame_indices!r}; give a list with one place per frame of `video`")
        places = [whole_number(place, "frame_indices", least=0) for place in given]
        if len(places) != num_given:
            raise ValueError(
                f"`frame_indices` names {len(places)} places, but `video` has {num_given} frames; give one for each"
            )
        if len(set(places)) != len(places):
            raise ValueError(f"`frame_indices` is {places}; a place may be named once only")
    if frame_indices is not None and max(places) >= num_frames:
        raise ValueError(
            f"`frame_indices` reaches {max(places)}, but a window of `num_frames={num_frames}` frames ends at "
            f"{num_frames - 1}; lower the place or raise `num_frames`"
        )
    if num_given >= num_frames:
        raise ValueError(
            f"{num_given} frames were given for a window of `num_frames={num_frames}`, so that nothing is left to "
            f"generate; raise `num_frames` above {num_given} or give fewer frames"
        )
    return places


def check_noise(latents: Any, shape: tuple[int, ...], given_indices: Sequence[int]) -> None:
    """Raise `ValueError` for noise that cannot be used; values at the given frames are not checked."""
    if not isinstance(latents, torch.Tensor) or tuple(latents.shape) != shape:
        got = tuple(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise ValueError(f"`latents` is {got}; give a tensor shaped {shape} (videos, frames, channels, height, width)")
    if not latents.is_floating_point():
        raise ValueError(f"`latents` holds {latents.dtype}; give noise of unit variance as floats")
    masked = [i for i in range(shape[1]) if i not in set(given_indices)]
    if not latents[:, masked].isfinite().all():
        raise ValueError("`latents` holds values that are not finite (nan or inf); give noise of unit variance")
