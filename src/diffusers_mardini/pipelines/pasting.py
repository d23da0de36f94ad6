"""Put the given frames' own pixels into a decoded video (`paste_given`); the autoencoder alone would blur them."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .inputs import whole_number


@dataclass(frozen=True)
class OwnPixels:
    """Pixels that replace those of decoded frames.

    Args:
        pixels: of the given frames, `(videos, given frames, 3, height, width)` in [-1, 1].
        places: the frames' places in the video; rising.
        blend: number of sampled frames on each side of a given one over which what decoding changed in it fades in.
        period: of a loop, the number of its frames: the first given frame follows the last frame, too.
    """

    pixels: torch.Tensor
    places: Sequence[int]
    blend: int = 0
    period: int | None = None

    def pasted(
        self, chunks: Iterable[torch.Tensor], num_frames: int, decoded: torch.Tensor | None = None
    ) -> Iterator[torch.Tensor]:
        """Yield decoded chunks `(frames, 3, height, width)`, one video after the other, with these pixels in them.

        Args:
            chunks: of consecutive frames, in [-1, 1].
            num_frames: of each video.
            decoded: the given frames as decoded, shaped like `pixels`; needed only to blend.
        """
        index = {place: i for i, place in enumerate(self.places)}
        number = 0
        for chunk in chunks:
            chunk = chunk.clone()
            for frame in chunk:
                video, place = divmod(number, num_frames)
                if place in index:
                    frame.copy_(self.pixels[video, index[place]])
                elif decoded is not None:
                    for i, weight in self._weights(place):
                        frame.add_((self.pixels[video, i].cpu() - decoded[video, i].cpu()).to(frame) * weight)
                number += 1
            yield chunk

    def _weights(self, place: int) -> list[tuple[int, float]]:
        """Return which given frames change a sampled one, and how much: less with the distance, together at most 1."""
        last, first = bisect_left(self.places, place) - 1, bisect_right(self.places, place)
        distances = {i: abs(self.places[i] - place) for i in (last, first) if 0 <= i < len(self.places)}
        if self.period is not None and first == len(self.places):
            again = self.places[0] + self.period - place
            distances[0] = min(distances.get(0, again), again)
        weights = {i: 1 - distance / (self.blend + 1) for i, distance in distances.items()}
        weights = {i: weight for i, weight in weights.items() if weight > 0}
        total = max(1.0, sum(weights.values()))
        return [(i, weight / total) for i, weight in weights.items()]


def check_pasting(paste_given: bool, blend: int, output_type: str) -> int:
    """Return `blend` as a number.

    Raises:
        ValueError: for arguments that cannot be used, alone or together.
    """
    if not isinstance(paste_given, (bool, np.bool_)):
        raise ValueError(f"`paste_given` is {paste_given!r}; give True or False")
    blend = whole_number(blend, "blend", least=0, reason="sampled frames on each side of a given one")
    if blend and not paste_given:
        raise ValueError(f"`blend` is {blend}, but no pixels are pasted; pass `paste_given=True` too")
    if paste_given and output_type == "latent":
        raise ValueError("`paste_given` puts pixels into decoded frames, and latents are not decoded; leave it out")
    return blend
