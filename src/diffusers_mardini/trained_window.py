"""The window that a pipeline was trained on: its size, its frames and their rate, as `model_index.json` records them.

It is the default of everything that samples. Another window may be asked for; `why_far` says when it is likely to fail.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .sizes import Size, sides, size_text


KEYS = ("height", "width", "num_frames", "fps")
DEFAULT_FRAMES = 9  # of the paper's models and of pipelines that do not say
FAR = 2.0  # so many times more frames, longer or shorter sides, or another aspect ratio, are far from the training


@dataclass(frozen=True)
class TrainedWindow:
    """The window of a pipeline; what is not known is `None`.

    Attributes:
        height: of the frames in pixels.
        width: of the frames in pixels; known if `height` is.
        num_frames: given frames included.
        fps: frames per second from one frame of the window to the next.
    """

    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    fps: float | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "TrainedWindow":
        """Read the window from a pipeline's configuration, or from a mapping with some of its keys."""
        return cls(*(config.get(key) for key in KEYS))

    @classmethod
    def of_checkpoint(cls, index: Mapping[str, Any], vae_config: Mapping[str, Any]) -> "TrainedWindow":
        """Return the window of a saved pipeline; the size of older ones is that of their autoencoder's training.

        Args:
            index: content of `model_index.json`.
            vae_config: content of the autoencoder's `config.json`.
        """
        window = cls.from_config(index)
        size = learned_size(index["vae"][1], vae_config)
        if window.height is not None or size is None:
            return window
        return cls(*sides(size), window.num_frames, window.fps)

    @property
    def config(self) -> dict[str, Any]:
        """The keys of the pipeline's configuration."""
        return asdict(self)

    @property
    def size(self) -> Size | None:
        """Side of the square frames, or height and width; `None` if unknown."""
        if self.height is None or self.width is None:
            return None
        return self.height if self.height == self.width else (self.height, self.width)

    @property
    def frames(self) -> int:
        """Number of frames, `DEFAULT_FRAMES` if unknown."""
        return self.num_frames or DEFAULT_FRAMES

    def __str__(self) -> str:
        frames = "frames" if self.num_frames is None else f"{self.num_frames} frames"
        size = "" if self.size is None else f" of {size_text(self.size)} pixels"
        return frames + size + ("" if self.fps is None else f", {self.fps:g} a second")

    def why_far(self, height: int, width: int, num_frames: int) -> str | None:
        """Return a sentence if a window is so unlike this one that good frames are unlikely, else `None`."""
        far = self.num_frames is not None and num_frames > FAR * self.num_frames
        if self.height is not None and self.width is not None:
            ratios = height / self.height, width / self.width, height / width * self.width / self.height
            far = far or max(abs(math.log(ratio)) for ratio in ratios) > math.log(FAR) + 1e-9
        if not far:
            return None
        return (
            f"the window has {num_frames} frames of {size_text((height, width))} pixels, but this pipeline was trained "
            f"on {self} (height x width); expect poor frames so far from that"
        )


UNKNOWN = TrainedWindow()


def learned_size(class_name: str, config: Mapping[str, Any]) -> Size | None:
    """Return the size of the pictures that an autoencoder was trained on, or `None` if its config does not say.

    The `sample_size` of an `AutoencoderKL` does not count: it is often the default of its class, or the size of
    pictures (1024) although our models were trained on windows of another size. Only `AutoencoderPatchBasis` records
    the size of its training.
    """
    size: Any = config.get("sample_size") if class_name == "AutoencoderPatchBasis" else None
    found = size if isinstance(size, (list, tuple)) else [size, size]
    if len(found) != 2 or not all(type(side) is int and side > 0 for side in found):
        return None
    return size if isinstance(size, int) else (found[0], found[1])
