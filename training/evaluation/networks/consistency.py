"""VBench's dimensions that need nothing but images: how alike the frames of a video are to each other and to its first one.

Subject consistency and i2v subject look at DINO's features, background consistency at CLIP's, with the preparation of pixels and the formulas of
github.com/Vchitect/VBench (`vbench/subject_consistency.py`, `background_consistency.py`, `vbench2_beta_i2v/i2v_subject.py`). The networks are
transformers' conversions of the same weights. Its i2v background needs DreamSim and its camera motion text: they are left to VBench's own tool.
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
# Shares of the best likeness to the given image, and of the mean and the least likeness of neighbours.
I2V_WEIGHTS = (0.4, 0.3, 0.3)


class Consistency:
    """The networks, and the three scores of a video; all in [0, 1], higher is more consistent, 1 for a still one.

    Args:
        dino: a ViT as transformers has it.
        clip: the vision tower of CLIP with its projection.
    """

    def __init__(self, dino: ViTModel, clip: CLIPVisionModelWithProjection):
        self.dino, self.clip = dino.eval(), clip.eval()

    @classmethod
    def from_pretrained(cls, dino: str = DINO, clip: str = CLIP, device: str = "cpu") -> "Consistency":
        """From the Hub or from folders.

        Raises:
            ValueError: if one of them is not to be had, with what to bring.
        """
        found = []
        for model_class, source in ((ViTModel, dino), (CLIPVisionModelWithProjection, clip)):
            extra = {"add_pooling_layer": False} if model_class is ViTModel else {}
            try:
                found.append(model_class.from_pretrained(source, use_safetensors=True, **extra).to(device))
            except OSError as error:
                raise ValueError(
                    f"{model_class.__name__} cannot be loaded from '{source}': bring config.json and model.safetensors of {source} "
                    f"into a folder, and name it with --dino or --clip ({str(error).splitlines()[0]})"
                ) from error
        return cls(*found)

    @torch.no_grad()
    def subject(self, frames: torch.Tensor) -> float:
        """Subject consistency of a video, `uint8` `(frames, 3, height, width)`."""
        return consistency(
            self._dino(_prepare(frames, self.dino.config.image_size, "bilinear", IMAGENET, antialias=False))
        )

    @torch.no_grad()
    def background(self, frames: torch.Tensor) -> float:
        """Background consistency of a video, `uint8` `(frames, 3, height, width)`."""
        size = self.clip.config.image_size
        pixels = _crop(_prepare(frames, size, "bicubic", CLIPS_OWN, antialias=False), size)
        return consistency(self.clip(pixel_values=pixels.to(self.clip.device)).image_embeds)

    @torch.no_grad()
    def i2v_subject(self, image: torch.Tensor, frames: torch.Tensor) -> float:
        """How alike the subject of a video, `uint8` `(frames, 3, height, width)`, is to the image given, `(3, height, width)`."""
        size = self.dino.config.image_size
        resized = round(size * 256 / 224)
        # VBench resizes the given image as a picture, and so to whole numbers, and the frames as tensors.
        picture = to_image(image / 255)
        short = min(picture.size)
        shape = [resized * side // short for side in picture.size]
        image = torch.from_numpy(np.array(picture.resize(shape, Image.Resampling.BICUBIC))).permute(2, 0, 1)
        one = self._dino(_crop(_normalize(image[None].float(), IMAGENET), size))
        video = self._dino(_crop(_prepare(frames, resized, "bicubic", IMAGENET, antialias=True), size))
        return likeness_to_image(one[0], video)

    def _dino(self, pixels: torch.Tensor) -> torch.Tensor:
        # The class token after the last norm is what DINO's own code returns.
        states = self.dino(pixel_values=pixels.to(self.dino.device), interpolate_pos_encoding=True).last_hidden_state
        return states[:, 0]


def consistency(features: torch.Tensor) -> float:
    """Mean over all frames but the first of the cosine likeness to the one before and to the first, averaged; negative ones count as 0.

    Args:
        features: `(frames, features)`.

    Raises:
        ValueError: if there is a single frame.
    """
    if len(features) < 2:
        raise ValueError("a video needs at least 2 frames to be consistent")
    before = _likeness(features[1:], features[:-1])
    first = _likeness(features[1:], features[:1])
    return ((before + first) / 2).mean().item()


def likeness_to_image(image: torch.Tensor, features: torch.Tensor) -> float:
    """VBench's weighting of the best likeness to the image with the mean and the least likeness of neighbouring frames.

    Args:
        image: `(features,)`.
        features: `(frames, features)`, at least two frames.
    """
    to_image = _likeness(features, image[None])
    neighbours = _likeness(features[1:], features[:-1])
    best, mean, least = I2V_WEIGHTS
    return (best * to_image.max() + mean * neighbours.mean() + least * neighbours.min()).item()


def mean_over_frames(scores: Sequence[float], lengths: Sequence[int]) -> float:
    """VBench's mean of the consistencies: every frame but the first of each video counts the same."""
    return sum(score * (length - 1) for score, length in zip(scores, lengths)) / sum(length - 1 for length in lengths)


def _likeness(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return nn.functional.cosine_similarity(one, other, dim=-1).clamp(min=0)


def _prepare(frames: torch.Tensor, size: int, mode: str, normal: tuple, antialias: bool) -> torch.Tensor:
    """The shorter side becomes `size`, as torchvision's `Resize` does it with float tensors, and `_normalize`."""
    height, width = frames.shape[-2:]
    short = min(height, width)
    shape = (size * height // short, size * width // short)
    frames = nn.functional.interpolate(frames.float(), shape, mode=mode, align_corners=False, antialias=antialias)
    return _normalize(frames, normal)


def _normalize(frames: torch.Tensor, normal: tuple) -> torch.Tensor:
    """Numbers up to 255 as the network was trained on them."""
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in normal)
    return (frames / 255 - mean) / deviation


def _crop(frames: torch.Tensor, size: int) -> torch.Tensor:
    """The centred square."""
    height, width = frames.shape[-2:]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return frames[..., top : top + size, left : left + size]
