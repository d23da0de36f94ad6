"""VBench's scores that need only images: the likeness of a video's frames to each other and to its first one.

Subject consistency and i2v subject use DINO's features, background consistency CLIP's, with the preprocessing and the
formulas of github.com/Vchitect/VBench (`vbench/subject_consistency.py`, `background_consistency.py`,
`vbench2_beta_i2v/i2v_subject.py`). The networks are transformers' conversions of the same weights. I2v background
needs DreamSim, and camera motion needs text: VBench's own tool computes them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import CLIPVisionModelWithProjection, ViTModel

from training.figures.contact_sheets import to_image


DINO, CLIP = "facebook/dino-vitb16", "openai/clip-vit-base-patch32"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIPS_OWN = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
# Weights of the best likeness to the given image, and of the mean and the least likeness of neighbouring frames.
I2V_WEIGHTS = (0.4, 0.3, 0.3)


class Consistency:
    """The networks and the three scores of a video, in [0, 1]; 1 for a still video.

    Args:
        dino: a ViT of transformers.
        clip: the vision tower of CLIP with its projection.
    """

    def __init__(self, dino: ViTModel, clip: CLIPVisionModelWithProjection):
        self.dino, self.clip = dino.eval(), clip.eval()

    @classmethod
    def from_pretrained(cls, dino: str = DINO, clip: str = CLIP, device: str = "cpu") -> "Consistency":
        """Load both networks from the Hub or from folders.

        Raises:
            ValueError: if one cannot be loaded; the message names the files it needs.
        """
        found = []
        for model_class, source in ((ViTModel, dino), (CLIPVisionModelWithProjection, clip)):
            extra = {"add_pooling_layer": False} if model_class is ViTModel else {}
            try:
                found.append(model_class.from_pretrained(source, use_safetensors=True, **extra).to(device))
            except OSError as error:
                raise ValueError(
                    f"{model_class.__name__} cannot be loaded from '{source}': put config.json and model.safetensors "
                    f"of {source} into a folder and name it with --dino or --clip ({str(error).splitlines()[0]})"
                ) from error
        return cls(*found)

    @torch.no_grad()
    def subject(self, frames: torch.Tensor) -> float:
        """Return the subject consistency of a video, `uint8` `(frames, 3, height, width)`."""
        return consistency(
            self._dino(_prepare(frames, self.dino.config.image_size, "bilinear", IMAGENET, antialias=False))
        )

    @torch.no_grad()
    def background(self, frames: torch.Tensor) -> float:
        """Return the background consistency of a video, `uint8` `(frames, 3, height, width)`."""
        size = self.clip.config.image_size
        pixels = _crop(_prepare(frames, size, "bicubic", CLIPS_OWN, antialias=False), size)
        return consistency(self.clip(pixel_values=pixels.to(self.clip.device)).image_embeds)

    @torch.no_grad()
    def i2v_subject(self, image: torch.Tensor, frames: torch.Tensor) -> float:
        """Return the likeness of a video's subject to the given image.

        Args:
            image: `uint8` `(3, height, width)`.
            frames: `uint8` `(frames, 3, height, width)`.
        """
        size = self.dino.config.image_size
        resized = round(size * 256 / 224)
        # VBench resizes the given image with PIL, which rounds pixels, and the frames as float tensors.
        picture = to_image(image / 255)
        short = min(picture.size)
        shape = [resized * side // short for side in picture.size]
        image = torch.from_numpy(np.array(picture.resize(shape, Image.Resampling.BICUBIC))).permute(2, 0, 1)
        one = self._dino(_crop(_normalize(image[None].float(), IMAGENET), size))
        video = self._dino(_crop(_prepare(frames, resized, "bicubic", IMAGENET, antialias=True), size))
        return likeness_to_image(one[0], video)

    def _dino(self, pixels: torch.Tensor) -> torch.Tensor:
        # Like DINO's own code: the class token after the last norm.
        states = self.dino(pixel_values=pixels.to(self.dino.device), interpolate_pos_encoding=True).last_hidden_state
        return states[:, 0]


def consistency(features: torch.Tensor) -> float:
    """Return the mean cosine likeness of each frame but the first to the one before and to the first; at least 0.

    Args:
        features: `(frames, features)`.

    Raises:
        ValueError: if there is a single frame.
    """
    if len(features) < 2:
        raise ValueError("consistency needs a video of at least 2 frames")
    before = _likeness(features[1:], features[:-1])
    first = _likeness(features[1:], features[:1])
    return ((before + first) / 2).mean().item()


def likeness_to_image(image: torch.Tensor, features: torch.Tensor) -> float:
    """Return the best likeness to the image, weighted with the mean and the least likeness of neighbouring frames.

    Args:
        image: `(features,)`.
        features: `(frames, features)`, at least two frames.
    """
    to_image = _likeness(features, image[None])
    neighbours = _likeness(features[1:], features[:-1])
    best, mean, least = I2V_WEIGHTS
    return (best * to_image.max() + mean * neighbours.mean() + least * neighbours.min()).item()


def mean_over_frames(scores: Sequence[float], lengths: Sequence[int]) -> float:
    """Return VBench's mean of consistencies: all frames but the first of each video have the same weight."""
    return sum(score * (length - 1) for score, length in zip(scores, lengths)) / sum(length - 1 for length in lengths)


def _likeness(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return nn.functional.cosine_similarity(one, other, dim=-1).clamp(min=0)


def _prepare(frames: torch.Tensor, size: int, mode: str, normal: tuple, antialias: bool) -> torch.Tensor:
    """Resize the shorter side to `size`, like torchvision's `Resize` on float tensors, and normalize."""
    height, width = frames.shape[-2:]
    short = min(height, width)
    shape = (size * height // short, size * width // short)
    frames = nn.functional.interpolate(frames.float(), shape, mode=mode, align_corners=False, antialias=antialias)
    return _normalize(frames, normal)


def _normalize(frames: torch.Tensor, normal: tuple) -> torch.Tensor:
    """Scale pixels in [0, 255] as in the training of the network."""
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in normal)
    return (frames / 255 - mean) / deviation


def _crop(frames: torch.Tensor, size: int) -> torch.Tensor:
    """Crop the centred square."""
    height, width = frames.shape[-2:]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return frames[..., top : top + size, left : left + size]
